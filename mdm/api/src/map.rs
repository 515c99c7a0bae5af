//! The cluster map: what servers and clients know of the system, and how they follow it.
//!
//! The map is a set of objects, each with a key. Its revision grows with every committed command that changes it. A
//! follower asks any MDM for what changed since the revision it has; every MDM answers from its own applied state, so a
//! delta is the same wherever it comes from, and an older one is never applied over a newer. Because everything comes in
//! one order, whoever holds revision r knows every fence and every configuration up to r.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::PgConfig;
use crate::epoch::Revision;
use crate::ids::{
    DeviceId, FaultSetId, KeyId, MdmId, PgId, ProtectionDomainId, SdcId, SdsId, StoragePoolId, SystemId, VolumeId,
};
use crate::model::{
    Device, DomainKey, FaultSet, Mapping, Mdm, ProtectionDomain, Sdc, Sds, StoragePool, System, Volume,
};

/// Names an object of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MapKey {
    /// The system record.
    System,
    /// A member of the metadata manager.
    Mdm(MdmId),
    /// A protection domain.
    ProtectionDomain(ProtectionDomainId),
    /// A fault set.
    FaultSet(FaultSetId),
    /// A storage pool.
    StoragePool(StoragePoolId),
    /// A data server.
    Sds(SdsId),
    /// A device.
    Device(DeviceId),
    /// A data client.
    Sdc(SdcId),
    /// A volume.
    Volume(VolumeId),
    /// A mapping.
    Mapping(VolumeId, SdcId),
    /// A placement group.
    Pg(PgId),
    /// A key; only data servers are told.
    DomainKey(KeyId),
}

/// An object of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // one variant for each key, named alike
pub enum MapObject {
    System(System),
    Mdm(Mdm),
    ProtectionDomain(ProtectionDomain),
    FaultSet(FaultSet),
    StoragePool(StoragePool),
    Sds(Sds),
    Device(Device),
    Sdc(Sdc),
    Volume(Volume),
    Mapping(Mapping),
    Pg(PgConfig),
    DomainKey(DomainKey),
}

impl MapObject {
    /// Its key.
    pub fn key(&self) -> MapKey {
        match self {
            Self::System(_) => MapKey::System,
            Self::Mdm(o) => MapKey::Mdm(o.id),
            Self::ProtectionDomain(o) => MapKey::ProtectionDomain(o.id),
            Self::FaultSet(o) => MapKey::FaultSet(o.id),
            Self::StoragePool(o) => MapKey::StoragePool(o.id),
            Self::Sds(o) => MapKey::Sds(o.id),
            Self::Device(o) => MapKey::Device(o.id),
            Self::Sdc(o) => MapKey::Sdc(o.id),
            Self::Volume(o) => MapKey::Volume(o.id),
            Self::Mapping(o) => MapKey::Mapping(o.volume, o.sdc),
            Self::Pg(o) => MapKey::Pg(o.pg),
            Self::DomainKey(o) => MapKey::DomainKey(o.id),
        }
    }
}

/// Who follows, and so what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapView {
    /// A data server: everything, the keys of its protection domain included.
    Sds(SdsId),
    /// A data client: no keys, and only its own mappings and their volumes.
    Sdc(SdcId),
}

/// A step from one revision to another; `from` 0 starts from nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct MapDelta {
    /// What the follower had. A follower at another revision must ask anew, unless `from` is 0: then it forgets all it had.
    pub from: Revision,
    /// What it has afterwards.
    pub to: Revision,
    /// Objects that are new or changed.
    pub changed: Vec<MapObject>,
    /// Objects that are gone.
    pub removed: Vec<MapKey>,
}

/// The delta does not follow on what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a map delta from revision {from} does not follow on revision {have}")]
pub struct OutOfStep {
    /// The revision held.
    pub have: Revision,
    /// The delta's start.
    pub from: Revision,
}

/// A follower's copy of the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterMap {
    revision: Revision,
    objects: BTreeMap<MapKey, MapObject>,
}

macro_rules! lookup {
    ($(#[$doc:meta])* $name:ident, $all:ident, $variant:ident, $key:ty, $object:ty, $first:expr, $last:expr) => {
        $(#[$doc])*
        pub fn $name(&self, id: $key) -> Option<&$object> {
            match self.objects.get(&MapKey::$variant(id)) {
                Some(MapObject::$variant(object)) => Some(object),
                _ => None,
            }
        }

        /// All of them, in order of id.
        pub fn $all(&self) -> impl Iterator<Item = &$object> {
            self.objects.range(MapKey::$variant($first)..=MapKey::$variant($last)).filter_map(|(_, o)| match o {
                MapObject::$variant(object) => Some(object),
                _ => None,
            })
        }
    };
}

impl ClusterMap {
    /// What is held; 0 for nothing.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Takes a step. A delta that ends at or before what is held is a late or doubled one and changes nothing
    /// (`Ok(false)`); one that does not follow on is refused, and the holder asks again.
    pub fn apply(&mut self, delta: &MapDelta) -> Result<bool, OutOfStep> {
        if delta.to <= self.revision {
            return Ok(false);
        }
        if delta.from == Revision(0) {
            self.objects.clear();
        } else if delta.from != self.revision {
            return Err(OutOfStep { have: self.revision, from: delta.from });
        }
        for key in &delta.removed {
            self.objects.remove(key);
        }
        for object in &delta.changed {
            self.objects.insert(object.key(), object.clone());
        }
        self.revision = delta.to;
        Ok(true)
    }

    /// The system's id, once known.
    pub fn system(&self) -> Option<SystemId> {
        match self.objects.get(&MapKey::System) {
            Some(MapObject::System(system)) => Some(system.id),
            _ => None,
        }
    }

    lookup!(/// A member of the metadata manager.
        mdm, mdms, Mdm, MdmId, Mdm, MdmId(0), MdmId(u64::MAX));
    lookup!(/// A pool.
        storage_pool, storage_pools, StoragePool, StoragePoolId, StoragePool, StoragePoolId(0), StoragePoolId(u64::MAX));
    lookup!(/// A data server.
        sds, all_sds, Sds, SdsId, Sds, SdsId(0), SdsId(u64::MAX));
    lookup!(/// A device.
        device, devices, Device, DeviceId, Device, DeviceId(0), DeviceId(u64::MAX));
    lookup!(/// A volume.
        volume, volumes, Volume, VolumeId, Volume, VolumeId(0), VolumeId(u64::MAX));
    lookup!(/// A placement group's configuration.
        pg, pgs, Pg, PgId, PgConfig,
        PgId { pool: StoragePoolId(0), index: 0 }, PgId { pool: StoragePoolId(u64::MAX), index: u32::MAX });
    lookup!(/// A key.
        domain_key, domain_keys, DomainKey, KeyId, DomainKey, KeyId(0), KeyId(u64::MAX));

    /// The mapping of a volume to a client.
    pub fn mapping(&self, volume: VolumeId, sdc: SdcId) -> Option<&Mapping> {
        match self.objects.get(&MapKey::Mapping(volume, sdc)) {
            Some(MapObject::Mapping(mapping)) => Some(mapping),
            _ => None,
        }
    }

    /// All mappings, in order of volume.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        let first = MapKey::Mapping(VolumeId(0), SdcId(0));
        let last = MapKey::Mapping(VolumeId(u64::MAX), SdcId(u64::MAX));
        self.objects.range(first..=last).filter_map(|(_, o)| match o {
            MapObject::Mapping(mapping) => Some(mapping),
            _ => None,
        })
    }

    /// Every object, in order of key.
    pub fn objects(&self) -> impl Iterator<Item = &MapObject> {
        self.objects.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume_domain(id: u64, name: &str) -> MapObject {
        MapObject::ProtectionDomain(ProtectionDomain { id: ProtectionDomainId(id), name: name.to_owned() })
    }

    #[test]
    fn a_late_delta_changes_nothing_and_a_gap_is_refused() {
        let mut map = ClusterMap::default();
        let first =
            MapDelta { from: Revision(0), to: Revision(5), changed: vec![volume_domain(1, "a")], removed: vec![] };
        assert_eq!(map.apply(&first), Ok(true));
        let next =
            MapDelta { from: Revision(5), to: Revision(6), changed: vec![volume_domain(1, "b")], removed: vec![] };
        assert_eq!(map.apply(&next), Ok(true));
        assert_eq!(map.apply(&first), Ok(false));
        assert_eq!(map.apply(&next), Ok(false));
        let gap = MapDelta { from: Revision(8), to: Revision(9), ..Default::default() };
        assert_eq!(map.apply(&gap), Err(OutOfStep { have: Revision(6), from: Revision(8) }));
        assert_eq!(map.objects().collect::<Vec<_>>(), [&volume_domain(1, "b")]);
    }

    #[test]
    fn a_delta_from_nothing_forgets_what_was_held() {
        let mut map = ClusterMap::default();
        let delta = |to, id| MapDelta { from: Revision(0), to, changed: vec![volume_domain(id, "x")], removed: vec![] };
        map.apply(&delta(Revision(3), 1)).unwrap();
        map.apply(&delta(Revision(9), 2)).unwrap();
        assert_eq!(map.objects().collect::<Vec<_>>(), [&volume_domain(2, "x")]);
    }
}
