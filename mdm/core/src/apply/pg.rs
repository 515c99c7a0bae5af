//! Placement groups: fail-over, the primary's own changes, and the leader's.

use std::collections::BTreeMap;

use mdm_api::command::CommandResult;
use mdm_api::config::{PgChange, PgChangeKind};
use mdm_api::epoch::{Epoch, Term};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation};
use mdm_api::map::MapKey;
use mdm_api::model::DeviceState;
use mdm_api::mutants::{self, Mutant};

use super::{done, refuse};
use crate::command::{PgUpdate, PgUpdateKind};
use crate::limits::PG_UPDATES_MAX;
use crate::state::{Appointment, PgRecord, Replacement, State};

/// How many groups each device leads.
pub(crate) type Leads = BTreeMap<DeviceId, u32>;

impl State {
    /// How many groups each device leads now.
    pub(crate) fn leads(&self) -> Leads {
        let mut leads = Leads::new();
        for primary in self.pgs.values().filter_map(|record| record.config.primary) {
            *leads.entry(primary).or_insert(0) += 1;
        }
        leads
    }

    /// True if the member may be made primary: in sync (I5), held by a living process, its copy not in doubt (I12).
    pub(crate) fn can_lead(&self, record: &PgRecord, device: DeviceId) -> bool {
        record.config.isr.contains(&device) && self.is_fit(device) && !record.suspects.contains(&device)
    }

    /// True if the appointed process is certainly gone: a newer one of its server holds the very device, and devices are
    /// held exclusively until a process ends. A server's silence proves nothing.
    pub(crate) fn is_certified_dead(&self, leader: Appointment) -> bool {
        let current = self.sds_of(leader.device).and_then(|sds| sds.incarnation);
        let holder = self.devices.get(&leader.device).and_then(|device| device.opened_by);
        holder.is_some() && holder == current && holder != Some(leader.incarnation)
    }

    /// True if the appointed process orders and serves nothing of the group any more: it is certainly gone, or its device
    /// has failed, which only the process itself says, after all on that device has ended there (F13).
    pub(crate) fn is_over(&self, leader: Appointment) -> bool {
        self.is_certified_dead(leader)
            || self.devices.get(&leader.device).is_some_and(|device| device.state == DeviceState::Failed)
    }

    /// Makes a member primary in its server's present process, or nobody. Over with any planned move.
    fn appoint(&self, record: &mut PgRecord, device: Option<DeviceId>) {
        record.config.heir = None;
        let appointment = device.and_then(|device| {
            let incarnation = self.sds_of(device)?.incarnation?;
            Some(Appointment { device, incarnation })
        });
        let Some(appointment) = appointment else {
            record.config.primary = None;
            record.config.primary_incarnation = ProcessIncarnation::default();
            record.config.previous_certified_dead = false;
            return;
        };
        // I14: only if nobody but the dead process can hold a grant does its death free the new primary from waiting.
        let certified = record.settled && record.leader.is_none_or(|leader| self.is_over(leader));
        record.config.primary = Some(appointment.device);
        record.config.primary_incarnation = appointment.incarnation;
        record.config.previous_certified_dead = certified;
        record.settled = certified;
        record.leader = Some(appointment);
    }

    /// Puts an edited group in place: a new epoch if anything that others see has changed (I1), a new term with it if the
    /// appointment has (I2).
    fn put_pg(&mut self, record: PgRecord) {
        self.put_pg_of_term(record, false);
    }

    /// As [`Self::put_pg`]; `renewed`: a new term in any case, for a primary that serves no more under its last one.
    fn put_pg_of_term(&mut self, mut record: PgRecord, renewed: bool) {
        let pg = record.config.pg;
        let revision = self.next_revision();
        let Some(before) = self.pgs.get(&pg) else { return };
        if renewed || record.config != before.config {
            let epoch = Epoch(revision.0.max(before.config.epoch.0 + 1));
            record.config.epoch = epoch;
            let appointed = |record: &PgRecord| (record.config.primary, record.config.primary_incarnation);
            let keeps = mutants::is_on(Mutant::KeepTermOverRestart) && record.config.primary == before.config.primary;
            if (renewed || appointed(&record) != appointed(before)) && !keeps {
                record.config.term = Term(epoch.0);
                record.appointed_at = revision;
            }
            if let Err(violation) = record.config.check() {
                panic!("{violation}: {:?}", record.config);
            }
            self.touch(MapKey::Pg(pg));
        }
        self.pgs.insert(pg, record);
    }

    /// Who should lead: of the members that may, one whose log is not in doubt; `prefer` if it is one of them, else who
    /// stays longest and leads least. With members in doubt alone nobody, unless there is only one: the leader then asks
    /// all for the ends of their logs.
    fn choose_primary(&self, record: &PgRecord, prefer: Option<DeviceId>, leads: &Leads) -> Option<DeviceId> {
        let able = || record.config.isr.iter().copied().filter(|device| self.can_lead(record, *device));
        let sure = || able().filter(|device| !record.uncertain.contains_key(device));
        if let Some(prefer) = prefer.filter(|prefer| sure().any(|device| device == *prefer)) {
            return Some(prefer);
        }
        let rank = |device: &DeviceId| (!self.is_staying(*device), leads.get(device).copied().unwrap_or(0), *device);
        sure().min_by_key(rank).or_else(|| able().find(|_| record.config.isr.len() == 1))
    }

    /// Brings a group in line with what has become of its members: failed and doubtful ones leave the ISR unless they are
    /// the last (I3, I12), and a primary that is not there any more is replaced at once, or the group goes dark. A group
    /// that was dark before stays so for the leader to settle, unless its only member is back.
    pub(super) fn repoint(&mut self, pg: PgId, leads: &mut Leads) {
        let Some(mut record) = self.pgs.get(&pg).cloned() else { return };
        let before = record.config.primary;
        let failed =
            |device: DeviceId| self.devices.get(&device).is_none_or(|device| device.state == DeviceState::Failed);
        for device in record.config.isr.clone() {
            let doubtful = record.suspects.contains(&device);
            if (failed(device) || doubtful) && record.remove_isr(device) {
                if failed(device) {
                    record.forget(device);
                } else {
                    record.add_learner(device);
                }
            }
        }
        for device in record.config.learners.clone() {
            if failed(device) {
                record.drop_learner(device);
            }
        }
        if record.config.heir.is_some_and(|heir| !self.can_lead(&record, heir)) {
            record.config.heir = None;
        }
        let present = record.config.primary.is_some_and(|primary| {
            let process = self.sds_of(primary).and_then(|sds| sds.incarnation);
            self.can_lead(&record, primary) && process == Some(record.config.primary_incarnation)
        });
        if !present && (before.is_some() || record.config.isr.len() == 1) {
            let chosen = self.choose_primary(&record, before, leads);
            self.appoint(&mut record, chosen);
            if let Some(count) = before.and_then(|device| leads.get_mut(&device)) {
                *count = count.saturating_sub(1);
            }
            if let Some(device) = chosen {
                *leads.entry(device).or_insert(0) += 1;
            }
        }
        self.put_pg(record);
        self.refresh_suspicion();
    }

    /// Notes in each of its groups what a device's store said of itself when it was opened.
    pub(super) fn note_doubt(&mut self, device: DeviceId, suspect: bool) {
        let revision = self.next_revision();
        for record in self.pgs.values_mut().filter(|record| record.config.names(device)) {
            if suspect {
                record.suspects.insert(device);
            } else if record.config.isr.contains(&device) {
                record.uncertain.insert(device, revision);
            }
        }
    }

    /// A device is suspect for as long as it is in any of its groups.
    fn refresh_suspicion(&mut self) {
        let marked: Vec<DeviceId> =
            self.devices.values().filter(|device| device.suspect).map(|device| device.id).collect();
        for id in marked {
            if self.pgs.values().any(|record| record.suspects.contains(&id)) {
                continue;
            }
            if let Some(device) = self.devices.get_mut(&id) {
                device.suspect = false;
            }
            self.touch(MapKey::Device(id));
        }
    }

    /// What a primary asks for. Compare-and-set on the epoch, and by the appointed process alone.
    pub(super) fn change_pg(&mut self, change: &PgChange) -> CommandResult {
        let Some(mut record) = self.pgs.get(&change.pg).cloned() else {
            return refuse(ErrorCode::Stale, format!("There is no placement group {}", change.pg), "follow the map");
        };
        let config = &record.config;
        let is_primary = config.primary == Some(change.proposer) && config.primary_incarnation == change.incarnation;
        if config.epoch != change.epoch || !is_primary {
            return refuse(
                ErrorCode::Stale,
                format!("Placement group {} has gone on to epoch {}", change.pg, config.epoch),
                "follow the map",
            );
        }
        match change.kind {
            PgChangeKind::HandOver => {
                self.hand_over(record);
                return done();
            }
            PgChangeKind::RemoveIsr(device) => {
                if device == change.proposer || !config.isr.contains(&device) {
                    return wrong_member(change.pg, device, "not another in-sync member");
                }
                record.remove_isr(device);
                record.add_learner(device);
            }
            PgChangeKind::AddIsr(device) => {
                self.check_add_isr(&record, device)?;
                record.add_isr(device);
                // A learner is fed by an active primary alone: it has waited out all earlier leases.
                record.settled = true;
            }
        }
        self.put_pg(record);
        self.refresh_suspicion();
        done()
    }

    /// The primary was active, so earlier leases are over, and has released its own: nobody holds any, and the next one
    /// need not wait (I14).
    fn hand_over(&mut self, mut record: PgRecord) {
        let chosen = self.choose_primary(&record, record.config.heir, &self.leads());
        (record.leader, record.settled) = (None, true);
        self.appoint(&mut record, chosen);
        self.put_pg_of_term(record, true);
    }

    fn check_add_isr(&self, record: &PgRecord, device: DeviceId) -> Result<(), CommandError> {
        let pg = record.config.pg;
        if !record.config.learners.contains(&device) {
            return wrong_member(pg, device, "not a learner");
        }
        if !self.is_fit(device) {
            // I4: failed, or of another incarnation; or its process is taken to be dead.
            return wrong_member(pg, device, "not one to count on");
        }
        if !self.is_separate(record, device) {
            return wrong_member(pg, device, "in the fault unit of an in-sync member");
        }
        let copies = usize::from(self.pools.get(&pg.pool).map_or(0, |pool| pool.copies));
        let replacing = record.replacing.is_some_and(|replacing| replacing.to == device);
        if !replacing && self.staying_isr(record).count() >= copies {
            return wrong_member(pg, device, "not needed any more");
        }
        Ok(())
    }

    /// In-sync members that are to stay.
    pub(crate) fn staying_isr<'a>(&'a self, record: &'a PgRecord) -> impl Iterator<Item = DeviceId> + 'a {
        record.config.isr.iter().copied().filter(|device| self.is_staying(*device))
    }

    /// True if the device shares no fault unit with an in-sync member that stays beside it.
    pub(crate) fn is_separate(&self, record: &PgRecord, device: DeviceId) -> bool {
        let unit = self.fault_unit(device);
        let leaving = record.replacing.filter(|replacing| replacing.to == device).map(|replacing| replacing.from);
        self.staying_isr(record)
            .filter(|member| Some(*member) != leaving && *member != device)
            .all(|member| self.fault_unit(member) != unit)
    }

    /// The leader's changes. Each stands alone; one that is out of date is skipped.
    pub(super) fn update_pgs(&mut self, updates: &[PgUpdate]) -> CommandResult {
        if updates.len() > PG_UPDATES_MAX {
            return refuse(ErrorCode::TooMany, "Too many changes in one command", "");
        }
        for update in updates {
            let Some(mut record) = self.pgs.get(&update.pg).cloned() else { continue };
            if record.config.epoch == update.epoch && self.update_pg(&mut record, update.kind) {
                self.put_pg(record);
            }
        }
        self.refresh_suspicion();
        done()
    }

    /// Edits the group; false if the change is not allowed as things are.
    fn update_pg(&self, record: &mut PgRecord, kind: PgUpdateKind) -> bool {
        match kind {
            PgUpdateKind::AppointPrimary { device, incarnation } => {
                let process = self.sds_of(device).and_then(|sds| sds.incarnation);
                let allowed =
                    self.can_lead(record, device) && process == Some(incarnation) && record.config.primary.is_none();
                if allowed {
                    self.appoint(record, Some(device));
                }
                allowed
            }
            PgUpdateKind::MovePrimary { device } => {
                let config = &record.config;
                let moves = config.primary.is_some_and(|primary| primary != device) && config.heir.is_none();
                let allowed = moves && self.can_lead(record, device);
                if allowed {
                    record.config.heir = Some(device);
                }
                allowed
            }
            PgUpdateKind::AddLearner { device, replaces } => {
                let pool = self.devices.get(&device).map(|device| device.pool);
                let known = replaces.is_none_or(|from| record.config.names(from));
                if !known || record.config.names(device) || pool != Some(record.config.pg.pool) {
                    return false;
                }
                let mut trial = record.clone();
                if let Some(from) = replaces {
                    if record.replacing.is_some() {
                        return false;
                    }
                    trial.replacing = Some(Replacement { from, to: device });
                }
                trial.add_learner(device);
                let allowed = self.is_fit(device) && self.is_staying(device) && self.is_separate(&trial, device);
                if allowed {
                    *record = trial;
                }
                allowed
            }
            PgUpdateKind::DropLearner { device } => {
                let allowed = record.config.learners.contains(&device);
                if allowed {
                    record.drop_learner(device);
                }
                allowed
            }
            PgUpdateKind::RemoveSurplus { device } => {
                let copies = usize::from(self.pools.get(&record.config.pg.pool).map_or(u8::MAX, |pool| pool.copies));
                let left = self.staying_isr(record).filter(|member| *member != device && self.is_fit(*member)).count();
                let allowed = record.config.primary.is_some_and(|primary| primary != device)
                    && record.config.isr.contains(&device)
                    && left >= copies;
                if allowed {
                    record.remove_isr(device);
                    record.forget(device);
                }
                allowed
            }
        }
    }

    /// The primaries of these groups are active: they have brought their members to their log, and earlier primaries hold
    /// no lease any more.
    pub(super) fn settle_pgs(&mut self, groups: &[(PgId, Epoch)]) -> CommandResult {
        if groups.len() > PG_UPDATES_MAX {
            return refuse(ErrorCode::TooMany, "Too many changes in one command", "");
        }
        for (pg, epoch) in groups {
            let Some(record) = self.pgs.get_mut(pg) else { continue };
            if record.config.epoch == *epoch && record.config.primary.is_some() {
                record.settled = true;
                record.uncertain.clear();
            }
        }
        done()
    }

    /// Takes a device out of a group by force. The last copy is given up for the best learner, or for nothing: the
    /// operator has said that the device will not come back.
    pub(super) fn force_out(&mut self, pg: PgId, device: DeviceId, leads: &mut Leads) -> Result<(), CommandError> {
        let Some(mut record) = self.pgs.get(&pg).cloned() else { return Ok(()) };
        if record.config.isr == [device] {
            let heir = record.config.learners.iter().copied().find(|learner| self.is_fit(*learner));
            let heir = heir.or_else(|| {
                let mut table = crate::placement::PoolTable::of(self, pg.pool);
                table.choose(&[], u64::from(pg.index), |other| other != device && self.is_fit(other))
            });
            let Some(heir) = heir else {
                return refuse(
                    ErrorCode::TooFewFaultUnits,
                    format!("Device {device} holds the only copy of group {pg}, and there is no other device"),
                    "add a device first, or remove the pool's volumes",
                );
            };
            record.add_isr(heir);
        }
        record.remove_isr(device);
        record.drop_learner(device);
        record.forget(device);
        if record.config.primary.is_none() {
            let chosen = self.choose_primary(&record, None, leads);
            self.appoint(&mut record, chosen);
            if let Some(device) = chosen {
                *leads.entry(device).or_insert(0) += 1;
            }
        }
        self.put_pg(record);
        Ok(())
    }
}

fn wrong_member<T>(pg: PgId, device: DeviceId, what: &str) -> Result<T, CommandError> {
    refuse(ErrorCode::WrongState, format!("Device {device} is {what} of placement group {pg}"), "follow the map")
}
