//! Blocks in flight: what is ordered and not committed, and who has blocks to himself.
//!
//! Three kinds of users, per chunk and by block range: *writes* that are ordered and uncommitted; *entrants*, writes that
//! are about to be ordered; *exclusive* holders, who need committed content that stands still: merges of partial blocks,
//! copies to learners, repairs. An exclusive holder waits for overlapping writes to commit and keeps entrants out. Those
//! who wait are served in order of arrival, so nobody starves. Reads take no part but ask which write they must wait for.

use std::collections::{BTreeMap, VecDeque};

use mdm_api::epoch::Seq;
use mdm_api::ids::VtreeId;
use sds_api::block::{BlockRange, ChunkId};

/// Who holds or waits.
pub(crate) type Owner = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// About to order a write.
    Enter,
    /// Needs committed content that stands still.
    Exclusive,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    owner: Owner,
    range: BlockRange,
    mode: Mode,
}

impl Claim {
    fn conflicts(&self, other: &Self) -> bool {
        let exclusive = self.mode == Mode::Exclusive || other.mode == Mode::Exclusive;
        exclusive && self.owner != other.owner && self.range.overlaps(other.range)
    }
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    writes: Vec<(Seq, BlockRange)>,
    held: Vec<Claim>,
    waiting: VecDeque<Claim>,
}

/// All chunks with something in flight.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlaps {
    chunks: BTreeMap<ChunkId, Chunk>,
}

impl Overlaps {
    /// True if the blocks are the owner's now; else it waits and comes out of a later call.
    pub(crate) fn claim(&mut self, chunk: ChunkId, owner: Owner, range: BlockRange, mode: Mode) -> bool {
        let entry = self.chunks.entry(chunk).or_default();
        entry.waiting.push_back(Claim { owner, range, mode });
        entry.grant().contains(&owner)
    }

    /// The owner needs its blocks no more. Returns who gets theirs now.
    pub(crate) fn release(&mut self, chunk: ChunkId, owner: Owner) -> Vec<Owner> {
        self.change(chunk, |entry| {
            entry.held.retain(|claim| claim.owner != owner);
            entry.waiting.retain(|claim| claim.owner != owner);
        })
    }

    /// The owner has ordered its write.
    pub(crate) fn ordered(&mut self, chunk: ChunkId, owner: Owner, seq: Seq, range: BlockRange) -> Vec<Owner> {
        self.change(chunk, |entry| {
            entry.held.retain(|claim| claim.owner != owner);
            entry.writes.push((seq, range));
        })
    }

    /// An entry that nobody here ordered (the tail of an earlier term) is in flight.
    pub(crate) fn inherit(&mut self, chunk: ChunkId, seq: Seq, range: BlockRange) {
        self.chunks.entry(chunk).or_default().writes.push((seq, range));
    }

    /// The write is committed.
    pub(crate) fn committed(&mut self, chunk: ChunkId, seq: Seq) -> Vec<Owner> {
        self.change(chunk, |entry| entry.writes.retain(|(write, _)| *write != seq))
    }

    /// The newest uncommitted write that shares a block with the range.
    pub(crate) fn newest_write(&self, chunk: ChunkId, range: BlockRange) -> Option<Seq> {
        let writes = self.chunks.get(&chunk)?.writes.iter();
        writes.filter(|(_, write)| write.overlaps(range)).map(|(seq, _)| *seq).max()
    }

    /// True if somebody holds blocks of the tree.
    pub(crate) fn is_held(&self, vtree: VtreeId) -> bool {
        let first = ChunkId { vtree, index: 0 };
        let last = ChunkId { vtree, index: u64::MAX };
        self.chunks.range(first..=last).any(|(_, chunk)| !chunk.held.is_empty())
    }

    fn change(&mut self, chunk: ChunkId, change: impl FnOnce(&mut Chunk)) -> Vec<Owner> {
        let Some(entry) = self.chunks.get_mut(&chunk) else { return Vec::new() };
        change(entry);
        let granted = entry.grant();
        if entry.writes.is_empty() && entry.held.is_empty() && entry.waiting.is_empty() {
            self.chunks.remove(&chunk);
        }
        granted
    }
}

impl Chunk {
    /// Lets in, in order of arrival, whoever conflicts with nobody inside and nobody before it.
    fn grant(&mut self) -> Vec<Owner> {
        let mut granted = Vec::new();
        let mut still: VecDeque<Claim> = VecDeque::new();
        for claim in std::mem::take(&mut self.waiting) {
            let written =
                claim.mode == Mode::Exclusive && self.writes.iter().any(|(_, range)| range.overlaps(claim.range));
            let blocked = written || self.held.iter().chain(&still).any(|other| claim.conflicts(other));
            if blocked {
                still.push_back(claim);
            } else {
                self.held.push(claim);
                granted.push(claim.owner);
            }
        }
        self.waiting = still;
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, count: u16) -> BlockRange {
        BlockRange::new(first, count).unwrap()
    }

    #[test]
    fn an_exclusive_holder_waits_for_writes_and_keeps_entrants_out() {
        let chunk = ChunkId::default();
        let mut overlaps = Overlaps::default();
        assert!(overlaps.claim(chunk, 1, range(0, 4), Mode::Enter));
        assert!(overlaps.ordered(chunk, 1, Seq(1), range(0, 4)).is_empty());
        assert!(!overlaps.claim(chunk, 2, range(3, 1), Mode::Exclusive));
        assert!(!overlaps.claim(chunk, 3, range(2, 2), Mode::Enter));
        assert!(overlaps.claim(chunk, 4, range(8, 1), Mode::Enter));
        assert_eq!(overlaps.newest_write(chunk, range(0, 1)), Some(Seq(1)));
        assert_eq!(overlaps.newest_write(chunk, range(4, 9)), None);
        assert_eq!(overlaps.committed(chunk, Seq(1)), [2]);
        assert!(overlaps.is_held(chunk.vtree));
        assert_eq!(overlaps.release(chunk, 2), [3]);
        overlaps.release(chunk, 3);
        overlaps.release(chunk, 4);
        assert!(overlaps.chunks.is_empty());
    }

    #[test]
    fn two_entrants_do_not_wait_for_each_other() {
        let chunk = ChunkId::default();
        let mut overlaps = Overlaps::default();
        assert!(overlaps.claim(chunk, 1, range(0, 4), Mode::Enter));
        assert!(overlaps.claim(chunk, 2, range(0, 4), Mode::Enter));
    }
}
