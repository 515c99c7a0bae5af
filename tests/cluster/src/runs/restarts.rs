//! The data client of a host ends and starts again and again under an attached device: what its users notice.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::fio;
use crate::shell;
use crate::system::{Options, System, with_system};

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Orderly ends.
    pub restarts: usize,
    /// SIGKILLs.
    pub kills: usize,
}

/// As often as a release is held to.
pub const FULL: Extent = Extent { restarts: 100, kills: 20 };

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The kind of device.
    pub mechanism: String,
    /// The longest time from the end of a daemon until its successor served.
    pub longest_down: Duration,
    /// `fio`, all verified.
    pub load: fio::Rounds,
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    let options = Options { mdm: 1, devices: 1, volumes: vec!["demo:64MiB"], attach: true, ..Options::default() };
    with_system(&options, |system| {
        let folder = tempfile::tempdir()?;
        let device = system.device("demo")?;
        shell::succeed("umount", &[&system.mount_point("demo").display().to_string()])?;
        let mechanism =
            if device.display().to_string().starts_with("/dev/nbd") { "kernel nbd" } else { "FUSE and loop" }
                .to_owned();
        let target = format!("ioengine=libaio\ndirect=1\nthread\nfilename={}", device.display());
        let stop = AtomicBool::new(false);
        let (down, load) = std::thread::scope(|scope| {
            let load = scope.spawn(|| fio::rounds(folder.path(), &target, "64m", &stop));
            let down = blows(system, extent, &device);
            stop.store(true, Ordering::Relaxed);
            (down, load.join())
        });
        let load = load.map_err(|_| anyhow::anyhow!("the load panicked"))??;
        Ok(Outcome { mechanism, longest_down: down?, load })
    })
}

/// Ends and starts the daemon; the longest time that it was away.
fn blows(system: &System, extent: &Extent, device: &Path) -> anyhow::Result<Duration> {
    let mut longest = Duration::ZERO;
    let signals = std::iter::repeat_n("TERM", extent.restarts).chain(std::iter::repeat_n("KILL", extent.kills));
    for signal in signals {
        let since = Instant::now();
        system.dev(&["kill", "sdc1", "--signal", signal])?;
        shell::wait_until("the data client is gone", Duration::from_secs(20), || {
            Ok(!system.processes()?.iter().any(|(name, _)| name == "sdc1"))
        })?;
        system.start("sdc1")?;
        system.nbd("demo")?;
        longest = longest.max(since.elapsed());
        // The device moves before the next blow.
        let from = format!("if={}", device.display());
        let read = ["of=/dev/null", "bs=4k", "count=1", "iflag=direct", "status=none"];
        let mut arguments = vec![from.as_str()];
        arguments.extend(read);
        shell::succeed_within(Duration::from_secs(60), "dd", &arguments)?;
    }
    if extent.restarts + extent.kills == 0 {
        bail!("nothing was to be done");
    }
    Ok(longest)
}
