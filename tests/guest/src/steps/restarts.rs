//! The daemon under the devices, and the servers behind it, die and return.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{ENDING, Extent, files};
use crate::world::World;

/// Requests that were under way are sent again by the kernel when its time-out of 10 s fires, which it looks at about
/// once a second.
const RESENT_WITHIN: Duration = Duration::from_secs(12);

fn begin(world: &mut World<'_>) -> anyhow::Result<()> {
    world.begin("stamp", "guest stamp /dev/ashlar/plain")?;
    world.begin("ext4", "guest churn /mnt/files/again")?;
    world.begin("xfs", "guest churn /mnt/tables/again")
}

/// Ends the loads; the longest time that a request of the stamped blocks took.
fn end(world: &mut World<'_>) -> anyhow::Result<(Duration, u64)> {
    let words = world.end("stamp", ENDING)?;
    for name in ["ext4", "xfs"] {
        world.end(name, ENDING)?;
    }
    let errors = world.try_run("dmesg | grep -iE 'i/o error|ext4-fs error|xfs.*(corrupt|shutdown)'")?;
    ensure!(errors.status != 0, "the kernel saw errors: {}", errors.text);
    let longest = Duration::from_millis(World::figure(&words, "longest-request-ms")?);
    Ok((longest, World::figure(&words, "requests")?))
}

/// How long `fio` may take for its last round: a round writes and verifies the whole device.
const ROUND: Duration = Duration::from_secs(120);

/// Ends and starts the data client, in good order and hard, under load on all devices: two file systems, stamped blocks, and
/// `fio` with verification on a volume of its own.
pub fn client(world: &mut World<'_>, extent: Extent) -> anyhow::Result<String> {
    world.make_volume("verified", "16MiB")?;
    // The stamps begin with zeros.
    world.run(
        "blkdiscard -z /dev/ashlar/plain 2>/dev/null || dd if=/dev/zero of=/dev/ashlar/plain bs=1M 2>/dev/null; sync",
    )?;
    begin(world)?;
    world.begin("fio", "guest fio /dev/ashlar/verified")?;
    let mut longest_down = Duration::ZERO;
    let kinds = std::iter::repeat_n("TERM", extent.restarts as usize);
    for (round, signal) in kinds.chain(std::iter::repeat_n("KILL", extent.kills as usize)).enumerate() {
        if round > 0 && round % 10 == 0 {
            println!("guest: {round} times so far, down for at most {:.1} s", longest_down.as_secs_f64());
        }
        let down = Instant::now();
        world.end_client(signal)?;
        world.start_client()?;
        longest_down = longest_down.max(down.elapsed());
        // Every device moves again before the next blow.
        for name in ["files", "tables", "plain", "verified"] {
            let read = format!("timeout 30 dd if=/dev/ashlar/{name} of=/dev/null bs=4k count=1 skip=7 iflag=direct");
            world.wait(&format!("{name} can be read"), Duration::from_secs(40), &read)?;
        }
    }
    let verified = world.end("fio", ROUND)?;
    let (longest, requests) = end(world)?;
    let longest = longest.max(Duration::from_millis(World::figure(&verified, "longest-request-ms")?));
    ensure!(
        longest <= longest_down + RESENT_WITHIN,
        "a request took {longest:?}, the data client was away for at most {longest_down:?}"
    );
    files::unmount_and_check(world)?;
    files::mount(world)?;
    world.run("guest check /mnt/files/again && guest check /mnt/tables/again")?;
    world.run("rm -rf /mnt/files/again /mnt/tables/again")?;
    world.remove_volume("verified")?;
    Ok(format!(
        "{} restarts, {} kills, {requests} stamped requests and {} of fio in {} rounds verified, down for at most {:.1} s, \
         longest request {:.1} s",
        extent.restarts,
        extent.kills,
        World::figure(&verified, "requests")?,
        World::figure(&verified, "rounds")?,
        longest_down.as_secs_f64(),
        longest.as_secs_f64()
    ))
}

/// Kills a data server under load and lets it return.
pub fn server(world: &mut World<'_>, _: Extent) -> anyhow::Result<String> {
    world.run("dd if=/dev/zero of=/dev/ashlar/plain bs=1M 2>/dev/null; sync")?;
    begin(world)?;
    world.run("sleep 1")?;
    world.system.kill("sds1")?;
    world.run("sleep 4")?;
    world.system.start("sds1")?;
    let healthy = world.system.wait_healthy(Duration::from_secs(60))?;
    let (longest, requests) = end(world)?;
    // Well below the kernel's time-out: no request had to be sent again.
    ensure!(longest <= Duration::from_secs(9), "a request took {longest:?}");
    files::unmount_and_check(world)?;
    files::mount(world)?;
    world.run("rm -rf /mnt/files/again /mnt/tables/again")?;
    Ok(format!(
        "{requests} requests verified, longest {:.1} s, healthy again {:.1} s after the return",
        longest.as_secs_f64(),
        healthy.as_secs_f64()
    ))
}
