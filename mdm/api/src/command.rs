//! What can be asked of the cluster, and the answers.
//!
//! People's verbs ([`AdminCommand`], [`Query`]) and the daemons' own requests ([`DaemonCommand`]). A changing command carries
//! a random request id; asked twice under the same id it takes effect once and gives the same answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::PgChange;
use crate::epoch::{AttachGeneration, Revision};
use crate::error::CommandError;
use crate::ids::{DeviceId, DeviceIncarnation, Guid, MdmId, ProcessIncarnation, SdcId, SdsId, SystemId, VolumeId};
use crate::model::{
    AccessMode, Device, FaultSet, Limits, Mapping, Mdm, MdmRole, ProtectionDomain, Sdc, Sds, StoragePool, System, User,
    UserRole, Volume,
};

/// How people name an object: 16 hex digits are tried as an id first, then as a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectRef(pub String);

impl From<&str> for ObjectRef {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A change that people ask for. `Option<ObjectRef>` parents may be left out where there is only one to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // fields are named by their meaning; sizes are bytes
pub enum AdminCommand {
    RenameSystem {
        name: String,
    },
    AddMdm {
        name: String,
        role: MdmRole,
        address: String,
        peer_address: String,
        store_id: u64,
    },
    RemoveMdm {
        mdm: ObjectRef,
    },
    RenameMdm {
        mdm: ObjectRef,
        name: String,
    },
    AddProtectionDomain {
        name: String,
    },
    RenameProtectionDomain {
        protection_domain: ObjectRef,
        name: String,
    },
    RemoveProtectionDomain {
        protection_domain: ObjectRef,
    },
    AddFaultSet {
        name: String,
        protection_domain: Option<ObjectRef>,
    },
    RenameFaultSet {
        fault_set: ObjectRef,
        name: String,
    },
    RemoveFaultSet {
        fault_set: ObjectRef,
    },
    AddStoragePool {
        name: String,
        protection_domain: Option<ObjectRef>,
        copies: u8,
        /// 0: the default for that number of copies.
        min_isr: u8,
        /// 0: the default.
        pg_count: u32,
    },
    RenameStoragePool {
        storage_pool: ObjectRef,
        name: String,
    },
    RemoveStoragePool {
        storage_pool: ObjectRef,
    },
    AddSds {
        name: String,
        protection_domain: Option<ObjectRef>,
        fault_set: Option<ObjectRef>,
        addresses: Vec<String>,
    },
    RenameSds {
        sds: ObjectRef,
        name: String,
    },
    RemoveSds {
        sds: ObjectRef,
        force: bool,
    },
    AddDevice {
        name: Option<String>,
        sds: ObjectRef,
        storage_pool: Option<ObjectRef>,
        path: String,
    },
    RenameDevice {
        device: ObjectRef,
        name: String,
    },
    RemoveDevice {
        device: ObjectRef,
        force: bool,
    },
    AddSdc {
        guid: Guid,
        name: Option<String>,
    },
    RenameSdc {
        sdc: ObjectRef,
        name: String,
    },
    RemoveSdc {
        sdc: ObjectRef,
    },
    AddVolume {
        name: String,
        storage_pool: Option<ObjectRef>,
        size_bytes: u64,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    /// An empty value takes the label away.
    LabelVolume {
        volume: ObjectRef,
        key: String,
        value: String,
    },
    RenameVolume {
        volume: ObjectRef,
        name: String,
    },
    ResizeVolume {
        volume: ObjectRef,
        size_bytes: u64,
    },
    RemoveVolume {
        volume: ObjectRef,
    },
    MapVolume {
        volume: ObjectRef,
        sdc: ObjectRef,
        access: AccessMode,
        limits: Limits,
        allow_multiple: bool,
    },
    /// `sdc` left out: from all. Answered once every server refuses the client (P8).
    UnmapVolume {
        volume: ObjectRef,
        sdc: Option<ObjectRef>,
    },
    SetMappingLimits {
        volume: ObjectRef,
        sdc: ObjectRef,
        limits: Limits,
    },
    AddUser {
        name: String,
        role: UserRole,
        password_hash: String,
    },
    RemoveUser {
        user: ObjectRef,
    },
    SetPassword {
        user: ObjectRef,
        password_hash: String,
    },
}

/// The state of a store, as its server found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreVerdict {
    /// All that was acknowledged is there.
    Clean,
    /// The journal ends in a torn frame: nothing acknowledged is missing unless the disk lied.
    TailUncertain,
    /// Acknowledged data may be missing (I12).
    Suspect,
}

/// A device as its server presents it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PresentedDevice {
    pub device: DeviceId,
    pub incarnation: DeviceIncarnation,
    pub open_count: u64,
    pub size_bytes: u64,
    pub verdict: StoreVerdict,
}

/// What the daemons ask on their own account. The connection's certificate says who asks: a request that names another
/// server or client than that is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum DaemonCommand {
    /// A process of a data server has started. `nonce` is random for each start, so that a repeated request gives the same
    /// incarnation. Answered with [`CommandAnswer::SdsRegistered`].
    RegisterSds { sds: SdsId, nonce: u64, addresses: Vec<String>, devices: Vec<PresentedDevice> },
    /// A device was opened later than its server registered.
    PresentDevice { sds: SdsId, incarnation: ProcessIncarnation, device: PresentedDevice },
    /// A device in state `Adding` was formatted and opened.
    DeviceReady { sds: SdsId, incarnation: ProcessIncarnation, device: PresentedDevice },
    /// It cannot be: `reason` for people.
    DeviceRefused { sds: SdsId, incarnation: ProcessIncarnation, device: DeviceId, reason: String },
    /// Write or flush error, or hung: failed for good (F13).
    DeviceFailed { sds: SdsId, incarnation: ProcessIncarnation, device: DeviceId, reason: String },
    /// A primary asks for a change of its group.
    ChangePg(PgChange),
    /// A data client has started.
    RegisterSdc { guid: Guid, name: Option<String>, address: String },
    /// A data client opens a mapping: older generations are fenced, then a ticket is given. `opener` is random for each
    /// start of the daemon, so that a repeated request gives the same generation. Answered with [`CommandAnswer::Opened`].
    OpenMapping { volume: VolumeId, sdc: SdcId, opener: u64 },
}

/// What a changing command gives back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum CommandAnswer {
    /// Done; nothing to tell.
    Done,
    /// The id of what was made or changed, as 16 hex digits' worth of number.
    Object { id: u64 },
    /// A volume was made or resized: the size that it really got.
    Volume { id: VolumeId, size_bytes: u64 },
    /// A device was recorded; its server formats it next.
    DeviceRecorded { id: DeviceId, incarnation: DeviceIncarnation },
    /// A mapping was made or is being taken away; complete once fenced.
    Mapping { volume: VolumeId, sdc: SdcId, generation: AttachGeneration, fence_revision: Revision },
    /// Mappings that are being taken away.
    Unmapping { volume: VolumeId, sdcs: Vec<SdcId>, fence_revision: Revision },
    /// The incarnation of the process, and the revision at which it counts.
    SdsRegistered { incarnation: ProcessIncarnation, revision: Revision, refused: Vec<(DeviceId, String)> },
    /// Who the client is in this system.
    SdcRegistered { id: SdcId },
    /// The generation in force for this opener, usable once fenced.
    Opened { generation: AttachGeneration, fence_revision: Revision },
}

/// A question. Answered from the leader's applied state, confirmed by a read index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// The records and the state of everything: [`SystemView`].
    System,
    /// Who is the leader and how the group does: [`ClusterView`]. Any member answers.
    Cluster,
    /// Accounts.
    Users,
    /// Like [`Query::System`], but of volumes only what has changed after a revision that the asker has seen; all of them
    /// where the revision is 0, or what went since is not known any more.
    SystemSince(Revision),
}

/// An answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum QueryAnswer {
    System(Box<SystemView>),
    Cluster(ClusterView),
    Users(Vec<User>),
    /// `view.volumes` are those that changed after `from`, `removed` those that went; `from` is 0 where they are all.
    SystemSince {
        view: Box<SystemView>,
        from: Revision,
        removed: Vec<VolumeId>,
    },
}

/// Everything there is to see, at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemView {
    /// The system.
    pub system: System,
    /// The revision of the map that this shows.
    pub revision: Revision,
    /// Protection domains.
    pub protection_domains: Vec<ProtectionDomain>,
    /// Fault sets.
    pub fault_sets: Vec<FaultSet>,
    /// Pools with their figures.
    pub storage_pools: Vec<StoragePoolView>,
    /// Servers.
    pub sds: Vec<Sds>,
    /// Devices with their figures.
    pub devices: Vec<DeviceView>,
    /// Clients; `connected` as the leader sees it.
    pub sdcs: Vec<SdcView>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Mappings.
    pub mappings: Vec<Mapping>,
    /// The metadata manager.
    pub cluster: ClusterView,
}

/// A pool and how it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoragePoolView {
    /// The record.
    pub pool: StoragePool,
    /// Raw bytes of its devices.
    pub capacity_bytes: u64,
    /// Raw bytes in use, as last reported.
    pub used_bytes: u64,
    /// Placement groups with all copies in sync.
    pub healthy_pgs: u32,
    /// Placement groups that serve with fewer copies.
    pub degraded_pgs: u32,
    /// Placement groups that nobody serves.
    pub dark_pgs: u32,
    /// Chunk copies still to be made.
    pub rebuild_chunks_left: u64,
    /// Estimated seconds until they are made, once a rate is known.
    pub rebuild_remaining_s: Option<u64>,
}

/// A device and how it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// The record.
    pub device: Device,
    /// Bytes in use, as last reported.
    pub used_bytes: u64,
}

/// A client and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SdcView {
    /// The record.
    pub sdc: Sdc,
    /// True while it follows the map at the leader or has been heard of lately.
    pub connected: bool,
    /// For how long the leader has not heard of it, in milliseconds; at most for how long it leads.
    #[serde(default)]
    pub silent_ms: u64,
}

/// The metadata manager's group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The system.
    pub system: SystemId,
    /// Its name.
    pub name: String,
    /// The members.
    pub members: Vec<MdmView>,
    /// The leader, if this member knows of one.
    pub leader: Option<MdmId>,
    /// The member that answers.
    pub answered_by: MdmId,
}

/// A member and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdmView {
    /// The record.
    pub mdm: Mdm,
    /// True if the answering member has heard of it lately (always true of itself).
    pub connected: bool,
}

/// What came of a command.
pub type CommandResult = Result<CommandAnswer, CommandError>;
