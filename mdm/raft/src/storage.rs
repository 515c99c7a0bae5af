//! The log as the consensus library reads it: all entries since the compacted point, in memory, beside the newest snapshot.
//!
//! The memory is bounded by the snapshot threshold and the tail that is kept for slow followers. Disk follows in the same
//! order, by the operations of [`crate::log`].

use std::cell::Cell;

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState, Snapshot as RaftSnapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::members::Members;
use crate::message;
use crate::snapshot::Snapshot;

/// Entries and snapshot in memory.
#[derive(Debug)]
pub(crate) struct MemoryLog {
    /// As of the start; the library keeps its own from then on.
    hard_state: HardState,
    /// As of the start: the members after the newest snapshot.
    members: Members,
    base: (u64, u64),
    entries: Vec<Entry>,
    /// The newest snapshot that is durable, or about to be.
    snapshot: Option<Snapshot>,
    /// A follower needed a snapshot that is newer than ours: one in which it is a member.
    wanted: Cell<bool>,
}

impl MemoryLog {
    pub(crate) fn new(
        hard_state: HardState,
        base: (u64, u64),
        entries: Vec<Entry>,
        snapshot: Option<Snapshot>,
    ) -> Self {
        let members = snapshot.as_ref().map(|s| s.members.clone()).unwrap_or_default();
        Self { hard_state, members, base, entries, snapshot, wanted: Cell::new(false) }
    }

    /// Adds entries, superseding those from the first of them on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.base.0, "entry {} is compacted: base {}", first.index, self.base.0);
        let keep = (first.index - self.base.0 - 1) as usize;
        assert!(keep <= self.entries.len(), "entry {} leaves a gap", first.index);
        self.entries.truncate(keep);
        self.entries.extend_from_slice(entries);
    }

    /// Takes a leader's snapshot in place of the whole log.
    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        self.base = (snapshot.index, snapshot.term);
        self.entries.clear();
        self.snapshot = Some(snapshot);
    }

    /// Takes a snapshot of our own, and forgets entries up to `through`, which it covers.
    pub(crate) fn compact(&mut self, snapshot: Snapshot, through: u64) {
        let through = through.min(snapshot.index);
        if through > self.base.0 {
            let count = (through - self.base.0) as usize;
            if let Some(last) = self.entries.drain(..count).next_back() {
                self.base = (last.index, last.term);
            }
        }
        self.snapshot = Some(snapshot);
        self.wanted.set(false);
    }

    pub(crate) fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// The index up to which entries were forgotten.
    pub(crate) fn base_index(&self) -> u64 {
        self.base.0
    }

    pub(crate) fn end_index(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// The term of an entry that is here, or of the one just before.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        let at = index.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?).map(|entry| entry.term)
    }

    /// Whether a newer snapshot was needed since the last one was taken.
    pub(crate) fn snapshot_wanted(&self) -> bool {
        self.wanted.get()
    }
}

fn size(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + 32) as u64
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), message::conf_state(&self.members)))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.end_index() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let range = (low - self.base.0 - 1) as usize..(high - self.base.0 - 1) as usize;
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut total = 0;
        let mut entries = Vec::new();
        for entry in &self.entries[range] {
            total += size(entry);
            if total > limit && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_of(index).ok_or(Error::Store(if index < self.base.0 {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.end_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<RaftSnapshot> {
        // A follower takes only a snapshot in which it is a member: one from before it joined does not help it.
        let fits = |s: &&Snapshot| s.index >= request_index && s.members.get(mdm_api::ids::MdmId(to)).is_some();
        let Some(snapshot) = self.snapshot.as_ref().filter(fits) else {
            self.wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut body = Vec::with_capacity(snapshot.state.len() + 256);
        snapshot.encode_body(&mut body);
        Ok(message::raft_snapshot(snapshot.index, snapshot.term, &snapshot.members, Bytes::from(body)))
    }
}
