//! The clocks and the randomness of this host.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use mdm_api::epoch::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// The clock that leases are counted by: it goes on while the machine is suspended.
pub(crate) fn now() -> Nanos {
    let boot = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(boot.tv_sec).unwrap_or(0);
    Nanos(seconds * 1_000_000_000 + u64::try_from(boot.tv_nsec).unwrap_or(0))
}

/// Seconds since 1970.
pub(crate) fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("no randomness: {error}"))?;
    Ok(bytes)
}

/// A random number that is not zero.
pub(crate) fn random_id() -> anyhow::Result<u64> {
    Ok(u64::from_le_bytes(random()?).max(1))
}
