//! What people see: the records, and how everything does.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::command::{ClusterView, DeviceView, MdmView, SdcView, StoragePoolView, SystemView};
use mdm_api::epoch::Revision;
use mdm_api::ids::{DeviceId, MdmId, SdcId, SdsId, StoragePoolId, VolumeId};
use mdm_api::map::MapKey;
use mdm_api::model::{DeviceState, StoragePool, User, Volume};

use crate::observed::Observed;
use crate::state::{PgRecord, State};

/// How a group does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PgHealth {
    /// All copies in sync, on devices that are there and to stay.
    Healthy,
    /// Serves, with fewer copies than it should have, or with one on a device that is away or on its way out.
    Degraded,
    /// Nobody serves it.
    Dark,
}

/// How a group does.
pub fn pg_health(state: &State, record: &PgRecord) -> PgHealth {
    let copies = state.storage_pools().get(&record.config.pg.pool).map_or(0, |pool| usize::from(pool.copies));
    let good = record.config.isr.iter().filter(|device| state.is_fit(**device) && state.is_staying(**device)).count();
    match record.config.primary {
        None => PgHealth::Dark,
        Some(_) if good < copies => PgHealth::Degraded,
        Some(_) => PgHealth::Healthy,
    }
}

/// The group of the metadata manager as one member sees it; `None` before there is a system.
pub fn cluster_view(
    state: &State,
    answered_by: MdmId,
    leader: Option<MdmId>,
    connected: &BTreeSet<MdmId>,
) -> Option<ClusterView> {
    let system = &state.system()?.system;
    let member = |mdm: &mdm_api::model::Mdm| MdmView {
        connected: mdm.id == answered_by || connected.contains(&mdm.id),
        mdm: mdm.clone(),
    };
    let members = state.mdms().values().map(member).collect();
    Some(ClusterView { system: system.id, name: system.name.clone(), members, leader, answered_by })
}

/// What the leader knows of the clients.
pub struct Clients {
    /// For how long each has not been heard of, in milliseconds.
    pub silent_ms: BTreeMap<SdcId, u64>,
    /// Those that follow the map at the leader.
    pub follows: BTreeSet<SdcId>,
    /// Who was silent for less counts as connected.
    pub seen_ms: u64,
}

/// Volumes that changed after a revision, and those that went; `None` where all have to be told.
pub fn volumes_since(state: &State, from: Revision) -> Option<(Vec<Volume>, Vec<VolumeId>)> {
    if from == Revision(0) || from > state.revision() || !state.changes.reaches_back_to(from) {
        return None;
    }
    let volume = |key| match key {
        MapKey::Volume(id) => Some(id),
        _ => None,
    };
    let changed = state.changes.changed_since(from).filter_map(volume);
    let changed = changed.filter_map(|id| state.volumes().get(&id).cloned()).collect();
    Some((changed, state.changes.removed_since(from).filter_map(volume).collect()))
}

/// Everything, with the volumes that are to be told.
pub fn system_view(
    state: &State,
    observed: &Observed,
    cluster: ClusterView,
    clients: &Clients,
    volumes: Vec<Volume>,
) -> Option<SystemView> {
    let used = used_bytes(state, observed);
    let sdc = |sdc: &mdm_api::model::Sdc| {
        let silent_ms = clients.silent_ms.get(&sdc.id).copied().unwrap_or(0);
        let connected = silent_ms < clients.seen_ms || clients.follows.contains(&sdc.id);
        SdcView { connected, silent_ms, sdc: sdc.clone() }
    };
    let device = |device: &mdm_api::model::Device| DeviceView {
        used_bytes: used.get(&device.id).copied().unwrap_or(0),
        device: device.clone(),
    };
    Some(SystemView {
        system: state.system()?.system.clone(),
        revision: state.revision(),
        protection_domains: state.protection_domains().values().cloned().collect(),
        fault_sets: state.fault_sets().values().cloned().collect(),
        storage_pools: state.storage_pools().values().map(|pool| pool_view(state, observed, &used, pool)).collect(),
        sds: state.sds().values().cloned().collect(),
        devices: state.devices().values().map(device).collect(),
        sdcs: state.sdcs().values().map(sdc).collect(),
        volumes,
        mappings: state.mappings().values().cloned().collect(),
        cluster,
    })
}

/// Accounts, without their passwords.
pub fn users(state: &State) -> Vec<User> {
    state.users().map(|record| record.user.clone()).collect()
}

fn used_bytes(state: &State, observed: &Observed) -> BTreeMap<DeviceId, u64> {
    let reports = observed.all_heard().flat_map(|(sds, heard)| heard.heartbeat.devices.iter().map(move |r| (sds, r)));
    let own = reports.filter(|(sds, report)| state.sds_of(report.device).is_some_and(|owner| owner.id == **sds));
    own.map(|(_, report)| (report.device, report.used_bytes)).collect()
}

fn pool_view(
    state: &State,
    observed: &Observed,
    used: &BTreeMap<DeviceId, u64>,
    pool: &StoragePool,
) -> StoragePoolView {
    let mut counts = (0, 0, 0);
    for record in state.pgs_of(pool.id) {
        match pg_health(state, record) {
            PgHealth::Healthy => counts.0 += 1,
            PgHealth::Degraded => counts.1 += 1,
            PgHealth::Dark => counts.2 += 1,
        }
    }
    let devices = || {
        let own = state.devices().values().filter(|device| device.pool == pool.id);
        own.filter(|device| matches!(device.state, DeviceState::Normal | DeviceState::Removing))
    };
    let (chunks_left, rate) = rebuild(state, observed, pool.id);
    StoragePoolView {
        pool: pool.clone(),
        capacity_bytes: devices().map(|device| device.size_bytes).sum(),
        used_bytes: devices().filter_map(|device| used.get(&device.id)).sum(),
        healthy_pgs: counts.0,
        degraded_pgs: counts.1,
        dark_pgs: counts.2,
        rebuild_chunks_left: chunks_left,
        rebuild_remaining_s: (chunks_left > 0 && rate > 0).then(|| chunks_left.saturating_mul(1000).div_ceil(rate)),
    }
}

/// Chunk copies still to be made in a pool, and how many are made in a thousand seconds by the servers that make them.
fn rebuild(state: &State, observed: &Observed, pool: StoragePoolId) -> (u64, u64) {
    let mut left = 0_u64;
    let mut servers: BTreeSet<SdsId> = BTreeSet::new();
    for (sds, heard) in observed.all_heard() {
        for report in heard.heartbeat.resync.iter().filter(|report| report.pg.pool == pool) {
            let leads = state.pg(report.pg).and_then(|config| config.primary).and_then(|p| state.sds_of(p));
            if leads.is_some_and(|leader| leader.id == *sds) {
                left += report.chunks_total.saturating_sub(report.chunks_done);
                servers.insert(*sds);
            }
        }
    }
    (left, servers.iter().map(|sds| observed.chunks_per_1000_s(*sds)).sum())
}

#[cfg(test)]
mod tests {
    use mdm_api::command::{AdminCommand, ObjectRef};

    use super::*;
    use crate::testing::{GIB, World};

    #[test]
    fn who_has_seen_a_revision_is_told_what_changed_after_it() {
        let mut world = World::new(2, 1, 2, 4);
        let first = world.add_volume("first", GIB);
        let seen = world.state.revision();
        assert_eq!(volumes_since(&world.state, seen), Some((vec![], vec![])));
        let second = world.add_volume("second", GIB);
        let (changed, removed) = volumes_since(&world.state, seen).expect("known");
        assert_eq!((changed.iter().map(|volume| volume.id).collect(), removed), (vec![second], vec![]));
        let (key, value) = ("a".to_owned(), "b".to_owned());
        let label = AdminCommand::LabelVolume { volume: ObjectRef(first.to_string()), key, value };
        world.admin(label).expect("labelled");
        let (changed, _) = volumes_since(&world.state, seen).expect("known");
        assert_eq!(changed.len(), 2, "a label is a change");
        assert_eq!(volumes_since(&world.state, Revision(0)), None, "who has seen nothing is told all");
        assert_eq!(
            volumes_since(&world.state, world.state.revision().next()),
            None,
            "as who has seen more than there is"
        );
    }
}
