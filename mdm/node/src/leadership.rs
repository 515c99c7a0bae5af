//! What only a leader does, and only once its state is current: judging who is dead, reconciling, changing the group.
//!
//! Volatile: born with the leadership and gone with it. What it proposes is compare-and-set, so a deposed leader's late
//! proposals change nothing (F21). Always true: a batch is proposed only when all of the one before is decided.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::command::{ClusterView, QueryAnswer, SystemView};
use mdm_api::epoch::{Nanos, Revision};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{MdmId, SdcId};
use mdm_api::model::Volume;
use mdm_core::reconcile::Reconcilers;
use mdm_core::{Command, view};
use mdm_raft::Event as RaftEvent;

use crate::event::{Action, Moment};
use crate::group::{self, Step};
use crate::node::{CLIENT_SEEN_MS, Node};
use crate::proposals::Purpose;

/// A member of the group counts as connected for so long after it was last heard: a few heartbeats of Raft.
const MEMBER_SEEN_MS: u64 = 1500;
/// Pause after a change of the group was refused, because the learner has not caught up yet for instance.
const GROUP_PAUSE_MS: u64 = 200;

/// Whose proposals are undecided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The detector's and the reconcilers'.
    Reconcile,
    /// The group's.
    Group,
}

/// A leader's own business.
pub(crate) struct Leadership {
    /// It has applied everything that was committed before it led.
    pub(crate) is_current: bool,
    reconcilers: Reconcilers,
    /// Commands of the last batch that are undecided.
    reconciling: usize,
    changing_group: bool,
    /// Which of the steps for the group is tried next, and when.
    group_turn: usize,
    group_at: Nanos,
}

impl Leadership {
    pub(crate) fn new(now: Nanos) -> Self {
        Self {
            is_current: false,
            reconcilers: Reconcilers::default(),
            reconciling: 0,
            changing_group: false,
            group_turn: 0,
            group_at: now,
        }
    }

    /// A proposal is decided, or lost.
    pub(crate) fn free(&mut self, slot: Slot) {
        match slot {
            Slot::Reconcile => self.reconciling = self.reconciling.saturating_sub(1),
            Slot::Group => {
                self.changing_group = false;
                self.group_turn = 0;
            }
        }
    }

    /// A proposal was not taken: the next one of the group is tried after a pause.
    pub(crate) fn refused(&mut self, slot: Slot, now: Nanos) {
        let turn = self.group_turn;
        self.free(slot);
        if slot == Slot::Group {
            self.group_turn = turn + 1;
            self.group_at = now.plus_ms(GROUP_PAUSE_MS);
        }
    }
}

impl Node {
    /// One tick of a leader.
    pub(crate) fn lead(&mut self, moment: Moment, out: &mut Vec<Action>) {
        let Some(leadership) = &mut self.leadership else { return };
        if !leadership.is_current {
            self.ask_current(moment);
            return;
        }
        if leadership.reconciling == 0 {
            let commands = leadership.reconcilers.propose(&self.state, &mut self.observed, &self.timing, moment.now);
            leadership.reconciling = commands.len();
            for command in commands {
                self.propose(moment, 0, command, Purpose::Own(Slot::Reconcile));
            }
        }
        self.lead_group(moment, out);
    }

    fn lead_group(&mut self, moment: Moment, out: &mut Vec<Action>) {
        let Some(leadership) = &mut self.leadership else { return };
        if leadership.changing_group || moment.now < leadership.group_at {
            return;
        }
        let steps = group::steps(&self.state, self.raft.members(), self.id);
        let Some(step) = steps.get(leadership.group_turn % steps.len().max(1)).cloned() else { return };
        leadership.changing_group = true;
        match step {
            Step::Change(change) => {
                let token = self.proposals.asked(Purpose::Own(Slot::Group));
                self.raft_event(moment, RaftEvent::ProposeMembers { token, change });
            }
            Step::Record(command) => {
                self.propose(moment, 0, Command::Own(command), Purpose::Own(Slot::Group));
            }
            Step::HandOver(to) => {
                Self::warn(format!("this member was removed from the group; it hands over to {to}"), out);
                leadership.refused(Slot::Group, moment.now);
                let token = self.proposals.token();
                self.raft_event(moment, RaftEvent::TransferLeadership { token, to });
            }
        }
    }

    /// The group as this member sees it.
    pub(crate) fn cluster_view(&self, now: Nanos) -> ClusterView {
        let seen = self.members_seen.iter().filter(|(_, at)| now.ms_since(**at) < MEMBER_SEEN_MS);
        let connected: BTreeSet<MdmId> = seen.map(|(id, _)| *id).collect();
        view::cluster_view(&self.state, self.id, self.leader, &connected).unwrap_or_else(|| ClusterView {
            system: self.system,
            name: String::new(),
            members: Vec::new(),
            leader: self.leader,
            answered_by: self.id,
        })
    }

    /// Everything, as this leader sees it.
    pub(crate) fn system_view(&self, now: Nanos) -> Result<SystemView, CommandError> {
        self.view_with(now, self.state.volumes().values().cloned().collect())
    }

    /// The same for one that has seen the volumes as of a revision.
    pub(crate) fn system_since(&self, now: Nanos, from: Revision) -> Result<QueryAnswer, CommandError> {
        match view::volumes_since(&self.state, from) {
            Some((changed, removed)) => {
                let view = Box::new(self.view_with(now, changed)?);
                Ok(QueryAnswer::SystemSince { view, from, removed })
            }
            None => {
                let view = Box::new(self.system_view(now)?);
                Ok(QueryAnswer::SystemSince { view, from: Revision(0), removed: Vec::new() })
            }
        }
    }

    fn view_with(&self, now: Nanos, volumes: Vec<Volume>) -> Result<SystemView, CommandError> {
        // A follower whose host is gone stays one until its connection breaks, so it is not heard for being one.
        let leads_ms = now.ms_since(self.observed.leader_since());
        let silent = |sdc: &SdcId| self.clients_seen.get(sdc).map_or(leads_ms, |at| now.ms_since(*at).min(leads_ms));
        let sdcs: BTreeMap<SdcId, u64> = self.state.sdcs().keys().map(|sdc| (*sdc, silent(sdc))).collect();
        let follows: BTreeSet<SdcId> = self.connections.following_clients().collect();
        let clients = view::Clients { silent_ms: sdcs, follows, seen_ms: CLIENT_SEEN_MS };
        view::system_view(&self.state, &self.observed, self.cluster_view(now), &clients, volumes)
            .ok_or_else(|| CommandError::new(ErrorCode::Unavailable, "There is no system yet", "try again in a moment"))
    }
}
