//! Chunk -> placement group: the one pure function that everybody shares.
//!
//! An affine permutation of the pool's groups, seeded by the V-Tree and changed every `pg_count` chunks: consecutive
//! chunks fall on different groups (striping), a power-of-two stride does not hit one group, and a snapshot shares its
//! parent's groups. It is fixed by the pool's placement version; a golden test holds it still.

use crate::ids::VtreeId;

/// The only version so far.
pub const PLACEMENT_VERSION: u16 = 1;

/// Bytes of a chunk: the unit of striping and placement.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// A well-known 64-bit finaliser (SplitMix64, Steele et al. 2014): every bit of the input moves every bit of the output.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The placement group, 0 to `pg_count` - 1, that keeps chunk `chunk_index` of the tree.
///
/// # Panics
/// If `pg_count` is not a power of two.
pub const fn pg_index(vtree: VtreeId, chunk_index: u64, pg_count: u32) -> u32 {
    assert!(pg_count.is_power_of_two(), "the number of placement groups is a power of two");
    let count = pg_count as u64;
    let round = chunk_index / count;
    let seed = mix(vtree.0 ^ mix(round));
    // An odd multiplier is invertible modulo a power of two, so each round visits every group once.
    let multiplier = seed | 1;
    let offset = mix(seed);
    ((chunk_index % count).wrapping_mul(multiplier).wrapping_add(offset) & (count - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_of_chunks_visits_every_group_once() {
        for count in [1, 2, 64, 1024] {
            for round in 0..4_u64 {
                let mut seen = vec![false; count as usize];
                for i in 0..u64::from(count) {
                    let index = pg_index(VtreeId(77), round * u64::from(count) + i, count);
                    assert!(!std::mem::replace(&mut seen[index as usize], true));
                }
            }
        }
    }

    #[test]
    fn a_power_of_two_stride_spreads() {
        let hit: std::collections::BTreeSet<u32> = (0..1024).map(|i| pg_index(VtreeId(5), i * 1024, 1024)).collect();
        assert!(hit.len() > 500, "{}", hit.len());
    }

    #[test]
    fn version_1_never_changes() {
        let golden: Vec<u32> = (0..4).map(|i| pg_index(VtreeId(1), i * 777, 1024)).collect();
        assert_eq!(golden, GOLDEN);
    }

    const GOLDEN: [u32; 4] = [944, 567, 823, 1010];
}
