//! Which object changed when: what makes deltas possible.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::epoch::Revision;
use mdm_api::map::MapKey;
use serde::{Deserialize, Serialize};

use crate::limits::TOMBSTONES_MAX;

/// The revision in which each object was last changed, and which ones are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub(crate) struct Changes {
    at: BTreeMap<MapKey, Revision>,
    /// The same, by revision.
    order: BTreeSet<(Revision, MapKey)>,
    tombstones: BTreeMap<MapKey, Revision>,
    tombstone_order: BTreeSet<(Revision, MapKey)>,
    /// Tombstones up to this revision may have been forgotten.
    floor: Revision,
}

/// What of it is kept; the rest is derived.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    at: BTreeMap<MapKey, Revision>,
    tombstones: BTreeMap<MapKey, Revision>,
    floor: Revision,
}

impl From<Stored> for Changes {
    fn from(stored: Stored) -> Self {
        let order = stored.at.iter().map(|(key, revision)| (*revision, *key)).collect();
        let tombstone_order = stored.tombstones.iter().map(|(key, revision)| (*revision, *key)).collect();
        Self { at: stored.at, order, tombstones: stored.tombstones, tombstone_order, floor: stored.floor }
    }
}

impl From<Changes> for Stored {
    fn from(changes: Changes) -> Self {
        Self { at: changes.at, tombstones: changes.tombstones, floor: changes.floor }
    }
}

impl Changes {
    pub(crate) fn touch(&mut self, key: MapKey, revision: Revision) {
        if let Some(before) = self.at.insert(key, revision) {
            self.order.remove(&(before, key));
        }
        self.order.insert((revision, key));
        if let Some(buried) = self.tombstones.remove(&key) {
            self.tombstone_order.remove(&(buried, key));
        }
    }

    pub(crate) fn bury(&mut self, key: MapKey, revision: Revision) {
        if let Some(before) = self.at.remove(&key) {
            self.order.remove(&(before, key));
        }
        if let Some(before) = self.tombstones.insert(key, revision) {
            self.tombstone_order.remove(&(before, key));
        }
        self.tombstone_order.insert((revision, key));
        while self.tombstone_order.len() > TOMBSTONES_MAX {
            if let Some((oldest, key)) = self.tombstone_order.pop_first() {
                self.tombstones.remove(&key);
                self.floor = self.floor.max(oldest);
            }
        }
    }

    /// True if anything was touched or buried in this revision.
    pub(crate) fn has(&self, revision: Revision) -> bool {
        let is_it = |last: Option<&(Revision, MapKey)>| last.is_some_and(|(at, _)| *at == revision);
        is_it(self.order.last()) || is_it(self.tombstone_order.last())
    }

    /// True if everything that went after `from` is still known.
    pub(crate) fn reaches_back_to(&self, from: Revision) -> bool {
        from >= self.floor
    }

    pub(crate) fn changed_since(&self, from: Revision) -> impl Iterator<Item = MapKey> {
        self.order.range((from.next(), MapKey::System)..).map(|(_, key)| *key)
    }

    pub(crate) fn removed_since(&self, from: Revision) -> impl Iterator<Item = MapKey> {
        self.tombstone_order.range((from.next(), MapKey::System)..).map(|(_, key)| *key)
    }

    pub(crate) fn last_change(&self, key: MapKey) -> Option<Revision> {
        self.at.get(&key).copied()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = MapKey> {
        self.at.keys().copied()
    }
}
