//! The member: how it comes to be, and what it does with each event.
//!
//! One owner of all state; one event at a time. An event changes the consensus core; [`RaftNode::run`] then takes out what
//! became ready, in the order that durability demands.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState, Message};
use raft::{Config, RawNode, SnapshotStatus, StateRole};
use slog::{Discard, Logger, o};

use crate::files::{FileOp, Recovered, SNAPSHOT};
use crate::identity::{Payload, Refusal, SeenPeers, Start, StoreId};
use crate::lead::Reads;
use crate::limits::{MAX_APPEND_BYTES, MAX_INFLIGHT_APPENDS, MAX_STATE_BYTES, MAX_UNCOMMITTED_BYTES};
use crate::log::LogWriter;
use crate::members::{Member, Members, MembersChange};
use crate::message::{self, Meaning};
use crate::ready::{Batch, Outstanding};
use crate::settings::{Action, Event, HaltReason, Nanos, Settings};
use crate::snapshot::Snapshot;
use crate::stable::Stable;
use crate::storage::MemoryLog;
use crate::{DropReason, MdmId, MdmRole};

/// What a new log begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewGroup {
    /// The first member of a new system: it is the group, and leads as soon as its first write is durable.
    First {
        /// Its record; `store` must be the store id of the new log.
        member: Member,
        /// The state before the first command.
        state: Bytes,
    },
    /// A member that will be, or was just, added to a group: it waits for a leader.
    Joining,
}

/// Why a member does not start on a log that is readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The log is another member's.
    #[error("this log belongs to member {found}, not to {expected}: start it with its own configuration")]
    OtherMember {
        /// In the settings.
        expected: MdmId,
        /// In the log.
        found: MdmId,
    },
    /// The log is another system's.
    #[error("this log belongs to another system ({found:016x}, not {expected:016x})")]
    OtherSystem {
        /// In the settings.
        expected: u64,
        /// In the log.
        found: u64,
    },
    /// A setting is out of its range.
    #[error("setting {0} is out of its range")]
    Setting(&'static str),
}

/// A snapshot that was asked for.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) members: Members,
}

/// A member of the group.
pub struct RaftNode {
    pub(crate) settings: Settings,
    pub(crate) raw: RawNode<MemoryLog>,
    pub(crate) members: Members,
    pub(crate) stable: Stable,
    pub(crate) log: LogWriter,
    /// Position of the last durable record, at the start and now.
    pub(crate) start_position: u64,
    pub(crate) durable_position: u64,
    /// What is to be made durable next, and what is being made durable.
    pub(crate) pending: Batch,
    pub(crate) outstanding: Option<Outstanding>,
    pub(crate) persists: u64,
    /// The last entry that was handed out.
    pub(crate) applied: (u64, u64),
    pub(crate) bytes_since_snapshot: u64,
    pub(crate) want: Option<Want>,
    pub(crate) reads: Reads,
    /// What `LeaderChanged` said last.
    pub(crate) announced: (Option<MdmId>, u64, bool),
    pub(crate) snapshots_sent: BTreeMap<u64, u64>,
    pub(crate) refused_peers: BTreeSet<(MdmId, Refusal, u64)>,
    /// A leader's word to campaign, which came while a flush was under way.
    pub(crate) deferred: Option<Message>,
    pub(crate) dropped_messages: u64,
    pub(crate) leaving: bool,
    pub(crate) halted: Option<HaltReason>,
    pub(crate) ticks: u64,
    last_tick: Option<Nanos>,
    /// Campaigns since the start: the counter in the hash that spreads election timeouts.
    campaigns: u64,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode").field("status", &self.status()).finish()
    }
}

impl RaftNode {
    /// A member with a new log. `store` is random and never used before. The directory must be empty, or [`crate::recover`]
    /// must have said that there is no log in it.
    pub fn create(
        settings: Settings,
        store: StoreId,
        group: NewGroup,
        out: &mut Vec<Action>,
    ) -> Result<Self, OpenError> {
        let (log, first_op) = LogWriter::create(store);
        let mut ops = vec![first_op];
        let snapshot = match group {
            NewGroup::Joining => None,
            NewGroup::First { member, state } => {
                if member.store != store || member.role != MdmRole::Manager {
                    return Err(OpenError::Setting("member"));
                }
                let members = Members::bootstrap(settings.id, member);
                let snapshot = Snapshot { index: 1, term: 1, position: 0, members, state };
                ops.push(FileOp::Replace { file: SNAPSHOT.to_owned(), bytes: snapshot.encode_file(store) });
                Some(snapshot)
            }
        };
        let (index, term) = snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
        let stable = Stable {
            store,
            id: settings.id.0,
            system: settings.system.0,
            start: Start { count: 1, nonce: settings.start_nonce },
            term,
            vote: 0,
            commit: index,
            position: 0,
            has_snapshot: snapshot.is_some(),
            peers: SeenPeers::default(),
        };
        Self::start(settings, stable, log, ((index, term), Vec::new()), snapshot, ops, out)
    }

    /// A member that continues its log.
    pub fn open(settings: Settings, recovered: Recovered, out: &mut Vec<Action>) -> Result<Self, OpenError> {
        let Recovered { mut stable, snapshot, base, entries, mut log, torn, restart_after_snapshot } = recovered;
        if stable.id != settings.id.0 {
            return Err(OpenError::OtherMember { expected: settings.id, found: MdmId(stable.id) });
        }
        if stable.system != settings.system.0 {
            return Err(OpenError::OtherSystem { expected: settings.system.0, found: stable.system });
        }
        stable.start = Start { count: stable.start.count + 1, nonce: settings.start_nonce };
        stable.commit = stable.commit.max(snapshot.as_ref().map_or(0, |s| s.index));
        stable.term = stable.term.max(snapshot.as_ref().map_or(0, |s| s.term));
        stable.commit = stable.commit.max(committed_alone(settings.id, snapshot.as_ref(), &entries));
        // What was read may have been in memory only, if it was the process that died and not the power.
        let mut ops = vec![log.sync()];
        if torn {
            ops.push(log.next_segment());
        }
        if restart_after_snapshot {
            log.restart(base.0, base.1, log.last_position(), &mut ops);
            ops.push(log.sync());
        }
        Self::start(settings, stable, log, (base, entries), snapshot, ops, out)
    }

    fn start(
        settings: Settings,
        stable: Stable,
        log: LogWriter,
        (base, entries): ((u64, u64), Vec<Entry>),
        snapshot: Option<Snapshot>,
        ops: Vec<FileOp>,
        out: &mut Vec<Action>,
    ) -> Result<Self, OpenError> {
        let applied = snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
        let config = config(&settings, applied.0)?;
        let members = snapshot.as_ref().map(|s| s.members.clone()).unwrap_or_default();
        let restore =
            snapshot.as_ref().map(|s| Action::Restore { index: s.index, term: s.term, state: s.state.clone() });
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.vote, hard_state.commit) = (stable.term, stable.vote, stable.commit);
        let memory = MemoryLog::new(hard_state, base, entries, snapshot);
        let raw = RawNode::new(&config, memory, &Logger::root(Discard, o!()))
            .expect("the configuration was validated, and the storage answers all that is asked at the start");
        let position = log.last_position();
        let mut node = Self {
            settings,
            raw,
            members,
            stable,
            start_position: position,
            durable_position: position,
            pending: Batch::first(ops, position),
            log,
            outstanding: None,
            persists: 0,
            applied,
            bytes_since_snapshot: 0,
            want: None,
            reads: Reads::default(),
            announced: (None, 0, false),
            snapshots_sent: BTreeMap::new(),
            refused_peers: BTreeSet::new(),
            deferred: None,
            dropped_messages: 0,
            leaving: false,
            halted: None,
            ticks: 0,
            last_tick: None,
            campaigns: 0,
        };
        out.extend(restore);
        node.run(out);
        Ok(node)
    }

    /// Takes one event and appends what is to be done, in order. `now` never goes back.
    pub fn step(&mut self, now: Nanos, event: Event, out: &mut Vec<Action>) {
        if self.halted.is_some() {
            self.answer_halted(event, out);
            return;
        }
        match event {
            Event::Tick => self.tick(now, out),
            Event::Message { from, bytes } => self.receive(from, &bytes, out),
            Event::Propose { token, command } => self.propose(token, &command, out),
            Event::ReadIndex { token } => self.read_index(token, out),
            Event::ProposeMembers { token, change } => self.propose_members(token, &change, out),
            Event::Persisted { id } => self.persisted(id, out),
            Event::SnapshotTaken { index, state } => self.snapshot_taken(index, state),
            Event::TransferLeadership { token, to } => self.transfer(token, to, out),
            Event::Unreachable { peer } => self.raw.report_unreachable(peer.0),
            Event::SnapshotSent { to, ok } => self.snapshot_sent(to, ok),
        }
        self.run(out);
    }

    fn answer_halted(&self, event: Event, out: &mut Vec<Action>) {
        if let Event::Propose { token, .. }
        | Event::ReadIndex { token }
        | Event::ProposeMembers { token, .. }
        | Event::TransferLeadership { token, .. } = event
        {
            out.push(Action::Dropped { token, leader: None, reason: DropReason::Halted });
        }
    }

    /// Runs the ticks that are due. After a long pause only half an election's worth, so that messages that are waiting
    /// can be read before this member concludes that there is no leader.
    fn tick(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let span = self.settings.tick_ms * 1_000_000;
        let last = *self.last_tick.get_or_insert(now.saturating_sub(span));
        let due = now.saturating_sub(last) / span;
        let most = (self.settings.election_ticks as u64 / 2).max(1);
        self.last_tick = Some(if due > most { now } else { last + due * span });
        for _ in 0..due.min(most) {
            self.one_tick(out);
            self.run(out);
        }
    }

    fn one_tick(&mut self, out: &mut Vec<Action>) {
        self.ticks += 1;
        let leads = self.raw.raft.state == StateRole::Leader;
        // While a flush is under way nobody campaigns: the library counts on all entries being durable by then. A member
        // whose disk hangs falls silent altogether, so that another one leads.
        let flushing = self.outstanding.is_some() && (!leads || self.flush_is_stuck());
        if !flushing && !self.leaving {
            let campaigned = if !leads && self.members.voters() == [self.settings.id.0] {
                self.raw.campaign().is_ok()
            } else {
                self.raw.tick() && !leads
            };
            self.campaigns += u64::from(campaigned);
        }
        self.retry_snapshots();
        self.hand_over_if_tie_breaker();
        if self.ticks.is_multiple_of(self.settings.mark_ticks) && !self.leaving {
            self.show(out);
        }
        let grown = self.log.last_position() > self.stable.position;
        if self.ticks.is_multiple_of(self.settings.mark_ticks) && grown && self.outstanding.is_none() {
            self.pending.write_stable = true;
        }
    }

    /// Shows every member this log's start and position. Followers have little to say to each other; without this, one
    /// that was rolled back would be recognised only by the leader that it used to answer.
    fn show(&self, out: &mut Vec<Action>) {
        if self.persists > 1 || self.outstanding.is_none() {
            for (id, _) in self.members.iter().filter(|(id, _)| *id != self.settings.id) {
                self.send_payload(id, Payload::Here, false, out);
            }
        }
    }

    pub(crate) fn flush_is_stuck(&self) -> bool {
        self.outstanding.as_ref().is_some_and(|o| self.ticks - o.since_tick >= self.settings.stuck_flush_ticks)
    }

    /// Replaces the library's random election timeout by one that follows from the seed. Tie-breakers wait longest: that
    /// is their low priority. (The library's own priorities would make a manager refuse its vote to a tie-breaker whose log
    /// is newer but not longer, and the group could stay without a leader.)
    pub(crate) fn spread_elections(&mut self) {
        let ticks = self.settings.election_ticks;
        let timeout = if self.is_tie_breaker() {
            2 * ticks - 1
        } else {
            let numbers = [self.settings.seed, self.settings.id.0, self.raw.raft.term, self.campaigns];
            let hash = numbers.iter().fold(0, |hash, number| mix(hash ^ mix(*number)));
            ticks + (hash % (ticks as u64 - 1)) as usize
        };
        self.raw.raft.set_randomized_election_timeout(timeout);
    }

    fn retry_snapshots(&mut self) {
        let limit = self.settings.snapshot_retry_ticks;
        let late: Vec<u64> =
            self.snapshots_sent.iter().filter(|(_, at)| self.ticks - **at >= limit).map(|(to, _)| *to).collect();
        for to in late {
            self.snapshots_sent.remove(&to);
            self.raw.report_snapshot(to, SnapshotStatus::Failure);
        }
    }

    fn snapshot_sent(&mut self, to: MdmId, ok: bool) {
        // Sent is not received: only a failure is reported at once, the answer or the retry tells the rest.
        if !ok && self.snapshots_sent.remove(&to.0).is_some() {
            self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
        }
    }

    fn snapshot_taken(&mut self, index: u64, state: Bytes) {
        assert!(state.len() <= MAX_STATE_BYTES, "a state of {} bytes is beyond what a snapshot carries", state.len());
        let Some(want) = self.want.take_if(|want| want.index == index) else {
            return; // Overtaken by a leader's snapshot.
        };
        let snapshot = Snapshot { index, term: want.term, position: self.pending.before, members: want.members, state };
        let bytes = snapshot.encode_file(self.stable.store);
        self.pending.ops.push(FileOp::Replace { file: SNAPSHOT.to_owned(), bytes });
        let through = index.saturating_sub(self.settings.keep_entries);
        self.raw.mut_store().compact(snapshot, through);
        // Removed only after the snapshot is durable: operations are done in order.
        self.log.remove_through(through, &mut self.pending.ops);
        self.pending.write_stable = true;
        self.stable.has_snapshot = true;
    }

    pub(crate) fn is_tie_breaker(&self) -> bool {
        self.members.get(self.settings.id).is_some_and(|member| member.role == MdmRole::TieBreaker)
    }

    /// Stops for good.
    pub(crate) fn halt(&mut self, reason: HaltReason, out: &mut Vec<Action>) {
        self.reads.drop_all(None, DropReason::Halted, out);
        self.halted = Some(reason);
        if self.announced.2 {
            self.announced = (None, self.announced.1, false);
            out.push(Action::LeaderChanged { leader: None, term: self.announced.1, is_self: false });
        }
        out.push(Action::Halted { reason });
    }
}

/// How far the log of a sole voter is committed for certain: through its first change of who votes. Until that was applied,
/// nobody else could lead, so all of it is this member's own word, and durable here means committed. Without this, a
/// member that once was alone, and whose commit mark is older than the others' votes, would come back, take itself for
/// alone again, lead at once, and overrule what the others have committed meanwhile.
fn committed_alone(id: MdmId, snapshot: Option<&Snapshot>, entries: &[Entry]) -> u64 {
    let Some(snapshot) = snapshot.filter(|snapshot| snapshot.members.voters() == [id.0]) else { return 0 };
    let changes_votes = |entry: &&Entry| {
        matches!(
            message::meaning(entry),
            Ok(Meaning::Change(MembersChange::Promote { .. } | MembersChange::Remove { .. }))
        )
    };
    entries.iter().filter(|entry| entry.index > snapshot.index).find(changes_votes).map_or(0, |entry| entry.index)
}

fn config(settings: &Settings, applied: u64) -> Result<Config, OpenError> {
    let in_range = [
        ("id", settings.id.0 != 0),
        ("tick_ms", (1..=60_000).contains(&settings.tick_ms)),
        ("election_ticks", (4..=10_000).contains(&settings.election_ticks)),
        ("heartbeat_ticks", settings.heartbeat_ticks >= 1 && settings.heartbeat_ticks * 2 <= settings.election_ticks),
        ("mark_ticks", settings.mark_ticks >= 1),
        ("stuck_flush_ticks", settings.stuck_flush_ticks >= 1),
        ("snapshot_retry_ticks", settings.snapshot_retry_ticks >= 1),
        ("snapshot_entries", settings.snapshot_entries >= 1),
        ("snapshot_bytes", settings.snapshot_bytes >= 1),
        ("segment_bytes", settings.segment_bytes >= 1),
    ];
    if let Some((name, _)) = in_range.iter().find(|(_, ok)| !ok) {
        return Err(OpenError::Setting(name));
    }
    let config = Config {
        id: settings.id.0,
        election_tick: settings.election_ticks,
        heartbeat_tick: settings.heartbeat_ticks,
        min_election_tick: settings.election_ticks,
        max_election_tick: 2 * settings.election_ticks,
        applied,
        max_size_per_msg: MAX_APPEND_BYTES,
        max_inflight_msgs: MAX_INFLIGHT_APPENDS,
        max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
        max_committed_size_per_ready: MAX_APPEND_BYTES,
        check_quorum: true,
        pre_vote: true,
        batch_append: true,
        ..Config::default()
    };
    config.validate().map_err(|_| OpenError::Setting("spans"))?;
    Ok(config)
}

/// SplitMix64's finisher: spreads all bits over all bits.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
