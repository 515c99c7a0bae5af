//! What everybody expects of a block device, apart from file systems: partitions, discarding, limits of requests, read-only.

use anyhow::ensure;

use super::Extent;
use super::detach::ask;
use crate::world::{PATIENCE, World};

/// Goes through them on a volume of its own.
pub fn manners(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    world.make_volume("parts", "16MiB")?;
    let disk = world.run("basename $(readlink /dev/ashlar/parts)")?;
    requests(world, &disk)?;
    partitions(world, &disk)?;
    read_only(world)?;
    world.remove_volume("parts")?;
    let errors = world.try_run("dmesg | grep -iE 'bug:|warning:|call trace'")?;
    ensure!(errors.status != 0, "the kernel complains: {}", errors.text);
    Ok("requests of odd sizes, discard, partitions, a read-only mapping".to_owned())
}

/// Large and odd requests arrive whole; what is discarded reads as zeros; nothing lies beyond the end.
fn requests(world: &mut World<'_>, disk: &str) -> anyhow::Result<()> {
    world.run("dd if=/dev/urandom of=/tmp/odd bs=1M count=9 2>/dev/null")?;
    // Through the page cache, at an odd place, and past it in requests larger than the kernel sends.
    world.run(&format!("dd if=/tmp/odd of=/dev/{disk} bs=5001 seek=7 conv=fsync 2>/dev/null"))?;
    world.run(&format!("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/{disk} bs=5001 skip=7 2>/dev/null | head -c $((9 << 20)) | cmp - /tmp/odd"))?;
    world.run(&format!("dd if=/tmp/odd of=/dev/{disk} bs=3M oflag=direct 2>/dev/null"))?;
    world.run(&format!("dd if=/dev/{disk} bs=9M count=1 iflag=direct 2>/dev/null | cmp - /tmp/odd"))?;
    world.run(&format!("blkdiscard -o 1048576 -l 2097152 /dev/{disk}"))?;
    let left = world.run(&format!("dd if=/dev/{disk} bs=1M skip=1 count=2 2>/dev/null | tr -d '\\000' | wc -c"))?;
    ensure!(left == "0", "{left} bytes are left of what was discarded");
    world.run(&format!("dd if=/dev/{disk} bs=1M count=1 2>/dev/null | cmp -n 1048576 - /tmp/odd"))?;
    let beyond = world.try_run(&format!("dd if=/tmp/odd of=/dev/{disk} bs=1M seek=16 count=1 oflag=direct"))?;
    ensure!(beyond.status != 0, "a write beyond the end is taken: {}", beyond.text);
    Ok(())
}

/// Partitions appear, keep their device from being taken away, and are good again when it is attached anew. Their nodes stay
/// meanwhile: the kernel looks for partitions when a device is opened next.
fn partitions(world: &mut World<'_>, disk: &str) -> anyhow::Result<()> {
    // A table of two, in sectors of 4 KiB, which the device has: 64 to 2047, 2048 to 4095.
    let table = r"\0\0\0\0\203\0\0\0\100\0\0\0\300\007\0\0\0\0\0\0\203\0\0\0\0\010\0\0\0\010\0\0";
    world.run(&format!(
        "(head -c 446 /dev/zero; printf '{table}'; head -c 32 /dev/zero; printf '\\125\\252') >/tmp/table \
         && dd if=/tmp/table of=/dev/{disk} conv=notrunc,fsync 2>/dev/null && blockdev --rereadpt /dev/{disk}"
    ))?;
    let both = |disk: &str| format!("[ -b /dev/{disk}p1 ] && [ -b /dev/{disk}p2 ]");
    world.wait("partitions are there", PATIENCE, &both(disk))?;
    world.run(&format!(
        "/sbin/mke2fs -q -t ext4 -F /dev/{disk}p2 && mkdir -p /mnt/part && mount -t ext4 /dev/{disk}p2 /mnt/part"
    ))?;
    world.run("cp /sbin/drv_cfg /mnt/part/ && sync")?;
    let refused = ask(world, r#"{"request":"detach","volume":"parts"}"#)?;
    ensure!(refused.contains("in_use") && refused.contains("mount /mnt/part"), "{refused}");
    world.run("umount /mnt/part")?;
    let detached = ask(world, r#"{"request":"detach","volume":"parts"}"#)?;
    ensure!(detached.contains("done"), "{detached}");
    let attached = ask(world, r#"{"request":"attach","volume":"parts"}"#)?;
    ensure!(attached.contains("attached"), "{attached}");
    let disk = world.run("basename $(readlink /dev/ashlar/parts)")?;
    world.wait("partitions are there again", PATIENCE, &both(&disk))?;
    world.run(&format!(
        "mount -t ext4 /dev/{disk}p2 /mnt/part && cmp /sbin/drv_cfg /mnt/part/drv_cfg && umount /mnt/part"
    ))?;
    Ok(())
}

/// A volume that is mapped to be read only can be read, and nothing else.
fn read_only(world: &mut World<'_>) -> anyhow::Result<()> {
    let first = "dd if=/dev/ashlar/parts bs=4k count=1 2>/dev/null | md5sum";
    let before = world.run(first)?;
    world.system.scli(&["volume", "unmap", "parts", "--sdc", "guest"])?;
    world.wait("it is detached", PATIENCE, "! [ -e /dev/ashlar/parts ]")?;
    world.system.scli(&["volume", "map", "parts", "--sdc", "guest", "--access", "read-only"])?;
    world.wait("it is attached", PATIENCE, "[ -b /dev/ashlar/parts ]")?;
    ensure!(world.run("blockdev --getro /dev/ashlar/parts")? == "1", "the kernel would let it be written");
    let written = world.try_run("dd if=/dev/zero of=/dev/ashlar/parts bs=4k count=1 conv=fsync")?;
    ensure!(written.status != 0, "a read-only device takes a write: {}", written.text);
    ensure!(world.run(first)? == before, "the first block has changed");
    Ok(())
}
