//! Fences and planned moves: what must stop, and when it has stopped (I17, F26).

use mdm_api::config::PgChangeKind;
use mdm_api::epoch::{AttachGeneration, Seq};
use mdm_api::ids::{DeviceId, SdcId, VolumeId};
use mdm_api::mutants::{self, Mutant};
use sds_api::client::ClientError;
use sds_api::peer::PeerBody;

use crate::action::Action;
use crate::leader::{Moving, Stage};
use crate::primary::Work;
use crate::replica::{Cx, Replica};
use crate::role::Role;

/// A fence that waits for writes in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingFence {
    pub(crate) fence: u64,
    /// Everything that was ordered before the fence.
    through: Seq,
}

impl Replica {
    pub(crate) fn on_fence(
        &mut self,
        cx: &mut Cx<'_>,
        fence: u64,
        volume: VolumeId,
        sdc: SdcId,
        below: AttachGeneration,
    ) {
        let last = self.log.last().seq;
        self.sessions.fence(volume, sdc, below);
        let Some(leader) = self.leader.as_ref() else {
            // Nothing of anybody's is accepted here.
            cx.out.push(Action::Fenced { fence, term: None });
            return;
        };
        let fenced = |work: &Work| match work {
            Work::Change(change) => {
                let identity = &change.identity;
                identity.volume == volume && identity.sdc == sdc && identity.session < below
            }
            Work::Read | Work::Status => false,
        };
        let refused: Vec<u64> =
            leader.requests.iter().filter(|(_, request)| fenced(&request.work)).map(|(id, _)| *id).collect();
        for id in refused {
            self.finish_request(cx, id, &Err(ClientError::Fenced));
        }
        // Those that are ordered are not told apart: waiting for all of them is soon over. One for each mapping at the most:
        // the map's bound on mappings bounds them, and each is a few bytes. None may be confirmed before its time (I17).
        self.lead().fences.push(PendingFence { fence, through: last });
    }

    /// Fences whose writes are all committed. While activating, the tail of earlier terms may hold some too.
    pub(crate) fn settle_fences(&mut self, cx: &mut Cx<'_>) {
        if self.role != Role::Primary {
            return;
        }
        let committed = self.log.committed();
        let leader = self.lead();
        let term = leader.term;
        let done = |fence: &PendingFence| fence.through <= committed || mutants::is_on(Mutant::FenceTooEarly);
        cx.out.extend(
            leader
                .fences
                .iter()
                .filter(|fence| done(fence))
                .map(|fence| Action::Fenced { fence: fence.fence, term: Some(term) }),
        );
        leader.fences.retain(|fence| !done(fence));
    }

    /// A planned move, for as long as the configuration names an heir: nothing is admitted any more; once everything
    /// ordered is committed, the leases are given back, for good under this term; then the heir is asked for.
    pub(crate) fn settle_move(&mut self, cx: &mut Cx<'_>) {
        let heir = self.config.as_ref().and_then(|config| config.heir);
        match (self.lead().moving, heir) {
            // An heir that is behind would have everybody wait for it: it follows, or is dropped, first.
            (Moving::No, Some(heir)) if self.role == Role::Primary && self.is_streaming(heir) => self.drain(cx),
            (Moving::Draining, None) => self.lead().moving = Moving::No,
            _ => {}
        }
        if self.lead().moving == Moving::Draining && self.log.committed() == self.log.last().seq {
            self.release(cx);
        }
        if self.lead().moving == Moving::Released {
            // Until a newer term is known, heir or no heir: under this one nobody serves.
            self.propose(cx, PgChangeKind::HandOver);
        }
    }

    fn is_streaming(&self, device: DeviceId) -> bool {
        let member = self.leader.as_ref().and_then(|leader| leader.members.get(&device));
        member.is_some_and(|member| member.stage == Stage::Streaming)
    }

    fn drain(&mut self, cx: &mut Cx<'_>) {
        self.lead().moving = Moving::Draining;
        // Admitted writes that are not ordered and reads in progress: the next primary takes them over.
        let waiting: Vec<u64> = self.lead().requests.keys().copied().collect();
        for id in waiting {
            self.finish_request(cx, id, &Err(ClientError::Retry));
        }
    }

    fn release(&mut self, cx: &mut Cx<'_>) {
        self.lead().moving = Moving::Released;
        let term = self.lead().term;
        let members: Vec<_> = self.lead().members.keys().copied().collect();
        for device in members {
            self.send(cx, device, term, PeerBody::Release);
        }
    }
}
