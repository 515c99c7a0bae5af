//! Blocks, chunks, allocation units: the arithmetic of a volume.
//!
//! A volume is cut into chunks of 1 MiB (striping, placement), a chunk into 256 blocks of 4 KiB (checksums, atomicity). A
//! device allocates in units of 64 KiB, 16 to a chunk.

use std::fmt;

use mdm_api::epoch::SnapSeq;
use mdm_api::ids::VtreeId;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u16 = 256;
/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = BLOCK_BYTES * CHUNK_BLOCKS as usize;
/// Bytes of an allocation unit.
pub const AU_BYTES: usize = 64 << 10;
/// Blocks of an allocation unit.
pub const AU_BLOCKS: u16 = (AU_BYTES / BLOCK_BYTES) as u16;
/// Allocation units of a chunk.
pub const CHUNK_AUS: usize = CHUNK_BYTES / AU_BYTES;

const _: () = assert!(CHUNK_BYTES as u64 == mdm_api::placement::CHUNK_BYTES);

/// A chunk of a V-Tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ChunkId {
    /// The tree.
    pub vtree: VtreeId,
    /// Which chunk of the volume's address space, from 0.
    pub index: u64,
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {}/{}", self.vtree, self.index)
    }
}

/// One layer of a chunk: what was written to it under one snapshot sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct LayerKey {
    /// The chunk.
    pub chunk: ChunkId,
    /// The snapshot sequence of the writes in this layer.
    pub snap_seq: SnapSeq,
}

/// Blocks of one chunk: `count` of them from `first`. Never empty, never past the chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockRange {
    first: u16,
    count: u16,
}

impl BlockRange {
    /// All of a chunk.
    pub const WHOLE: Self = Self { first: 0, count: CHUNK_BLOCKS };

    /// `None` if it is empty or goes past the chunk.
    pub const fn new(first: u16, count: u16) -> Option<Self> {
        if count == 0 || first >= CHUNK_BLOCKS || count > CHUNK_BLOCKS - first {
            None
        } else {
            Some(Self { first, count })
        }
    }

    /// The blocks that the bytes `offset..offset + length` of a chunk touch. `None` if none or past the chunk.
    pub const fn touching(offset: u32, length: u32) -> Option<Self> {
        if length == 0 || offset as usize >= CHUNK_BYTES || length as usize > CHUNK_BYTES - offset as usize {
            return None;
        }
        let first = offset as usize / BLOCK_BYTES;
        let last = (offset as usize + length as usize - 1) / BLOCK_BYTES;
        Self::new(first as u16, (last - first + 1) as u16)
    }

    /// The first block.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// How many.
    pub const fn count(self) -> u16 {
        self.count
    }

    /// One past the last.
    pub const fn end(self) -> u16 {
        self.first + self.count
    }

    /// Bytes covered.
    pub const fn bytes(self) -> usize {
        self.count as usize * BLOCK_BYTES
    }

    /// True if they share a block.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// The blocks one by one.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_never_leaves_its_chunk() {
        assert!(BlockRange::new(255, 1).is_some());
        assert!(BlockRange::new(255, 2).is_none());
        assert!(BlockRange::new(256, 1).is_none());
        assert!(BlockRange::new(3, 0).is_none());
        assert!(BlockRange::new(u16::MAX, u16::MAX).is_none());
    }

    #[test]
    fn bytes_touch_every_block_they_reach_into() {
        let range = |offset, length| BlockRange::touching(offset, length).map(|r| (r.first(), r.count()));
        assert_eq!(range(0, 4096), Some((0, 1)));
        assert_eq!(range(4095, 2), Some((0, 2)));
        assert_eq!(range(1 << 20, 1), None);
        assert_eq!(range((1 << 20) - 1, 2), None);
        assert_eq!(range(0, 1 << 20), Some((0, 256)));
        assert_eq!(range(5, 0), None);
        assert_eq!(range(u32::MAX, u32::MAX), None);
    }
}
