//! Small ways to break bytes.

/// Small, seeded, good enough (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// Below the limit, which is above zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// In so many of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Numbers at which code thinks twice.
const EDGES: [u64; 14] =
    [0, 1, 2, 15, 16, 255, 256, 4095, 4096, 65_535, u32::MAX as u64 - 1, u32::MAX as u64, u64::MAX - 1, u64::MAX];

/// Breaks `bytes` in one to four places; at times with pieces of `other`.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            bytes.extend_from_slice(other);
            continue;
        }
        let at = random.below(bytes.len() as u64) as usize;
        // The beginnings of things are where lengths and kinds are.
        let at = if random.chance(50) { at % 320 % bytes.len() } else { at };
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 | 3 => {
                let width = [1, 2, 4, 8][random.below(4) as usize].min(bytes.len() - at);
                let mut edge = EDGES[random.below(EDGES.len() as u64) as usize];
                edge = edge.wrapping_add(random.below(3)).wrapping_sub(1);
                bytes[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
            }
            4 => {
                let length = (1 + random.below(64) as usize).min(bytes.len() - at);
                bytes[at..at + length].fill(0);
            }
            5 if !other.is_empty() => {
                let from = random.below(other.len() as u64) as usize;
                let length = (1 + random.below(256) as usize).min(other.len() - from).min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&other[from..from + length]);
            }
            _ if random.chance(20) => bytes.truncate(at),
            _ => {
                let middle = bytes.len() / 2;
                bytes.swap(at, middle);
            }
        }
    }
}
