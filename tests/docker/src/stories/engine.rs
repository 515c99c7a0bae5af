//! Drivers that are down or late, and engines that end with their containers living on.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Signal;

use crate::calls;
use crate::host::{Daemon, Host};
use crate::shell::wait_until;
use crate::site::Site;
use crate::stories::checklist::sleeper;

fn last(site: &mut Site) -> anyhow::Result<&mut Host> {
    site.hosts.last_mut().context("a site has hosts")
}

fn plugins(host: &Host) -> anyhow::Result<std::path::PathBuf> {
    let folder = host.home().join("etc/plugins");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Restarts an engine: what it remembers of drivers is gone.
fn renew(host: &mut Host) -> anyhow::Result<()> {
    host.signal(Daemon::Engine, Signal::TERM)?;
    host.start(Daemon::Engine)
}

/// Another driver that is down holds nobody up; ours, down, fails what needs it and nothing else; one whose address appears
/// late serves who waits for it.
pub fn drivers_that_are_down_or_late_hold_up_only_their_own(site: &mut Site) -> anyhow::Result<()> {
    let host = last(site)?;
    let folder = plugins(host)?;
    std::fs::write(folder.join("down.spec"), "unix:///run/docker/plugins/nobody.sock")?;
    let mut lost = host.docker_command(&["volume", "create", "-d", "down", "lost"]).spawn()?;
    let begun = Instant::now();
    host.docker(&["volume", "create", "-d", "ashlar", "prompt"])?;
    host.container(&["-v", "prompt:/d"], "echo x > /d/f")?;
    let took = begun.elapsed();
    println!("docker:   beside a driver that is down: {:.1} s", took.as_secs_f64());
    ensure!(took < Duration::from_secs(5), "held up by another driver: {took:?}");
    ensure!(!lost.wait()?.success(), "a driver that is not there made a volume");
    std::fs::remove_file(folder.join("down.spec"))?;

    sleeper(host, "c1", &["-v", "prompt:/d"])?;
    host.kill(Daemon::Plugin)?;
    host.docker(&["exec", "c1", "sh", "-c", "echo y > /d/f && sync"])?;
    let begun = Instant::now();
    host.container(&[], "true")?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "a container without volumes is held up");
    let why = host.docker_refused(&["volume", "create", "-d", "ashlar", "later"])?;
    ensure!(begun.elapsed() < Duration::from_secs(40), "{why}");
    host.start(Daemon::Plugin)?;
    ensure!(host.docker(&["exec", "c1", "cat", "/d/f"])? == "y");
    host.docker(&["rm", "--force", "c1"])?;
    host.docker(&["volume", "rm", "prompt"])?;

    let run = ["run", "--rm", "--network", "none", "--volume-driver", "late", "-v", "lately:/d", "bb:1", "true"];
    let begun = Instant::now();
    let mut waiting = host.docker_command(&run).spawn()?;
    // Two seconds are what the story is about, not a wait for something.
    std::thread::sleep(Duration::from_secs(2));
    std::fs::write(folder.join("late.spec"), "unix:///run/docker/plugins/ashlar.sock")?;
    ensure!(waiting.wait()?.success(), "who waited for the driver was not served");
    let took = begun.elapsed();
    println!("docker:   a driver that appeared after 2 s served after {:.1} s", took.as_secs_f64());
    ensure!(took < Duration::from_secs(8), "{took:?}");
    host.docker(&["volume", "rm", "lately"])?;
    std::fs::remove_file(folder.join("late.spec"))?;
    renew(host)
}

/// An engine that starts again asks once who the driver is, and makes nothing anew.
pub fn an_engine_that_starts_again_makes_nothing_anew(site: &mut Site) -> anyhow::Result<()> {
    let host = last(site)?;
    host.docker(&["volume", "create", "-d", "ashlar", "--label", "a=b", "kept"])?;
    host.container(&["-v", "kept:/d"], "echo x > /d/f && sync")?;
    let mark = calls::mark(host)?;
    renew(host)?;
    ensure!(host.container(&["-v", "kept:/d"], "cat /d/f")? == "x");
    ensure!(host.inspect("kept")?["Labels"]["a"] == "b");
    let calls = calls::since(host, mark)?;
    calls.demand("a restart", &[("Activate", 1), ("Mount", 1), ("Unmount", 1)])?;
    ensure!(calls.count("Capabilities") <= 1, "{calls:?}");
    host.docker(&["volume", "rm", "kept"]).map(drop)
}

/// With `live-restore` containers outlive their engine, killed or ended; the end of the container is told with its own id.
pub fn containers_live_through_their_engine(site: &mut Site) -> anyhow::Result<()> {
    let host = last(site)?;
    let settings = host.home().join("etc/daemon.json");
    std::fs::write(&settings, "{\"live-restore\": true}")?;
    renew(host)?;
    let told = live(host);
    std::fs::remove_file(&settings)?;
    renew(host)?;
    told
}

fn live(host: &mut Host) -> anyhow::Result<()> {
    let run = ["run", "--detach", "--network", "none", "--name", "c1", "--volume-driver", "ashlar", "-v", "live:/d"];
    let script = "i=0; while :; do i=$((i+1)); echo $i > /d/n.new && sync && mv /d/n.new /d/n && sync; done";
    let id = host.docker(&[&run[..], &["bb:1", "sh", "-c", script]].concat())?;
    let file = host.home().join("volumes/live/data/n").display().to_string();
    let seen =
        |host: &Host| -> anyhow::Result<u64> { host.bash(&format!("cat {file}"))?.trim().parse().context("no number") };
    wait_until("the container writes", Duration::from_secs(20), || Ok(seen(host)? > 0))?;
    let mark = calls::mark(host)?;
    for signal in [Signal::KILL, Signal::TERM] {
        host.signal(Daemon::Engine, signal)?;
        let before = seen(host)?;
        wait_until("the container writes without an engine", Duration::from_secs(20), || Ok(seen(host)? > before))?;
        // Longer than unused mounts are kept: this one is used, whatever the engine says.
        let since = Instant::now();
        wait_until("the mount outlives the time of unused ones", Duration::from_secs(20), || {
            ensure!(host.volume_mounts()?.len() == 1, "the mount is gone");
            Ok(since.elapsed() > Duration::from_secs(9))
        })?;
        host.start(Daemon::Engine)?;
        ensure!(host.docker(&["exec", "c1", "cat", "/d/n"])?.trim().parse::<u64>()? > before);
    }
    host.docker(&["rm", "--force", "c1"])?;
    let calls = calls::since(host, mark)?;
    ensure!(calls.count("Unmount") == 1 && calls.count("Mount") == 0, "{calls:?}");
    // Docker tells the mount's id, which is the container's or one of its own.
    ensure!(calls.of("Unmount").all(|call| call.id.len() == 64), "{id}: {calls:?}");
    host.demand_clean()?;
    host.docker(&["volume", "rm", "live"]).map(drop)
}
