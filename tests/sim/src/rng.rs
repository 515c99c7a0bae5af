//! The one source of chance: every decision of a run follows from its seed.

/// A small generator (SplitMix64): one word of state, good enough to mix faults with, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Equal seeds give equal sequences.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x6a09_e667_f3bc_c909)
    }

    /// A generator of its own, so that what one part draws does not shift what another one gets.
    pub fn fork(&mut self) -> Self {
        Self(self.word())
    }

    /// 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a choice has at least one way");
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `least` to `most`, both included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// An index of a list, which is not empty.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// One of a list, which is not empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.index(list.len())]
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// True in so many of a million cases.
    pub fn ppm(&mut self, ppm: u64) -> bool {
        self.below(1_000_000) < ppm
    }

    /// Exponentially distributed around a mean, at most 20 times it.
    pub fn around(&mut self, mean: u64) -> u64 {
        let unit = ((self.word() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        ((-unit.ln()).min(20.0) * mean as f64) as u64
    }

    /// 32 bytes.
    pub fn bytes32(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&self.word().to_le_bytes()));
        bytes
    }
}

/// SplitMix64's finaliser: every bit of the input moves every bit of the output.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences_and_bounds_hold() {
        let (mut left, mut right) = (Rng::new(7), Rng::new(7));
        for bound in 1..500 {
            let value = left.below(bound);
            assert_eq!(value, right.below(bound));
            assert!(value < bound);
            let value = left.between(bound, 2 * bound);
            assert_eq!(value, right.between(bound, 2 * bound));
            assert!((bound..=2 * bound).contains(&value));
        }
        assert_ne!(Rng::new(7).word(), Rng::new(8).word());
    }

    #[test]
    fn waiting_times_have_the_mean_that_was_asked_for() {
        let mut rng = Rng::new(1);
        let total: u64 = (0..20_000).map(|_| rng.around(1000)).sum();
        assert!((900..1100).contains(&(total / 20_000)), "{total}");
    }
}
