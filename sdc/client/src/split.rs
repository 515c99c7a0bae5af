//! Cutting byte ranges of a volume at chunk boundaries: a request to a primary lies within one chunk.

use mdm_api::placement::CHUNK_BYTES;

/// The part of a range that lies in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The chunk, from 0.
    pub chunk: u64,
    /// First byte within the chunk.
    pub offset: u32,
    /// How many bytes, at least 1.
    pub length: u32,
}

/// The first part of the bytes `start..end` of a volume, none if there are none.
pub fn first_part(start: u64, end: u64) -> Option<Part> {
    if start >= end {
        return None;
    }
    let offset = start % CHUNK_BYTES;
    let length = (CHUNK_BYTES - offset).min(end - start);
    Some(Part { chunk: start / CHUNK_BYTES, offset: offset as u32, length: length as u32 })
}

/// How many parts the bytes `start..end` have.
pub fn part_count(start: u64, end: u64) -> u64 {
    if start >= end { 0 } else { (end - 1) / CHUNK_BYTES - start / CHUNK_BYTES + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_a_range_exactly_and_stay_in_their_chunks(start in 0_u64..1 << 40, length in 1_u64..20 << 20) {
            let (mut at, end, mut count) = (start, start + length, 0);
            while let Some(part) = first_part(at, end) {
                prop_assert_eq!(part.chunk * CHUNK_BYTES + u64::from(part.offset), at);
                prop_assert!(part.length >= 1 && u64::from(part.offset) + u64::from(part.length) <= CHUNK_BYTES);
                at += u64::from(part.length);
                count += 1;
            }
            prop_assert_eq!(at, end);
            prop_assert_eq!(count, part_count(start, end));
        }
    }
}
