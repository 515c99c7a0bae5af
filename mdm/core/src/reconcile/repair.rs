//! Redundancy that comes back by itself.
//!
//! *Backward*: a member that was dropped stays a learner, so when it returns its primary catches it up at once, usually
//! with little to send. *Forward*: one that is away for longer than the grace, or that has failed, is replaced by another
//! device. If it returns while that is under way, the one that is nearer to the end stays. When a group has all its copies,
//! members that are being emptied and learners that are not needed go.

use std::collections::BTreeMap;

use mdm_api::control::ResyncReport;
use mdm_api::epoch::Nanos;
use mdm_api::ids::{DeviceId, PgId, StoragePoolId};
use mdm_api::timing::Timing;

use super::batch;
use crate::command::{Command, PgUpdate, PgUpdateKind};
use crate::limits::PG_UPDATES_MAX;
use crate::observed::Observed;
use crate::placement::{PoolTable, mix};
use crate::state::{FaultUnit, PgRecord, State};

/// Steps towards all copies.
pub fn propose(state: &State, observed: &Observed, timing: &Timing, now: Nanos) -> Vec<Command> {
    let reports: BTreeMap<PgId, &ResyncReport> =
        observed.all_heard().flat_map(|(_, heard)| &heard.heartbeat.resync).map(|report| (report.pg, report)).collect();
    let mut view = View { state, observed, timing, now, reports, tables: BTreeMap::new() };
    let mut updates = Vec::new();
    // Groups with the fewest copies first.
    let mut order: Vec<&PgRecord> = state.pgs().values().filter(|record| needs_a_look(state, record)).collect();
    order.sort_by_key(|record| (state.staying_isr(record).count(), record.config.pg));
    for record in order {
        if let Some(kind) = view.step(record) {
            updates.push(PgUpdate { pg: record.config.pg, epoch: record.config.epoch, kind });
        }
        if updates.len() == PG_UPDATES_MAX {
            break;
        }
    }
    batch(updates)
}

/// Most groups, most of the time, need nothing.
fn needs_a_look(state: &State, record: &PgRecord) -> bool {
    record.config.primary.is_some() && !super::is_whole(state, record)
}

struct View<'a> {
    state: &'a State,
    observed: &'a Observed,
    timing: &'a Timing,
    now: Nanos,
    reports: BTreeMap<PgId, &'a ResyncReport>,
    tables: BTreeMap<StoragePoolId, PoolTable>,
}

impl View<'_> {
    /// The next step of a group: one at a time, since each changes its epoch.
    fn step(&mut self, record: &PgRecord) -> Option<PgUpdateKind> {
        let copies = usize::from(self.state.storage_pools().get(&record.config.pg.pool)?.copies);
        let in_sync = self.state.staying_isr(record).count();
        if in_sync >= copies { self.tidy(record, copies) } else { self.restore(record, copies - in_sync) }
    }

    /// All copies are in sync: what is not needed goes.
    fn tidy(&self, record: &PgRecord, copies: usize) -> Option<PgUpdateKind> {
        let moving_to = record.replacing.map(|replacing| replacing.to);
        if let Some(device) = record.config.learners.iter().copied().find(|device| Some(*device) != moving_to) {
            return Some(PgUpdateKind::DropLearner { device });
        }
        if let Some(to) = moving_to.filter(|to| record.config.learners.contains(to) && !self.is_live(*to)) {
            // The move has lost its target: given up, to be planned anew.
            return Some(PgUpdateKind::DropLearner { device: to });
        }
        let moved = record.replacing.filter(|replacing| record.config.isr.contains(&replacing.to));
        let leaving = |device: &DeviceId| !self.state.is_staying(*device) || moved.is_some_and(|m| m.from == *device);
        let device = record.config.isr.iter().copied().find(leaving).or_else(|| {
            // One too many without a plan: the one that leads the least reason to stay, the last that is not primary.
            let surplus = self.state.staying_isr(record).count() > copies;
            record.config.isr.iter().rev().copied().find(|d| surplus && Some(*d) != record.config.primary)
        })?;
        let left = self.state.staying_isr(record).filter(|member| *member != device && self.is_live(*member));
        if left.count() < copies {
            return None;
        }
        if record.config.primary != Some(device) {
            return Some(PgUpdateKind::RemoveSurplus { device });
        }
        if record.config.heir.is_some() {
            return None;
        }
        // It leads: the role moves first.
        let heir = moved.map(|moved| moved.to).into_iter().chain(self.state.staying_isr(record));
        let mut heirs = heir.filter(|heir| *heir != device && self.state.can_lead(record, *heir));
        heirs.next().map(|device| PgUpdateKind::MovePrimary { device })
    }

    /// Copies are missing.
    fn restore(&mut self, record: &PgRecord, missing: usize) -> Option<PgUpdateKind> {
        let learners = &record.config.learners;
        // A learner that can never be one of the copies is in the way of one that can.
        let useless = |device: &DeviceId| !self.state.is_staying(*device) || !self.state.is_separate(record, *device);
        if let Some(device) = learners.iter().copied().find(useless) {
            return Some(PgUpdateKind::DropLearner { device });
        }
        if let Some(replaced) =
            record.replacing.filter(|r| record.config.isr.contains(&r.to) && learners.contains(&r.from))
        {
            return Some(PgUpdateKind::DropLearner { device: replaced.from });
        }
        let live = learners.iter().filter(|device| self.is_live(**device)).count();
        if live > missing {
            return self.fewer(record);
        }
        if live == missing {
            return None;
        }
        let lost = learners.iter().copied().filter(|device| !self.is_live(*device));
        if learners.len() < missing {
            // A member has failed, or is being emptied: its place is free, nobody is waited for.
            let leaving = record.config.isr.iter().copied().find(|device| !self.state.is_staying(*device));
            let replaces = leaving.filter(|_| record.replacing.is_none());
            return self.add(record, replaces);
        }
        let overdue = |device: &DeviceId| self.observed.lost_ms(*device, self.now) >= self.timing.rebuild_grace_ms;
        let from = lost.into_iter().find(overdue)?;
        match record.replacing.map(|replacing| replacing.to).filter(|to| learners.contains(to) && !self.is_live(*to)) {
            // The replacement is lost as well: given up after the same grace, and planned anew.
            Some(to) => overdue(&to).then_some(PgUpdateKind::DropLearner { device: to }),
            None => self.add(record, record.replacing.is_none().then_some(from)),
        }
    }

    /// A lost member has come back while its place was being filled: the one that is nearer to the end stays.
    fn fewer(&self, record: &PgRecord) -> Option<PgUpdateKind> {
        let replacing = record.replacing?;
        let report = self.reports.get(&record.config.pg);
        let far = report.is_some_and(|report| report.chunks_total > 0 && report.chunks_done * 2 >= report.chunks_total);
        let device = if far { replacing.from } else { replacing.to };
        record.config.learners.contains(&device).then_some(PgUpdateKind::DropLearner { device })
    }

    fn add(&mut self, record: &PgRecord, replaces: Option<DeviceId>) -> Option<PgUpdateKind> {
        let (state, pg) = (self.state, record.config.pg);
        let stays =
            state.staying_isr(record).chain(record.config.learners.iter().copied().filter(|d| self.is_live(*d)));
        let taken: Vec<FaultUnit> = stays.filter_map(|device| state.fault_unit(device)).collect();
        let table = self.tables.entry(pg.pool).or_insert_with(|| PoolTable::of(state, pg.pool));
        let may = |device: DeviceId| state.is_fit(device) && !record.config.names(device);
        let device = table.choose(&taken, mix(u64::from(pg.index)), may)?;
        Some(PgUpdateKind::AddLearner { device, replaces })
    }

    fn is_live(&self, device: DeviceId) -> bool {
        self.state.is_fit(device)
    }
}
