//! What a member can say about itself, for people and metrics.

use raft::StateRole;

use crate::identity::{Start, StoreId};
use crate::members::Members;
use crate::node::RaftNode;
use crate::settings::HaltReason;
use crate::{MdmId, Nanos};

/// A member's view of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: MdmId,
    /// Its log.
    pub store: StoreId,
    /// The start of its log.
    pub start: Start,
    /// The newest term it knows.
    pub term: u64,
    /// Whom it voted for in that term.
    pub vote: Option<MdmId>,
    /// The leader, if known.
    pub leader: Option<MdmId>,
    /// Whether it leads.
    pub is_leader: bool,
    /// Last committed index that it knows of.
    pub committed: u64,
    /// Last index that was handed out.
    pub applied: u64,
    /// Entries from the one after this index are in the log.
    pub compacted: u64,
    /// Last index in the log.
    pub last_index: u64,
    /// Last index in the newest snapshot; 0 without one.
    pub snapshot: u64,
    /// Messages that were not understood, not expected or not wanted, and were dropped.
    pub dropped_messages: u64,
    /// Why it stopped, if it did.
    pub halted: Option<HaltReason>,
    /// The other members' progress, if it leads.
    pub progress: Vec<MemberProgress>,
}

/// What a leader knows about another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberProgress {
    /// The member.
    pub id: MdmId,
    /// It has everything up to this index, durably.
    pub matched: u64,
    /// It answered within the last election time-out.
    pub is_active: bool,
}

impl RaftNode {
    /// This member's view of the group.
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let is_leader = raft.state == StateRole::Leader && self.halted.is_none();
        let progress = self.members.iter().filter(|(id, _)| is_leader && *id != self.settings.id);
        Status {
            id: self.settings.id,
            store: self.stable.store,
            start: self.stable.start,
            term: raft.term,
            vote: (raft.vote != raft::INVALID_ID).then_some(MdmId(raft.vote)),
            leader: self.leader(),
            is_leader,
            committed: raft.raft_log.committed,
            applied: self.applied.0,
            compacted: self.raw.store().base_index(),
            last_index: raft.raft_log.last_index(),
            snapshot: self.raw.store().snapshot().map_or(0, |s| s.index),
            dropped_messages: self.dropped_messages,
            halted: self.halted,
            progress: progress
                .filter_map(|(id, _)| {
                    let progress = raft.prs().get(id.0)?;
                    Some(MemberProgress { id, matched: progress.matched, is_active: progress.recent_active })
                })
                .collect(),
        }
    }

    /// The members, as of the last entry that was applied.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The leader, if known.
    pub fn leader(&self) -> Option<MdmId> {
        let leader = self.raw.raft.leader_id;
        (leader != raft::INVALID_ID && self.halted.is_none()).then_some(MdmId(leader))
    }

    /// The span of one tick.
    pub fn tick_span(&self) -> Nanos {
        self.settings.tick_ms * 1_000_000
    }
}
