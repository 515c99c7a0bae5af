//! Fences: what an older generation of a mapping has under way is done or refused before the fence is confirmed (I17, F26).
//!
//! From the moment at which a delta is applied, no request of a fenced generation passes the check in `requests`. What was
//! accepted before lies in the replicas that lead: each of them is told, and says when nothing of it is left. A replica that
//! leads later got all its requests past the newer map.
//!
//! `through` is what a heartbeat reports: every group that this server leads, as of the map that it had then, is active, and
//! all fences up to that revision hold in it. So it stands still while a group is on its way into service.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::epoch::Revision;
use mdm_api::ids::{DeviceId, PgId, SdcId, VolumeId};
use mdm_api::map::{MapDelta, MapObject};
use sds_replica::{Event as ReplicaEvent, Role};

use crate::action::Action;
use crate::shard::{Shard, Work};

/// Fences under way: at most one for each mapping of the map, a newer one taking the place of an older.
#[derive(Default)]
pub(crate) struct Fences {
    next: u64,
    by_mapping: BTreeMap<(VolumeId, SdcId), u64>,
    waiting: BTreeMap<u64, BTreeSet<(PgId, DeviceId)>>,
    pub(crate) through: Revision,
}

impl Fences {
    pub(crate) fn confirmed(&mut self, fence: u64, pg: PgId, device: DeviceId) {
        if let Some(waiting) = self.waiting.get_mut(&fence) {
            waiting.remove(&(pg, device));
        }
        self.tidy();
    }

    /// A replica is gone, and with it what it held.
    pub(crate) fn forget(&mut self, pg: PgId, device: DeviceId) {
        if self.waiting.is_empty() {
            return;
        }
        for waiting in self.waiting.values_mut() {
            waiting.remove(&(pg, device));
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        let waiting = &self.waiting;
        self.by_mapping.retain(|_, fence| waiting.contains_key(fence));
    }
}

impl Shard {
    /// Fences that came with a delta.
    pub(crate) fn note_fences(&mut self, delta: &MapDelta, out: &mut Vec<Action>) {
        let mappings = delta.changed.iter().filter_map(|object| match object {
            MapObject::Mapping(mapping) if !mapping.fenced => Some(mapping),
            _ => None,
        });
        for mapping in mappings {
            // A revoked mapping's generation was never given to anybody.
            let below = mapping.generation;
            let leading: BTreeSet<(PgId, DeviceId)> = self
                .groups
                .iter()
                .filter(|(_, device, group)| {
                    group.told.as_ref().is_some_and(|told| told.config.primary == Some(*device))
                        || group.replica.status().role.leads()
                })
                .map(|(pg, device, _)| (pg, device))
                .collect();
            if leading.is_empty() {
                continue;
            }
            self.fences.next += 1;
            let fence = self.fences.next;
            let key = (mapping.volume, mapping.sdc);
            if let Some(older) = self.fences.by_mapping.insert(key, fence) {
                self.fences.waiting.remove(&older);
            }
            for (pg, device) in &leading {
                let event = ReplicaEvent::Fence { fence, volume: key.0, sdc: key.1, below };
                self.work.push_back(Work::Replica { pg: *pg, device: *device, event });
            }
            self.fences.waiting.insert(fence, leading);
        }
        self.run(out);
        self.advance_fences();
    }

    /// Reports as much as holds.
    pub(crate) fn advance_fences(&mut self) {
        let revision = self.map.revision();
        if self.fences.through >= revision || !self.is_current() || self.context.is_none() {
            return;
        }
        if self.fences.waiting.is_empty() && self.leads_all() {
            self.fences.through = revision;
        }
    }

    /// True if every group whose primary the map says is in this process is active under that appointment.
    fn leads_all(&self) -> bool {
        let me = self.incarnation();
        self.map.pgs().filter(|config| Some(config.primary_incarnation) == me).all(|config| {
            let Some(primary) = config.primary else { return true };
            let is_mine = self.map.device(primary).is_some_and(|device| device.sds == self.settings.sds);
            !is_mine
                || self.groups.get(config.pg, primary).is_some_and(|group| {
                    group.told.as_ref().is_some_and(|told| told.config.term == config.term)
                        && group.replica.status().role == Role::Primary
                })
        })
    }
}
