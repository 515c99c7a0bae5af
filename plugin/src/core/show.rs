//! A volume as `docker volume inspect` shows it.

use mdm_api::command::SystemView;
use mdm_api::model::{AccessMode, Volume};
use serde_json::{Value, json};

use super::labels::{self, Spec};

/// Seconds since 1970 as RFC 3339, in UTC.
pub fn time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that the leap day is the last of its year; 400 years have 146,097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// What this host knows by itself of a volume that it has mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that files take.
    pub used_bytes: u64,
    /// Bytes of the file system.
    pub size_bytes: u64,
}

/// The `Status` of a volume.
pub fn status(view: &SystemView, volume: &Volume, usage: Option<Usage>, mounts: usize) -> Value {
    let spec = Spec::of(&volume.labels);
    let pool = view.storage_pools.iter().find(|pool| pool.pool.id == volume.pool);
    let domain =
        pool.and_then(|pool| view.protection_domains.iter().find(|domain| domain.id == pool.pool.protection_domain));
    let health = pool.map_or("unknown", |pool| match (pool.dark_pgs, pool.degraded_pgs) {
        (0, 0) => "healthy",
        (0, _) => "degraded",
        _ => "unavailable in part",
    });
    let mapped = view.mappings.iter().filter(|mapping| mapping.volume == volume.id);
    let mapped: Vec<Value> = mapped
        .map(|mapping| {
            let client = view.sdcs.iter().find(|client| client.sdc.id == mapping.sdc);
            json!({
                "host": client.and_then(|c| c.sdc.name.clone()).unwrap_or_else(|| mapping.sdc.to_string()),
                "access": if mapping.access == AccessMode::ReadOnly { "read-only" } else { "read-write" },
                "reachable": client.is_some_and(|client| client.connected),
            })
        })
        .collect();
    json!({
        "id": volume.id.to_string(),
        "system-name": volume.name,
        "size-bytes": volume.size_bytes,
        "used-bytes": usage.map(|usage| usage.used_bytes),
        "filesystem-bytes": usage.map(|usage| usage.size_bytes),
        "fstype": spec.filesystem.name(),
        "state": spec.state.word(),
        "pool": pool.map(|pool| pool.pool.name.clone()),
        "protection-domain": domain.map(|domain| domain.name.clone()),
        "copies": pool.map(|pool| pool.pool.copies),
        "health": health,
        "mapped": mapped,
        "mounts-here": mounts,
        "read-only": spec.read_only,
        "shared": spec.shared,
        "iops": spec.limits.iops,
        "bandwidth-bytes-per-s": spec.limits.bandwidth_bytes_per_s,
    })
}

/// Docker's volumes among all, with their names.
pub fn named(view: &SystemView) -> impl Iterator<Item = (&str, &Volume)> {
    let open = view.volumes.iter().filter(|volume| !volume.removing);
    open.filter_map(|volume| Some((volume.labels.get(labels::NAME)?.as_str(), volume)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_right_across_leap_days() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(time(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(time(1_709_210_096), "2024-02-29T12:34:56Z");
        assert_eq!(time(4_102_444_800), "2100-01-01T00:00:00Z");
    }
}
