//! The clock of the shell: CLOCK_BOOTTIME, which counts through suspension.

use std::time::Duration;

use mdm_api::epoch::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// The present moment.
pub fn now() -> Nanos {
    let time = clock_gettime(ClockId::Boottime);
    // The clock counts from 0 at boot: neither part is negative.
    Nanos((time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64)
}

/// The time from `now` until `then`, at most an hour: whoever sleeps looks again.
pub fn until(now: Nanos, then: Nanos) -> Duration {
    Duration::from_nanos(then.0.saturating_sub(now.0)).min(Duration::from_secs(3600))
}
