//! The whole replicated state, and how to look things up in it.
//!
//! Owns every object of the system. Changed by [`crate::apply()`] alone. Always true: every configuration of a group
//! satisfies [`PgConfig::check`]; ids are never used twice; equal logs make equal bytes.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::config::PgConfig;
use mdm_api::epoch::{AttachGeneration, Revision};
use mdm_api::ids::{
    DeviceId, FaultSetId, Guid, KeyId, MdmId, PgId, ProtectionDomainId, SdcId, SdsId, StoragePoolId, UserId, VolumeId,
};
use mdm_api::map::MapKey;
use mdm_api::model::{
    Device, DeviceState, DomainKey, FaultSet, Mapping, Mdm, ProtectionDomain, Sdc, Sds, StoragePool, System, User,
    UserRole, Volume,
};
use serde::{Deserialize, Serialize};

mod changes;
mod delta;
mod mint;
mod pg;
mod recent;
pub(crate) mod resolve;
mod snapshot;

pub(crate) use changes::Changes;
pub(crate) use mint::Mint;
pub use mint::first_mdm_id;
pub use pg::{Appointment, FaultUnit, PgRecord, Replacement};
pub(crate) use recent::Recent;
pub use snapshot::SnapshotError;

/// What else is known of the system, and is nobody's business.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemRecord {
    /// The public record.
    pub system: System,
    /// The authority's certificate.
    pub authority_certificate_pem: String,
    /// The authority's key.
    pub authority_key_pem: String,
    /// Digest of the join token.
    pub join_token_hash: [u8; 32],
}

impl std::fmt::Debug for SystemRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SystemRecord").field("system", &self.system).finish_non_exhaustive()
    }
}

/// An account with its password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// The account.
    pub user: User,
    /// Its password, as an argon2 PHC string.
    pub password_hash: String,
}

impl std::fmt::Debug for UserRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserRecord").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What is known of a server's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registration {
    /// Nonces of its processes, the current one last. A registration under an earlier one is a late packet.
    pub(crate) nonces: Vec<u64>,
    /// What the current process presented and was refused.
    pub(crate) refused: Vec<(DeviceId, String)>,
    /// The server is to go when its last device has gone.
    pub(crate) removing: bool,
}

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub(crate) revision: Revision,
    pub(crate) mint: Mint,
    pub(crate) system: Option<SystemRecord>,
    pub(crate) mdms: BTreeMap<MdmId, Mdm>,
    pub(crate) domains: BTreeMap<ProtectionDomainId, ProtectionDomain>,
    pub(crate) fault_sets: BTreeMap<FaultSetId, FaultSet>,
    pub(crate) pools: BTreeMap<StoragePoolId, StoragePool>,
    pub(crate) sds: BTreeMap<SdsId, Sds>,
    pub(crate) registrations: BTreeMap<SdsId, Registration>,
    pub(crate) devices: BTreeMap<DeviceId, Device>,
    pub(crate) sdcs: BTreeMap<SdcId, Sdc>,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) mappings: BTreeMap<(VolumeId, SdcId), Mapping>,
    pub(crate) pgs: BTreeMap<PgId, PgRecord>,
    pub(crate) keys: BTreeMap<KeyId, DomainKey>,
    pub(crate) users: BTreeMap<UserId, UserRecord>,
    pub(crate) changes: Changes,
    pub(crate) recent_admin: Recent,
    pub(crate) recent_daemon: Recent,
}

impl State {
    /// The revision of the map.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The system, once created.
    pub fn system(&self) -> Option<&SystemRecord> {
        self.system.as_ref()
    }

    /// The members of the metadata manager.
    pub fn mdms(&self) -> &BTreeMap<MdmId, Mdm> {
        &self.mdms
    }

    /// Protection domains.
    pub fn protection_domains(&self) -> &BTreeMap<ProtectionDomainId, ProtectionDomain> {
        &self.domains
    }

    /// Fault sets.
    pub fn fault_sets(&self) -> &BTreeMap<FaultSetId, FaultSet> {
        &self.fault_sets
    }

    /// Pools.
    pub fn storage_pools(&self) -> &BTreeMap<StoragePoolId, StoragePool> {
        &self.pools
    }

    /// Servers.
    pub fn sds(&self) -> &BTreeMap<SdsId, Sds> {
        &self.sds
    }

    /// Devices.
    pub fn devices(&self) -> &BTreeMap<DeviceId, Device> {
        &self.devices
    }

    /// Clients.
    pub fn sdcs(&self) -> &BTreeMap<SdcId, Sdc> {
        &self.sdcs
    }

    /// Volumes.
    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    /// Mappings.
    pub fn mappings(&self) -> &BTreeMap<(VolumeId, SdcId), Mapping> {
        &self.mappings
    }

    /// Placement groups.
    pub fn pgs(&self) -> &BTreeMap<PgId, PgRecord> {
        &self.pgs
    }

    /// The groups of a pool, in order of index.
    pub fn pgs_of(&self, pool: StoragePoolId) -> impl Iterator<Item = &PgRecord> {
        self.pgs.range(PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX }).map(|(_, record)| record)
    }

    /// The configuration of a group.
    pub fn pg(&self, pg: PgId) -> Option<&PgConfig> {
        self.pgs.get(&pg).map(|record| &record.config)
    }

    /// The newest key of a domain: the one to sign tickets under.
    pub fn signing_key(&self, domain: ProtectionDomainId) -> Option<&DomainKey> {
        self.keys.values().rev().find(|key| key.protection_domain == domain)
    }

    /// The account of that name.
    pub fn user(&self, name: &str) -> Option<&UserRecord> {
        self.users.values().find(|record| record.user.name == name)
    }

    /// All accounts.
    pub fn users(&self) -> impl Iterator<Item = &UserRecord> {
        self.users.values()
    }

    /// The server that was added under this name: who joins as it.
    pub fn sds_by_name(&self, name: &str) -> Option<&Sds> {
        self.sds.values().find(|sds| sds.name == name)
    }

    /// The client of that identity.
    pub fn sdc_by_guid(&self, guid: Guid) -> Option<&Sdc> {
        self.sdcs.values().find(|sdc| sdc.guid == guid)
    }

    /// The rights of an account, if it exists.
    pub fn role_of(&self, user: UserId) -> Option<UserRole> {
        self.users.get(&user).map(|record| record.user.role)
    }

    /// True if the volume's mapping to the client, opened by this opener, may be used: nothing older can write any more.
    pub fn mapping_is_usable(&self, volume: VolumeId, sdc: SdcId, opener: u64) -> bool {
        self.mappings
            .get(&(volume, sdc))
            .is_some_and(|mapping| mapping.fenced && !mapping.revoked && opener != 0 && mapping.opened_by == opener)
    }

    /// True if the device can be counted on now: in use, and held open by the living process of its server.
    pub fn is_fit(&self, device: DeviceId) -> bool {
        let Some(record) = self.devices.get(&device) else { return false };
        let Some(sds) = self.sds.get(&record.sds) else { return false };
        matches!(record.state, DeviceState::Normal | DeviceState::Removing)
            && sds.connected
            && sds.incarnation.is_some()
            && record.opened_by == sds.incarnation
    }

    /// True if the device is in use and to stay so, whether or not its server is there now.
    pub fn is_staying(&self, device: DeviceId) -> bool {
        self.devices.get(&device).is_some_and(|record| record.state == DeviceState::Normal)
    }

    /// What a device fails with: its fault set, or else its server.
    pub fn fault_unit(&self, device: DeviceId) -> Option<FaultUnit> {
        let sds = self.sds.get(&self.devices.get(&device)?.sds)?;
        Some(sds.fault_set.map_or(FaultUnit::Sds(sds.id), FaultUnit::FaultSet))
    }

    /// The server of a device.
    pub fn sds_of(&self, device: DeviceId) -> Option<&Sds> {
        self.sds.get(&self.devices.get(&device)?.sds)
    }

    /// The revision in which this command's changes will be.
    pub(crate) fn next_revision(&self) -> Revision {
        self.revision.next()
    }

    /// A generation that no mapping ever had: the revision in which it is made.
    pub(crate) fn next_generation(&self) -> AttachGeneration {
        AttachGeneration(self.next_revision().0)
    }

    /// Records that an object was made or changed in this command.
    pub(crate) fn touch(&mut self, key: MapKey) {
        self.changes.touch(key, self.revision.next());
    }

    /// Records that an object was removed in this command.
    pub(crate) fn bury(&mut self, key: MapKey) {
        self.changes.bury(key, self.revision.next());
    }

    /// The devices of a server.
    pub(crate) fn devices_of(&self, sds: SdsId) -> Vec<DeviceId> {
        self.devices.values().filter(|device| device.sds == sds).map(|device| device.id).collect()
    }

    /// Groups that name any of the devices.
    pub(crate) fn pgs_naming(&self, devices: &BTreeSet<DeviceId>) -> Vec<PgId> {
        self.pgs
            .values()
            .filter(|record| record.members().any(|member| devices.contains(&member)))
            .map(|record| record.config.pg)
            .collect()
    }
}
