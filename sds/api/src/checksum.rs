//! CRC32C of blocks: computed once where data enters the system, carried with it, verified wherever it is used (I21).

use bytes::Bytes;

use crate::block::BLOCK_BYTES;

/// CRC32C (Castagnoli) of some bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Continues a CRC32C over more bytes.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// One checksum for each block.
///
/// # Panics
/// If the length is not a multiple of a block.
pub fn block_checksums(data: &[u8]) -> Vec<u32> {
    assert!(data.len().is_multiple_of(BLOCK_BYTES), "whole blocks");
    data.chunks_exact(BLOCK_BYTES).map(crc32c).collect()
}

/// The position of the first block whose checksum is wrong, if any; a length that does not fit counts as wrong at 0.
pub fn first_mismatch(data: &Bytes, checksums: &[u32]) -> Option<usize> {
    if data.len() != checksums.len() * BLOCK_BYTES {
        return Some(0);
    }
    data.chunks_exact(BLOCK_BYTES).zip(checksums).position(|(block, sum)| crc32c(block) != *sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_found_in_its_block() {
        let mut data = vec![3_u8; 3 * BLOCK_BYTES];
        let sums = block_checksums(&data);
        assert_eq!(first_mismatch(&Bytes::from(data.clone()), &sums), None);
        data[2 * BLOCK_BYTES + 17] ^= 1;
        assert_eq!(first_mismatch(&Bytes::from(data), &sums), Some(2));
    }
}
