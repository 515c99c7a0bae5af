//! `fio` over NBD or on a device, and what it reports.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::shell;

/// Longest that a round of verification may take.
const ROUND_MAX: Duration = Duration::from_secs(300);

/// What came of one job, over its run without the ramp.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// Reads, of which a verification is made.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes per second, both ways.
    pub bytes_per_s: f64,
    /// The longest request.
    pub longest: Duration,
}

/// Runs a job file, written as text, in a folder of its own; it must succeed within `limit`.
pub fn run(folder: &Path, jobs: &str, limit: Duration) -> anyhow::Result<Vec<Job>> {
    let file = folder.join("jobs.fio");
    std::fs::write(&file, jobs).context("cannot write the jobs")?;
    let mut command = shell::limited(limit, "fio", &["--output-format=json"]);
    command.arg(&file).current_dir(folder).stdin(Stdio::null());
    report(&mut command)
}

/// What came of rounds of verification.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rounds {
    /// Rounds: each writes everything at random, reads it and verifies it.
    pub rounds: usize,
    /// Requests.
    pub requests: u64,
    /// The longest request.
    pub longest: Duration,
}

/// Writes all of a target at random and verifies it, again and again until told to stop; at least once. `target`: the lines
/// of a job that say where and how.
pub fn rounds(folder: &Path, target: &str, size: &str, stop: &AtomicBool) -> anyhow::Result<Rounds> {
    let jobs = format!(
        "[verify]\n{target}\nrw=randwrite\nbsrange=4k-256k\nblockalign=4k\niodepth=16\nsize={size}\n\
         verify=crc32c\nverify_fatal=1\nverify_state_save=0\nrandrepeat=0\n"
    );
    let mut outcome = Rounds::default();
    while !stop.load(Ordering::Relaxed) || outcome.rounds == 0 {
        outcome.take(&run(folder, &jobs, ROUND_MAX)?)?;
    }
    Ok(outcome)
}

impl Rounds {
    /// Counts a round in; one that wrote nothing, or verified nothing, is an error.
    pub fn take(&mut self, done: &[Job]) -> anyhow::Result<()> {
        let job = done.first().context("fio reports no job")?;
        if job.reads == 0 || job.writes == 0 {
            bail!("fio made {} reads and {} writes", job.reads, job.writes);
        }
        self.longest = self.longest.max(job.longest);
        self.requests += job.reads + job.writes;
        self.rounds += 1;
        Ok(())
    }
}

/// Runs `fio`, which is told to report in JSON, and reads its report.
pub fn report(command: &mut Command) -> anyhow::Result<Vec<Job>> {
    let text = shell::run(command)?;
    // fio writes notes before its report.
    let json = text.get(text.find("\n{").map_or(0, |at| at + 1)..).unwrap_or_default();
    let report: Value = serde_json::from_str(json).with_context(|| format!("fio's report is no JSON: {text}"))?;
    let jobs = report["jobs"].as_array().context("fio reports no jobs")?;
    jobs.iter().map(job).collect()
}

fn job(report: &Value) -> anyhow::Result<Job> {
    let name = report["jobname"].as_str().context("a job without a name")?.to_owned();
    if report["error"] != 0 {
        bail!("fio job {name}: error {}", report["error"]);
    }
    let count =
        |way: &str| report[way]["total_ios"].as_u64().with_context(|| format!("job {name}: no count of {way}s"));
    let both = |what: &str| ["read", "write"].iter().filter_map(|way| report[*way][what].as_f64()).sum::<f64>();
    let longest = ["read", "write"].iter().filter_map(|way| report[*way]["clat_ns"]["max"].as_u64()).max();
    Ok(Job {
        reads: count("read")?,
        writes: count("write")?,
        bytes_per_s: both("bw_bytes"),
        longest: Duration::from_nanos(longest.unwrap_or_default()),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_an_error_in_it_is_one() {
        let text = r#"{"jobname": "v1", "error": 0, "read": {"total_ios": 2, "bw_bytes": 4096, "clat_ns": {"max": 7}},
            "write": {"total_ios": 3, "bw_bytes": 8192, "clat_ns": {"max": 9}}}"#;
        let mut report: Value = serde_json::from_str(text).unwrap();
        let found = job(&report).unwrap();
        assert_eq!((found.name.as_str(), found.reads + found.writes, found.longest.as_nanos()), ("v1", 5, 9));
        let mut rounds = Rounds::default();
        rounds.take(std::slice::from_ref(&found)).unwrap();
        assert_eq!((rounds.rounds, rounds.requests), (1, 5));
        assert!(rounds.take(&[Job { reads: 0, ..found.clone() }]).is_err(), "nothing was verified");
        assert_eq!(found.bytes_per_s.to_bits(), 12_288.0_f64.to_bits());
        report["error"] = 5.into();
        assert!(job(&report).is_err());
    }
}
