//! What resync may take: nearly everything while no client is served, a share of the time while one is.
//!
//! The policy favours applications. It counts time, not bytes: a fifth of it goes to copies, so that most requests of clients meet
//! none, whatever the devices are capable of; a faster device is rebuilt faster by itself. A rate in bytes would be too much
//! for one device and a waste of another. Where devices are so busy that a copy takes long, a floor in bytes sees to it that
//! redundancy comes back all the same.
//!
//! Always true: while clients are served, copies are under way for no more than the share of the time and what the floor
//! adds; a copy that began is never stopped.

use mdm_api::epoch::Nanos;

use crate::limits::{RESYNC_BURST_MS, RESYNC_DEBT_MS, RESYNC_FLOOR_BYTES, RESYNC_TIME_PERCENT, SERVED_SPAN_MS};

const NS_PER_MS: i64 = 1_000_000;

/// The budget of one server.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    at: Nanos,
    /// Time that copies may take; overdrawn by those that took longer.
    credit_ns: i64,
    /// Bytes that the floor allows, in billionths: nanoseconds times bytes per second.
    floor: i128,
    copied: u64,
    devices: u32,
    served_at: Option<Nanos>,
}

impl Throttle {
    /// A client is served, here or by a primary that this server writes a copy for.
    pub(crate) fn served(&mut self, now: Nanos) {
        self.served_at = Some(now);
    }

    /// True if clients were served a moment ago.
    pub(crate) fn is_busy(&self, now: Nanos) -> bool {
        self.served_at.is_some_and(|at| now.ms_since(at) < SERVED_SPAN_MS)
    }

    /// So many devices are copied from.
    pub(crate) fn set_devices(&mut self, devices: usize) {
        self.devices = devices as u32;
    }

    /// Devices that are copied from, at least one.
    pub(crate) fn devices(&self) -> u32 {
        self.devices.max(1)
    }

    /// Time has passed; `copying`: with copies under way. `copied`: bytes in all.
    pub(crate) fn advance(&mut self, now: Nanos, copying: bool, copied: u64) {
        let span = now.0.saturating_sub(self.at.0).min(i64::MAX as u64) as i64;
        self.at = self.at.max(now);
        let spent = if copying { span } else { 0 };
        let (least, most) = (-(RESYNC_DEBT_MS as i64) * NS_PER_MS, RESYNC_BURST_MS as i64 * NS_PER_MS);
        let earned = span / 100 * RESYNC_TIME_PERCENT;
        self.credit_ns = (self.credit_ns + earned - spent).clamp(least, most);
        let rate = i128::from(RESYNC_FLOOR_BYTES) * i128::from(self.devices());
        let taken = i128::from(copied.saturating_sub(self.copied)) * 1_000_000_000;
        // A quarter of a second's worth either way: no burst after a pause, no long wait after a fast copy.
        let bound = rate * 250_000_000;
        self.floor = (self.floor + rate * i128::from(span) - taken).clamp(-bound, bound);
        self.copied = copied;
    }

    /// True if another copy may begin.
    pub(crate) fn allows(&self, now: Nanos) -> bool {
        !self.is_busy(now) || self.credit_ns > 0 || self.floor > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Ten seconds of copies of a MiB that take `copy_ms` each; the share of the time that they took, and how many there were.
    fn run(copy_ms: u64, is_served: bool) -> (f64, u64) {
        let (mut throttle, mut now, mut copied, mut spent, mut ends) = (Throttle::default(), 0, 0, 0, None);
        while now < 10 * SECOND {
            if is_served {
                throttle.served(Nanos(now));
            }
            now += 1_000_000;
            throttle.advance(Nanos(now), ends.is_some(), copied);
            spent += u64::from(ends.is_some());
            if ends.is_some_and(|end| end <= now) {
                ends = None;
                copied += 1 << 20;
            }
            if ends.is_none() && throttle.allows(Nanos(now)) {
                ends = Some(now + copy_ms * 1_000_000);
            }
        }
        (spent as f64 / 10_000.0, copied >> 20)
    }

    #[test]
    fn copies_take_their_share_of_the_time_whatever_the_device() {
        for copy_ms in [2, 5, 10] {
            let (share, count) = run(copy_ms, true);
            assert!((0.15..0.27).contains(&share), "{copy_ms} ms: {share} of the time, {count} copies");
        }
    }

    #[test]
    fn a_busy_device_still_gets_its_redundancy_back() {
        for copy_ms in [50, 100, 125] {
            let (share, count) = run(copy_ms, true);
            let floor = 10 * (RESYNC_FLOOR_BYTES as u64 >> 20);
            assert!(count + 5 >= floor, "{copy_ms} ms: {count} copies in ten seconds, {share} of the time");
        }
    }

    #[test]
    fn nobody_waits_while_nobody_is_served() {
        assert!(run(5, false).0 > 0.95);
    }

    #[test]
    fn a_pause_is_no_reason_for_a_burst() {
        let mut throttle = Throttle::default();
        throttle.advance(Nanos(3600 * SECOND), false, 0);
        let now = Nanos(3601 * SECOND);
        throttle.served(now);
        throttle.advance(now, true, 64 << 20);
        assert!(!throttle.allows(now), "{throttle:?}");
    }
}
