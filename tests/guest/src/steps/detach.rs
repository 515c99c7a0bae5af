//! Devices that go: asked, by force, often, and with a daemon that crashed.

use std::time::Duration;

use anyhow::ensure;

use super::{ENDING, Extent, files};
use crate::world::{PATIENCE, World};

/// Asks the data client in the guest over its control socket.
pub fn ask(world: &mut World<'_>, request: &str) -> anyhow::Result<String> {
    world.run(&format!("guest ask '{request}'"))
}

/// A detach of a mounted device is refused with the name of its user; by force its users see errors and the volume is
/// whole when it is attached anew.
pub fn in_use(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    let refused = ask(world, r#"{"request":"detach","volume":"files"}"#)?;
    ensure!(refused.contains("in_use") && refused.contains("mount /mnt/files"), "{refused}");
    world.run("touch /mnt/files/still-here && sync")?;
    world.run("cp /sbin/e2fsck /mnt/files/kept && sync")?;
    let device = world.run("readlink /dev/ashlar/files")?;
    let forced = ask(world, r#"{"request":"detach","volume":"files","force":true}"#)?;
    ensure!(forced.contains("done"), "{forced}");
    world.run("! [ -e /dev/ashlar/files ]")?;
    let read = world.try_run("dd if=/dev/zero of=/mnt/files/after bs=4k count=1 conv=fsync")?;
    ensure!(read.status != 0, "a device that was taken away still takes writes");
    world.run("umount -l /mnt/files")?;
    let attached = ask(world, r#"{"request":"attach","volume":"files"}"#)?;
    ensure!(attached.contains("attached"), "{attached}");
    world.wait("the device is there", PATIENCE, "[ -b /dev/ashlar/files ]")?;
    world.run("/sbin/e2fsck -fp /dev/ashlar/files; [ $? -le 1 ]")?;
    world.run("mount -t ext4 /dev/ashlar/files /mnt/files && cmp /sbin/e2fsck /mnt/files/kept")?;
    world.run("guest check /mnt/files")?;
    let again = world.run("readlink /dev/ashlar/files")?;
    Ok(format!("{device} by force, then {again}"))
}

/// Detaches and attaches one device again and again while others are in use, and mounts it each time.
pub fn many_times(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    world.run("dd if=/dev/zero of=/dev/ashlar/plain bs=1M 2>/dev/null; sync; umount /mnt/tables")?;
    world.begin("stamp", "guest stamp /dev/ashlar/plain --threads 2")?;
    let rounds = 3;
    for _ in 0..rounds {
        let detached = ask(world, r#"{"request":"detach","volume":"tables"}"#)?;
        ensure!(detached.contains("done"), "{detached}");
        world.run("! [ -e /dev/ashlar/tables ]")?;
        let attached = ask(world, r#"{"request":"attach","volume":"tables"}"#)?;
        ensure!(attached.contains("attached"), "{attached}");
        world.run("mount -t xfs /dev/ashlar/tables /mnt/tables && guest check /mnt/tables && umount /mnt/tables")?;
    }
    world.run("mount -t xfs /dev/ashlar/tables /mnt/tables")?;
    let words = world.end("stamp", ENDING)?;
    Ok(format!("{rounds} rounds beside {} requests", World::figure(&words, "requests")?))
}

/// The data client is killed; while it is away one volume is unmapped and one is unmounted; what is left when it is back
/// is what is mapped.
pub fn after_a_crash(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    world.end_client("KILL")?;
    world.system.scli(&["volume", "unmap", "plain", "--sdc", "guest"])?;
    world.start_client()?;
    let gone = world.wait("the unmapped volume is gone", Duration::from_secs(30), "! [ -e /dev/ashlar/plain ]")?;
    world.run("[ $(ls /dev/ashlar | wc -l) = 2 ] && [ $(ls /dev/disk/by-id | wc -l) = 2 ]")?;
    world.run("for link in /dev/ashlar/* /dev/disk/by-id/*; do [ -b $link ] || exit 1; done")?;
    world.run("touch /mnt/files/after-all && sync")?;
    files::unmount_and_check(world)?;
    Ok(format!("an unmapped volume's device went {:.1} s after the start", gone.as_secs_f64()))
}
