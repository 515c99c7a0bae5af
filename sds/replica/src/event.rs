//! What happens to a replica.

use bytes::Bytes;
use mdm_api::config::PgConfig;
use mdm_api::epoch::{AttachGeneration, Seq, Term, Version};
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation, SdcId, SdsId, VolumeId, VtreeId};
use sds_api::block::LayerKey;
use sds_api::client::ClientOperation;
use sds_api::entry::{Entry, WriteIdentity};
use sds_api::peer::{BlocksData, LayerCopy, PeerMessage};

/// Names a client's request in the server around the replica: the replica hands it back with the answer and reads nothing
/// into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientRef {
    /// For instance the connection.
    pub connection: u64,
    /// For instance the request's tag.
    pub tag: u64,
}

/// Names a request to the store; unique in the life of one [`crate::Replica`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What a replica is and stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The group.
    pub pg: PgId,
    /// The device that the replica lies on.
    pub device: DeviceId,
    /// The server that holds the device.
    pub server: SdsId,
    /// This start of the server's process.
    pub incarnation: ProcessIncarnation,
}

/// What the store says about what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was ever acknowledged is there.
    Clean,
    /// The journal ends in an invalid frame: what was acknowledged is there unless the disk lied. The metadata manager
    /// waits for all of the ISR before it appoints (F5); the replica itself does nothing different.
    TailUncertain,
    /// Acknowledged entries or content may be missing: never in the ISR, content never trusted (I12, F17, F18).
    Suspect,
}

/// What the store has kept of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The newest durable promise; term 0 if there is none.
    pub promised: Term,
    /// The newest durable `SaveState`, and the entry through which it is valid.
    pub state: Option<(Seq, Bytes)>,
    /// Entries up to here are known to be committed: at least through the state. The store shows them to readers by itself.
    pub committed: Seq,
    /// The entries beyond the state, dense and in order, voided ones left out.
    pub entries: Vec<Entry>,
    /// What the store found.
    pub verdict: Verdict,
}

/// Where a member's device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberHome {
    /// The device.
    pub device: DeviceId,
    /// The server that holds it.
    pub server: SdsId,
    /// The newest process of that server that the map knows.
    pub incarnation: ProcessIncarnation,
    /// The metadata manager takes the server to be dead. A hint: the server may be heard here all the same.
    pub is_down: bool,
}

/// Why the store could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The device has failed, once and for good (I22): the replica stops.
    #[error("the device has failed")]
    DeviceFailed,
}

/// What the store did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreDone {
    /// An append, promise, saved state, void, install, removal, repair or forgetting is durable.
    Durable,
    /// `Read`: the blocks, zeros where nothing was written, verified (I21).
    Blocks(BlocksData),
    /// `Read` or `Capture`: these blocks of the layer have no good copy here. Not empty.
    BadBlocks(Vec<u16>),
    /// `Status`: for each block of the range, true if it holds data.
    Status(Vec<bool>),
    /// `ListChunks`: in order of key; versions of the committed content.
    Chunks(Vec<(LayerKey, Version)>),
    /// `Capture`: the committed content of a layer; none if the layer does not exist.
    Layer(Option<LayerCopy>),
}

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Event {
    /// The map has this configuration of the group (it need not name this device), or servers of its members changed.
    ///
    /// The server passes none before its map is at least as new as the registration of its own process: that is what
    /// keeps a restarted replica from following a primary that was deposed meanwhile. Configurations that come late are
    /// ignored. All replicas of the group in one server get it before any of them gets another event.
    Config {
        /// The configuration.
        config: PgConfig,
        /// The pool's policy: with fewer in-sync replicas than this, writes wait. At least 1.
        min_isr: u8,
        /// Where the members are, all of `isr` and `learners`.
        homes: Vec<MemberHome>,
    },
    /// A client's request. The server has checked ticket, rights, volume bounds, generation and snapshot sequence.
    Client {
        /// Who gets the answer.
        client: ClientRef,
        /// What is asked.
        operation: ClientOperation,
        /// Whose it is; for `Write` and `Zero`.
        identity: Option<WriteIdentity>,
        /// Chunk and layer.
        layer: LayerKey,
    },
    /// A message from another replica of the group.
    Peer(PeerMessage),
    /// There is a connection to the process that holds that member. Messages sent before are lost or come before this.
    PeerConnected {
        /// The member.
        device: DeviceId,
        /// The process at the other end.
        incarnation: ProcessIncarnation,
    },
    /// The connection is gone.
    PeerLost {
        /// The member.
        device: DeviceId,
        /// True if it was reset or refused (the process is gone), false if it fell silent.
        reset: bool,
    },
    /// The store has finished a request.
    Store {
        /// Which.
        token: Token,
        /// How.
        result: Result<StoreDone, StoreError>,
    },
    /// The store wants to move its tail: answer with `SaveState` as of the last committed entry.
    WantState,
    /// A scrub of the store found this block bad.
    BadBlock {
        /// The layer that holds it.
        layer: LayerKey,
        /// Which.
        block: u16,
    },
    /// Sessions of this mapping below `below` are fenced (I17, F26).
    Fence {
        /// Comes back in [`crate::Action::Fenced`].
        fence: u64,
        /// The volume.
        volume: VolumeId,
        /// The client.
        sdc: SdcId,
        /// The first generation that is not fenced.
        below: AttachGeneration,
    },
    /// All chunks of the tree go. Ignored unless this is the serving primary: the server asks again when roles change.
    DropVtree {
        /// The tree.
        vtree: VtreeId,
    },
    /// Time has passed; due whenever [`crate::Replica::deadline`] is reached.
    Tick,
}
