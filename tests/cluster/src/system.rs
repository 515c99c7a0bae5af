//! A system under `dev`: started in a directory of its own, asked, killed, taken down.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::nbd::{Address, Client};
use crate::turn::Turn;
use crate::{programs, shell};

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Metadata managers.
    pub mdm: usize,
    /// Data servers.
    pub sds: usize,
    /// Data clients; the volumes are mapped to the first.
    pub sdc: usize,
    /// Devices of each data server.
    pub devices: usize,
    /// Size of each device, as `dev` reads it.
    pub device_size: &'static str,
    /// Volumes, `name:size`.
    pub volumes: Vec<&'static str>,
    /// Attach and mount the volumes.
    pub attach: bool,
    /// Give each node a network of its own, reachable from this machine's bridge.
    pub isolate: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mdm: 3,
            sds: 3,
            sdc: 1,
            devices: 2,
            device_size: "1GiB",
            volumes: vec!["demo:256MiB"],
            attach: false,
            isolate: false,
        }
    }
}

/// A running system.
pub struct System {
    directory: PathBuf,
    environment: Vec<(String, String)>,
}

/// Starts a system, does something with it, takes it down. What fails shows the last words of every daemon.
pub fn with_system<T>(options: &Options, body: impl FnOnce(&System) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let _turn = Turn::take()?;
    let folder = tempfile::Builder::new().prefix("ashlar-cluster-").tempdir().context("cannot make a directory")?;
    let mut system = System { directory: folder.path().join("system"), environment: Vec::new() };
    let result = system.up(options).and_then(|()| match catch_unwind(AssertUnwindSafe(|| body(&system))) {
        Ok(result) => result,
        Err(panic) => {
            system.complain();
            if let Err(error) = system.down() {
                eprintln!("cluster: {error:#}");
            }
            resume_unwind(panic)
        }
    });
    if result.is_err() {
        system.complain();
    }
    let down = system.down();
    let value = result?;
    down?;
    Ok(value)
}

impl System {
    fn up(&mut self, options: &Options) -> anyhow::Result<()> {
        let mut arguments = vec!["up".to_owned(), "--detach".to_owned()];
        let mut option = |name: &str, value: &str| arguments.extend([format!("--{name}"), value.to_owned()]);
        option("mdm", &options.mdm.to_string());
        option("sds", &options.sds.to_string());
        option("sdc", &options.sdc.to_string());
        option("devices", &options.devices.to_string());
        option("device-size", options.device_size);
        for volume in &options.volumes {
            option("volume", volume);
        }
        if !options.attach {
            arguments.push("--no-attach".to_owned());
        }
        if options.isolate {
            arguments.push("--isolate".to_owned());
        }
        self.dev(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.environment = parse_environment(&self.dev(&["env"])?);
        Ok(())
    }

    fn down(&self) -> anyhow::Result<()> {
        self.dev(&["down", "--wipe"])?;
        if self.directory.exists() {
            bail!("{} is still there after 'down --wipe'", self.directory.display());
        }
        let text = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
        let own = self.directory.display().to_string();
        match text.lines().find(|line| line.contains(&own)) {
            Some(line) => bail!("still mounted after 'down --wipe': {line}"),
            None => Ok(()),
        }
    }

    /// Runs `dev` on this system and gives what it printed.
    pub fn dev(&self, arguments: &[&str]) -> anyhow::Result<String> {
        shell::run(&mut self.dev_command(arguments)?)
    }

    /// A `dev` command on this system.
    pub fn dev_command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(programs::path("dev")?);
        // Under cargo it would build what has been built.
        command.env_remove("CARGO").env_remove("CARGO_MANIFEST_DIR");
        command.args(arguments).arg("--dir").arg(&self.directory);
        Ok(command)
    }

    /// Where it lives.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A variable of `dev env`.
    pub fn variable(&self, name: &str) -> anyhow::Result<&str> {
        let found = self.environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).with_context(|| format!("dev env sets no {name}"))
    }

    /// `scli` with the environment that `dev env` prints.
    pub fn scli_command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(programs::path("scli")?);
        let environment = self.environment.iter().filter(|(key, _)| key.starts_with("ASHLAR_"));
        command.args(arguments).envs(environment.map(|(key, value)| (key, value)));
        Ok(command)
    }

    /// Runs `scli` and demands success.
    pub fn scli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        shell::run(&mut self.scli_command(arguments)?)
    }

    /// Runs `scli`, whatever comes of it.
    pub fn try_scli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        shell::output(&mut self.scli_command(arguments)?)
    }

    /// `dev status --output json`.
    pub fn status(&self) -> anyhow::Result<Value> {
        let text = self.dev(&["status", "--output", "json"])?;
        serde_json::from_str(&text).context("dev status is no JSON")
    }

    /// Waits until every node is healthy and every group has all its copies; says how long it took.
    pub fn wait_healthy(&self, patience: Duration) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let mut last = Value::Null;
        let waited = shell::wait_until("all healthy", patience, || {
            last = self.status()?;
            Ok(last["healthy"] == Value::Bool(true))
        });
        waited.with_context(|| format!("status: {last:#}"))?;
        Ok(started.elapsed())
    }

    /// Names of the nodes of a role.
    pub fn nodes(&self, role: &str) -> anyhow::Result<Vec<String>> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().context("status has no nodes")?;
        let named = nodes.iter().filter(|node| node["role"] == role).filter_map(|node| node["name"].as_str());
        Ok(named.map(str::to_owned).collect())
    }

    /// Process ids of all nodes that run, by name.
    pub fn processes(&self) -> anyhow::Result<Vec<(String, u32)>> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().context("status has no nodes")?;
        let mut found = Vec::new();
        for node in nodes {
            let name = node["name"].as_str().context("a node without a name")?.to_owned();
            if let Some(pid) = node["pid"].as_u64() {
                found.push((name, u32::try_from(pid).context("a process id")?));
            }
        }
        Ok(found)
    }

    /// The metadata manager that leads.
    pub fn leader(&self) -> anyhow::Result<String> {
        let mut leader = String::new();
        shell::wait_until("a metadata manager leads", Duration::from_secs(20), || {
            leader = self.status()?["leader"].as_str().unwrap_or_default().to_owned();
            Ok(!leader.is_empty())
        })?;
        Ok(leader)
    }

    /// SIGKILL to a node, or to `all`.
    pub fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.dev(&["kill", name]).map(drop)
    }

    /// Starts a node that is dead, or `all` of them.
    pub fn start(&self, name: &str) -> anyhow::Result<()> {
        self.dev(&["start", name]).map(drop)
    }

    /// A volume as the data client sees it.
    pub fn volume(&self, name: &str) -> anyhow::Result<Value> {
        let status = self.status()?;
        let volumes = status["volumes"].as_array().context("status has no volumes")?;
        let found = volumes.iter().find(|volume| volume["name"] == name);
        found.cloned().with_context(|| format!("no volume {name}"))
    }

    /// Where a volume is served; waits until it is, for a data client that has just been started opens its volumes first.
    pub fn nbd(&self, volume: &str) -> anyhow::Result<Address> {
        let mut found = None;
        shell::wait_until("the volume is served", Duration::from_secs(30), || {
            let volume = self.volume(volume)?;
            let address = Address::parse(volume["nbd_uri"].as_str().context("it has no address")?)?;
            Client::connect(&address)?.close()?;
            found = Some(address);
            Ok(true)
        })?;
        found.context("served")
    }

    /// Where another data client serves a volume; waits until it does.
    pub fn nbd_at(&self, volume: &str, client: &str) -> anyhow::Result<Address> {
        let control = Path::new(self.variable("ASHLAR_SDC_SOCKET")?);
        let socket = control.with_file_name(format!("{client}-nbd.sock"));
        let uri = format!("nbd+unix:///{volume}?socket={}", socket.display());
        let address = Address { uri, socket, export: volume.to_owned() };
        shell::wait_until("the volume is served", Duration::from_secs(30), || {
            Client::connect(&address)?.close()?;
            Ok(true)
        })?;
        Ok(address)
    }

    /// The block device of a volume.
    pub fn device(&self, volume: &str) -> anyhow::Result<PathBuf> {
        let volume = self.volume(volume)?;
        Ok(PathBuf::from(volume["device"].as_str().context("the volume is not attached")?))
    }

    /// Where `dev up` mounts a volume.
    pub fn mount_point(&self, volume: &str) -> PathBuf {
        self.directory.join("mnt").join(volume)
    }

    /// The last words of every daemon, on the standard error.
    pub fn complain(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        let mut logs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for log in logs {
            let text = std::fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- {} ----", log.display());
            lines[lines.len().saturating_sub(25)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// `export NAME='value'` lines.
fn parse_environment(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    lines.map(|(key, value)| (key.to_owned(), value.trim_matches('\'').to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_from_its_exports() {
        let text = "export ASHLAR_MDM='127.0.0.1:1,127.0.0.1:2'\nexport PATH='/x':\"$PATH\"\n";
        let parsed = parse_environment(text);
        assert_eq!(parsed[0], ("ASHLAR_MDM".to_owned(), "127.0.0.1:1,127.0.0.1:2".to_owned()));
    }
}
