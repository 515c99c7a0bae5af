//! The limits of a mapping: requests and bytes per second.
//!
//! Each limit is a virtual clock that moves on by what a request costs; a request waits until its clock is no further than a
//! burst ahead of the real one (the generic cell rate algorithm of ATM traffic shaping). Requests are served in the order
//! in which they came, so nobody starves.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mdm_api::model::Limits;
use tokio::time::Instant;

/// How much may be used at once after a quiet time.
const BURST: Duration = Duration::from_millis(100);

/// Limits in force and how much of them is used.
#[derive(Debug)]
pub struct Limiter {
    state: Mutex<Clocks>,
    /// Whoever waits holds this: first come, first served, so that overlapping writes keep their order.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Clocks {
    limits: Limits,
    requests: Instant,
    bytes: Instant,
}

fn cost(amount: u64, per_second: u64) -> Duration {
    if per_second == 0 { Duration::ZERO } else { Duration::from_secs_f64(amount as f64 / per_second as f64) }
}

impl Limiter {
    /// With the limits of a mapping.
    pub fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Self { state: Mutex::new(Clocks { limits, requests: now, bytes: now }), turn: tokio::sync::Mutex::new(()) }
    }

    /// Changes the limits; what was used stays used.
    pub fn set(&self, limits: Limits) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).limits = limits;
    }

    /// Takes the room for a request, and says when it may go.
    fn take(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let limits = state.limits;
        if limits == Limits::default() {
            return None;
        }
        state.requests = state.requests.max(now) + cost(1, limits.iops);
        state.bytes = state.bytes.max(now) + cost(bytes, limits.bandwidth_bytes_per_s);
        let latest = state.requests.max(state.bytes);
        (latest > now + BURST).then(|| latest - BURST)
    }

    /// Waits until a request of so many bytes may go.
    pub async fn admit(&self, bytes: u64) {
        let _turn = self.turn.lock().await;
        if let Some(then) = self.take(bytes, Instant::now()) {
            tokio::time::sleep_until(then).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_hold_ten_seconds_worth_of_requests() {
        let limiter = Limiter::new(Limits { iops: 1000, bandwidth_bytes_per_s: 0 });
        let start = Instant::now();
        let mut now = start;
        let mut count = 0_u32;
        while now < start + Duration::from_secs(10) {
            if let Some(then) = limiter.take(4096, now) {
                now = then;
            }
            count += 1;
        }
        assert!((9_900..=10_200).contains(&count), "{count}");
    }

    #[test]
    fn bytes_are_limited_apart_and_nothing_is_limited_by_default() {
        let limiter = Limiter::new(Limits { iops: 0, bandwidth_bytes_per_s: 1 << 20 });
        let now = Instant::now();
        assert_eq!(limiter.take(1 << 10, now), None);
        assert!(limiter.take(1 << 20, now).is_some_and(|then| then > now + Duration::from_millis(800)));
        limiter.set(Limits::default());
        assert_eq!(limiter.take(1 << 30, now), None);
    }
}
