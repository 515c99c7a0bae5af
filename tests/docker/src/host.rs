//! A host on this machine: a network namespace on the system's bridge and a mount namespace, in which a data client, the
//! plugin and a real dockerd run as they would on a machine of their own.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::caller::Caller;
use crate::shell::{self, wait_until};

/// What runs on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    /// The data client.
    Sdc,
    /// The plugin.
    Plugin,
    /// Docker's engine.
    Engine,
}

/// Where things of the site are, as a host needs to know.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The programs of this build.
    pub programs: PathBuf,
    /// The bridge of the system.
    pub bridge: String,
    /// First three numbers of its addresses.
    pub prefix: String,
    /// A token to join with.
    pub token: String,
    /// Metadata managers.
    pub mdm: String,
    /// The authority's certificate.
    pub ca: String,
    /// File with the password of the plugin's account.
    pub password_file: PathBuf,
    /// More lines of the plugin's configuration.
    pub plugin_config: String,
}

/// A host.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    around: Surroundings,
    home: PathBuf,
    namespace: String,
    outer: String,
    cgroup: String,
    keeper: Child,
    daemons: BTreeMap<Daemon, Child>,
}

impl Host {
    /// Makes a host and joins its data client to the system; nothing runs yet.
    pub fn create(index: usize, folder: &Path, around: &Surroundings) -> anyhow::Result<Self> {
        let name = format!("host{index}");
        let home = folder.join(&name);
        let short = around.bridge.trim_start_matches("ash").to_owned();
        let (namespace, outer) = (format!("{}-{name}", around.bridge), format!("{short}h{index}"));
        let address = format!("{}.{}", around.prefix, 200 + index);
        std::fs::create_dir_all(home.join("run")).context("cannot make a folder")?;
        let ip = |arguments: &[&str]| shell::succeed("ip", arguments);
        ip(&["netns", "add", &namespace])?;
        let keeper = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{namespace}"))
            .args(["--", "unshare", "--mount", "--uts", "--propagation", "slave", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run nsenter")?;
        let cgroup = format!("/{}-{name}", around.bridge);
        let around = around.clone();
        let host = Self { name, address, around, home, namespace, outer, cgroup, keeper, daemons: BTreeMap::new() };
        ip(&["link", "add", &host.outer, "type", "veth", "peer", "name", "eth0", "netns", &host.namespace])?;
        ip(&["link", "set", &host.outer, "master", &host.around.bridge, "up"])?;
        ip(&["-n", &host.namespace, "addr", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
        ip(&["-n", &host.namespace, "link", "set", "eth0", "up"])?;
        ip(&["-n", &host.namespace, "link", "set", "lo", "up"])?;
        host.furnish()?;
        Ok(host)
    }

    fn furnish(&self) -> anyhow::Result<()> {
        let pid = self.keeper.id();
        wait_until("the host has its mount namespace", Duration::from_secs(10), || {
            let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Ok(command.trim() == "sleep" && link(&pid.to_string()) != link("self"))
        })?;
        let (name, home) = (&self.name, self.home.display());
        self.bash(&format!(
            "hostname {name}\n\
             mkdir -p /run/docker /etc/docker /dev/ashlar /dev/disk {home}/sdc {home}/etc\n\
             mount -t tmpfs tmpfs /run/docker\nmkdir -p /run/docker/plugins\n\
             mount --bind {home}/etc /etc/docker\n\
             mount -t tmpfs tmpfs /dev/ashlar\nmount -t tmpfs tmpfs /dev/disk\n"
        ))?;
        let sdc = format!(
            "name = {name:?}\ndata_directory = \"{home}/sdc\"\ncontrol_socket = \"{home}/run/sdc.sock\"\n\
             nbd_socket = \"{home}/run/nbd.sock\"\nattach = \"none\"\n"
        );
        std::fs::write(self.home.join("sdc.toml"), sdc).context("cannot write a configuration")?;
        self.write_plugin_config("")?;
        let program = self.around.programs.join("sdc");
        let mut join = self.inside(&program.display().to_string());
        join.args(["join", "--config"]).arg(self.home.join("sdc.toml")).env("ASHLAR_JOIN_TOKEN", &self.around.token);
        shell::run(&mut join).map(drop)
    }

    /// Writes the plugin's configuration, with further lines.
    pub fn write_plugin_config(&self, more: &str) -> anyhow::Result<()> {
        let home = self.home.display();
        let mdm: Vec<&str> = self.around.mdm.split(',').collect();
        let text = format!(
            "mdm = {mdm:?}\nca = {:?}\npassword_file = {:?}\nsdc_socket = \"{home}/run/sdc.sock\"\n\
             state_directory = \"{home}/plugin\"\nmount_directory = \"{home}/volumes\"\ndefault_size = \"64MiB\"\n{}{more}",
            self.around.ca, self.around.password_file, self.around.plugin_config
        );
        std::fs::write(self.home.join("docker.toml"), text).context("cannot write a configuration")
    }

    /// A command on this host.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.keeper.id().to_string();
        command.args(["--target", &pid, "--mount", "--net", "--uts", "--", program]);
        for name in ["CARGO", "CARGO_MANIFEST_DIR", "ASHLAR_JOIN_TOKEN"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs lines on this host.
    pub fn bash(&self, lines: &str) -> anyhow::Result<String> {
        shell::run(self.inside("bash").arg("-c").arg(format!("set -euo pipefail\n{lines}")))
    }

    /// Where its things are.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Starts a daemon and waits until it answers.
    pub fn start(&mut self, daemon: Daemon) -> anyhow::Result<()> {
        self.spawn(daemon)?;
        self.wait_ready(daemon)
    }

    /// Starts a daemon.
    pub fn spawn(&mut self, daemon: Daemon) -> anyhow::Result<()> {
        let home = self.home.display().to_string();
        let program = |name: &str| self.around.programs.join(name).display().to_string();
        let mut command = match daemon {
            Daemon::Sdc => {
                let mut command = self.inside(&program("sdc"));
                command.args(["run", "--config", &format!("{home}/sdc.toml")]);
                command
            }
            Daemon::Plugin => {
                let mut command = self.inside(&program("ashlar-docker"));
                command.args(["run", "--config", &format!("{home}/docker.toml")]);
                command.env("ASHLAR_LOG", "info,plugin=debug");
                command
            }
            Daemon::Engine => {
                self.clear_engine()?;
                let mut command = self.inside("dockerd");
                command.args(["--data-root", &format!("{home}/root"), "--exec-root", &format!("{home}/exec")]);
                command.args(["--pidfile", &format!("{home}/dockerd.pid"), "--host", &self.engine_socket()]);
                command.args(["--userland-proxy=false", "--iptables=false", "--ip6tables=false", "--bridge=none"]);
                command.args(["--cgroup-parent", &self.cgroup, "--log-level", "warn"]);
                command
            }
        };
        let path = self.log(daemon);
        let log = std::fs::File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.daemons.insert(daemon, child.with_context(|| format!("cannot start {daemon:?}"))?);
        Ok(())
    }

    /// What a killed engine leaves keeps the next one from starting: its own mark, and that of its containerd, which died
    /// with it and may be nobody's child.
    fn clear_engine(&self) -> anyhow::Result<()> {
        let containerd = self.home.join("exec/containerd/containerd.pid");
        let pid = std::fs::read_to_string(&containerd).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()))
                .is_ok_and(|comm| comm.trim() == "containerd")
        {
            // One that is gone already is fine.
            let _gone = kill_process(pid, Signal::KILL);
        }
        for path in [self.home.join("dockerd.pid"), containerd] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until a daemon answers.
    pub fn wait_ready(&mut self, daemon: Daemon) -> anyhow::Result<()> {
        let what = format!("{daemon:?} of {} answers", self.name);
        let run = self.home.join("run/sdc.sock");
        let waited = wait_until(&what, Duration::from_secs(60), || match daemon {
            Daemon::Sdc => Ok(UnixStream::connect(&run).is_ok()),
            Daemon::Plugin => self.request("/VolumeDriver.List", "{}").map(|_| true),
            Daemon::Engine => self.docker(&["version"]).map(|_| true),
        });
        waited.map(drop)
    }

    /// Sends a signal and, if it is one that ends, waits for the end.
    pub fn signal(&mut self, daemon: Daemon, signal: Signal) -> anyhow::Result<()> {
        let child = self.daemons.get_mut(&daemon).with_context(|| format!("{daemon:?} does not run"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).context("cannot signal")?;
        if signal == Signal::KILL || signal == Signal::TERM {
            child.wait().context("cannot wait")?;
            self.daemons.remove(&daemon);
        }
        Ok(())
    }

    /// Waits for a daemon that was killed.
    pub fn reap(&mut self, daemon: Daemon) -> anyhow::Result<()> {
        let mut child = self.daemons.remove(&daemon).with_context(|| format!("{daemon:?} does not run"))?;
        child.wait().context("cannot wait").map(drop)
    }

    /// Kills a daemon where it stands.
    pub fn kill(&mut self, daemon: Daemon) -> anyhow::Result<()> {
        self.signal(daemon, Signal::KILL)
    }

    /// The process of a daemon.
    pub fn pid(&self, daemon: Daemon) -> anyhow::Result<u32> {
        self.daemons.get(&daemon).map(Child::id).with_context(|| format!("{daemon:?} does not run"))
    }

    fn engine_socket(&self) -> String {
        format!("unix://{}/docker.sock", self.home.display())
    }

    /// A `docker` command on this host's engine.
    pub fn docker_command(&self, arguments: &[&str]) -> Command {
        // Debian's, which fits its engine, where another one is installed too.
        let program = if Path::new("/usr/bin/docker").exists() { "/usr/bin/docker" } else { "docker" };
        let mut command = self.inside(program);
        command.arg("--host").arg(self.engine_socket()).args(arguments);
        command
    }

    /// Runs `docker` and demands success.
    pub fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        shell::run(&mut self.docker_command(arguments))
    }

    /// Runs `docker` and demands a refusal.
    pub fn docker_refused(&self, arguments: &[&str]) -> anyhow::Result<String> {
        shell::refused(&mut self.docker_command(arguments))
    }

    /// Runs a container to its end, with a shell.
    pub fn container(&self, options: &[&str], script: &str) -> anyhow::Result<String> {
        let mut arguments = vec!["run", "--rm", "--network", "none"];
        arguments.extend(options);
        arguments.extend(["bb:1", "sh", "-c", script]);
        self.docker(&arguments)
    }

    /// The plugin's socket, as it is seen from outside.
    pub fn plugin_socket(&self) -> anyhow::Result<PathBuf> {
        // The folder is the host's own: its path leads through one of its processes.
        Ok(PathBuf::from(format!("/proc/{}/root/run/docker/plugins/ashlar.sock", self.keeper.id())))
    }

    /// Who asks the plugin of this host as Docker does.
    pub fn caller(&self) -> anyhow::Result<Caller> {
        Ok(Caller::new(self.plugin_socket()?))
    }

    /// A request to the plugin as Docker makes it: status of HTTP and object; an error if it hangs up.
    pub fn request(&self, path: &str, body: &str) -> anyhow::Result<(u16, Value)> {
        self.caller()?.request(path, body)
    }

    /// What a volume looks like to Docker.
    pub fn inspect(&self, volume: &str) -> anyhow::Result<Value> {
        let text = self.docker(&["volume", "inspect", volume])?;
        let list: Value = serde_json::from_str(&text).context("no JSON")?;
        Ok(list[0].clone())
    }

    /// Mounts below this host's folder of volumes, and of block devices of volumes anywhere on it.
    pub fn volume_mounts(&self) -> anyhow::Result<Vec<String>> {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.keeper.id()))?;
        let own = self.home.join("volumes").display().to_string();
        let is_own = |line: &&str| line.contains(&own) || line.contains("/propagated-mount/");
        Ok(table.lines().filter(is_own).map(str::to_owned).collect())
    }

    /// Records of the plugin on disk.
    pub fn records(&self) -> anyhow::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.home.join("plugin/records")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }

    /// Loop devices on files of this host's data client.
    pub fn loops(&self) -> anyhow::Result<Vec<String>> {
        let own = self.home.join("run").display().to_string();
        let all = shell::succeed("losetup", &["--all"])?;
        Ok(all.lines().filter(|line| line.contains(&own)).map(str::to_owned).collect())
    }

    /// Cuts the host off from everything, or lets it back.
    pub fn link(&self, up: bool) -> anyhow::Result<()> {
        shell::succeed("ip", &["link", "set", &self.outer, if up { "up" } else { "down" }]).map(drop)
    }

    /// The log of a daemon.
    pub fn log(&self, daemon: Daemon) -> PathBuf {
        self.home.join(format!("{daemon:?}.log").to_lowercase())
    }

    /// Shows the last words of the daemons.
    pub fn complain(&self) {
        for daemon in [Daemon::Sdc, Daemon::Plugin, Daemon::Engine] {
            let text = std::fs::read(self.log(daemon)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- {} {daemon:?} ----", self.name);
            lines[lines.len().saturating_sub(40)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }

    /// Processes of this host: those in its mount namespace and those of its containers, without its keeper.
    fn processes(&self) -> Vec<Pid> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let keeper = self.keeper.id().to_string();
        let own = namespace(&keeper).filter(|own| Some(own) != namespace("self").as_ref());
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let is_ours = |name: &String| {
            let groups = std::fs::read_to_string(format!("/proc/{name}/cgroup")).unwrap_or_default();
            (own.is_some() && namespace(name) == own) || groups.contains(&self.cgroup)
        };
        let ours = names.filter(|name| *name != keeper && name.bytes().all(|b| b.is_ascii_digit())).filter(is_ours);
        ours.filter_map(|name| name.parse().ok()).filter_map(Pid::from_raw).collect()
    }

    /// Ends everything; complains, but goes on.
    pub fn take_down(&mut self) {
        let complain = |error: anyhow::Error| eprintln!("docker: {error:#}");
        self.link(true).unwrap_or_else(complain);
        for signal in [Signal::TERM, Signal::KILL] {
            for pid in self.processes() {
                // Those that are gone already are fine.
                let _gone = kill_process(pid, signal);
            }
            for child in self.daemons.values_mut() {
                if signal == Signal::KILL
                    && let Err(error) = child.wait()
                {
                    complain(error.into());
                }
            }
            let is_empty = |host: &Self| host.processes().iter().all(|pid| !is_alive(*pid));
            if wait_until("the host's processes have ended", Duration::from_secs(10), || Ok(is_empty(self))).is_ok() {
                break;
            }
        }
        if let Err(error) = self.keeper.kill().and_then(|()| self.keeper.wait()) {
            complain(error.into());
        }
        shell::succeed("ip", &["netns", "del", &self.namespace]).map(drop).unwrap_or_else(complain);
    }

    /// Fails if anything of a volume is left on this host.
    pub fn demand_clean(&self) -> anyhow::Result<()> {
        let left =
            || -> anyhow::Result<Vec<String>> { Ok([self.volume_mounts()?, self.loops()?, self.records()?].concat()) };
        wait_until("nothing of a volume is left", Duration::from_secs(30), || Ok(left()?.is_empty())).map(drop).or_else(
            |_| {
                let left = left()?;
                if left.is_empty() { Ok(()) } else { bail!("left on {}: {left:?}", self.name) }
            },
        )
    }
}

/// True unless it is gone or only waits for its parent to notice.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
