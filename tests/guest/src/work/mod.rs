//! What this program does inside the guest.

pub mod churn;
pub mod fio;
pub mod stamp;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// Asks the data client of this host and prints its answer.
pub fn ask(request: &str) -> anyhow::Result<()> {
    let request = serde_json::from_str(request).context("not a request")?;
    let answer = sdc_api::client::ask(Path::new(sdc_api::SOCKET_DEFAULT), &request, Duration::from_secs(35))?;
    println!("{}", serde_json::to_string(&answer)?);
    Ok(())
}

/// A fast, repeatable generator: what a seed has written can be made again to compare.
pub struct Random(u64);

impl Random {
    /// Equal seeds give equal sequences.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits (xorshift*).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Fills bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_bytes_and_others_do_not() {
        let bytes = |seed| {
            let mut bytes = [0; 100];
            Random::new(seed).fill(&mut bytes);
            bytes
        };
        assert_eq!(bytes(7), bytes(7));
        assert_ne!(bytes(7), bytes(8));
        assert!((0..1000).all(|seed| Random::new(seed).below(10) < 10));
    }
}
