//! Bringing back dark groups (F4, F5): after an outage, the in-sync member with the longest log leads.
//!
//! Any in-sync member holds every acknowledged write, so any would do; the longest log and the wait for all members are a
//! second line of defence, against disks that lied about a flush. Members whose log ended in a torn frame lead only when
//! all have been heard.

use mdm_api::epoch::{Nanos, Version};
use mdm_api::ids::{DeviceId, PgId};
use mdm_api::timing::Timing;

use super::batch;
use crate::command::{Command, PgUpdate, PgUpdateKind};
use crate::observed::Observed;
use crate::state::{PgRecord, State};

/// Primaries for groups that have none.
pub fn propose(state: &State, observed: &Observed, timing: &Timing, now: Nanos) -> Vec<Command> {
    let tails = Tails::of(state, observed);
    let dark = state.pgs().values().filter(|record| record.config.primary.is_none());
    batch(dark.filter_map(|record| appoint(state, observed, timing, now, &tails, record)).collect())
}

fn appoint(
    state: &State,
    observed: &Observed,
    timing: &Timing,
    now: Nanos,
    tails: &Tails,
    record: &PgRecord,
) -> Option<PgUpdate> {
    let pg = record.config.pg;
    let reported: Vec<(DeviceId, Version)> = record
        .config
        .isr
        .iter()
        .filter(|device| state.can_lead(record, **device))
        .filter_map(|device| Some((*device, tails.get(record, *device)?)))
        .collect();
    let all = reported.len() == record.config.isr.len();
    if !all && observed.dark_ms(pg, now) < timing.report_grace_ms {
        return None;
    }
    let rank = |(device, tail): &(DeviceId, Version)| {
        let sure = !record.uncertain.contains_key(device);
        (*tail, sure, state.is_staying(*device), std::cmp::Reverse(*device))
    };
    let (device, _) =
        reported.into_iter().filter(|(device, _)| all || !record.uncertain.contains_key(device)).max_by_key(rank)?;
    let incarnation = state.sds_of(device)?.incarnation?;
    let kind = PgUpdateKind::AppointPrimary { device, incarnation };
    Some(PgUpdate { pg, epoch: record.config.epoch, kind })
}

/// The ends of logs that count: reported by the present process of the device's server, and after it had seen the group
/// go dark, so that no primary has added to the log since.
struct Tails(std::collections::BTreeMap<(PgId, DeviceId), (Version, mdm_api::epoch::Revision)>);

impl Tails {
    fn of(state: &State, observed: &Observed) -> Self {
        let mut tails = std::collections::BTreeMap::new();
        for (sds, heard) in observed.all_heard() {
            let current = state.sds().get(sds).and_then(|sds| sds.incarnation);
            if current.is_none() || heard.heartbeat.incarnation != current {
                continue;
            }
            for report in &heard.heartbeat.tails {
                if state.sds_of(report.device).is_some_and(|owner| owner.id == *sds) {
                    tails.insert((report.pg, report.device), (report.tail, heard.heartbeat.map_revision));
                }
            }
        }
        Self(tails)
    }

    fn get(&self, record: &PgRecord, device: DeviceId) -> Option<Version> {
        let (tail, revision) = self.0.get(&(record.config.pg, device))?;
        (*revision >= record.appointed_at).then_some(*tail)
    }
}
