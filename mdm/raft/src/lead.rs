//! What only a leader does: proposals, linearizable reads, changes of members, handing over.

use std::collections::{BTreeMap, VecDeque};

use raft::StateRole;

use crate::limits::{MAX_COMMAND_BYTES, MAX_PENDING_READS};
use crate::members::{ChangeError, MembersChange, Standing};
use crate::message;
use crate::node::RaftNode;
use crate::ready::conf_change;
use crate::settings::{Action, DropReason};
use crate::{MdmId, MdmRole};

/// Reads on their way: wait until the leader may ask, are asked for in one round with others, are confirmed at an index,
/// and are answered when that index is applied. Raft's ReadIndex: no clock is trusted.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The term in which they are asked.
    pub(crate) term: u64,
    waiting: Vec<u64>,
    asked: BTreeMap<u64, Vec<u64>>,
    confirmed: VecDeque<(u64, u64)>,
    rounds: u64,
    count: usize,
}

impl Reads {
    /// The library confirmed a round, and with it all earlier ones.
    pub(crate) fn confirmed(&mut self, context: &[u8], index: u64) {
        let Ok(round) = context.try_into().map(u64::from_le_bytes) else { return };
        for token in self.asked.remove(&round).into_iter().flatten() {
            self.confirmed.push_back((index, token));
        }
    }

    /// Answers those whose index is applied.
    pub(crate) fn answer(&mut self, applied: u64, out: &mut Vec<Action>) {
        while let Some((_, token)) = self.confirmed.pop_front_if(|(index, _)| *index <= applied) {
            self.count -= 1;
            out.push(Action::ReadReady { token, index: applied });
        }
    }

    /// Gives up on all.
    pub(crate) fn drop_all(&mut self, leader: Option<MdmId>, reason: DropReason, out: &mut Vec<Action>) {
        let asked = std::mem::take(&mut self.asked).into_values().flatten();
        let confirmed = self.confirmed.drain(..).map(|(_, token)| token);
        let waiting = self.waiting.drain(..);
        out.extend(confirmed.chain(asked).chain(waiting).map(|token| Action::Dropped { token, leader, reason }));
        self.count = 0;
    }
}

impl RaftNode {
    /// Whether a command may be proposed here now, and if not, why.
    fn may_lead(&self) -> Result<(), DropReason> {
        if self.raw.raft.state != StateRole::Leader {
            Err(DropReason::NotLeader)
        } else if self.is_tie_breaker() {
            Err(DropReason::TieBreaker)
        } else if self.flush_is_stuck() || self.leaving || self.raw.raft.lead_transferee.is_some() {
            Err(DropReason::Busy)
        } else {
            Ok(())
        }
    }

    pub(crate) fn drop_token(&self, token: u64, reason: DropReason, out: &mut Vec<Action>) {
        out.push(Action::Dropped { token, leader: self.leader(), reason });
    }

    pub(crate) fn propose(&mut self, token: u64, command: &[u8], out: &mut Vec<Action>) {
        let proposed = self.may_lead().and_then(|()| {
            if command.len() > MAX_COMMAND_BYTES {
                return Err(DropReason::TooLarge);
            }
            self.raw.propose(Vec::new(), message::command_data(command)).map_err(|_| DropReason::Busy)
        });
        self.answer_proposal(token, proposed, out);
    }

    pub(crate) fn propose_members(&mut self, token: u64, change: &MembersChange, out: &mut Vec<Action>) {
        let proposed =
            self.may_lead().and_then(|()| self.check_change(change).map_err(DropReason::Change)).and_then(|()| {
                match conf_change(change) {
                    Some(conf_change) => self.raw.propose_conf_change(change.encode(), conf_change),
                    None => self.raw.propose(Vec::new(), message::change_data(change)),
                }
                .map_err(|_| DropReason::Busy)
            });
        self.answer_proposal(token, proposed, out);
    }

    fn answer_proposal(&self, token: u64, proposed: Result<(), DropReason>, out: &mut Vec<Action>) {
        match proposed {
            Err(reason) => self.drop_token(token, reason, out),
            Ok(()) => out.push(Action::Proposed {
                token,
                index: self.raw.raft.raft_log.last_index(),
                term: self.raw.raft.term,
            }),
        }
    }

    fn check_change(&self, change: &MembersChange) -> Result<(), ChangeError> {
        self.members.check(change)?;
        // The library would silently turn a second change into an empty entry.
        if self.raw.raft.has_pending_conf() {
            return Err(ChangeError::ChangePending);
        }
        match change {
            MembersChange::Remove { id } if *id == self.settings.id => Err(ChangeError::IsLeader),
            MembersChange::Promote { id } => {
                let last = self.raw.raft.raft_log.last_index();
                let progress = self.raw.raft.prs().get(id.0).ok_or(ChangeError::NoSuchMember)?;
                let near = progress.matched + self.settings.caught_up_entries >= last;
                if near && progress.matched > 0 && progress.recent_active {
                    Ok(())
                } else {
                    Err(ChangeError::NotCaughtUp)
                }
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn read_index(&mut self, token: u64, out: &mut Vec<Action>) {
        let reason = match self.may_lead() {
            Err(reason) => reason,
            Ok(()) if self.reads.count >= MAX_PENDING_READS => DropReason::Busy,
            Ok(()) => {
                self.reads.term = self.raw.raft.term;
                self.reads.waiting.push(token);
                self.reads.count += 1;
                return;
            }
        };
        self.drop_token(token, reason, out);
    }

    /// Asks the group for all reads that wait. A new leader may ask only when it has committed an entry of its own term:
    /// before, it does not know what is committed.
    pub(crate) fn ask_reads(&mut self) {
        let may_ask = self.raw.raft.state == StateRole::Leader && self.raw.raft.commit_to_current_term();
        if may_ask && !self.reads.waiting.is_empty() {
            self.reads.rounds += 1;
            let round = self.reads.rounds;
            let tokens = std::mem::take(&mut self.reads.waiting);
            self.reads.asked.insert(round, tokens);
            self.raw.read_index(round.to_le_bytes().to_vec());
        }
    }

    pub(crate) fn transfer(&mut self, token: u64, to: MdmId, out: &mut Vec<Action>) {
        let is_manager = |id| {
            let member = self.members.get(id);
            member.is_some_and(|m| m.role == MdmRole::Manager && m.standing == Standing::Voter)
        };
        if self.raw.raft.state != StateRole::Leader {
            self.drop_token(token, DropReason::NotLeader, out);
        } else if to == self.settings.id || !is_manager(to) {
            self.drop_token(token, DropReason::NotAManager, out);
        } else {
            self.raw.transfer_leader(to.0);
            out.push(Action::TransferStarted { token });
        }
    }

    /// A tie-breaker that was elected, because its log was longer than any manager's, brings the best manager up to date and
    /// hands over. Tried again at every tick until it leads no more.
    pub(crate) fn hand_over_if_tie_breaker(&mut self) {
        let raft = &self.raw.raft;
        let leads = self.is_tie_breaker() && raft.state == StateRole::Leader;
        if leads
            && raft.lead_transferee.is_none()
            && let Some(to) = self.best_voter(Some(MdmRole::Manager))
        {
            self.raw.transfer_leader(to);
        }
    }

    /// The other voter with the longest log that answers; the lowest id among equals.
    fn best_voter(&self, role: Option<MdmRole>) -> Option<u64> {
        let progress = self.raw.raft.prs();
        self.members
            .iter()
            .filter(|(id, member)| {
                *id != self.settings.id
                    && member.standing == Standing::Voter
                    && role.is_none_or(|role| member.role == role)
            })
            .filter_map(|(id, _)| Some((progress.get(id.0)?, id.0)))
            .filter(|(progress, _)| progress.recent_active)
            .max_by_key(|(progress, id)| (progress.matched, std::cmp::Reverse(*id)))
            .map(|(_, id)| id)
    }

    /// The removal of this member was applied. It led perhaps: then it names a successor. It takes part in nothing more.
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
        if self.raw.raft.state == StateRole::Leader {
            if let Some(to) = self.best_voter(Some(MdmRole::Manager)).or_else(|| self.best_voter(None)) {
                self.raw.raft.send_timeout_now(to);
            }
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }
}
