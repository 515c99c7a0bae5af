//! Devices appear; file systems live on them.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::{ENDING, Extent};
use crate::world::World;

/// A volume that is mapped is a device after so long. A managed plugin's call must be over in 30 s; people wait for less.
const APPEARS: Duration = Duration::from_secs(3);

/// Three volumes for all steps: `files` for ext4, `tables` for xfs, `plain` for stamped blocks.
pub fn appears(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    world.start_client()?;
    let mut longest = Duration::ZERO;
    for (name, size) in [("files", "384MiB"), ("tables", "384MiB"), ("plain", "16MiB")] {
        longest = longest.max(world.make_volume(name, size)?);
    }
    ensure!(longest <= APPEARS, "the devices took {longest:?} to appear");
    let size = world.run("blockdev --getsize64 /dev/ashlar/plain")?;
    ensure!(size == (16 << 20).to_string(), "plain has {size} bytes");
    let listed = world.run("drv_cfg --query_vols")?;
    ensure!(listed.starts_with("Retrieved 3 volume(s)"), "{listed}");
    for line in listed.lines().skip(1) {
        // VOL-ID <volume> MDM-ID <system>
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, volume, _, system] = words[..] else { bail!("{line}") };
        world.run(&format!("[ -b /dev/disk/by-id/emc-vol-{system}-{volume} ]"))?;
    }
    let queue = world.run(
        "cd /sys/block/$(basename $(readlink /dev/ashlar/plain)); cat backend queue/fua queue/discard_granularity ro",
    )?;
    let lines: Vec<&str> = queue.lines().collect();
    ensure!(lines.len() == 4 && lines[0].starts_with("ashlar-") && lines[1..] == ["1", "4096", "0"], "{queue}");
    // Zeros before anybody wrote: what a fresh volume reads as.
    world.run("[ $(dd if=/dev/ashlar/plain bs=1M count=1 2>/dev/null | tr -d '\\000' | wc -c) = 0 ]")?;
    Ok(format!("the slowest was there after {:.2} s", longest.as_secs_f64()))
}

/// Makes both file systems, works on them at the same time, unmounts, checks, mounts, compares.
pub fn activity(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    let started = Instant::now();
    world.run("/sbin/mke2fs -q -t ext4 -F /dev/ashlar/files")?;
    let ext4 = started.elapsed().as_secs_f64();
    world.run("/sbin/mkfs.xfs -q -f /dev/ashlar/tables")?;
    let xfs = started.elapsed().as_secs_f64() - ext4;
    world.run("mkdir -p /mnt/files /mnt/tables")?;
    mount(world)?;
    world.begin("ext4", "guest churn /mnt/files")?;
    world.begin("xfs", "guest churn /mnt/tables")?;
    world.run("sleep 5")?;
    let mut figures = vec![format!("made in {ext4:.1} and {xfs:.1} s")];
    for name in ["ext4", "xfs"] {
        let words = world.end(name, ENDING)?;
        let (count, seconds) = (World::figure(&words, "operations")?, World::figure(&words, "seconds")?);
        figures.push(format!("{name} {count} operations in {seconds} s"));
    }
    let started = Instant::now();
    world.run("umount /mnt/files && umount /mnt/tables")?;
    figures.push(format!("unmounted in {:.1} s", started.elapsed().as_secs_f64()));
    check(world)?;
    mount(world)?;
    let started = Instant::now();
    world.run("guest check /mnt/files && guest check /mnt/tables")?;
    figures.push(format!("compared in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(figures.join(", "))
}

/// Mounts both.
pub fn mount(world: &mut World<'_>) -> anyhow::Result<()> {
    world.run("mount -t ext4 /dev/ashlar/files /mnt/files && mount -t xfs /dev/ashlar/tables /mnt/tables").map(drop)
}

/// Unmounts both; their own checkers find nothing wrong.
pub fn unmount_and_check(world: &mut World<'_>) -> anyhow::Result<()> {
    world.run("umount /mnt/files && umount /mnt/tables")?;
    check(world)
}

fn check(world: &mut World<'_>) -> anyhow::Result<()> {
    world.run("/sbin/e2fsck -fn /dev/ashlar/files && /sbin/xfs_repair -n /dev/ashlar/tables").map(drop)
}
