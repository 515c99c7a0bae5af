//! Every process is killed at once while records are being made durable; then all are started again.
//!
//! The host that mounts goes down with them, as far as that can be had without a second machine: the process that holds
//! its block device is killed too, so that what only the host's memory held is gone and the journal of the file system has
//! to be replayed.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::runs::{HEALING, Moments, let_pass, show};
use crate::system::{Options, System, with_system};
use crate::{blocks, copies, records, shell};

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Black-outs, one after the other.
    pub rounds: usize,
    /// How long writes go on before each, at least.
    pub before: Duration,
    /// Read every copy in the end.
    pub copies: bool,
}

/// One black-out.
pub const SHORT: Extent = Extent { rounds: 1, before: Duration::from_secs(2), copies: true };
/// Ten.
pub const FULL: Extent = Extent { rounds: 10, before: Duration::from_secs(3), copies: true };

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Records that `fsync` had acknowledged.
    pub records: u64,
    /// Writes that the volume had answered.
    pub writes: u64,
    /// From the start of all processes to full health, for each round.
    pub healing: Vec<Duration>,
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    let options = Options { volumes: vec!["files:256MiB", "plain:64MiB"], attach: true, ..Options::default() };
    with_system(&options, |system| {
        let mut outcome = Outcome::default();
        let mut moments = Moments::fresh()?;
        // The other volume is written to over NBD alone.
        let (mount, device) = (system.mount_point("plain"), system.device("plain")?);
        shell::succeed("umount", &[&mount.display().to_string()])?;
        std::fs::File::options().write(true).open(&device).and_then(|file| file.sync_all()).context("plain")?;
        for round in 0..extent.rounds {
            black_out(system, extent, round, &mut moments, &mut outcome)?;
        }
        if extent.copies {
            let mount = system.mount_point("files").display().to_string();
            shell::succeed("umount", &[&mount])?;
            for volume in ["files", "plain"] {
                copies::identical(system, volume)?;
            }
            copies::alike_on_devices(system)?;
        }
        Ok(outcome)
    })
}

fn black_out(
    system: &System,
    extent: &Extent,
    round: usize,
    moments: &mut Moments,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mount = system.mount_point("files");
    let folder = mount.join(format!("round{round}"));
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::File::open(&mount).and_then(|file| file.sync_all()).context("cannot sync")?;
    let files = records::Writers::start(&folder, 4)?;
    let plain = blocks::Writer::start(&system.nbd("plain")?, 512)?;
    let_pass(extent.before + moments.below(extent.before));
    system.kill("all")?;
    kill_holders(&system.directory().join("run"))?;
    let (acknowledged, expected) = (files.finish()?, plain.finish()?);
    shell::succeed("umount", &["--lazy", &mount.display().to_string()])?;
    system.start("all")?;
    let span = system.wait_healthy(HEALING)?;
    println!(
        "black-out {round}: {} records, {} writes; all healthy after {}",
        acknowledged.total(),
        expected.answered(),
        show(span)
    );
    expected.check(&system.nbd("plain")?)?;
    let mut device = None;
    shell::wait_until("the volume is attached again", Duration::from_secs(30), || {
        device = Some(system.device("files")?);
        Ok(true)
    })?;
    let device = device.context("attached")?.display().to_string();
    // Mounting replays the file system's journal; after that it must be clean.
    shell::succeed("mount", &[&device, &mount.display().to_string()])?;
    acknowledged.check()?;
    shell::succeed("umount", &[&mount.display().to_string()])?;
    shell::succeed("e2fsck", &["-fn", &device])?;
    shell::succeed("mount", &[&device, &mount.display().to_string()])?;
    outcome.records += acknowledged.total();
    outcome.writes += expected.answered();
    outcome.healing.push(span);
    Ok(())
}

/// Kills the processes that hold this system's block devices: they are named in the records of its data client.
fn kill_holders(run: &Path) -> anyhow::Result<()> {
    let folders = std::fs::read_dir(run).with_context(|| format!("cannot read {}", run.display()))?;
    let folders = folders.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    for record in folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flat_map(Iterator::flatten) {
        let path = record.path();
        if path.extension().is_none_or(|extension| extension != "device") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let pid = text.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok()).and_then(Pid::from_raw);
        // The kernel's own nbd has no holder.
        if let Some(pid) = pid {
            kill_process(pid, Signal::KILL).with_context(|| format!("cannot kill the holder of {}", path.display()))?;
        }
    }
    Ok(())
}
