//! Reconcilers: each looks at the state and at what was heard, and proposes at most one batch of commands that brings the
//! system nearer to what it should be.
//!
//! Multi-step work is never held in memory: what has begun stands in the state, so whoever leads next goes on with it.
//! Everything proposed is compare-and-set; a batch that is late, or doubled, is skipped where things have moved on.

pub mod appoint;
pub mod balance;
pub mod drop;
pub mod fence;
pub mod garbage;
pub mod repair;
pub mod roles;
pub mod settle;
#[cfg(test)]
mod tests;

use mdm_api::epoch::Nanos;
use mdm_api::timing::Timing;

use crate::command::{Command, OwnCommand, PgUpdate};
use crate::detector;
use crate::limits::{PG_UPDATES_MAX, ROLE_PERIOD_MS};
use crate::observed::Observed;
use crate::state::{PgRecord, State};

/// All reconcilers, and the pace of those that have one.
#[derive(Clone, Debug, Default)]
pub struct Reconcilers {
    roles_moved_at: Option<Nanos>,
}

impl Reconcilers {
    /// What should be done now, in order of urgency. To be asked at every tick while leading, when everything proposed
    /// before has been applied; calls [`Observed::observe`] first.
    pub fn propose(&mut self, state: &State, observed: &mut Observed, timing: &Timing, now: Nanos) -> Vec<Command> {
        observed.observe(state, now);
        let mut commands = detector::propose(state, observed, timing, now);
        commands.extend(appoint::propose(state, observed, timing, now));
        commands.extend(fence::propose(state, observed));
        commands.extend(settle::propose(state, observed));
        commands.extend(repair::propose(state, observed, timing, now));
        commands.extend(drop::propose(state, observed));
        commands.extend(garbage::propose(state));
        commands.extend(balance::propose(state));
        if self.roles_moved_at.is_none_or(|at| now.ms_since(at) >= ROLE_PERIOD_MS) {
            let moves = roles::propose(state, observed, now);
            if !moves.is_empty() {
                self.roles_moved_at = Some(now);
                commands.extend(moves);
            }
        }
        commands
    }
}

/// At most one command, of as many updates as fit in it; the rest follows at the next tick.
fn batch(mut updates: Vec<PgUpdate>) -> Vec<Command> {
    updates.truncate(PG_UPDATES_MAX);
    if updates.is_empty() { Vec::new() } else { vec![Command::Own(OwnCommand::UpdatePgs(updates))] }
}

/// True if the group has all its copies in sync on devices that are there and to stay, and nothing is being moved.
fn is_whole(state: &State, record: &PgRecord) -> bool {
    let copies = state.storage_pools().get(&record.config.pg.pool).map_or(0, |pool| usize::from(pool.copies));
    record.config.primary.is_some()
        && record.replacing.is_none()
        && record.config.learners.is_empty()
        && record.config.isr.len() == copies
        && record.config.isr.iter().all(|device| state.is_fit(*device) && state.is_staying(*device))
}
