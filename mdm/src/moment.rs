//! The clocks and the randomness of this host, for the member's events.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use mdm_api::epoch::Nanos;
use mdm_node::Moment;
use rustix::time::{ClockId, clock_gettime};

/// Now, with fresh randomness.
pub(crate) fn now() -> anyhow::Result<Moment> {
    let boot = clock_gettime(ClockId::Boottime);
    let nanos = u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(boot.tv_nsec).unwrap_or(0);
    let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Moment { now: Nanos(nanos), wall_s, seed: random()? })
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
