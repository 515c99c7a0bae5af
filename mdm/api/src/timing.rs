//! The timing table: every span that the protocols depend on, in one place, scaled together.
//!
//! Derivation (architecture, leases and fencing): a pause of at most 1 s after a killed process and 3 s after a dead host.
//! The primary counts a lease from the moment it asked and shortens it by the drift margin; the granter counts the whole
//! span from the moment it received: clocks that are each within 5 % of true are at most 10.5 % apart.

/// Spans in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a grant binds its granter.
    pub lease_ms: u64,
    /// How much of a lease the primary does not use, in percent.
    pub drift_margin_percent: u64,
    /// How often a primary's server asks for new grants.
    pub lease_renew_ms: u64,
    /// How often a data server reports to every MDM.
    pub heartbeat_ms: u64,
    /// Silence after which a data server counts as dead.
    pub dead_after_ms: u64,
    /// A primary proposes to drop a replica this long after its connection was reset or refused; and one that is silent so
    /// long, if its server is taken to be dead.
    pub remove_after_reset_ms: u64,
    /// A primary proposes to drop a replica that is connected but silent this long.
    pub remove_after_silence_ms: u64,
    /// How long a dark group waits for all of its ISR to report after a total outage before it settles for fewer.
    pub report_grace_ms: u64,
    /// How long a lost replica may be away before its data is rebuilt elsewhere.
    pub rebuild_grace_ms: u64,
}

impl Timing {
    /// The default table.
    pub const DEFAULT: Self = Self {
        lease_ms: 600,
        drift_margin_percent: 12,
        lease_renew_ms: 150,
        heartbeat_ms: 150,
        dead_after_ms: 1200,
        remove_after_reset_ms: 300,
        remove_after_silence_ms: 1200,
        report_grace_ms: 3000,
        rebuild_grace_ms: 60_000,
    };

    /// How much of a lease its holder may use, in milliseconds since it asked.
    pub const fn usable_lease_ms(&self) -> u64 {
        self.lease_ms * (100 - self.drift_margin_percent) / 100
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_with_a_slow_clock_stops_before_a_granter_with_a_fast_one() {
        let timing = Timing::DEFAULT;
        // Holder's clock runs at 0.95, granter's at 1.05 of true time.
        let holder_true_ms = timing.usable_lease_ms() as f64 / 0.95;
        let granter_true_ms = timing.lease_ms as f64 / 1.05;
        assert!(holder_true_ms < granter_true_ms, "{holder_true_ms} < {granter_true_ms}");
    }
}
