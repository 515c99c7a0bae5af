//! Evening out who leads. Damped: a few moves at a time, only of whole groups, only to servers that have been steady, and
//! only where it makes a difference: a role that moves is a short pause for its group, even as a planned move, in which the
//! primary drains and hands over by itself.

use std::collections::BTreeMap;

use mdm_api::epoch::Nanos;
use mdm_api::ids::DeviceId;

use super::{batch, is_whole};
use crate::command::{Command, PgUpdate, PgUpdateKind};
use crate::limits::{ROLE_MOVES_MAX, ROLE_STEADY_MS};
use crate::observed::Observed;
use crate::state::State;

/// Roles to move.
pub fn propose(state: &State, observed: &Observed, now: Nanos) -> Vec<Command> {
    // Of what a device keeps it should lead one in `copies`; counted in copies-ths to stay with whole numbers.
    let mut excess: BTreeMap<DeviceId, i64> = BTreeMap::new();
    for record in state.pgs().values() {
        let copies = record.config.isr.len() as i64;
        for member in &record.config.isr {
            // A move under way counts as done.
            let leads = i64::from(record.config.heir.or(record.config.primary) == Some(*member));
            *excess.entry(*member).or_insert(0) += (leads * copies - 1) * 6 / copies;
        }
    }
    let steady = |device: DeviceId| {
        let heard = state.sds_of(device).and_then(|sds| observed.heard(sds.id));
        heard.is_some_and(|heard| now.ms_since(heard.steady_since) >= ROLE_STEADY_MS)
    };
    let under_way = state.pgs().values().filter(|record| record.config.heir.is_some()).count();
    let mut updates = Vec::new();
    for record in state.pgs().values().filter(|record| is_whole(state, record) && record.config.heir.is_none()) {
        if under_way + updates.len() >= ROLE_MOVES_MAX {
            break;
        }
        let Some(primary) = record.config.primary else { continue };
        let heirs = record.config.isr.iter().copied().filter(|d| *d != primary && steady(*d));
        let Some(heir) = heirs.filter(|d| state.can_lead(record, *d)).min_by_key(|d| (excess[d], *d)) else { continue };
        // A sixth is the unit: a role is worth six. Two roles of difference are none after the move; hysteresis on top.
        if excess[&primary] - excess[&heir] < 6 * 4 || excess[&primary] < 6 {
            continue;
        }
        *excess.entry(primary).or_insert(0) -= 6;
        *excess.entry(heir).or_insert(0) += 6;
        let kind = PgUpdateKind::MovePrimary { device: heir };
        updates.push(PgUpdate { pg: record.config.pg, epoch: record.config.epoch, kind });
    }
    batch(updates)
}
