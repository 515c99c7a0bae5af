//! A tree is copied onto a mounted volume while servers and metadata managers are killed and return.

use std::time::Duration;

use crate::runs::{HEALING, Moments, let_pass, show};
use crate::shell;
use crate::system::{Options, System, with_system};
use crate::tree::{Copier, Tree};

/// How large and how long.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Files of the tree, at least.
    pub files: usize,
    /// Bytes of the tree, at least.
    pub bytes: u64,
    /// Size of the volume.
    pub volume: &'static str,
    /// Size of each device.
    pub device_size: &'static str,
    /// How often the two servers are killed in turn.
    pub rounds: usize,
    /// Longest time between a return to health and the next kill.
    pub pause: Duration,
    /// How long all metadata managers are away.
    pub all_mdms: Duration,
}

/// Some tens of megabytes.
pub const SHORT: Extent = Extent {
    files: 1500,
    bytes: 30 << 20,
    volume: "demo:512MiB",
    device_size: "1GiB",
    rounds: 1,
    pause: Duration::from_millis(1500),
    all_mdms: Duration::from_secs(3),
};

/// What is demanded of a release.
pub const FULL: Extent = Extent {
    files: 5000,
    bytes: 200 << 20,
    volume: "demo:2GiB",
    device_size: "4GiB",
    rounds: 3,
    pause: Duration::from_secs(5),
    all_mdms: Duration::from_secs(10),
};

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The tree.
    pub tree: Tree,
    /// Copies of it that were written.
    pub copies: usize,
    /// Copies that were compared in the end.
    pub compared: usize,
    /// Each fault, and the time from the return of what was killed to full health.
    pub faults: Vec<(String, Duration)>,
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let tree = Tree::gather(&folder.path().join("tree"), extent.files, extent.bytes)?;
    println!("a tree of {} files and {} MiB", tree.files, tree.bytes >> 20);
    let options =
        Options { volumes: vec![extent.volume], device_size: extent.device_size, attach: true, ..Options::default() };
    with_system(&options, |system| under_kills(system, extent, tree))
}

fn under_kills(system: &System, extent: &Extent, tree: Tree) -> anyhow::Result<Outcome> {
    let volume = extent.volume.split(':').next().unwrap_or_default();
    let mount = system.mount_point(volume);
    let device = system.device(volume)?;
    system.wait_healthy(HEALING)?;
    let copier = Copier::start(&tree, &mount, 2);
    let mut moments = Moments::fresh()?;
    let mut faults = Vec::new();
    for round in 0..extent.rounds {
        for server in [format!("sds{}", round % 3 + 1), format!("sds{}", (round + 1) % 3 + 1)] {
            let_pass(moments.below(extent.pause));
            system.kill(&server)?;
            let_pass(moments.below(extent.pause));
            system.start(&server)?;
            healed(system, &mut faults, format!("{server} killed and started"))?;
        }
    }
    let_pass(moments.below(extent.pause));
    let leader = system.leader()?;
    system.kill(&leader)?;
    let_pass(moments.below(extent.pause));
    system.start(&leader)?;
    healed(system, &mut faults, format!("{leader}, the leader, killed and started"))?;
    let managers = system.nodes("mdm")?;
    for manager in &managers {
        system.kill(manager)?;
    }
    let_pass(extent.all_mdms);
    for manager in &managers {
        system.start(manager)?;
    }
    healed(system, &mut faults, format!("all metadata managers killed for {}", show(extent.all_mdms)))?;
    let (copies, written) = copier.finish()?;
    let mount_text = mount.display().to_string();
    let device_text = device.display().to_string();
    shell::succeed("umount", &[&mount_text])?;
    shell::succeed("e2fsck", &["-fn", &device_text])?;
    // A fresh mount reads from the servers, not from this host's memory.
    shell::succeed("mount", &[&device_text, &mount_text])?;
    for copy in &copies {
        tree.compare(copy)?;
    }
    system.wait_healthy(HEALING)?;
    Ok(Outcome { tree, copies: written, compared: copies.len(), faults })
}

fn healed(system: &System, faults: &mut Vec<(String, Duration)>, what: String) -> anyhow::Result<()> {
    let span = system.wait_healthy(HEALING)?;
    println!("{what}: all healthy after {}", show(span));
    faults.push((what, span));
    Ok(())
}
