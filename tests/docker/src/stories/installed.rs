//! The managed plugin as its users handle it: pushed to a registry, installed under two names, set, disabled, upgraded, and
//! found again by engines that start anew.
//!
//! Long, and only where Debian's `docker-registry` is installed.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use crate::host::{Daemon, Host};
use crate::shell::{self, wait_until};
use crate::site::Site;
use crate::stories::checklist::sleeper;
use crate::stories::managed;

/// A registry of this host alone; engines take 127.0.0.0/8 without TLS.
const REGISTRY: &str = "127.0.0.1:5077";

fn registry(host: &Host) -> anyhow::Result<Child> {
    let folder = host.home().join("registry");
    std::fs::create_dir_all(&folder)?;
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {REGISTRY}\n",
        folder.display()
    );
    let file = host.home().join("registry.yml");
    std::fs::write(&file, config)?;
    let mut command = host.inside("docker-registry");
    command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().context("cannot run docker-registry")?;
    wait_until("the registry listens", Duration::from_secs(20), || {
        host.bash("exec 3<>/dev/tcp/127.0.0.1/5077").map(|_| true)
    })?;
    Ok(child)
}

/// Builds a version and pushes it.
fn push(site: &Site, host: &Host, version: u32) -> anyhow::Result<String> {
    let name = format!("{REGISTRY}/ashlar/volumes:{version}");
    let folder = managed::build(site, host, &format!("version{version}"))?;
    let config = folder.join("config.json");
    let text = std::fs::read_to_string(&config)?
        .replace("\"description\": \"Ashlar", &format!("\"description\": \"v{version}: Ashlar"));
    std::fs::write(&config, text)?;
    host.docker(&["plugin", "create", &name, &folder.display().to_string()])?;
    let why = host.docker_refused(&["plugin", "create", &name, &folder.display().to_string()])?;
    ensure!(why.contains("exists"), "{why}");
    host.docker(&["plugin", "push", &name])?;
    host.docker(&["plugin", "rm", &name])?;
    Ok(name)
}

/// Told with a registry; both are gone in the end.
pub fn the_managed_plugin_is_installed_set_and_upgraded(site: &mut Site) -> anyhow::Result<()> {
    if !Path::new("/usr/bin/docker-registry").exists() {
        println!("docker:   docker-registry is not installed here: not told");
        return Ok(());
    }
    let host = site.hosts.first().context("a site has hosts")?;
    let mut registry = registry(host)?;
    let told = prepared(site);
    if told.is_err() {
        let host = site.hosts.first().context("a site has hosts")?;
        let log = std::fs::read_to_string(host.log(Daemon::Engine)).unwrap_or_default();
        log.lines().rev().take(30).for_each(|line| eprintln!("{line}"));
    }
    let host = site.hosts.first().context("a site has hosts")?;
    for name in ["one", "two"] {
        // Removed already, where all went well.
        let _gone = shell::output(&mut host.docker_command(&["plugin", "rm", "--force", name]))?;
    }
    registry.kill().and_then(|()| registry.wait()).context("cannot end the registry")?;
    told
}

fn prepared(site: &mut Site) -> anyhow::Result<()> {
    let host = site.hosts.first().context("a site has hosts")?;
    let (old, new) = (push(site, host, 1)?, push(site, host, 2)?);
    install(site, host, &old)?;
    instances(host)?;
    engines(site.hosts.first_mut().context("a site has hosts")?)?;
    upgrade(site, site.hosts.first().context("a site has hosts")?, &new)
}

/// Two names of one plugin, each with records of its own.
fn install(site: &Site, host: &Host, from: &str) -> anyhow::Result<()> {
    for name in ["one", "two"] {
        let settings = managed::settings(site, host, name)?;
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let install = ["plugin", "install", "--grant-all-permissions", "--alias", name, from];
        host.docker(&[&install[..], &settings].concat())?;
    }
    let listed =
        ["plugin", "ls", "--filter", "enabled=true", "--filter", "capability=volumedriver", "--format", "{{.Name}}"];
    let listed = host.docker(&listed)?;
    ensure!(listed.contains("one:latest") && listed.contains("two:latest"), "{listed}");
    let id = host.docker(&["plugin", "inspect", "--format", "{{.Id}}", "one"])?;
    let by_prefix = host.docker(&["plugin", "inspect", "--format", "{{.Name}}", &id[..10]])?;
    ensure!(by_prefix == "one:latest", "{by_prefix}");
    let why = host.docker_refused(&["plugin", "set", "one", "ASHLAR_DOCKER_PREEMPT=never"])?;
    ensure!(why.contains("active") || why.contains("enabled"), "{why}");
    let why = host.docker_refused(&["plugin", "set", "one", "NO_SUCH=1"])?;
    ensure!(!why.is_empty());
    host.docker(&["plugin", "disable", "one"])?;
    host.docker(&["plugin", "set", "one", "ASHLAR_DOCKER_DEFAULT_SIZE=96MiB", "ASHLAR_DOCKER_PREEMPT=never"])?;
    host.docker(&["plugin", "enable", "--timeout", "60", "one"]).map(drop)
}

/// What is set for one does not hold for the other; both see the same volumes.
fn instances(host: &Host) -> anyhow::Result<()> {
    for (name, mib) in [("one", 96_u64), ("two", 64)] {
        let volume = format!("of-{name}");
        host.docker(&["volume", "create", "-d", name, &volume])?;
        ensure!(host.inspect(&volume)?["Status"]["size-bytes"] == mib << 20, "{}", host.inspect(&volume)?);
        host.container(&["-v", &format!("{volume}:/d")], "echo x > /d/f")?;
        ensure!(host.container(&["-v", &format!("{volume}:/d")], "cat /d/f")? == "x");
    }
    let why = host.docker_refused(&["plugin", "disable", "two"])?;
    ensure!(why.contains("in use"), "{why}");
    host.docker(&["volume", "rm", "of-two"])?;
    Ok(())
}

/// Engines that are ended or killed start again with the plugins as they were: enabled or disabled.
fn engines(host: &mut Host) -> anyhow::Result<()> {
    host.docker(&["plugin", "disable", "--force", "two"])?;
    for signal in [Signal::TERM, Signal::KILL] {
        host.signal(Daemon::Engine, signal)?;
        host.start(Daemon::Engine)?;
        let listed = host.docker(&["plugin", "ls", "--format", "{{.Name}} {{.Enabled}}"])?;
        ensure!(listed.contains("one:latest true") && listed.contains("two:latest false"), "{listed}");
        ensure!(host.container(&["-v", "of-one:/d"], "cat /d/f")? == "x");
    }
    Ok(())
}

/// A new version under a running container: it goes on, and its volume, its end and the settings are known to the new one.
fn upgrade(site: &Site, host: &Host, new: &str) -> anyhow::Result<()> {
    sleeper(host, "u1", &["-v", "of-one:/d"])?;
    host.docker(&["plugin", "disable", "--force", "one"])?;
    host.docker(&["exec", "u1", "sh", "-c", "echo during > /d/g && sync"])?;
    let upgrade = ["plugin", "upgrade", "--skip-remote-check", "--grant-all-permissions", "one", new];
    host.docker(&upgrade)?;
    // Variables are kept, sources of mounts are what the new version says.
    let mut settings = managed::settings(site, host, "one")?;
    settings.retain(|setting| setting.contains(".source="));
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    host.docker(&[&["plugin", "set", "one"], &settings[..]].concat())?;
    host.docker(&["plugin", "enable", "one"])?;
    let shown = host.docker(&["plugin", "inspect", "--format", "{{.Config.Description}} {{.Settings.Env}}", "one"])?;
    if !shown.starts_with("v2:") || !shown.contains("ASHLAR_DOCKER_DEFAULT_SIZE=96MiB") {
        bail!("not the new one, or not as it was set: {shown}");
    }
    ensure!(host.inspect("of-one")?["Status"]["mounts-here"] == 1, "{}", host.inspect("of-one")?);
    host.docker(&["exec", "u1", "sh", "-c", "echo after > /d/h && sync"])?;
    host.docker(&["rm", "--force", "u1"])?;
    ensure!(host.container(&["-v", "of-one:/d"], "cat /d/g /d/h")? == "during\nafter");
    host.docker(&["volume", "rm", "of-one"])?;
    host.docker(&["plugin", "disable", "one"])?;
    host.docker(&["plugin", "rm", "one"])?;
    host.docker(&["plugin", "rm", "two"]).map(drop)
}
