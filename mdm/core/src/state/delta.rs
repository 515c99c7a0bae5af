//! The map as followers see it, and the steps between its revisions.

use std::collections::BTreeSet;

use mdm_api::epoch::Revision;
use mdm_api::map::{MapDelta, MapKey, MapObject, MapView};

use super::State;

impl State {
    /// The step that brings a follower from revision `from` to this state's. Everything anew if `from` is 0 or too long
    /// ago; nothing at all (`to` not after `from`) if the follower is ahead of this member, which is itself behind.
    pub fn delta(&self, view: MapView, from: Revision) -> MapDelta {
        if from >= self.revision {
            return MapDelta { from, to: self.revision, ..MapDelta::default() };
        }
        if from == Revision(0) || !self.changes.reaches_back_to(from) {
            let changed = self.changes.all().filter(|key| self.is_visible(view, *key));
            let changed = changed.filter_map(|key| self.object(key)).collect();
            return MapDelta { from: Revision(0), to: self.revision, changed, removed: Vec::new() };
        }
        let mut changed: BTreeSet<MapKey> =
            self.changes.changed_since(from).filter(|key| self.is_visible(view, *key)).collect();
        let mut removed: BTreeSet<MapKey> = self.changes.removed_since(from).collect();
        if let MapView::Sdc(own) = view {
            // A client's volumes come and go with its mappings.
            let mapped = |key: &MapKey| match key {
                MapKey::Mapping(volume, sdc) if *sdc == own => Some(MapKey::Volume(*volume)),
                _ => None,
            };
            let appear: Vec<MapKey> = changed.iter().filter_map(mapped).collect();
            let vanish: Vec<MapKey> = removed.iter().filter_map(mapped).collect();
            removed.retain(|key| match key {
                MapKey::Mapping(_, sdc) => *sdc == own,
                MapKey::Volume(_) | MapKey::DomainKey(_) => false,
                _ => true,
            });
            changed.extend(appear);
            removed.extend(vanish);
        }
        MapDelta {
            from,
            to: self.revision,
            changed: changed.into_iter().filter_map(|key| self.object(key)).collect(),
            removed: removed.into_iter().collect(),
        }
    }

    /// The revision in which an object was last changed.
    pub fn last_change(&self, key: MapKey) -> Option<Revision> {
        self.changes.last_change(key)
    }

    fn is_visible(&self, view: MapView, key: MapKey) -> bool {
        match (view, key) {
            (MapView::Sds(sds), MapKey::DomainKey(key)) => {
                let domain = self.sds.get(&sds).map(|sds| sds.protection_domain);
                self.keys.get(&key).is_some_and(|key| Some(key.protection_domain) == domain)
            }
            (MapView::Sdc(_), MapKey::DomainKey(_)) => false,
            (MapView::Sdc(own), MapKey::Mapping(_, sdc)) => sdc == own,
            (MapView::Sdc(own), MapKey::Volume(volume)) => self.mappings.contains_key(&(volume, own)),
            _ => true,
        }
    }

    fn object(&self, key: MapKey) -> Option<MapObject> {
        Some(match key {
            MapKey::System => MapObject::System(self.system.as_ref()?.system.clone()),
            MapKey::Mdm(id) => MapObject::Mdm(self.mdms.get(&id)?.clone()),
            MapKey::ProtectionDomain(id) => MapObject::ProtectionDomain(self.domains.get(&id)?.clone()),
            MapKey::FaultSet(id) => MapObject::FaultSet(self.fault_sets.get(&id)?.clone()),
            MapKey::StoragePool(id) => MapObject::StoragePool(self.pools.get(&id)?.clone()),
            MapKey::Sds(id) => MapObject::Sds(self.sds.get(&id)?.clone()),
            MapKey::Device(id) => MapObject::Device(self.devices.get(&id)?.clone()),
            MapKey::Sdc(id) => MapObject::Sdc(self.sdcs.get(&id)?.clone()),
            MapKey::Volume(id) => MapObject::Volume(self.volumes.get(&id)?.clone()),
            MapKey::Mapping(volume, sdc) => MapObject::Mapping(self.mappings.get(&(volume, sdc))?.clone()),
            MapKey::Pg(id) => MapObject::Pg(self.pgs.get(&id)?.config.clone()),
            MapKey::DomainKey(id) => MapObject::DomainKey(self.keys.get(&id)?.clone()),
        })
    }
}
