//! From appointment to service (architecture 5.3, activation): promise, wait, tails, reconcile, epoch start.

use mdm_api::epoch::{Nanos, Seq, Term};
use mdm_api::ids::{DeviceId, ProcessIncarnation};
use mdm_api::mutants::{self, Mutant};
use sds_api::entry::EntryBody;
use sds_api::peer::{PeerBody, Tail};

use crate::leader::{Leader, Moving, Stage};
use crate::limits::ACTIVATE_AGAIN_MS;
use crate::replica::{Cx, Replica};
use crate::role::{ActivationStep, Role};
use crate::{Context, state};

impl Replica {
    /// This replica is appointed under `term`.
    pub(crate) fn activate(&mut self, cx: &mut Cx<'_>, term: Term) {
        assert!(self.leader.is_none(), "one term at a time");
        self.become_role(Role::Activating(ActivationStep::PersistPromise));
        self.follower.unfollow();
        self.leader = Some(Leader::new(term, self.log.last().seq));
        self.inherit_in_flight();
        if mutants::is_on(Mutant::ForgetRequestsAtFailOver) {
            self.sessions = crate::dedup::Sessions::default();
        }
        if term > self.promised || !mutants::is_on(Mutant::KeepTermOverRestart) {
            self.promise(cx, term);
        }
        self.members_changed(cx);
    }

    /// Takes the next step once it may be taken; several, if nothing holds them up.
    pub(crate) fn advance_activation(&mut self, cx: &mut Cx<'_>) {
        let term = self.lead().term;
        if self.is_at(ActivationStep::PersistPromise) && self.promise_durable >= term {
            self.become_role(Role::Activating(ActivationStep::WaitGrants));
        }
        if self.is_at(ActivationStep::WaitGrants) && self.now >= self.lead_from(cx.context) {
            // I14: nobody reads any more under a lease that this server granted.
            self.become_role(Role::Activating(ActivationStep::CollectTails));
            let now = self.now;
            for member in self.lead().members.values_mut() {
                member.progress_at = now;
            }
            self.ask_members(cx);
        }
        if self.is_at(ActivationStep::CollectTails)
            && self.all_required(|stage| matches!(stage, Stage::Streaming | Stage::Diverged))
        {
            self.become_role(Role::Activating(ActivationStep::Reconcile));
        }
        if self.is_at(ActivationStep::Reconcile) && self.all_required(|stage| stage == Stage::Streaming) {
            self.become_role(Role::Activating(ActivationStep::CommitEpochStart));
            // I11: with the first entry of the term the whole tail becomes part of the order: which of its entries the
            // old primary acknowledged cannot be known.
            let epoch = self.epoch();
            let seq = self.order(cx, None, EntryBody::EpochStart { epoch });
            self.lead().epoch_start = Some(seq);
            if mutants::is_on(Mutant::ServeBeforeEpochStart) {
                self.become_role(Role::Primary);
            }
        }
    }

    fn all_required(&self, fits: impl Fn(Stage) -> bool) -> bool {
        let Some(leader) = &self.leader else { return false };
        leader.members.iter().all(|(device, member)| !self.is_required(*device) || fits(member.stage))
    }

    /// From when on this replica may lead.
    pub(crate) fn lead_from(&self, context: &Context) -> Nanos {
        if mutants::is_on(Mutant::SkipLeaseWait) {
            return Nanos(0);
        }
        let certified = self.config.as_ref().is_some_and(|config| config.previous_certified_dead);
        context.leases.may_lead_from(self.me.pg, |server, incarnation| {
            // Certified, and the map knows a newer process of that server: the one that held the grant is gone.
            certified && self.homes.values().any(|home| home.server == server && home.incarnation > incarnation)
        })
    }

    /// True if the step allows to ask this member for its tail.
    fn may_ask(&self, device: DeviceId) -> bool {
        match self.role {
            Role::Primary => self.leader.as_ref().is_some_and(|leader| leader.moving != Moving::Released),
            Role::Activating(step) => step >= ActivationStep::CollectTails && self.is_required(device),
            _ => false,
        }
    }

    /// Asks every member that is connected and does not follow.
    pub(crate) fn ask_members(&mut self, cx: &mut Cx<'_>) {
        let devices: Vec<DeviceId> = self.lead().members.keys().copied().collect();
        for device in devices {
            let connected = self.peers.get(&device).is_some_and(|peer| peer.connected);
            if !connected || !self.may_ask(device) {
                continue;
            }
            let (now, epoch) = (self.now, self.epoch());
            let number = self.number();
            let term = self.lead().term;
            let Some(member) = self.lead().members.get_mut(&device) else { continue };
            let due = match member.stage {
                Stage::Away { again } => now >= again,
                Stage::Asked { at, .. } => now.ms_since(at) >= ACTIVATE_AGAIN_MS,
                Stage::Streaming | Stage::Diverged => false,
            };
            if due {
                // The first question that is repeated keeps its number: an answer under way still counts.
                let ask = if let Stage::Asked { ask, .. } = member.stage { ask } else { number };
                member.stage = Stage::Asked { ask, at: now };
                self.send(cx, device, term, PeerBody::Activate { ask, epoch });
            }
        }
    }

    /// A member has promised and says what it has.
    pub(crate) fn on_tail(
        &mut self,
        cx: &mut Cx<'_>,
        from: DeviceId,
        incarnation: ProcessIncarnation,
        ask: u64,
        tail: Tail,
    ) {
        let (now, own) = (self.now, self.me.device);
        let required = self.is_required(from);
        let Some(member) = self.lead().members.get_mut(&from) else { return };
        if !matches!(member.stage, Stage::Asked { ask: asked, .. } if asked == ask) {
            return;
        }
        (member.enrolled, member.enrolled_at, member.progress_at) = (Some(incarnation), now, now);
        let acked_most = member.acked_most;
        cx.context.credits.granted(own, from, tail.grant);
        let common = self.log.common_with(tail.last, &tail.history);
        let complete = tail.complete && !tail.suspect;
        if required {
            // An in-sync replica has everything that is committed and everything that it acknowledged; one that has not
            // is suspect (I12), and nothing is resent to it.
            if complete && common >= self.log.committed() && common >= tail.committed && common >= acked_most {
                self.follow_from(cx, from, ask, common);
            } else if let Some(member) = self.lead().members.get_mut(&from) {
                member.stage = Stage::Diverged;
            }
        } else if complete && common >= tail.committed && self.log.reaches_back_to(common) {
            // The shortcut: what it missed is all still here.
            self.follow_from(cx, from, ask, common);
        } else {
            // Complete through there: every layer of it is as of then, whenever it was last written.
            let has = if complete && common >= tail.committed { tail.committed } else { Seq(0) };
            self.reset_learner(cx, from, ask, has);
        }
    }

    fn follow_from(&mut self, cx: &mut Cx<'_>, device: DeviceId, stream: u64, after: Seq) {
        let (now, commit) = (self.now, self.log.committed());

        let term = self.lead().term;
        let Some(member) = self.lead().members.get_mut(&device) else { return };
        member.start_stream(stream, after, now);
        self.send(cx, device, term, PeerBody::Follow { stream, after, commit });
    }

    /// The learner's content is compared with this one's, and its order starts from this one's state.
    fn reset_learner(&mut self, cx: &mut Cx<'_>, device: DeviceId, stream: u64, has: Seq) {
        let now = self.now;
        let through = self.log.version_at(self.log.committed());
        let nothing = crate::dedup::Sessions::default();
        let sessions = if mutants::is_on(Mutant::ForgetRequestsInResync) { &nothing } else { &self.sessions };
        let state = state::encode(&self.log, sessions, false);

        let term = self.lead().term;
        let Some(member) = self.lead().members.get_mut(&device) else { return };
        member.acked_most = Seq(0);
        member.start_stream(stream, through.seq, now);
        self.send(cx, device, term, PeerBody::Reset { stream, through, state });
        self.start_resync(cx, device, stream, has);
    }
}
