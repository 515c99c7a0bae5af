//! Noting that a primary is active: from then on its death alone frees a successor from waiting out leases (I14), and what
//! was uncertain about its members has been compared with its log.

use mdm_api::epoch::Epoch;
use mdm_api::ids::PgId;

use crate::command::{Command, OwnCommand};
use crate::limits::PG_UPDATES_MAX;
use crate::observed::Observed;
use crate::state::{PgRecord, State};

/// Groups whose primary has said that it is active.
pub fn propose(state: &State, observed: &Observed) -> Vec<Command> {
    let settled: Vec<(PgId, Epoch)> = state
        .pgs()
        .values()
        .filter(|record| !record.settled || !record.uncertain.is_empty())
        .filter(|record| is_settled(state, observed, record))
        .map(|record| (record.config.pg, record.config.epoch))
        .take(PG_UPDATES_MAX)
        .collect();
    if settled.is_empty() { Vec::new() } else { vec![Command::Own(OwnCommand::SettlePgs(settled))] }
}

fn is_settled(state: &State, observed: &Observed, record: &PgRecord) -> bool {
    let Some(primary) = record.config.primary else { return false };
    let Some(through) = observed.active_through(state, record) else { return false };
    let Some(sds) = state.sds_of(primary) else { return false };
    let Some(heartbeat) = observed.heartbeat_of(sds.id, record.config.primary_incarnation) else { return false };
    // A member that was opened anew has been compared once the primary knows of it and has a new lease from it: the lease
    // is asked for after its log was taken.
    record.uncertain.iter().all(|(device, since)| {
        let server = state.sds_of(*device).map(|sds| sds.id);
        let compared = server.is_some_and(|server| server == sds.id || heartbeat.leases_with.contains(&server));
        through >= *since && compared
    })
}
