//! What happens to a server.

use mdm_api::command::CommandAnswer;
use mdm_api::error::CommandError;
use mdm_api::ids::{DeviceId, ProcessIncarnation, SdcId, SdsId, SystemId};
use mdm_api::map::MapDelta;
use mdm_api::ticket::Nonce;
use mdm_api::timing::Timing;
use sds_api::client::ClientRequest;
use sds_api::peer::PeerFrame;
use sds_store::io::{DiskDone, DiskError};

use crate::action::CommandId;

/// What a server is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The system.
    pub system: SystemId,
    /// This server.
    pub sds: SdsId,
    /// Drawn at random at each start, not 0: a repeated registration is known by it.
    pub nonce: u64,
    /// Drawn at random at each start: salts of newly formatted devices are derived from it.
    pub seed: u64,
    /// Where it serves data; empty: as the system has it.
    pub addresses: Vec<String>,
    /// Bytes of the journal of devices that it formats; none: by their size.
    pub journal_bytes: Option<u64>,
    /// Milliseconds over which a scrub of each device is spread; 0: there is none.
    pub scrub_period_ms: u64,
    /// Memory for committed entries that are kept for replicas that come back soon, in bytes over all groups.
    pub retained_bytes: usize,
    /// The spans in force.
    pub timing: Timing,
}

/// A device that this server had open before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownDevice {
    /// Which.
    pub device: DeviceId,
    /// Where.
    pub path: String,
}

/// A client wants to use a volume.
#[derive(Clone, Debug)]
pub struct ClientOpen {
    /// The connection; the shell numbers them and never uses a number twice.
    pub connection: u64,
    /// The client that the connection was greeted as.
    pub sdc: SdcId,
    /// Comes back with the answer.
    pub request: u32,
    /// The ticket as it came.
    pub ticket: Vec<u8>,
    /// The client's proof for this connection.
    pub proof: [u8; 32],
    /// The nonce that this server drew for the connection.
    pub server_nonce: Nonce,
    /// The nonce that the client drew.
    pub client_nonce: Nonce,
    /// The wall clock: seconds since 1970. Only for the ticket's times.
    pub now_s: u64,
}

/// Why a command has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandFailure {
    /// The system said no.
    Refused(CommandError),
    /// Nobody answered in time: it may have taken effect or not.
    Unknown,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// The process starts. Once, first.
    Boot {
        /// Devices that it had open when it last ran; the map names the others.
        devices: Vec<KnownDevice>,
    },
    /// The answer to [`crate::Action::OpenDevice`].
    DeviceOpened {
        /// Which.
        device: DeviceId,
        /// Its size in bytes, or why not, with its remedy.
        result: Result<u64, String>,
    },
    /// Operations of a device ended.
    Disk {
        /// Which device.
        device: DeviceId,
        /// Which operations, and how.
        done: Vec<DiskDone>,
    },
    /// A device can do nothing more.
    DeviceGone {
        /// Which.
        device: DeviceId,
        /// Why.
        cause: DiskError,
    },
    /// The answer to [`crate::Action::Command`].
    CommandDone {
        /// Which.
        id: CommandId,
        /// What came of it.
        result: Result<CommandAnswer, CommandFailure>,
    },
    /// The map has changed.
    Delta(MapDelta),
    /// A client wants to use a volume.
    ClientOpen(ClientOpen),
    /// A client is done with a volume.
    ClientClose {
        /// The connection.
        connection: u64,
        /// The handle.
        handle: u32,
    },
    /// A client asks.
    ClientRequest {
        /// The connection.
        connection: u64,
        /// What.
        request: ClientRequest,
    },
    /// A client's connection has ended.
    ClientGone {
        /// The connection.
        connection: u64,
    },
    /// There is a connection to another server. Frames of earlier connections come before this or not at all.
    PeerUp {
        /// The other server.
        sds: SdsId,
        /// Its process.
        incarnation: ProcessIncarnation,
    },
    /// It is gone, or could not be made.
    PeerDown {
        /// The other server.
        sds: SdsId,
        /// True if it was reset or refused (the process is gone), false if it fell silent.
        reset: bool,
    },
    /// A frame from another server, over the connection of the last [`Event::PeerUp`].
    PeerFrame {
        /// The other server.
        sds: SdsId,
        /// Its process, as it proved.
        incarnation: ProcessIncarnation,
        /// What it says.
        frame: PeerFrame,
    },
    /// The process is about to end in good order: apply and checkpoint everything. [`crate::Shard::is_drained`] tells when.
    Drain,
    /// Time has passed; due at [`crate::Shard::next_deadline`] at the latest.
    Tick,
}
