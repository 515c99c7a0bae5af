//! Three engines as a Swarm: a service whose node is cut off runs elsewhere with its data, and the node cleans up.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::host::Host;
use crate::shell::wait_until;
use crate::site::Site;
use crate::stories::checklist::sleeper;
use crate::stories::managed;

/// Writes its node's name and a count for ever.
const WRITE: &str = "i=0; while :; do i=$((i+1)); echo $i > /d/$(hostname).$i && sync; sleep 0.2; done";

fn three(site: &Site) -> anyhow::Result<(&Host, &Host, &Host)> {
    match &site.hosts[..] {
        [one, two, three, ..] => Ok((one, two, three)),
        _ => anyhow::bail!("a site has three hosts"),
    }
}

/// The node on which the service's task runs, as the manager sees it.
fn node(manager: &Host) -> anyhow::Result<String> {
    let arguments =
        ["service", "ps", "s", "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}"];
    let lines = manager.docker(&arguments)?;
    let running = lines.lines().find(|line| line.contains(" Running"));
    Ok(running.and_then(|line| line.split(' ').next()).unwrap_or_default().to_owned())
}

fn others(site: &Site, node: &str) -> anyhow::Result<(usize, usize)> {
    let own = site.hosts.iter().position(|host| host.name == node).context("no such node")?;
    let other = (1..3).find(|index| *index != own).context("a site has three hosts")?;
    Ok((own, other))
}

/// D4: the node of a service is cut off from everything.
pub fn a_service_whose_node_is_cut_off_runs_elsewhere(site: &mut Site) -> anyhow::Result<()> {
    let told = service(site);
    for host in &site.hosts {
        // What is not a Swarm any more is fine.
        let _left = crate::shell::output(&mut host.docker_command(&["service", "rm", "s"]))?;
    }
    for host in site.hosts.iter().rev() {
        let _left = crate::shell::output(&mut host.docker_command(&["swarm", "leave", "--force"]))?;
    }
    let cleaned = site.demand_clean();
    told?;
    cleaned?;
    let host = three(site)?.0;
    sleeper(host, "fs", &["-v", "swarmed:/d"])?;
    let state = superblock(host);
    host.docker(&["rm", "--force", "fs"])?;
    let state = state?;
    ensure!(state.contains("state: clean") && !state.contains("FS Error count"), "not clean: {state}");
    host.docker(&["volume", "rm", "swarmed"]).map(drop)
}

/// What the file system that is mounted on a host says of itself, without blanks in a row.
fn superblock(host: &Host) -> anyhow::Result<String> {
    let mounts = host.volume_mounts()?;
    let mount = mounts.first().and_then(|line| line.split_once(" - ")).context("nothing is mounted")?.1;
    let device = mount.split(' ').nth(1).context("a mount has a source")?;
    let shown = host.bash(&format!("dumpe2fs -h {device} 2>/dev/null"))?;
    Ok(shown.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn service(site: &Site) -> anyhow::Result<()> {
    let (manager, two, three) = three(site)?;
    manager.docker(&["swarm", "init", "--advertise-addr", &manager.address])?;
    let token = manager.docker(&["swarm", "join-token", "--quiet", "worker"])?;
    for worker in [two, three] {
        let address = format!("{}:2377", manager.address);
        worker.docker(&["swarm", "join", "--token", &token, "--advertise-addr", &worker.address, &address])?;
        // A legacy plugin is known to a node once its engine has used it.
        worker.docker(&["volume", "ls"])?;
    }
    let mount = "type=volume,src=swarmed,dst=/d,volume-driver=ashlar,volume-opt=size=64MiB";
    let create = ["service", "create", "--detach", "--name", "s", "--no-resolve-image", "--network", "host"];
    let place = ["--constraint", "node.role==worker", "--restart-delay", "1s", "--mount", mount];
    manager.docker(&[&create[..], &place, &["bb:1", "sh", "-c", WRITE]].concat())?;
    wait_until("the service runs", Duration::from_secs(60), || Ok(!node(manager)?.is_empty()))?;
    let (own, other) = others(site, &node(manager)?)?;
    let (old, new) = (&site.hosts[own], &site.hosts[other]);
    let files = |host: &Host, of: &str| -> anyhow::Result<u64> {
        let id = host.docker(&["ps", "--quiet", "--filter", "name=s."])?;
        let count = format!("ls /d | grep -c '^{of}[.]' || :");
        host.docker(&["exec", id.lines().next().context("no container")?, "sh", "-c", &count])?
            .parse()
            .context("no number")
    };
    wait_until("the service writes", Duration::from_secs(20), || Ok(files(old, &old.name)? > 5))?;
    let written = files(old, &old.name)?;
    old.link(false)?;
    let cut = Instant::now();
    let moved = wait_until("the service runs elsewhere", Duration::from_secs(60), || {
        Ok(node(manager)? == new.name && files(new, &new.name).is_ok_and(|count| count > 0))
    });
    let moved = moved.map(|_| cut.elapsed());
    let kept = moved.as_ref().ok().map(|_| files(new, &old.name)).transpose();
    old.link(true)?;
    let (moved, kept) = (moved?, kept?.unwrap_or_default());
    println!("docker:   the service runs elsewhere {:.1} s after the cut", moved.as_secs_f64());
    ensure!(moved < Duration::from_secs(45), "{moved:?}");
    ensure!(kept >= written, "{written} files were written and synced, {kept} are there");
    wait_until("the old node has cleaned up", Duration::from_secs(60), || {
        Ok(old.volume_mounts()?.is_empty() && old.docker(&["ps", "--quiet"])?.is_empty())
    })?;
    let after = files(new, &old.name)?;
    ensure!(after == kept, "the cut-off container wrote {} files after it was fenced", after - kept);
    ensure!(files(new, &new.name)? > 0);
    Ok(())
}

/// D1: a task whose driver is nowhere is pending, and runs with its volume as soon as a node has the plugin.
pub fn a_service_waits_for_its_plugin(site: &mut Site) -> anyhow::Result<()> {
    let host = three(site)?.0;
    host.docker(&["swarm", "init", "--advertise-addr", &host.address])?;
    let told = waiting(site, host);
    let _left = crate::shell::output(&mut host.docker_command(&["service", "rm", "s"]))?;
    let ended = wait_until("the service's container is gone", Duration::from_secs(30), || {
        Ok(host.docker(&["ps", "--all", "--quiet", "--filter", "name=s."])?.is_empty())
    });
    let _left = crate::shell::output(&mut host.docker_command(&["volume", "rm", "awaited"]))?;
    let _left = crate::shell::output(&mut host.docker_command(&["plugin", "rm", "--force", "late"]))?;
    host.docker(&["swarm", "leave", "--force"])?;
    told?;
    ended?;
    site.demand_clean()
}

fn waiting(site: &Site, host: &Host) -> anyhow::Result<()> {
    let mount = "type=volume,src=awaited,dst=/d,volume-driver=late:latest,volume-opt=size=64MiB";
    let create = ["service", "create", "--detach", "--name", "s", "--no-resolve-image", "--network", "host"];
    let task = ["--restart-delay", "1s", "--mount", mount, "bb:1", "sh", "-c", WRITE];
    host.docker(&[&create[..], &task].concat())?;
    let shown = ["service", "ps", "s", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}"];
    wait_until("the service waits for its plugin", Duration::from_secs(60), || {
        let state = host.docker(&shown)?;
        Ok(state.contains("Pending") && state.contains("missing plugin"))
    })?;
    managed::install(site, host, "late")?;
    let enabled = Instant::now();
    wait_until("the service runs", Duration::from_secs(60), || Ok(!node(host)?.is_empty()))?;
    println!("docker:   the service runs {:.1} s after its plugin was enabled", enabled.elapsed().as_secs_f64());
    let id = host.docker(&["ps", "--quiet", "--filter", "name=s."])?;
    wait_until("the service writes", Duration::from_secs(20), || {
        let list = host.docker(&["exec", &id, "sh", "-c", "ls /d | grep -c '[.]' || :"])?;
        Ok(list.parse::<u64>().is_ok_and(|count| count > 5))
    })?;
    let volume = host.docker(&["volume", "inspect", "awaited", "--format", "{{.Driver}}"])?;
    ensure!(volume == "late:latest", "{volume}");
    Ok(())
}
