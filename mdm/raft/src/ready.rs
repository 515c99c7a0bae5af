//! From the consensus core to actions, in the order that durability demands.
//!
//! What becomes ready is gathered into a batch. At most one batch is being made durable; the next one gathers meanwhile, so
//! a message waits at most for the flush under way and its own. A leader's appends and heartbeats do not wait: they promise
//! nothing about its own disk. Except when its term and vote, or a peer's start, are not durable yet: then all waits.

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, Message, MessageType};
use raft::{Ready, StateRole};

use crate::codec::Reader;
use crate::files::{FileOp, SNAPSHOT, STABLE};
use crate::identity::{Envelope, Payload};
use crate::limits::MAX_HELD_MESSAGES;
use crate::members::MembersChange;
use crate::message::{self, Meaning};
use crate::node::{RaftNode, Want};
use crate::settings::{Action, HaltReason, PersistId};
use crate::snapshot::Snapshot;
use crate::{DropReason, MdmId};

/// What is made durable together, and what happens then.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) ops: Vec<FileOp>,
    /// Records were appended since the last flush among `ops`.
    pub(crate) unsynced: bool,
    /// The stable file is written last: it says what is durable.
    pub(crate) write_stable: bool,
    /// Not even a leader's messages may overtake it.
    pub(crate) hold: bool,
    /// Everything up to this position is durable before this batch is begun.
    pub(crate) before: u64,
    /// Position of the last record in it, set when it is issued.
    position: u64,
    messages: Vec<Message>,
    /// The number of the last ready in it.
    ready: Option<u64>,
    /// A leader's snapshot in it: handed out when it is durable.
    restored: Option<(u64, u64, bytes::Bytes)>,
}

impl Batch {
    /// The first batch of a start: nothing leaves before it is durable, since it counts the start.
    pub(crate) fn first(ops: Vec<FileOp>, position: u64) -> Self {
        Self { ops, write_stable: true, hold: true, before: position, ..Self::default() }
    }
}

/// A batch that is being made durable.
#[derive(Debug)]
pub(crate) struct Outstanding {
    id: PersistId,
    batch: Batch,
    pub(crate) since_tick: u64,
}

impl RaftNode {
    /// Takes out all that is ready, until something has to become durable first.
    pub(crate) fn run(&mut self, out: &mut Vec<Action>) {
        loop {
            self.ask_reads();
            while self.halted.is_none() && self.raw.has_ready() {
                self.take_ready(out);
            }
            if self.halted.is_some() || !self.issue_or_release(out) {
                break;
            }
        }
        if self.halted.is_none() {
            self.spread_elections();
            self.announce_leader(out);
            self.drop_lost_reads(out);
            if self.leaving && self.outstanding.is_none() {
                self.halt(HaltReason::Removed, out);
            }
        }
    }

    fn take_ready(&mut self, out: &mut Vec<Action>) {
        let mut ready = self.raw.ready();
        self.pending.ready = Some(ready.number());
        if let Some(hard_state) = ready.hs() {
            let promise = (hard_state.term, hard_state.vote);
            if promise != (self.stable.term, self.stable.vote) {
                (self.stable.term, self.stable.vote) = promise;
                self.pending.write_stable = true;
                self.pending.hold = true;
            }
        }
        self.install_snapshot(&ready);
        self.append_entries(&ready);
        for state in ready.take_read_states() {
            self.reads.confirmed(&state.request_ctx, state.index);
        }
        let now = ready.take_messages();
        let later = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        let hold = self.pending.hold || self.outstanding.as_ref().is_some_and(|o| o.batch.hold);
        for message in now {
            if hold { self.hold(message) } else { self.send(&message, out) }
        }
        for message in later {
            self.hold(message);
        }
        self.apply(committed, out);
    }

    fn append_entries(&mut self, ready: &Ready) {
        if !ready.entries().is_empty() {
            self.raw.mut_store().append(ready.entries());
            let (before, limit) = (self.pending.before, self.settings.segment_bytes);
            self.log.append(ready.entries(), before, limit, &mut self.pending.ops);
            self.pending.unsynced = true;
        }
    }

    fn install_snapshot(&mut self, ready: &Ready) {
        if ready.snapshot().is_empty() {
            return;
        }
        let metadata = ready.snapshot().get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        let (members, state) = Snapshot::decode_body(&mut Reader::new(&ready.snapshot().data))
            .expect("a snapshot's body was decoded when its message was");
        let before = self.pending.before;
        let snapshot = Snapshot { index, term, position: before, members: members.clone(), state: state.clone() };
        let ops = &mut self.pending.ops;
        ops.push(FileOp::Replace { file: SNAPSHOT.to_owned(), bytes: snapshot.encode_file(self.stable.store) });
        self.log.restart(index, term, before, ops);
        // Old segments may go only when the log durably says that it goes on after the snapshot.
        ops.push(self.log.sync());
        self.log.remove_through(index, ops);
        self.pending.unsynced = false;
        self.pending.write_stable = true;
        self.pending.restored = Some((index, term, state));
        self.stable.has_snapshot = true;
        self.raw.mut_store().install(snapshot);
        self.members = members;
        self.stable.peers.keep_members(&self.members);
        self.want = None;
        self.bytes_since_snapshot = 0;
    }

    /// Begins to make the batch durable if nothing else is being made so; or, if there is nothing to make durable, lets
    /// its messages go. True if more may be ready now.
    fn issue_or_release(&mut self, out: &mut Vec<Action>) -> bool {
        if self.outstanding.is_some() {
            return false;
        }
        let batch = &mut self.pending;
        if batch.ops.is_empty() && !batch.write_stable {
            let work = batch.ready.is_some() || !batch.messages.is_empty();
            if work {
                let batch = self.next_batch();
                self.release(batch, out);
            }
            return work;
        }
        if batch.unsynced {
            batch.ops.push(self.log.sync());
        }
        if batch.write_stable {
            self.stable.commit = self.raw.raft.raft_log.committed;
            self.stable.position = self.log.last_position();
            batch.ops.push(FileOp::Replace { file: STABLE.to_owned(), bytes: self.stable.encode() });
        }
        let mut batch = self.next_batch();
        self.persists += 1;
        let id = PersistId(self.persists);
        out.push(Action::Persist { id, ops: std::mem::take(&mut batch.ops) });
        self.outstanding = Some(Outstanding { id, batch, since_tick: self.ticks });
        false
    }

    fn next_batch(&mut self) -> Batch {
        let position = self.log.last_position();
        let next = Batch { before: position, ..Batch::default() };
        Batch { position, ..std::mem::replace(&mut self.pending, next) }
    }

    /// A batch is durable.
    pub(crate) fn persisted(&mut self, id: PersistId, out: &mut Vec<Action>) {
        match self.outstanding.take() {
            Some(outstanding) if outstanding.id == id => self.release(outstanding.batch, out),
            other => panic!("{id:?} was reported durable while {:?} is under way", other.map(|o| o.id)),
        }
        self.run(out);
        if self.outstanding.is_none()
            && let Some(message) = self.deferred.take()
        {
            self.step_library(message);
        }
    }

    fn release(&mut self, batch: Batch, out: &mut Vec<Action>) {
        self.durable_position = batch.position;
        if let Some(number) = batch.ready {
            self.raw.on_persist_ready(number);
        }
        if let Some((index, term, state)) = batch.restored {
            self.applied = (index, term);
            self.raw.advance_apply_to(index);
            out.push(Action::Restore { index, term, state });
        }
        for message in batch.messages {
            self.send(&message, out);
        }
    }

    fn hold(&mut self, message: Message) {
        if self.pending.messages.len() < MAX_HELD_MESSAGES {
            self.pending.messages.push(message);
        } else {
            self.dropped_messages += 1;
        }
    }

    fn send(&mut self, message: &Message, out: &mut Vec<Action>) {
        let Some(bytes) = message::encode(message) else { return };
        let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        if is_snapshot {
            self.snapshots_sent.insert(message.to, self.ticks);
        }
        self.send_payload(MdmId(message.to), Payload::Raft(bytes), is_snapshot, out);
    }

    pub(crate) fn send_payload(&self, to: MdmId, payload: Payload, is_snapshot: bool, out: &mut Vec<Action>) {
        let envelope = Envelope {
            system: self.settings.system,
            from: self.settings.id,
            to,
            store: self.stable.store,
            start: self.stable.start,
            start_position: self.start_position,
            position: self.durable_position,
            payload,
        };
        out.push(Action::Send { to, bytes: envelope.encode(), is_snapshot });
    }

    fn apply(&mut self, entries: Vec<Entry>, out: &mut Vec<Action>) {
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            assert!(index > self.applied.0, "I1: entry {index} is applied once, after {}", self.applied.0);
            match message::meaning(&entry).expect("an entry's meaning was checked when it came in") {
                Meaning::TermStart => {}
                Meaning::Command(command) => {
                    self.bytes_since_snapshot += command.len() as u64;
                    out.push(Action::Apply { index, term, command });
                }
                Meaning::Change(change) => self.apply_change(index, term, change, out),
            }
            self.applied = (index, term);
        }
        // Not while a leader's snapshot waits for its flush: it moves the mark itself.
        if self.applied.0 > self.raw.raft.raft_log.applied {
            self.raw.advance_apply_to(self.applied.0);
        }
        self.reads.answer(self.applied.0, out);
        self.want_snapshot(out);
    }

    fn apply_change(&mut self, index: u64, term: u64, change: MembersChange, out: &mut Vec<Action>) {
        let refused = self.members.apply(&change).err();
        if refused.is_none() {
            self.stable.peers.keep_members(&self.members);
            // A restart should begin with this change and not before it.
            self.pending.write_stable = true;
            if let Some(change) = conf_change(&change) {
                self.raw
                    .apply_conf_change(&change)
                    .expect("the members table allows only what the library's configuration allows");
            }
            if matches!(change, MembersChange::Remove { id } if id == self.settings.id) {
                self.leave();
            }
        }
        out.push(Action::ApplyMembers { index, term, change, refused });
    }

    fn want_snapshot(&mut self, out: &mut Vec<Action>) {
        let store = self.raw.store();
        let last = store.snapshot().map_or(0, |s| s.index);
        let (index, term) = self.applied;
        let grown = index.saturating_sub(last) >= self.settings.snapshot_entries
            || self.bytes_since_snapshot >= self.settings.snapshot_bytes;
        let needed = store.snapshot_wanted() && index > last;
        if self.want.is_none() && (grown || needed) {
            self.bytes_since_snapshot = 0;
            self.want = Some(Want { index, term, members: self.members.clone() });
            out.push(Action::WantSnapshot { through_index: index });
        }
    }

    fn announce_leader(&mut self, out: &mut Vec<Action>) {
        // A term is announced only when it is durable: whoever fences by it must never see it twice.
        if self.pending.hold || self.outstanding.as_ref().is_some_and(|o| o.batch.hold) {
            return;
        }
        let raft = &self.raw.raft;
        let leader = (raft.leader_id != raft::INVALID_ID).then_some(MdmId(raft.leader_id));
        let now = (leader, raft.term, raft.state == StateRole::Leader);
        if now != self.announced {
            self.announced = now;
            out.push(Action::LeaderChanged { leader: now.0, term: now.1, is_self: now.2 });
        }
    }

    fn drop_lost_reads(&mut self, out: &mut Vec<Action>) {
        if self.raw.raft.state != StateRole::Leader || self.reads.term != self.raw.raft.term {
            let leader = self.leader();
            self.reads.drop_all(leader, DropReason::NotLeader, out);
        }
    }
}

/// The library's form of a change, if it is about who votes or receives.
pub(crate) fn conf_change(change: &MembersChange) -> Option<ConfChangeV2> {
    let (kind, id) = match change {
        MembersChange::Add { id, .. } => (ConfChangeType::AddLearnerNode, id),
        MembersChange::Promote { id } => (ConfChangeType::AddNode, id),
        MembersChange::Remove { id } => (ConfChangeType::RemoveNode, id),
        MembersChange::SetAddresses { .. } => return None,
    };
    let mut single = ConfChangeSingle { node_id: id.0, ..Default::default() };
    single.set_change_type(kind);
    let mut all = ConfChangeV2::default();
    all.set_changes(vec![single].into());
    Some(all)
}
