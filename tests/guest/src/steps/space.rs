//! Space that is given back, and space that is added.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cluster::shell;

use super::Extent;
use crate::world::World;

const MIB: u64 = 1 << 20;
/// Bytes that the test writes and gives back: much more than what a file system writes on its own meanwhile (ext4 makes its
/// inode tables in the background) and than what is still in the journals when the use is looked at.
const WRITTEN: u64 = 128 * MIB;
/// Applying, trimming and the next checkpoint take their time; reports come every second or so.
const PATIENCE: Duration = Duration::from_secs(60);

/// Raw bytes in use in the pool, as the metadata manager shows them.
fn used(world: &World<'_>) -> anyhow::Result<u64> {
    let text = world.system.scli(&["--output", "json", "storage-pool", "show", "pool1"])?;
    let value: serde_json::Value = serde_json::from_str(&text).context("no JSON")?;
    value["used_bytes"].as_u64().with_context(|| format!("no used_bytes in {text}"))
}

fn wait_used(world: &World<'_>, what: &str, holds: impl Fn(u64) -> bool) -> anyhow::Result<(u64, Duration)> {
    let (started, mut last) = (Instant::now(), 0);
    shell::wait_until(what, PATIENCE, || {
        last = used(world)?;
        Ok(holds(last))
    })
    .with_context(|| format!("{} MiB are in use", last / MIB))?;
    Ok((last, started.elapsed()))
}

/// Writes a large file, deletes it, trims: the pool's use rises and falls by it.
pub fn trim(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    let before = used(world)?;
    world.run(&format!("dd if=/dev/urandom of=/mnt/files/large bs=1M count={} conv=fsync", WRITTEN / MIB))?;
    // Two copies of everything; some of it may still be in the journal.
    let (full, _) = wait_used(world, "what was written is in use", |now| now >= before + WRITTEN * 3 / 2)?;
    let trimmed = world.run("rm /mnt/files/large && sync && fstrim -v /mnt/files")?;
    let (after, took) = wait_used(world, "what was trimmed is free", |now| now + WRITTEN <= full)
        .with_context(|| format!("{} MiB before the write, {} MiB after it", before / MIB, full / MIB))?;
    world.run("guest check /mnt/files")?;
    let mib = |bytes: u64| bytes / MIB;
    Ok(format!(
        "in use {} MiB, then {}, {:.1} s after the trim {} ({})",
        mib(before),
        mib(full),
        took.as_secs_f64(),
        mib(after),
        trimmed.trim()
    ))
}

/// Grows the volumes under their mounted file systems, and these with them.
pub fn resize(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    let mut longest = Duration::ZERO;
    for name in ["files", "tables"] {
        world.system.scli(&["volume", "resize", name, "--size", "512MiB"])?;
        let bytes = 512 * MIB;
        let grown = format!("[ $(blockdev --getsize64 /dev/ashlar/{name}) = {bytes} ]");
        longest = longest.max(world.wait("the device has grown", Duration::from_secs(10), &grown)?);
    }
    world.run("/sbin/resize2fs /dev/ashlar/files && /sbin/xfs_growfs -d /mnt/tables")?;
    for name in ["files", "tables"] {
        let kib: u64 = world.run(&format!("df -k /mnt/{name} | tail -n 1 | awk '{{print $2}}'"))?.trim().parse()?;
        if kib < 440 << 10 {
            bail!("the file system {name} has {kib} KiB after growing to 512 MiB");
        }
        world.run(&format!("dd if=/dev/zero of=/mnt/{name}/grown bs=1M count=8 conv=fsync && rm /mnt/{name}/grown"))?;
    }
    ensure!(world.try_run("dmesg | grep -i 'i/o error'")?.status != 0, "the kernel saw I/O errors");
    world.run("guest check /mnt/files && guest check /mnt/tables")?;
    Ok(format!("a device had grown {:.2} s after the command", longest.as_secs_f64()))
}
