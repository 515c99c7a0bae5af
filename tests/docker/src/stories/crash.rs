//! Daemons are killed, one after the other and under load: nothing is lost, and nothing is left.

use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;

use crate::host::{Daemon, Host};
use crate::shell::wait_until;
use crate::site::Site;
use crate::stories::walk::first;

fn first_mut(site: &mut Site) -> anyhow::Result<&mut Host> {
    site.hosts.first_mut().context("a site has hosts")
}

/// A container that writes a growing, synced count.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /d/n.new && sync && mv /d/n.new /d/n && sync; done";

fn counting(host: &Host, name: &str, volume: &str) -> anyhow::Result<()> {
    let arguments = ["run", "--detach", "--network", "none", "--name", name, "--volume-driver", "ashlar", "-v"];
    let mount = format!("{volume}:/d");
    host.docker(&[&arguments[..], &[&mount, "bb:1", "sh", "-c", COUNT]].concat())?;
    wait_until("the container writes", Duration::from_secs(20), || count(host, name).map(|count| count > 0)).map(drop)
}

fn count(host: &Host, name: &str) -> anyhow::Result<u64> {
    host.docker(&["exec", name, "cat", "/d/n"])?.trim().parse().context("no number")
}

fn goes_on(host: &Host, name: &str) -> anyhow::Result<()> {
    let before = count(host, name)?;
    wait_until("the container goes on writing", Duration::from_secs(30), || Ok(count(host, name)? > before)).map(drop)
}

/// The plugin is killed under a running container, and while it is gone the container stops.
pub fn a_killed_plugin_loses_no_count(site: &mut Site) -> anyhow::Result<()> {
    let host = first_mut(site)?;
    counting(host, "c1", "kept1")?;
    host.kill(Daemon::Plugin)?;
    goes_on(host, "c1")?;
    host.start(Daemon::Plugin)?;
    ensure!(host.inspect("kept1")?["Status"]["mounts-here"] == 1);
    host.docker(&["restart", "--time", "0", "c1"])?;
    goes_on(host, "c1")?;
    host.kill(Daemon::Plugin)?;
    // Docker waits for the plugin and tells it when it is back.
    let mut remove = host.docker_command(&["rm", "--force", "c1"]).spawn().context("cannot run docker")?;
    host.start(Daemon::Plugin)?;
    ensure!(remove.wait()?.success());
    host.demand_clean()?;
    host.docker(&["volume", "rm", "kept1"]).map(drop)
}

/// The engine is killed: its container dies without an unmount; the next start of the container has the same volume, and the
/// end of it leaves nothing. A container that is removed instead leaves a mount that is noticed.
pub fn a_killed_engine_leaves_no_mount_for_ever(site: &mut Site) -> anyhow::Result<()> {
    let host = first_mut(site)?;
    counting(host, "c1", "kept2")?;
    counting(host, "c2", "kept3")?;
    host.kill(Daemon::Engine)?;
    host.start(Daemon::Engine)?;
    let shown = host.inspect("kept2")?;
    ensure!(shown["Driver"] == "ashlar", "{shown}");
    host.docker(&["start", "c1"])?;
    goes_on(host, "c1")?;
    host.docker(&["rm", "--force", "c1", "c2"])?;
    host.demand_clean()?;
    host.docker(&["volume", "rm", "kept2", "kept3"]).map(drop)
}

/// The data client is killed under a mounted file system and returns.
pub fn a_killed_data_client_is_a_pause(site: &mut Site) -> anyhow::Result<()> {
    let host = first_mut(site)?;
    counting(host, "c1", "kept4")?;
    host.kill(Daemon::Sdc)?;
    host.start(Daemon::Sdc)?;
    goes_on(host, "c1")?;
    host.docker(&["rm", "--force", "c1"])?;
    host.demand_clean()?;
    host.docker(&["volume", "rm", "kept4"]).map(drop)
}

/// The metadata managers are gone: what is known is shown, what runs goes on, and Docker forgets nothing.
pub fn what_cannot_be_asked_is_not_forgotten(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    host.docker(&["volume", "create", "-d", "ashlar", "--label", "keep=me", "known"])?;
    counting(host, "c1", "kept5")?;
    for mdm in ["mdm1", "mdm2", "mdm3"] {
        site.dev(&["pause", mdm])?;
    }
    let told = (|| {
        let shown = host.inspect("known")?;
        ensure!(shown["Labels"]["keep"] == "me" && shown["Status"]["pool"] == "pool1", "{shown}");
        // Never seen, so it cannot be told: no answer rather than a wrong one.
        ensure!(host.request("/VolumeDriver.Get", r#"{"Name":"unheard"}"#).is_err());
        ensure!(host.request("/VolumeDriver.Get", "").is_err(), "a repeated request has no body");
        goes_on(host, "c1")
    })();
    for mdm in ["mdm1", "mdm2", "mdm3"] {
        site.dev(&["resume", mdm])?;
    }
    told?;
    ensure!(host.inspect("known")?["Labels"]["keep"] == "me");
    host.docker(&["rm", "--force", "c1"])?;
    host.docker(&["volume", "rm", "known", "kept5"]).map(drop)
}

/// An engine that starts before the plugin finds its volumes all the same.
pub fn an_engine_is_ended_in_good_order(site: &mut Site) -> anyhow::Result<()> {
    let host = first_mut(site)?;
    counting(host, "c1", "kept6")?;
    host.signal(Daemon::Engine, Signal::TERM)?;
    host.demand_clean()?;
    host.start(Daemon::Engine)?;
    host.docker(&["start", "c1"])?;
    goes_on(host, "c1")?;
    host.docker(&["rm", "--force", "c1"])?;
    host.docker(&["volume", "rm", "kept6"]).map(drop)
}
