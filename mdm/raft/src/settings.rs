//! What a member is told at start, and the events and actions by which it talks with its shell.

use bytes::Bytes;
use mdm_api::ids::{MdmId, SystemId};

use crate::files::FileOp;
use crate::identity::Refusal;
use crate::members::{ChangeError, MembersChange};

/// Nanoseconds of a clock that never goes back.
pub type Nanos = u64;

/// How a member runs. All spans scale together with `tick_ms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This member. Not zero.
    pub id: MdmId,
    /// The system. Messages of another one are refused.
    pub system: SystemId,
    /// Spreads election timeouts. Any number; equal seeds and events give equal runs.
    pub seed: u64,
    /// Random, another one at each start: tells two starts of one log apart.
    pub start_nonce: u64,
    /// The unit of time, in milliseconds.
    pub tick_ms: u64,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Least ticks without a leader after which a member campaigns; the most is twice that. At least 4.
    pub election_ticks: usize,
    /// Ticks after which a flush counts as stuck: the member falls silent, so that others may lead.
    pub stuck_flush_ticks: u64,
    /// Ticks after which a snapshot that was sent and not answered is sent again.
    pub snapshot_retry_ticks: u64,
    /// Ticks between marks of how long the log is: in the stable file, and to the other members.
    pub mark_ticks: u64,
    /// Entries since the last snapshot after which a new one is wanted.
    pub snapshot_entries: u64,
    /// Bytes of commands since the last snapshot after which a new one is wanted.
    pub snapshot_bytes: u64,
    /// Entries before the snapshot that are kept for followers that are a little behind.
    pub keep_entries: u64,
    /// A segment of the log is closed at this size, in bytes.
    pub segment_bytes: u64,
    /// A learner may be promoted when it lacks at most this many entries.
    pub caught_up_entries: u64,
}

impl Settings {
    /// The spans of production: heartbeats every 100 ms, elections after 500 to 1000 ms.
    pub fn new(id: MdmId, system: SystemId, seed: u64, start_nonce: u64) -> Self {
        Self {
            id,
            system,
            seed,
            start_nonce,
            tick_ms: 50,
            heartbeat_ticks: 2,
            election_ticks: 10,
            stuck_flush_ticks: 40,
            snapshot_retry_ticks: 200,
            mark_ticks: 20,
            snapshot_entries: 10_000,
            snapshot_bytes: 64 << 20,
            keep_entries: 2_000,
            segment_bytes: 8 << 20,
            caught_up_entries: 256,
        }
    }
}

/// Names one batch of file operations. Counts up from 1 in each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PersistId(pub u64);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed. At least once per `tick_ms`; missed ticks are made up for, within reason.
    Tick,
    /// Bytes came from a peer. `from` is what the connection's certificate says; the bytes must say the same.
    Message {
        /// The peer.
        from: MdmId,
        /// What a `Send` of that peer carried.
        bytes: Bytes,
    },
    /// A command for the replicated state. Answered by `Proposed` or `Dropped` with the same token.
    Propose {
        /// The caller's number for it.
        token: u64,
        /// The command, at most [`crate::limits::MAX_COMMAND_BYTES`].
        command: Bytes,
    },
    /// A linearizable read. Answered by `ReadReady` or `Dropped`.
    ReadIndex {
        /// The caller's number for it.
        token: u64,
    },
    /// A change of the members. Answered by `Proposed` or `Dropped`.
    ProposeMembers {
        /// The caller's number for it.
        token: u64,
        /// The change.
        change: MembersChange,
    },
    /// The operations of a `Persist` are done and durable.
    Persisted {
        /// Which.
        id: PersistId,
    },
    /// The answer to `WantSnapshot`.
    SnapshotTaken {
        /// The `through_index` that was asked for.
        index: u64,
        /// The state after exactly that entry, at most [`crate::limits::MAX_STATE_BYTES`].
        state: Bytes,
    },
    /// Hand the leadership to another manager. Answered by `TransferStarted` or `Dropped`; `LeaderChanged` tells the end.
    TransferLeadership {
        /// The caller's number for it.
        token: u64,
        /// A voting manager.
        to: MdmId,
    },
    /// A message to this peer was probably lost.
    Unreachable {
        /// The peer.
        peer: MdmId,
    },
    /// A `Send` marked `is_snapshot` was handed to the network, or not. A hint: without it, a lost snapshot is sent again
    /// after `snapshot_retry_ticks`.
    SnapshotSent {
        /// The peer.
        to: MdmId,
        /// Whether all of it was sent.
        ok: bool,
    },
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send bytes to a peer. May be lost, delayed, repeated, reordered.
    Send {
        /// The peer.
        to: MdmId,
        /// For its `Message` event.
        bytes: Bytes,
        /// It is large, and `SnapshotSent` should follow.
        is_snapshot: bool,
    },
    /// Make these durable, then feed `Persisted`. At most one is under way.
    Persist {
        /// Its name.
        id: PersistId,
        /// In order.
        ops: Vec<FileOp>,
    },
    /// A committed command. Indexes grow; gaps are entries of the group itself.
    Apply {
        /// Its index.
        index: u64,
        /// Its term: the proposer compares it with what `Proposed` said.
        term: u64,
        /// The command.
        command: Bytes,
    },
    /// A committed change of the members; already in force in [`crate::RaftNode::members`].
    ApplyMembers {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// The change.
        change: MembersChange,
        /// Why it was not made, if it was overtaken by another one.
        refused: Option<ChangeError>,
    },
    /// Forget the state and take this one: at start, and when a leader's snapshot arrived.
    Restore {
        /// Its last entry.
        index: u64,
        /// The term of that entry.
        term: u64,
        /// The state.
        state: Bytes,
    },
    /// Everything that was committed when the read was asked for has been applied: read now.
    ReadReady {
        /// The caller's number.
        token: u64,
        /// The index up to which the state is known to be current.
        index: u64,
    },
    /// The proposal is in the leader's log. It took effect when `Apply` or `ApplyMembers` comes with the same index and
    /// term; it did not when the index comes with another term. A `Restore` beyond it leaves the outcome unknown.
    Proposed {
        /// The caller's number.
        token: u64,
        /// Where it stands.
        index: u64,
        /// The leader's term.
        term: u64,
    },
    /// Not done, and will not be.
    Dropped {
        /// The caller's number.
        token: u64,
        /// Who leads, if known: try there.
        leader: Option<MdmId>,
        /// Why.
        reason: DropReason,
    },
    /// The transfer was begun.
    TransferStarted {
        /// The caller's number.
        token: u64,
    },
    /// Who leads.
    LeaderChanged {
        /// The leader, if known.
        leader: Option<MdmId>,
        /// The term.
        term: u64,
        /// Whether it is this member. Its state is current after its first `ReadReady`.
        is_self: bool,
    },
    /// Take the state as it is now, after `through_index`, and answer with `SnapshotTaken`.
    WantSnapshot {
        /// The entry after which the state is wanted.
        through_index: u64,
    },
    /// A peer does not hear this member.
    Refused {
        /// The peer.
        by: MdmId,
        /// Why.
        reason: Refusal,
    },
    /// This member does not hear a peer. Said once for each peer, reason and start.
    PeerRefused {
        /// The peer.
        peer: MdmId,
        /// Why.
        reason: Refusal,
    },
    /// This member has stopped for good: it neither votes nor answers. The last action that matters.
    Halted {
        /// Why.
        reason: HaltReason,
    },
}

/// Why something was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DropReason {
    /// Another member leads, or none.
    #[error("this member does not lead")]
    NotLeader,
    /// This member leads, but only to hand over.
    #[error("this member is a tie-breaker and takes no commands")]
    TieBreaker,
    /// The leadership is being handed over, or too much is under way.
    #[error("busy; try again")]
    Busy,
    /// The command is larger than a command may be.
    #[error("the command is too large")]
    TooLarge,
    /// The change of members is refused.
    #[error("{0}")]
    Change(#[from] ChangeError),
    /// The leadership cannot go there.
    #[error("the leadership goes only to another voting manager")]
    NotAManager,
    /// This member has stopped.
    #[error("this member has stopped")]
    Halted,
}

/// Why a member stopped for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HaltReason {
    /// A peer knows that this log must not be trusted, or that this member was removed.
    #[error("{by} refuses this member: {reason}")]
    Refused {
        /// The peer.
        by: MdmId,
        /// Why.
        reason: Refusal,
    },
    /// The removal of this member was committed.
    #[error("this member was removed from the group")]
    Removed,
    /// The leader counts on entries that this member had acknowledged and does not have.
    #[error(
        "entries up to {committed} that this member had acknowledged are gone: remove it and add it again under a new id"
    )]
    LostLog {
        /// Up to here.
        committed: u64,
    },
}
