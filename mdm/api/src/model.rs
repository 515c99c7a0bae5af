//! The objects of a system, as the metadata manager keeps them and as everybody sees them.
//!
//! Records are plain data: what may become of them is decided in `mdm-core` alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::epoch::{AttachGeneration, Revision, SnapSeq};
use crate::ids::{
    DeviceId, DeviceIncarnation, FaultSetId, Guid, KeyId, MdmId, ProcessIncarnation, ProtectionDomainId, SdcId, SdsId,
    StoragePoolId, SystemId, UserId, VolumeId, VtreeId,
};

/// The system itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Its id.
    pub id: SystemId,
    /// Its name.
    pub name: String,
}

/// What a member of the metadata manager's group does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MdmRole {
    /// Takes commands and leads.
    Manager,
    /// Votes and keeps the log; leads only to hand a longer log to a manager.
    TieBreaker,
}

/// A member of the metadata manager's group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mdm {
    /// Its id.
    pub id: MdmId,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: MdmRole,
    /// `host:port` of its control port.
    pub address: String,
    /// `host:port` for the other members.
    pub peer_address: String,
    /// Identity of its log: a log with another one is not this member's.
    pub store_id: u64,
    /// True once it votes; before, it is catching up.
    pub voter: bool,
}

/// A protection domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectionDomain {
    /// Its id.
    pub id: ProtectionDomainId,
    /// Its name, unique in the system.
    pub name: String,
}

/// A fault set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultSet {
    /// Its id.
    pub id: FaultSetId,
    /// Its name, unique in the domain.
    pub name: String,
    /// Its domain.
    pub protection_domain: ProtectionDomainId,
}

/// A storage pool and its policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoragePool {
    /// Its id.
    pub id: StoragePoolId,
    /// Its name, unique in the domain.
    pub name: String,
    /// Its domain.
    pub protection_domain: ProtectionDomainId,
    /// Copies of every block: 2 or 3.
    pub copies: u8,
    /// Writes block while fewer replicas than this are in sync: 1 to `copies`.
    pub min_isr: u8,
    /// Number of placement groups, a power of two, fixed for life.
    pub pg_count: u32,
    /// Version of the chunk -> placement group function; see [`crate::placement`].
    pub placement_version: u16,
}

/// A data server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sds {
    /// Its id.
    pub id: SdsId,
    /// Its name, unique in the system.
    pub name: String,
    /// Its domain.
    pub protection_domain: ProtectionDomainId,
    /// Its fault set; without one it is a fault unit of its own.
    pub fault_set: Option<FaultSetId>,
    /// `host:port` where it serves data.
    pub addresses: Vec<String>,
    /// The current process, once it has registered.
    pub incarnation: Option<ProcessIncarnation>,
    /// True while the current process is taken to be alive.
    pub connected: bool,
}

/// Where a device is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Recorded; its server has yet to format it.
    Adding,
    /// In use.
    Normal,
    /// Failed for good: its contents are not counted on any more.
    Failed,
    /// Being emptied before it is removed.
    Removing,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Its name, unique on its server.
    pub name: String,
    /// Its server.
    pub sds: SdsId,
    /// Its pool.
    pub pool: StoragePoolId,
    /// Path on the server.
    pub path: String,
    /// What it was when it was added; I4: a retired one never appears in a configuration again.
    pub incarnation: DeviceIncarnation,
    /// How often it was opened, as recorded; a device that presents another count is a clone or was rolled back.
    pub open_count: u64,
    /// The process of its server that presented it at its last registration; `None`: not presented since that process
    /// started, so it cannot be counted on.
    pub opened_by: Option<ProcessIncarnation>,
    /// Usable bytes; 0 until it is formatted.
    pub size_bytes: u64,
    /// Its state.
    pub state: DeviceState,
    /// The store could not vouch for its journal's end (I12): never primary before a full resync.
    pub suspect: bool,
    /// Why it failed, in words for people.
    pub error: Option<String>,
}

/// A data client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sdc {
    /// Its id.
    pub id: SdcId,
    /// The host's lasting identity.
    pub guid: Guid,
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// The address it registered from.
    pub address: String,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name, unique in the system.
    pub name: String,
    /// Its pool.
    pub pool: StoragePoolId,
    /// Its tree.
    pub vtree: VtreeId,
    /// Its size, a multiple of 1 MiB.
    pub size_bytes: u64,
    /// The snapshot sequence that its writes carry. I18.
    pub snap_seq: SnapSeq,
    /// When it was made: seconds since 1970.
    pub created_s: u64,
    /// True while its space is being given back; it can no longer be opened.
    pub removing: bool,
    /// What those who use the system have noted of it, such as the plugin what a volume was made for. Means nothing to
    /// the system itself.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessMode {
    /// Reads and writes.
    ReadWrite,
    /// Reads only.
    ReadOnly,
}

/// Limits of a mapping; 0 means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Limits {
    /// Requests per second.
    pub iops: u64,
    /// Bytes per second.
    pub bandwidth_bytes_per_s: u64,
}

/// The right of one client to use one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The volume.
    pub volume: VolumeId,
    /// The client.
    pub sdc: SdcId,
    /// What it allows.
    pub access: AccessMode,
    /// Its limits.
    pub limits: Limits,
    /// The generation under which it was mapped: the same for as long as the mapping stays, so that a block device that
    /// outlived its client's daemon is known as this mapping's or as an older one's.
    pub mapped: AttachGeneration,
    /// The generation in force. It is the client's session too: a client daemon that starts anew opens a new one, and
    /// nothing of an older one is ordered once that is fenced (I17).
    pub generation: AttachGeneration,
    /// The client that opened this generation: a number that its daemon draws at each start. 0: never opened.
    pub opened_by: u64,
    /// Older generations are fenced once every primary follows the map to this revision.
    pub fence_revision: Revision,
    /// True once every primary has confirmed the fence.
    pub fenced: bool,
    /// True while the mapping is being taken away: nobody may use it, it only waits for its fence.
    pub revoked: bool,
}

/// A user's rights, each including those of the ones before it, except that `Security` is about users only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UserRole {
    /// Looks.
    Monitor,
    /// Makes and maps volumes.
    Configure,
    /// Manages servers, devices and the cluster.
    Administrator,
    /// Manages users and keys.
    Security,
    /// Everything.
    SuperUser,
}

/// An account. The password hash never leaves the metadata manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub name: String,
    /// Its rights.
    pub role: UserRole,
}

/// A key of a protection domain, shared by its servers, under which the metadata manager signs tickets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainKey {
    /// Its id, carried in every ticket.
    pub id: KeyId,
    /// Whose it is.
    pub protection_domain: ProtectionDomainId,
    /// The secret.
    pub secret: [u8; 32],
}

impl std::fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets are never in logs.
        write!(f, "DomainKey {{ id: {}, protection_domain: {}, .. }}", self.id, self.protection_domain)
    }
}
