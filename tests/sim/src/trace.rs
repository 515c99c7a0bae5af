//! What happened, for people (`--trace`), and as one number by which two runs are compared.

use crate::clock::{SECOND, Time};
use crate::rng::mix;

/// The trace of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    prints: bool,
}

impl Trace {
    /// Prints each line if wanted.
    pub fn new(prints: bool) -> Self {
        Self { hash: 0, prints }
    }

    /// Everything so far, as a number.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Takes a word into the hash.
    pub fn word(&mut self, word: u64) {
        self.hash = mix(self.hash.rotate_left(5) ^ word);
    }

    /// A line, made only if somebody reads it.
    pub fn line(&self, now: Time, text: impl FnOnce() -> String) {
        if self.prints {
            println!("{:>3}.{:06} {}", now / SECOND, now % SECOND / 1000, text());
        }
    }
}
