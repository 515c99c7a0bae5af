//! From a byte of a volume to the server that leads its placement group.

use mdm_api::config::PgConfig;
use mdm_api::epoch::{Epoch, SnapSeq, Term};
use mdm_api::ids::{PgId, SdcId, SdsId, StoragePoolId, VolumeId, VtreeId};
use mdm_api::map::ClusterMap;
use mdm_api::model::AccessMode;
use mdm_api::placement::{PLACEMENT_VERSION, pg_index};

use crate::io::IoError;

/// What a session needs to know of its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The pool that keeps it.
    pub pool: StoragePoolId,
    /// Groups of the pool.
    pub pg_count: u32,
    /// Its tree.
    pub vtree: VtreeId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The snapshot sequence that its writes carry.
    pub snap_seq: SnapSeq,
}

impl Geometry {
    /// Reads it from the map.
    pub fn of(map: &ClusterMap, volume: VolumeId) -> Result<Self, IoError> {
        let volume = map.volume(volume).filter(|volume| !volume.removing).ok_or(IoError::VolumeGone)?;
        let pool = map.storage_pool(volume.pool).ok_or(IoError::VolumeGone)?;
        if pool.placement_version != PLACEMENT_VERSION || !pool.pg_count.is_power_of_two() {
            return Err(IoError::UnknownPlacement(pool.placement_version));
        }
        Ok(Self {
            pool: pool.id,
            pg_count: pool.pg_count,
            vtree: volume.vtree,
            size_bytes: volume.size_bytes,
            snap_seq: volume.snap_seq,
        })
    }

    /// The group that keeps a chunk.
    pub fn pg(&self, chunk: u64) -> PgId {
        PgId { pool: self.pool, index: pg_index(self.vtree, chunk, self.pg_count) }
    }
}

/// How a volume may be used by a client, by the map.
pub fn access(map: &ClusterMap, volume: VolumeId, sdc: SdcId) -> Option<AccessMode> {
    map.mapping(volume, sdc).filter(|mapping| !mapping.revoked).map(|mapping| mapping.access)
}

/// Where a group's requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The primary's server.
    pub sds: SdsId,
    /// The configuration it is from.
    pub epoch: Epoch,
    /// The appointment. Another one means another primary, or another process of it.
    pub term: Term,
}

/// The newest configuration that is known of a group: the map's, or a newer one that a server told.
pub fn newest<'a>(map: &'a ClusterMap, pg: PgId, told: Option<&'a PgConfig>) -> Option<&'a PgConfig> {
    match (map.pg(pg), told) {
        (Some(map), Some(told)) if told.epoch > map.epoch => Some(told),
        (Some(map), _) => Some(map),
        (None, told) => told,
    }
}

/// Where the configuration sends requests; none while the group is dark or its primary's server is not in the map yet.
pub fn route(map: &ClusterMap, config: &PgConfig) -> Option<Route> {
    let device = map.device(config.primary?)?;
    Some(Route { sds: device.sds, epoch: config.epoch, term: config.term })
}
