//! Who must acknowledge, while a change is undecided too; who is to be dropped, and who may come in.
//!
//! Always true (I9, the golden rule): what is committed is durable on every member of every ISR that may be in force while
//! this replica believes it is the primary. So a member is required until a newer configuration says otherwise, whatever
//! was proposed; and a learner is required from before its `AddIsr` is proposed until a newer configuration is known (I5):
//! any newer one either holds it or has made the proposal void.

use mdm_api::config::{PgChange, PgChangeKind};
use mdm_api::epoch::{Epoch, Nanos, Seq};
use mdm_api::ids::DeviceId;
use mdm_api::mutants::{self, Mutant};

use crate::Context;
use crate::action::Action;
use crate::leader::{Member, Moving, Proposed, Stage};
use crate::limits::{PROPOSE_AGAIN_MS, REJOIN_DOUBLINGS_MAX, REJOIN_QUARANTINE_MS};
use crate::replica::{Cx, Replica};
use crate::role::{ActivationStep, Role};

impl Replica {
    /// True if nothing commits without this member.
    pub(crate) fn is_required(&self, device: DeviceId) -> bool {
        let in_sync = self.config.as_ref().is_some_and(|config| config.isr.contains(&device));
        let proposed = self.leader.as_ref().and_then(|leader| leader.proposed).map(|proposed| proposed.kind);
        if mutants::is_on(Mutant::ShrinkBeforeCommit) && proposed == Some(PgChangeKind::RemoveIsr(device))
            || mutants::is_on(Mutant::GrowWithoutRequiring) && !in_sync
        {
            return false;
        }
        in_sync || self.leader.as_ref().and_then(|leader| leader.adding).is_some_and(|(adding, _)| adding == device)
    }

    /// All other members that are required.
    pub(crate) fn required_others(&self) -> Vec<DeviceId> {
        let Some(leader) = &self.leader else { return Vec::new() };
        leader.members.keys().copied().filter(|device| self.is_required(*device)).collect()
    }

    /// True if there are as many in-sync replicas as the pool's policy asks for.
    pub(crate) fn has_min_isr(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.isr.len() >= usize::from(self.min_isr))
    }

    /// The configuration is new; the term is not.
    pub(crate) fn members_changed(&mut self, cx: &mut Cx<'_>) {
        let Some(config) = self.config.clone() else { return };
        let (now, own) = (self.now, self.me.device);
        let leader = self.lead();
        if leader.adding.is_some_and(|(_, epoch)| config.epoch > epoch) {
            leader.adding = None;
        }
        if leader.proposed.is_some_and(|proposed| config.epoch > proposed.epoch) {
            leader.proposed = None;
        }
        let gone: Vec<DeviceId> = leader.members.keys().copied().filter(|device| !config.names(*device)).collect();
        for device in gone {
            self.drop_member(cx, device);
        }
        if !self.has_min_isr() {
            self.park(cx);
        }
        for device in config.isr.iter().chain(&config.learners).copied().filter(|device| *device != own) {
            let leader = self.lead();
            let member = leader.members.entry(device).or_insert_with(|| Member::new(now));
            if config.learners.contains(&device) && member.stage == Stage::Diverged {
                // Dropped for its tail: as a learner it is compared by content.
                member.stage = Stage::Away { again: now };
                member.acked_most = Seq(0);
            }
        }
        self.watch_dirty();
    }

    /// True if every required member's server covers this group at this moment (I13). Alone in the ISR, nobody else can
    /// be appointed, and no lease is needed.
    pub(crate) fn holds_lease(&self, cx: &Cx<'_>) -> bool {
        self.is_covered_by_all(self.now, cx.context)
    }

    pub(crate) fn is_covered_by_all(&self, now: Nanos, context: &Context) -> bool {
        let Some(leader) = &self.leader else { return false };
        leader.moving != Moving::Released
            && leader
                .members
                .iter()
                .all(|(device, member)| !self.is_required(*device) || self.is_covered(now, context, *device, member))
    }

    fn is_covered(&self, now: Nanos, context: &Context, device: DeviceId, member: &Member) -> bool {
        let Some(term) = self.leader.as_ref().map(|leader| leader.term) else { return false };
        let (Some(home), Some(incarnation)) = (self.homes.get(&device), member.enrolled) else { return false };
        context.leases.covers(now, home.server, incarnation, self.me.pg, term)
    }

    /// Proposes what has become due: to drop a member that does not do its part, or to take in a learner that does.
    pub(crate) fn watch_members(&mut self, cx: &mut Cx<'_>) {
        let now = self.now;
        let last = self.log.last().seq;
        for member in self.lead().members.values_mut() {
            if member.stage == Stage::Streaming
                && member.acked >= last
                && member.operations_done == member.operations_sent
            {
                member.progress_at = now; // Nothing is asked of it.
            }
        }
        if let Some(term) = cx.context.leases.newer_term(self.me.pg, self.lead().term) {
            self.want_map(cx, Epoch(term.0));
        }
        let active = match self.role {
            Role::Primary => self.lead().moving != Moving::Released,
            Role::Activating(step) => step >= ActivationStep::CollectTails,
            _ => false,
        };
        if !active {
            return;
        }
        if let Some(device) = self.required_others().into_iter().find(|device| self.is_lost(cx, *device)) {
            // F3, F7, F14. For a learner whose `AddIsr` is undecided this settles the matter either way.
            self.propose(cx, PgChangeKind::RemoveIsr(device));
        } else if let Some((device, _)) = self.lead().adding {
            self.propose(cx, PgChangeKind::AddIsr(device));
        } else if let Some(device) = self.fit_learner(cx) {
            let epoch = self.epoch();
            self.lead().adding = Some((device, epoch)); // I5: required before it is proposed.
            self.propose(cx, PgChangeKind::AddIsr(device));
        }
    }

    /// True if a required member has not done its part for too long.
    fn is_lost(&self, cx: &Cx<'_>, device: DeviceId) -> bool {
        let timing = cx.context.leases.timing();
        let Some(member) = self.leader.as_ref().and_then(|leader| leader.members.get(&device)) else { return false };
        if member.stage == Stage::Diverged {
            return true;
        }
        let gone_for = self.peers.get(&device).filter(|peer| !peer.connected && peer.reset).map(|peer| peer.since);
        if gone_for.is_some_and(|since| self.now.ms_since(since) >= timing.remove_after_reset_ms) {
            return true;
        }
        // F2: who is taken to be dead has been silent for long already, for everybody.
        let is_down = self.homes.get(&device).is_some_and(|home| home.is_down);
        let silence_ms = if is_down { timing.remove_after_reset_ms } else { timing.remove_after_silence_ms };
        if self.now.ms_since(member.progress_at) >= silence_ms {
            return true;
        }
        // It acknowledges but grants no leases: reads stand still.
        let covered = self.role != Role::Primary || self.is_covered(self.now, cx.context, device, member);
        let since = match (self.homes.get(&device), member.enrolled) {
            (Some(home), Some(incarnation)) => {
                cx.context.leases.held_until(home.server, incarnation).max(member.enrolled_at)
            }
            _ => member.progress_at,
        };
        !covered && self.now.ms_since(since) >= silence_ms
    }

    /// A learner that is fully synchronous: complete, keeping up, and covered by a lease.
    fn fit_learner(&self, cx: &Cx<'_>) -> Option<DeviceId> {
        if self.role != Role::Primary {
            return None;
        }
        let leader = self.leader.as_ref()?;
        let (committed, last) = (self.log.committed(), self.log.last().seq);
        let found = leader.members.iter().find(|(device, member)| {
            let rested = leader.flaps.get(device).is_none_or(|(_, until)| self.now >= *until);
            !self.is_required(**device)
                && rested
                && member.stage == Stage::Streaming
                && (member.resync.is_none() || mutants::is_on(Mutant::LearnerTooEarly))
                && member.operations_done == member.operations_sent
                && member.acked >= committed
                && member.sent == last
                && self.is_covered(self.now, cx.context, **device, member)
        });
        found.map(|(device, _)| *device)
    }

    pub(crate) fn propose(&mut self, cx: &mut Cx<'_>, kind: PgChangeKind) {
        let (now, epoch) = (self.now, self.epoch());
        if let Some(proposed) = self.lead().proposed {
            let same = proposed.kind == kind && proposed.epoch == epoch;
            if same && now.ms_since(proposed.at) < PROPOSE_AGAIN_MS {
                return;
            }
        }
        if let PgChangeKind::RemoveIsr(device) = kind {
            let known = self.lead().proposed.is_some_and(|proposed| proposed.kind == kind && proposed.epoch == epoch);
            if !known {
                self.count_flap(device);
            }
        }
        self.lead().proposed = Some(Proposed { kind, epoch, at: now });
        let (pg, proposer, incarnation) = (self.me.pg, self.me.device, self.me.incarnation);
        cx.out.push(Action::Propose(PgChange { pg, epoch, proposer, incarnation, kind }));
    }

    fn count_flap(&mut self, device: DeviceId) {
        let now = self.now;
        let flap = self.lead().flaps.entry(device).or_insert((0, Nanos(0)));
        let doublings = flap.0.min(REJOIN_DOUBLINGS_MAX);
        *flap = (flap.0 + 1, now.plus_ms(REJOIN_QUARANTINE_MS << doublings));
    }
}
