//! Clocks of hosts: each runs at its own rate, within 5 % of true time, from its own start.

use mdm_api::epoch::Nanos;

/// Nanoseconds of true time, which only the simulator knows.
pub type Time = u64;
/// A millisecond.
pub const MS: Time = 1_000_000;
/// A second.
pub const SECOND: Time = 1_000 * MS;
/// The rate of a clock that is right.
pub const RATE_TRUE: u64 = 1_000_000;

/// A host's clock. Counts through pauses and restarts of processes, as CLOCK_BOOTTIME does.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
    rate_ppm: u64,
}

impl Clock {
    /// A clock that shows `offset` at the beginning and counts `rate_ppm` microseconds a second.
    pub fn new(offset: u64, rate_ppm: u64) -> Self {
        Self { offset, rate_ppm }
    }

    /// What it shows.
    pub fn at(&self, time: Time) -> Nanos {
        Nanos(self.offset + scale(time, self.rate_ppm, RATE_TRUE))
    }

    /// When it will show at least that; [`Time::MAX`] for never.
    pub fn when(&self, local: Nanos) -> Time {
        if local == Nanos::NEVER {
            return Time::MAX;
        }
        scale(local.0.saturating_sub(self.offset), RATE_TRUE, self.rate_ppm) + 2
    }
}

fn scale(value: u64, times: u64, over: u64) -> u64 {
    (u128::from(value) * u128::from(times) / u128::from(over)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_moment_a_deadline_is_due_the_clock_shows_it() {
        for rate in [950_000, 999_999, 1_000_000, 1_050_000] {
            let clock = Clock::new(12_345, rate);
            for local in [12_345, 20_000, 1_000_000_007, 77 * SECOND] {
                let time = clock.when(Nanos(local));
                assert!(clock.at(time) >= Nanos(local));
                assert!(clock.at(time).0 < local + 10);
            }
        }
    }
}
