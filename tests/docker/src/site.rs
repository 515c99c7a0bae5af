//! A whole site: a system of real processes and hosts with a real engine each, brought up once, taken down whatever happens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::host::{Daemon, Host, Surroundings};
use crate::shell::{self, wait_until};

/// What to bring up.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Metadata managers.
    pub mdm: usize,
    /// Data servers.
    pub sds: usize,
    /// Hosts with an engine.
    pub hosts: usize,
    /// More lines of every plugin's configuration.
    pub plugin_config: String,
}

/// A site.
pub struct Site {
    folder: tempfile::TempDir,
    programs: PathBuf,
    environment: Vec<(String, String)>,
    around: Option<Surroundings>,
    /// The hosts.
    pub hosts: Vec<Host>,
}

/// Brings a site up, does something with it, takes it down.
pub fn with_site<T>(plan: &Plan, body: impl FnOnce(&mut Site) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let folder = tempfile::Builder::new().prefix("ashd-").tempdir().context("cannot make a directory")?;
    let mut site =
        Site { folder, programs: cluster::programs::folder()?, environment: vec![], around: None, hosts: vec![] };
    let result = site.up(plan).and_then(|()| body(&mut site));
    if result.is_err() {
        site.hosts.iter().for_each(Host::complain);
    }
    let down = site.down();
    let value = result?;
    down?;
    Ok(value)
}

impl Site {
    fn up(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let (mdm, sds) = (plan.mdm.to_string(), plan.sds.to_string());
        let options = ["--mdm", &mdm, "--sds", &sds, "--devices", "1", "--device-size", "4GiB"];
        let more = ["--volume", "demo:64MiB", "--no-attach", "--isolate", "--detach"];
        self.dev(&[&["up"], &options[..], &more[..]].concat())?;
        for line in self.dev(&["env"])?.lines() {
            if let Some((name, value)) = line.strip_prefix("export ").and_then(|line| line.split_once('=')) {
                self.environment.push((name.to_owned(), value.trim_matches('\'').to_owned()));
            }
        }
        // What the system holds of volumes is one of the tests' own.
        self.scli(&["volume", "unmap", "demo"])?;
        let around = self.surroundings(plan)?;
        for index in 1..=plan.hosts {
            self.hosts.push(Host::create(index, self.folder.path(), &around)?);
        }
        self.around = Some(around);
        for daemon in [Daemon::Sdc, Daemon::Plugin, Daemon::Engine] {
            self.hosts.iter_mut().try_for_each(|host| host.spawn(daemon))?;
            self.hosts.iter_mut().try_for_each(|host| host.wait_ready(daemon))?;
        }
        let image = self.image()?;
        for host in &self.hosts {
            host.docker(&["import", &image.display().to_string(), "bb:1"])?;
        }
        Ok(())
    }

    fn surroundings(&self, plan: &Plan) -> anyhow::Result<Surroundings> {
        let state = std::fs::read_to_string(self.folder.path().join("system/dev.json")).context("no state of dev")?;
        let state: Value = serde_json::from_str(&state).context("the state of dev is no JSON")?;
        let network = |key: &str| state["network"][key].as_str().map(str::to_owned).context("dev has no network");
        let password = "a password of the tests";
        let password_file = self.folder.path().join("docker-password");
        std::fs::write(&password_file, password).context("cannot write the password")?;
        let mut add = self.scli_command(&["user", "add", "--name", "docker", "--role", "configure"])?;
        shell::run(add.env("ASHLAR_NEW_PASSWORD", password))?;
        Ok(Surroundings {
            programs: self.programs.clone(),
            bridge: network("bridge")?,
            prefix: network("prefix")?,
            token: self.scli(&["system", "join-token"])?,
            mdm: self.variable("ASHLAR_MDM")?.to_owned(),
            ca: self.variable("ASHLAR_CA")?.to_owned(),
            password_file,
            plugin_config: plan.plugin_config.clone(),
        })
    }

    /// A root file system of busybox, for `docker import`.
    fn image(&self) -> anyhow::Result<PathBuf> {
        let tar = self.folder.path().join("bb.tar");
        let script = format!(
            "set -eu\nroot={0}/bb\nmkdir -p $root/bin $root/tmp $root/etc $root/proc $root/sys $root/dev\n\
             cp \"$(command -v busybox)\" $root/bin/busybox\nfor a in $($root/bin/busybox --list); do \
             [ $a = busybox ] || ln -sf busybox $root/bin/$a; done\ntar -C $root -cf {1} .\n",
            self.folder.path().display(),
            tar.display()
        );
        shell::succeed("bash", &["-c", &script])?;
        Ok(tar)
    }

    /// A program under test.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The password of the plugins' account.
    pub fn password_file(&self) -> anyhow::Result<&Path> {
        Ok(&self.around.as_ref().context("the site is not up")?.password_file)
    }

    /// A variable of `dev env`.
    pub fn variable(&self, name: &str) -> anyhow::Result<&str> {
        let found = self.environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).with_context(|| format!("dev env sets no {name}"))
    }

    /// Runs `dev` on the system.
    pub fn dev(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.programs.join("dev"));
        // Under cargo it would build what has been built.
        command.env_remove("CARGO").env_remove("CARGO_MANIFEST_DIR");
        shell::run(command.args(arguments).arg("--dir").arg(self.folder.path().join("system")))
    }

    /// A `scli` command on the system.
    pub fn scli_command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(self.programs.join("scli"));
        command.args(arguments);
        command.envs(self.environment.iter().filter(|(key, _)| key.starts_with("ASHLAR_")).cloned());
        Ok(command)
    }

    /// Runs `scli` and demands success.
    pub fn scli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        shell::run(&mut self.scli_command(arguments)?)
    }

    /// Objects as `scli` shows them to programs.
    pub fn list(&self, noun: &str) -> anyhow::Result<Vec<Value>> {
        let text = self.scli(&[noun, "list", "--output", "json"])?;
        let list: Value = serde_json::from_str(&text).context("scli printed no JSON")?;
        list.as_array().cloned().context("scli printed no list")
    }

    /// Names of volumes that are mapped to somebody.
    pub fn mapped(&self) -> anyhow::Result<Vec<String>> {
        let volumes = self.list("volume")?;
        let is_mapped = |volume: &&Value| volume["mapped_to"].as_array().is_some_and(|all| !all.is_empty());
        Ok(volumes.iter().filter(is_mapped).filter_map(|v| Some(v["name"].as_str()?.to_owned())).collect())
    }

    /// Fails if anything of a volume is left anywhere: mounts, devices, records, mappings.
    pub fn demand_clean(&self) -> anyhow::Result<()> {
        self.hosts.iter().try_for_each(Host::demand_clean)?;
        let mapped = wait_until("nothing is mapped", Duration::from_secs(30), || Ok(self.mapped()?.is_empty()));
        match mapped {
            Ok(_) => Ok(()),
            Err(error) => bail!("{error}: still mapped: {:?}", self.mapped()?),
        }
    }

    fn down(&mut self) -> anyhow::Result<()> {
        for host in &mut self.hosts {
            let all = host.docker(&["ps", "--all", "--quiet"]).unwrap_or_default();
            for container in all.lines() {
                if let Err(error) = host.docker(&["rm", "--force", container]) {
                    eprintln!("docker: {error:#}");
                }
            }
            host.take_down();
        }
        self.hosts.clear();
        self.dev(&["down", "--wipe"]).map(drop)
    }
}
