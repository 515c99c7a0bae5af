//! What Docker's own tests of volume drivers ask, with their counts of calls.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::calls::{self, during};
use crate::host::Host;
use crate::shell::wait_until;
use crate::site::Site;
use crate::stories::walk::first;

/// One of each: what a volume costs that one container uses.
const ONCE: [(&str, usize); 4] = [("Create", 1), ("Mount", 1), ("Unmount", 1), ("Remove", 1)];

/// Starts a container that sleeps.
pub fn sleeper(host: &Host, name: &str, options: &[&str]) -> anyhow::Result<()> {
    let run = ["run", "--detach", "--network", "none", "--name", name];
    host.docker(&[&run[..], options, &["bb:1", "sleep", "1000"]].concat()).map(drop)
}

/// Named, unnamed, shared by `--volumes-from`, removed with its container: each use makes the calls that it must.
pub fn every_use_makes_the_calls_that_it_must(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    let driver = ["--volume-driver", "ashlar"];
    // The engine has heard of the driver: it asks only once what the driver is.
    host.docker(&["volume", "ls"])?;
    let calls = during(host, || {
        host.container(&[&driver[..], &["-v", "named:/d"]].concat(), "echo x > /d/f")?;
        host.docker(&["volume", "rm", "named"]).map(drop)
    })?;
    calls.demand("a named volume", &ONCE)?;
    ensure!(calls.of("Mount").all(|call| call.name == "named" && call.id.len() == 64), "{calls:?}");
    ensure!(!host.home().join("volumes/named").exists(), "its folder on the host stays");
    let calls = during(host, || host.container(&[&driver[..], &["-v", "/d"]].concat(), "echo x > /d/f").map(drop))?;
    calls.demand("an unnamed volume with --rm", &ONCE)?;
    let calls = during(host, || {
        sleeper(host, "from", &[&driver[..], &["-v", "/d"]].concat())?;
        host.container(&["--volumes-from", "from"], "echo x > /d/f")?;
        host.docker(&["rm", "--force", "--volumes", "from"]).map(drop)
    })?;
    calls.demand("--volumes-from", &[("Create", 1), ("Mount", 2), ("Unmount", 2), ("Remove", 1)])?;
    let calls = during(host, || {
        sleeper(host, "with", &[&driver[..], &["-v", "/d"]].concat())?;
        host.docker(&["rm", "--force", "--volumes", "with"]).map(drop)
    })?;
    calls.demand("a container that is removed with its volume", &ONCE)?;
    copies_and_kills(host)?;
    failed_mounts(host)
}

/// `docker cp` mounts once more, a kill unmounts.
fn copies_and_kills(host: &Host) -> anyhow::Result<()> {
    sleeper(host, "c1", &["--volume-driver", "ashlar", "-v", "copied:/d"])?;
    let copy = host.home().join("copy").display().to_string();
    host.docker(&["exec", "c1", "sh", "-c", "echo x > /d/f"])?;
    let calls = during(host, || host.docker(&["cp", "c1:/d/f", &copy]).map(drop))?;
    calls.demand("docker cp", &[("Mount", 1), ("Unmount", 1)])?;
    let mark = calls::mark(host)?;
    host.docker(&["kill", "c1"])?;
    wait_until("the kill unmounts", Duration::from_secs(10), || Ok(calls::since(host, mark)?.count("Unmount") > 0))?;
    calls::since(host, mark)?.demand("docker kill", &[("Unmount", 1)])?;
    host.docker(&["rm", "c1"])?;
    host.docker(&["volume", "rm", "copied"]).map(drop)
}

/// What was not mounted is not unmounted.
fn failed_mounts(host: &Host) -> anyhow::Result<()> {
    host.docker(&["volume", "create", "-d", "ashlar", "-o", "read-only=true", "blank"])?;
    for options in [&["-v", "blank:/d"][..], &["-w", "/d", "-v", "blank:/d"]] {
        let calls = during(host, || {
            let run = ["run", "--rm", "--network", "none"];
            let why = host.docker_refused(&[&run[..], options, &["bb:1", "true"]].concat())?;
            ensure!(why.contains("read-only and blank"), "{why}");
            Ok(())
        })?;
        ensure!(calls.count("Mount") > 0, "{calls:?}");
        calls.demand("a failed mount", &[("Mount", calls.count("Mount"))])?;
    }
    host.docker(&["volume", "rm", "blank"]).map(drop)
}

/// Questions: as many as needed, and what the driver says is passed through.
pub fn questions_are_asked_once(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    let calls = during(host, || {
        let why = host.docker_refused(&["volume", "inspect", "nowhere-at-all"])?;
        ensure!(why.to_lowercase().contains("no such volume"), "{why}");
        Ok(())
    })?;
    ensure!(calls.count("Get") == 1, "{calls:?}");
    let calls = during(host, || {
        host.docker(&["volume", "create", "-d", "ashlar", "-o", "size=32MiB", "asked"])?;
        let listed = host.docker(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"])?;
        ensure!(listed.lines().any(|line| line == "ashlar asked"), "{listed}");
        Ok(())
    })?;
    calls.demand("create and ls", &[("Create", 1)])?;
    ensure!(calls.count("List") == 1, "{calls:?}");
    let shown = host.inspect("asked")?;
    ensure!(shown["Scope"] == "global" && shown["Options"]["size"] == "32MiB", "{shown}");
    ensure!(shown["Status"]["fstype"] == "ext4" && shown["Status"]["state"] == "new", "{shown}");
    // Without the driver's name it is found all the same.
    sleeper(host, "c1", &["-v", "asked:/d"])?;
    let mounts = "{{range .Mounts}}{{.Driver}} {{.Name}} {{.Type}}{{end}}";
    ensure!(host.docker(&["inspect", "--format", mounts, "c1"])? == "ashlar asked volume");
    host.docker(&["rm", "--force", "c1"])?;
    host.docker(&["volume", "rm", "asked"]).map(drop)
}

/// A name belongs to one driver, until its volume is gone, by whichever way.
pub fn a_name_belongs_to_one_driver(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    let create = |driver: &str, name: &str| ["volume", "create", "-d", driver, name].map(str::to_owned);
    let words = |words: &[String]| -> anyhow::Result<String> {
        host.docker(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = |words: &[String]| -> anyhow::Result<String> {
        host.docker_refused(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for (own, other) in [("ashlar", "local"), ("local", "ashlar")] {
        words(&create(own, "same"))?;
        words(&create(own, "same"))?;
        let why = refused(&create(other, "same"))?;
        ensure!(why.contains("unique") || why.contains("conflict"), "{why}");
        host.docker(&["volume", "rm", "same"])?;
    }
    // Removed behind Docker's back, the name is free for another driver, and for new options.
    words(&create("ashlar", "same"))?;
    site.scli(&["volume", "remove", "same"])?;
    words(&create("local", "same"))?;
    host.docker(&["volume", "rm", "same"])?;
    host.docker(&["volume", "create", "-d", "ashlar", "-o", "size=32MiB", "same"])?;
    site.scli(&["volume", "remove", "same"])?;
    host.docker(&["volume", "create", "-d", "ashlar", "-o", "size=48MiB", "same"])?;
    let shown = host.inspect("same")?;
    ensure!(shown["Options"]["size"] == "48MiB" && shown["Status"]["size-bytes"] == 48_u64 << 20, "{shown}");
    host.docker(&["volume", "rm", "same"]).map(drop)
}

/// Five containers on one volume, the engine killed, all removed: no mount is left, and the volume can be removed.
pub fn counts_are_recovered(site: &mut Site) -> anyhow::Result<()> {
    let host = site.hosts.first_mut().context("a site has hosts")?;
    let names = ["five1", "five2", "five3", "five4", "five5"];
    for name in names {
        sleeper(host, name, &["--volume-driver", "ashlar", "-v", "five:/d"])?;
    }
    ensure!(host.inspect("five")?["Status"]["mounts-here"] == 5);
    host.kill(crate::host::Daemon::Engine)?;
    host.start(crate::host::Daemon::Engine)?;
    host.docker(&[&["rm", "--force"], &names[..]].concat())?;
    host.demand_clean()?;
    host.docker(&["volume", "rm", "five"]).map(drop)
}
