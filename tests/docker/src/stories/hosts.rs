//! Volumes that follow their containers from host to host, and never are on two.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::host::Daemon;
use crate::shell::wait_until;
use crate::site::Site;

/// A living host keeps its volume, whoever else wants it.
pub fn a_volume_is_on_one_host_at_a_time(site: &mut Site) -> anyhow::Result<()> {
    let [one, two, ..] = &site.hosts[..] else { anyhow::bail!("a site has two hosts") };
    let run = ["run", "--detach", "--network", "none", "--name", "c1", "--volume-driver", "ashlar", "-v", "moved:/d"];
    one.docker(&[&run[..], &["bb:1", "sh", "-c", "echo one > /d/f; sync; sleep 1000"]].concat())?;
    // The engine gives a mount 120 s, the plugin less: it says who has it.
    let why = two.docker_refused(&["run", "--rm", "--network", "none", "-v", "moved:/d", "bb:1", "cat", "/d/f"])?;
    ensure!(why.contains("mapped to host host1"), "{why}");
    let refused = two.docker_refused(&["volume", "rm", "moved"])?;
    ensure!(refused.contains("host1"), "{refused}");
    one.docker(&["rm", "--force", "c1"])?;
    ensure!(two.container(&["-v", "moved:/d"], "cat /d/f")? == "one");
    two.docker(&["volume", "rm", "moved"]).map(drop)
}

/// The host of a container is cut off: the volume is taken over elsewhere with all that was synced, nothing that the cut-off
/// container writes afterwards arrives, and the host cleans up when it is back.
pub fn a_host_that_is_cut_off_loses_the_volume_and_cleans_up(site: &mut Site) -> anyhow::Result<()> {
    let [one, two, ..] = &site.hosts[..] else { anyhow::bail!("a site has two hosts") };
    let run = ["run", "--detach", "--network", "none", "--name", "c1", "--volume-driver", "ashlar", "-v", "taken:/d"];
    // Writes a file after the other; says in its own memory what it could and could not.
    let script = "i=0; bad=0; while :; do i=$((i+1)); if echo $i > /d/f$i 2>/dev/null && sync -d /d/f$i 2>/dev/null; then \
                  echo $i > /tmp/good; else bad=$((bad+1)); echo $bad > /tmp/bad; fi; sleep 0.1; done";
    one.docker(&[&run[..], &["bb:1", "sh", "-c", script]].concat())?;
    let inside = |file: &str| -> anyhow::Result<u64> {
        let text = one.docker(&["exec", "c1", "sh", "-c", &format!("cat {file} 2>/dev/null || echo 0")])?;
        text.trim().parse().context("no number")
    };
    wait_until("the container writes", Duration::from_secs(20), || Ok(inside("/tmp/good")? > 5))?;
    one.link(false)?;
    let cut = Instant::now();
    let acknowledged = inside("/tmp/good")?;
    let last = "ls /d | sed -n 's/^f//p' | sort -n | tail -1";
    let seen: u64 = two.container(&["-v", "taken:/d"], last)?.trim().parse().context("no number")?;
    println!("docker:   taken over {:.1} s after the cut", cut.elapsed().as_secs_f64());
    ensure!(seen >= acknowledged, "acknowledged {acknowledged}, and only {seen} are there");
    ensure!(cut.elapsed() < Duration::from_secs(45), "{:?}", cut.elapsed());
    one.link(true)?;
    wait_until("the stale mount is dropped", Duration::from_secs(40), || Ok(one.volume_mounts()?.is_empty()))?;
    wait_until("the old container's writes are refused", Duration::from_secs(40), || Ok(inside("/tmp/bad")? > 0))?;
    let log = std::fs::read_to_string(one.log(Daemon::Plugin))?;
    ensure!(log.contains("was taken away from this host"), "it says so");
    println!("docker:   {} writes of the cut-off container were refused", inside("/tmp/bad")?);
    let after: u64 = two.container(&["-v", "taken:/d"], last)?.trim().parse().context("no number")?;
    ensure!(after == seen, "{after} files where there were {seen}: a write arrived after the fence");
    one.docker(&["rm", "--force", "c1"])?;
    one.demand_clean()?;
    ensure!(one.container(&["-v", "taken:/d"], last)?.trim() == seen.to_string(), "and may use it again");
    two.docker(&["volume", "rm", "taken"]).map(drop)
}
