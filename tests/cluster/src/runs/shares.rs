//! Many volumes that are all written at once: each gets its share, and no more than its mapping allows.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::fio::{self, Job};
use crate::runs::HEALING;
use crate::system::{Options, System, with_system};

/// How many volumes and how long.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Volumes.
    pub volumes: usize,
    /// How long they are written without limits.
    pub free: Duration,
    /// How long within limits.
    pub limited: Duration,
}

/// A few.
pub const SHORT: Extent = Extent { volumes: 8, free: Duration::from_secs(4), limited: Duration::from_secs(5) };
/// A hundred.
pub const FULL: Extent = Extent { volumes: 100, free: Duration::from_secs(30), limited: Duration::from_secs(10) };

/// Requests per second that every other volume is limited to: all together less than a small machine can do, for a limit is
/// no promise of speed.
pub const LIMIT_REQUESTS: f64 = 4.0;
/// Bytes per second that the others are limited to.
pub const LIMIT_BYTES: f64 = 65_536.0;

/// Bytes of each write.
const REQUEST_BYTES: f64 = 16_384.0;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Writes per second of each volume without limits.
    pub free: Vec<f64>,
    /// What each limited volume got, as a part of its limit: by requests, by bytes.
    pub by_requests: Vec<f64>,
    /// As `by_requests`.
    pub by_bytes: Vec<f64>,
}

/// Smallest, mean and largest.
pub fn spread(values: &[f64]) -> (f64, f64, f64) {
    let fold = |pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick).unwrap_or_default();
    (fold(f64::min), values.iter().sum::<f64>() / values.len().max(1) as f64, fold(f64::max))
}

fn name(index: usize) -> String {
    format!("v{index:03}")
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    let options =
        Options { mdm: 1, sds: 3, devices: 1, device_size: "4GiB", volumes: vec!["first:16MiB"], ..Options::default() };
    with_system(&options, |system| {
        let folder = tempfile::tempdir()?;
        let socket = system.nbd("first")?.socket;
        for index in 0..extent.volumes {
            system.scli(&["volume", "add", "--name", &name(index), "--size", "16MiB"])?;
            system.scli(&["volume", "map", &name(index), "--sdc", "sdc1"])?;
        }
        let last = name(extent.volumes - 1);
        system.nbd(&last).with_context(|| format!("{last} is not served"))?;
        system.wait_healthy(HEALING)?;
        let all = 0..extent.volumes;
        let free = write_all(folder.path(), &socket, all.clone(), extent.free)?;
        limit_all(system, extent)?;
        let limited = write_all(folder.path(), &socket, all, extent.limited)?;
        let (even, odd): (Vec<_>, Vec<_>) = limited.iter().enumerate().partition(|(index, _)| index % 2 == 0);
        Ok(Outcome {
            free: free.iter().map(|job| job.bytes_per_s / REQUEST_BYTES).collect(),
            // By bytes too: fio counts the bytes of requests that were under way when its ramp ended, but not these requests.
            by_requests: even.iter().map(|(_, job)| job.bytes_per_s / REQUEST_BYTES / LIMIT_REQUESTS).collect(),
            by_bytes: odd.iter().map(|(_, job)| job.bytes_per_s / LIMIT_BYTES).collect(),
        })
    })
}

fn limit_all(system: &System, extent: &Extent) -> anyhow::Result<()> {
    for index in 0..extent.volumes {
        let limit = if index % 2 == 0 { ["--iops", "4"] } else { ["--bandwidth", "64KiB"] };
        let volume = name(index);
        let mut arguments = vec!["volume", "limit", &volume, "--sdc", "sdc1"];
        arguments.extend(limit);
        system.scli(&arguments)?;
    }
    Ok(())
}

/// Writes to all volumes at once, at random, several requests of each at a time.
fn write_all(
    folder: &Path,
    socket: &Path,
    volumes: std::ops::Range<usize>,
    span: Duration,
) -> anyhow::Result<Vec<Job>> {
    let mut jobs = format!(
        "[global]\nioengine=nbd\nrw=randwrite\nbs=16k\niodepth=4\nthread\ntime_based\nramp_time=3\nruntime={}\nsize=16m\n",
        span.as_secs()
    );
    for index in volumes {
        let name = name(index);
        writeln!(jobs, "[{name}]\nuri=nbd+unix:///{name}?socket={}", socket.display())?;
    }
    fio::run(folder, &jobs, span + Duration::from_secs(60))
}
