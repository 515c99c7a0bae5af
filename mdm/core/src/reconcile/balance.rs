//! Evening out what devices hold, after one was added or grew. Only in pools where nothing is missing, and only a few
//! groups at a time: redundancy first.

use std::collections::BTreeSet;

use mdm_api::ids::{DeviceId, PgId};

use super::{batch, is_whole};
use crate::command::{Command, PgUpdate, PgUpdateKind};
use crate::limits::BALANCE_MOVES_MAX;
use crate::placement::PoolTable;
use crate::state::State;

/// Moves to begin.
pub fn propose(state: &State) -> Vec<Command> {
    let mut updates = Vec::new();
    for pool in state.storage_pools().keys() {
        let mut under_way = 0;
        let mut groups: Vec<(PgId, &[DeviceId])> = Vec::new();
        let mut missing = false;
        for record in state.pgs_of(*pool) {
            if is_whole(state, record) {
                groups.push((record.config.pg, &record.config.isr));
            } else if record.replacing.is_some_and(|replacing| record.config.isr.contains(&replacing.from)) {
                under_way += 1;
            } else {
                missing = true;
            }
        }
        if missing || groups.is_empty() {
            continue;
        }
        let mut table = PoolTable::of(state, *pool);
        let mut begun = BTreeSet::new();
        while under_way < BALANCE_MOVES_MAX {
            let free = groups.iter().filter(|(pg, _)| !begun.contains(pg)).copied();
            let Some(found) = table.next_move(free, |device| state.is_fit(device)) else { break };
            begun.insert(found.pg);
            under_way += 1;
            let Some(epoch) = state.pg(found.pg).map(|config| config.epoch) else { break };
            let kind = PgUpdateKind::AddLearner { device: found.to, replaces: Some(found.from) };
            updates.push(PgUpdate { pg: found.pg, epoch, kind });
        }
    }
    batch(updates)
}
