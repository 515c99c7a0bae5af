//! Removed volumes: their chunks go, in every group that this server leads.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::epoch::Term;
use mdm_api::ids::{DeviceId, PgId, StoragePoolId, VolumeId, VtreeId};
use sds_replica::{Event as ReplicaEvent, Role};

use crate::shard::{Shard, Work};

struct Tree {
    volume: VolumeId,
    pool: StoragePoolId,
    /// In which terms groups were asked, and in which they were done.
    asked: BTreeMap<PgId, Term>,
    done: BTreeMap<PgId, Term>,
}

/// Trees on their way out: at most one for each volume that the map says is being removed.
#[derive(Default)]
pub(crate) struct Drops {
    trees: BTreeMap<VtreeId, Tree>,
}

impl Drops {
    /// The group has dropped the tree on all its in-sync copies.
    pub(crate) fn done(&mut self, vtree: VtreeId, pg: PgId, term: Term) {
        if let Some(tree) = self.trees.get_mut(&vtree) {
            tree.done.insert(pg, term);
        }
    }
}

impl Shard {
    /// Takes the list of trees from the map. A tree goes with its last volume: while another one lives in it, it stays.
    pub(crate) fn note_drops(&mut self) {
        let alive: BTreeSet<VtreeId> = self.map.volumes().filter(|v| !v.removing).map(|v| v.vtree).collect();
        let mut known = std::mem::take(&mut self.drops.trees);
        let dying = self.map.volumes().filter(|v| v.removing && !alive.contains(&v.vtree));
        for volume in dying {
            let (asked, done) = (BTreeMap::new(), BTreeMap::new());
            let fresh = Tree { volume: volume.id, pool: volume.pool, asked, done };
            let tree = known.remove(&volume.vtree).unwrap_or(fresh);
            self.drops.trees.insert(volume.vtree, tree);
        }
        self.ask_drops();
    }

    /// Asks every group that has come to be led here since.
    pub(crate) fn ask_drops(&mut self) {
        let mut trees = std::mem::take(&mut self.drops.trees);
        for (vtree, tree) in &mut trees {
            for (pg, device, term) in self.led_groups(tree.pool) {
                let is_serving =
                    self.groups.get(pg, device).is_some_and(|group| group.replica.status().role == Role::Primary);
                if is_serving && tree.asked.get(&pg) != Some(&term) {
                    tree.asked.insert(pg, term);
                    let event = ReplicaEvent::DropVtree { vtree: *vtree };
                    self.work.push_back(Work::Replica { pg, device, event });
                }
            }
        }
        self.drops.trees = trees;
    }

    /// Removed volumes of which nothing is left in the groups that are led here.
    pub(crate) fn dropped(&self) -> Vec<VolumeId> {
        let is_done =
            |tree: &Tree| self.led_groups(tree.pool).iter().all(|(pg, _, term)| tree.done.get(pg) == Some(term));
        self.drops.trees.values().filter(|tree| is_done(tree)).map(|tree| tree.volume).collect()
    }

    /// The groups of a pool whose appointed primary is in this process, whether it serves already or not.
    fn led_groups(&self, pool: StoragePoolId) -> Vec<(PgId, DeviceId, Term)> {
        let me = self.incarnation();
        let mine = |primary: DeviceId| self.map.device(primary).is_some_and(|device| device.sds == self.settings.sds);
        self.map
            .pgs()
            .filter(|config| config.pg.pool == pool && Some(config.primary_incarnation) == me)
            .filter_map(|config| Some((config.pg, config.primary.filter(|primary| mine(*primary))?, config.term)))
            .collect()
    }
}
