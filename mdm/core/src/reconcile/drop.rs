//! Removed volumes: gone when every primary of the pool has dropped their chunks on all copies.

use mdm_api::ids::VolumeId;
use mdm_api::map::MapKey;
use mdm_api::model::Volume;

use crate::command::{Command, OwnCommand};
use crate::observed::Observed;
use crate::state::State;

/// Volumes of which nothing is left.
pub fn propose(state: &State, observed: &Observed) -> Vec<Command> {
    let dropped: Vec<VolumeId> = state
        .volumes()
        .values()
        .filter(|volume| volume.removing && is_dropped(state, observed, volume))
        .map(|volume| volume.id)
        .collect();
    if dropped.is_empty() { Vec::new() } else { vec![Command::Own(OwnCommand::VolumesDropped(dropped))] }
}

fn is_dropped(state: &State, observed: &Observed, volume: &Volume) -> bool {
    let Some(removed_at) = state.last_change(MapKey::Volume(volume.id)) else { return false };
    state.pgs_of(volume.pool).all(|record| {
        let active = observed.active_through(state, record).is_some_and(|through| through >= removed_at);
        let sds = record.config.primary.and_then(|primary| state.sds_of(primary));
        let heartbeat = sds.and_then(|sds| observed.heartbeat_of(sds.id, record.config.primary_incarnation));
        active && heartbeat.is_some_and(|heartbeat| heartbeat.dropped.contains(&volume.id))
    })
}
