//! What a server wants done.

use std::fmt;

use mdm_api::command::DaemonCommand;
use mdm_api::ids::{DeviceId, SdsId};
use sds_api::client::ClientReply;
use sds_api::open::OpenRefusal;
use sds_api::peer::PeerFrame;
use sds_store::io::DiskRequest;

use crate::event::KnownDevice;

/// Names a command to the metadata manager, unique in the life of the process. A repeated one has a new number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// How much a notice matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Good to know.
    Information,
    /// Somebody should look.
    Warning,
    /// Something is broken.
    Error,
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub severity: Severity,
    /// What happened, and what to do where there is something to do.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a server wants done, in this order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Open and lock a device; answer with [`crate::Event::DeviceOpened`].
    OpenDevice {
        /// Which.
        device: DeviceId,
        /// Where.
        path: String,
    },
    /// Let a device go.
    CloseDevice {
        /// Which.
        device: DeviceId,
    },
    /// Carry operations out; answer with [`crate::Event::Disk`].
    Disk {
        /// Of which device.
        device: DeviceId,
        /// Not empty.
        requests: Vec<DiskRequest>,
    },
    /// Keep this list for the next [`crate::Event::Boot`], in place of the one before. A list that is lost is found again in
    /// the map.
    RememberDevices(Vec<KnownDevice>),
    /// Ask the metadata manager; answer with [`crate::Event::CommandDone`].
    Command {
        /// Comes back with the answer.
        id: CommandId,
        /// What.
        command: DaemonCommand,
    },
    /// Follow the map anew from nothing: a step was missed.
    FollowAnew,
    /// Keep a connection to another server from here on: answer with [`crate::Event::PeerUp`] and
    /// [`crate::Event::PeerDown`] as it comes and goes. Said again when its addresses change.
    ConnectPeer {
        /// Which.
        sds: SdsId,
        /// Where, each `host:port`.
        addresses: Vec<String>,
    },
    /// No connection is wanted any more; no event follows.
    DisconnectPeer {
        /// To which.
        sds: SdsId,
    },
    /// Send a frame over the connection to another server. Lease frames go past bulk ones.
    SendPeer {
        /// To which.
        sds: SdsId,
        /// What.
        frame: PeerFrame,
    },
    /// A volume is open.
    Opened {
        /// On which connection.
        connection: u64,
        /// From the opening.
        request: u32,
        /// Names the volume from here on.
        handle: u32,
        /// This server's proof.
        proof: [u8; 32],
    },
    /// A volume is not opened.
    OpenRefused {
        /// On which connection.
        connection: u64,
        /// From the opening.
        request: u32,
        /// What the client can do.
        code: OpenRefusal,
        /// Why, for people.
        text: String,
    },
    /// Answer a client's request.
    Reply {
        /// On which connection.
        connection: u64,
        /// The answer.
        reply: ClientReply,
    },
    /// End a client's connection: it does not keep to the protocol. [`crate::Event::ClientGone`] follows.
    CloseClient {
        /// Which.
        connection: u64,
        /// Why, for both logs.
        text: String,
    },
    /// Put a line into the log.
    Notice(Notice),
    /// This process must end: it is not the one that the system counts on.
    Stop {
        /// Why.
        reason: String,
    },
}

impl Action {
    pub(crate) fn notice(severity: Severity, text: impl Into<String>) -> Self {
        Self::Notice(Notice { severity, text: text.into() })
    }
}
