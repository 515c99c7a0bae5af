//! Fences (I17): when nothing of an older generation of a mapping can be ordered any more.
//!
//! A fence holds when every group of the volume's pool is led by a primary that follows the map to the fence and is active,
//! or by nobody, and the last one to lead it certainly does so no more: whoever leads it next begins with all fences known.

use mdm_api::epoch::Revision;
use mdm_api::ids::{SdsId, StoragePoolId, VolumeId};

use crate::command::{Command, FenceDone, OwnCommand};
use crate::observed::Observed;
use crate::state::{PgRecord, State};

/// Fences that hold.
pub fn propose(state: &State, observed: &Observed) -> Vec<Command> {
    let pending: Vec<_> = state.mappings().values().filter(|mapping| !mapping.fenced).collect();
    let mut through: std::collections::BTreeMap<StoragePoolId, Revision> = std::collections::BTreeMap::new();
    let mut done = Vec::new();
    for mapping in pending {
        let Some(volume) = state.volumes().get(&mapping.volume) else { continue };
        let holds = *through.entry(volume.pool).or_insert_with(|| pool_through(state, observed, volume.pool));
        if mapping.fence_revision <= holds {
            done.push(FenceDone { volume: mapping.volume, sdc: mapping.sdc, fence_revision: mapping.fence_revision });
        }
    }
    if done.is_empty() { Vec::new() } else { vec![Command::Own(OwnCommand::FencesDone(done))] }
}

/// Up to which revision all fences hold in all groups of the pool.
fn pool_through(state: &State, observed: &Observed, pool: StoragePoolId) -> Revision {
    let all = state.pgs_of(pool).map(|record| pg_through(state, observed, record));
    all.min().unwrap_or(Revision(u64::MAX))
}

fn pg_through(state: &State, observed: &Observed, record: &PgRecord) -> Revision {
    if record.config.primary.is_some() {
        return observed.active_through(state, record).unwrap_or_default();
    }
    // Settled: nobody before the last one appointed can still order anything either.
    let over = record.settled && record.leader.is_none_or(|leader| state.is_over(leader));
    if over { Revision(u64::MAX) } else { Revision(0) }
}

/// What a fence waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Groups in which it does not hold yet.
    pub pgs: u32,
    /// The servers that have to say so, or to be found dead.
    pub sds: Vec<SdsId>,
}

/// What fences of the volume up to this revision wait for: for people, when it takes long.
pub fn waiting_for(state: &State, observed: &Observed, volume: VolumeId, revision: Revision) -> Waiting {
    let mut waiting = Waiting::default();
    let Some(volume) = state.volumes().get(&volume) else { return waiting };
    let mut servers = std::collections::BTreeSet::new();
    for record in state.pgs_of(volume.pool) {
        if pg_through(state, observed, record) < revision {
            waiting.pgs += 1;
            let device = record.config.primary.or(record.leader.map(|leader| leader.device));
            servers.extend(device.and_then(|device| state.sds_of(device)).map(|sds| sds.id));
        }
    }
    waiting.sds = servers.into_iter().collect();
    waiting
}
