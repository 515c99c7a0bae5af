//! What must hold of a message before the consensus library sees it.
//!
//! The library panics on messages that a correct peer of an intact group cannot send. Such a message means that the peer
//! lies or is broken: it is dropped. Or that this member's own log has lost what it had acknowledged: then it must stop.

use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};

use crate::storage::MemoryLog;

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// It may be stepped.
    Pass,
    /// No correct peer sends this now.
    Drop,
    /// A leader counts on entries up to this index, which we acknowledged and do not have.
    LostLog {
        /// The index that the leader counts on.
        committed: u64,
    },
}

/// Looks at a message from a member or from an unknown leader.
pub(crate) fn check(node: &RawNode<MemoryLog>, message: &Message) -> Guard {
    let raft = &node.raft;
    let pass = |ok: bool| if ok { Guard::Pass } else { Guard::Drop };
    if message.term == 0 || message.term < raft.term && !is_request(message.get_msg_type()) {
        return Guard::Drop;
    }
    let current = message.term >= raft.term;
    match message.get_msg_type() {
        MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
            if message.term == raft.term && raft.state == StateRole::Leader =>
        {
            // Two leaders of one term: impossible while logs are intact.
            Guard::Drop
        }
        // The library takes an index that it does not have for one of term 0.
        MessageType::MsgAppend if current => {
            pass((message.index == 0) == (message.log_term == 0) && consecutive(message))
        }
        MessageType::MsgHeartbeat if current && message.commit > raft.raft_log.last_index() => {
            Guard::LostLog { committed: message.commit }
        }
        MessageType::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            let conf = metadata.get_conf_state();
            pass(
                metadata.index > 0
                    && metadata.term > 0
                    && metadata.term <= message.term
                    && !conf.get_voters().is_empty()
                    && conf.get_voters().iter().chain(conf.get_learners()).any(|id| *id == raft.id),
            )
        }
        // The answer of a follower that has more than we sent is not about our log.
        MessageType::MsgAppendResponse if raft.state == StateRole::Leader => {
            pass(message.reject || message.index <= raft.raft_log.last_index())
        }
        _ => Guard::Pass,
    }
}

/// The kinds that a peer may send without being asked. Only they are heard from an unknown sender.
pub(crate) fn is_request(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::MsgAppend
            | MessageType::MsgHeartbeat
            | MessageType::MsgSnapshot
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
            | MessageType::MsgTimeoutNow
    )
}

fn consecutive(message: &Message) -> bool {
    let mut term = message.log_term;
    message.entries.iter().zip(message.index + 1..).all(|(entry, index)| {
        let fits = entry.index == index && entry.term >= term && entry.term <= message.term;
        term = entry.term;
        fits
    })
}
