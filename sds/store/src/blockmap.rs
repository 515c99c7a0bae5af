//! A set of the 256 blocks of one chunk.

use sds_api::block::{BlockRange, CHUNK_BLOCKS};

/// Bytes of an encoded map.
pub const BLOCK_MAP_BYTES: usize = CHUNK_BLOCKS as usize / 8;

/// Which blocks of a chunk: one bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Hash)]
pub struct BlockMap([u64; 4]);

impl BlockMap {
    /// No block.
    pub const EMPTY: Self = Self([0; 4]);

    /// True if the block is in the set. Blocks past the chunk never are.
    pub const fn contains(&self, block: u16) -> bool {
        block < CHUNK_BLOCKS && self.0[block as usize / 64] & (1 << (block % 64)) != 0
    }

    /// Adds a block.
    ///
    /// # Panics
    /// If the block is past the chunk.
    pub fn insert(&mut self, block: u16) {
        self.0[usize::from(block) / 64] |= 1 << (block % 64);
    }

    /// Takes a block out.
    ///
    /// # Panics
    /// If the block is past the chunk.
    pub fn remove(&mut self, block: u16) {
        self.0[usize::from(block) / 64] &= !(1 << (block % 64));
    }

    /// Adds all blocks of a range.
    pub fn insert_range(&mut self, range: BlockRange) {
        range.iter().for_each(|block| self.insert(block));
    }

    /// Takes all blocks of a range out.
    pub fn remove_range(&mut self, range: BlockRange) {
        range.iter().for_each(|block| self.remove(block));
    }

    /// How many blocks.
    pub fn count(&self) -> u16 {
        self.0.iter().map(|word| word.count_ones() as u16).sum()
    }

    /// True if there is none.
    pub const fn is_empty(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// True if both have a block in common.
    pub fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }

    /// True if every block is also in the other.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).all(|(a, b)| a & !b == 0)
    }

    /// The blocks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..CHUNK_BLOCKS).filter(|block| self.contains(*block))
    }

    /// True if any block of the allocation unit (0..16 within the chunk) is in the set.
    pub const fn touches_au(&self, au: usize) -> bool {
        (self.0[au / 4] >> (au % 4 * 16)) & 0xffff != 0
    }

    /// The encoded form: block 0 is the lowest bit of the first byte.
    pub fn to_bytes(self) -> [u8; BLOCK_MAP_BYTES] {
        let mut out = [0; BLOCK_MAP_BYTES];
        for (bytes, word) in out.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// From the encoded form.
    pub fn from_bytes(bytes: [u8; BLOCK_MAP_BYTES]) -> Self {
        let mut words = [0_u64; 4];
        for (index, byte) in bytes.into_iter().enumerate() {
            words[index / 8] |= u64::from(byte) << (index % 8 * 8);
        }
        Self(words)
    }
}

impl FromIterator<u16> for BlockMap {
    fn from_iter<T: IntoIterator<Item = u16>>(blocks: T) -> Self {
        let mut map = Self::EMPTY;
        blocks.into_iter().for_each(|block| map.insert(block));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_its_encoding_and_knows_its_units() {
        let map: BlockMap = [0, 15, 64, 200, 255].into_iter().collect();
        assert_eq!(BlockMap::from_bytes(map.to_bytes()), map);
        assert_eq!(map.to_bytes()[0], 1);
        assert_eq!((map.count(), map.iter().collect::<Vec<_>>()), (5, vec![0, 15, 64, 200, 255]));
        assert!(
            map.touches_au(0) && map.touches_au(4) && map.touches_au(12) && map.touches_au(15) && !map.touches_au(1)
        );
        assert!(!map.contains(256));
    }
}
