//! What the daemons need while random writes go on for a long time.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::runs::let_pass;
use crate::system::{Options, System, with_system};

/// How long.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// First look.
    pub early: Duration,
    /// Last look.
    pub late: Duration,
}

/// What is demanded of a release.
pub const FULL: Extent = Extent { early: Duration::from_secs(300), late: Duration::from_secs(1800) };

/// Memory of one daemon.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Its name.
    pub name: String,
    /// Resident bytes at the first look.
    pub early_bytes: u64,
    /// And at the last.
    pub late_bytes: u64,
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
    Ok(kib << 10)
}

fn look(system: &System) -> anyhow::Result<Vec<(String, u64)>> {
    let processes = system.processes()?;
    processes.into_iter().map(|(name, pid)| Ok((name, resident(pid)?))).collect()
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Vec<Usage>> {
    let options = Options { volumes: vec!["demo:1GiB"], device_size: "4GiB", ..Options::default() };
    with_system(&options, |system| {
        let folder = tempfile::tempdir()?;
        let uri = system.nbd("demo")?.uri;
        let seconds = extent.late.as_secs() + 10;
        let started = Instant::now();
        let mut fio = Command::new("fio")
            .current_dir(folder.path())
            .args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based"])
            .args([format!("--uri={uri}"), format!("--runtime={seconds}"), "--size=1g".to_owned()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run fio")?;
        let at = |moment: Duration| let_pass(moment.saturating_sub(started.elapsed()));
        at(extent.early);
        let early = look(system)?;
        at(extent.late);
        let late = look(system)?;
        if !fio.wait().context("fio")?.success() {
            bail!("fio failed");
        }
        let mut usages = Vec::new();
        for (name, early_bytes) in early {
            let late_bytes =
                late.iter().find(|(other, _)| *other == name).with_context(|| format!("{name} is gone"))?.1;
            usages.push(Usage { name, early_bytes, late_bytes });
        }
        Ok(usages)
    })
}
