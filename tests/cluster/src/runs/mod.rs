//! The runs: each in a short form for every change, and in full for evidence.

pub mod blackout;
pub mod chaos;
pub mod crowd;
pub mod events;
pub mod faults;
pub mod interop;
pub mod kills;
pub mod many;
pub mod memory;
pub mod pause;
pub mod rebuild;
pub mod restarts;
pub mod shares;

use std::time::Duration;

use anyhow::Context;

/// How long a system may take to be whole again after one of its parts was away for a moment.
pub const HEALING: Duration = Duration::from_secs(120);

/// Random moments for faults, from a seed that is printed.
pub struct Moments {
    state: u64,
}

impl Moments {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed | 1 }
    }

    /// From the kernel's randomness; the seed is printed so that the run can be told.
    pub fn fresh() -> anyhow::Result<Self> {
        use std::io::Read;
        let mut bytes = [0; 8];
        let mut source = std::fs::File::open("/dev/urandom").context("no random numbers")?;
        source.read_exact(&mut bytes).context("no random numbers")?;
        let seed = u64::from_le_bytes(bytes);
        println!("seed of the moments: {seed}");
        Ok(Self::new(seed))
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// A span below the one given.
    pub fn below(&mut self, most: Duration) -> Duration {
        most.mul_f64((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// A number below the one given, which is not 0.
    pub fn number(&mut self, bound: u64) -> u64 {
        // The low bits of this generator are the weak ones.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// Lets faults fall at a moment that nothing in the system knows.
pub fn let_pass(span: Duration) {
    std::thread::sleep(span);
}

/// A span for people.
pub fn show(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        format!("{} ms", span.as_millis())
    } else {
        format!("{:.2} s", span.as_secs_f64())
    }
}
