//! Hosts on this machine: each has a network namespace with an address on a common bridge, and a mount namespace in which
//! `/etc`, `/var`, `/run`, `/usr/local` and the home folder are its own. So a guide can be carried out literally.
//!
//! Two commands stand in for what a namespace has not: `systemctl` starts what a unit file says, and `scp` copies to
//! another of these hosts. Everything else is the real thing.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::document::{Action, EVERY_HOST, Step};
use crate::shell;
use crate::turn::Turn;

/// Folders that every host has for itself, as a layer over this machine's.
const OWN_FOLDERS: [&str; 3] = ["/etc", "/var", "/usr/local"];

/// Starts a unit's `ExecStart` as a daemon; knows no more than the guide needs.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -euo pipefail
case "$1" in
    daemon-reload) exit 0 ;;
    enable) [ "$2" = --now ] && shift 2 ;;
    *) echo "systemctl: $1 is not known here" >&2; exit 1 ;;
esac
for unit in "$@"; do
    file=/etc/systemd/system/${unit%.service}.service
    line=$(sed -n 's/^ExecStart=//p' "$file")
    [ -n "$line" ] || { echo "systemctl: $file has no ExecStart" >&2; exit 1; }
    mkdir -p /run/ashlar
    setsid $line </dev/null >>"/run/host/$unit.log" 2>&1 &
    echo $! >>/run/host/pids
done
"#;

/// `scp FILE... HOST:FOLDER/`.
const SCP: &str = r#"#!/bin/bash
set -euo pipefail
target=${@: -1}
host=${target%%:*}
folder=${target#*:}
pid=$(cat "/run/hosts/$host")
for file in "${@:1:$#-1}"; do
    tar -C "$(dirname "$file")" -c "$(basename "$file")" | nsenter --target "$pid" --mount tar -C "$folder" -x
done
"#;

/// A host.
struct Host {
    name: String,
    namespace: String,
    /// Keeps the mount namespace alive.
    keeper: Child,
    /// Its `/run/host`, seen from outside.
    run: PathBuf,
}

/// Several hosts on one bridge.
pub struct Hosts {
    _turn: Turn,
    folder: tempfile::TempDir,
    bridge: String,
    hosts: Vec<Host>,
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    shell::succeed("ip", arguments).map(drop)
}

fn executable(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).with_context(|| format!("cannot change {}", path.display()))
}

impl Hosts {
    /// Makes hosts with the addresses given, all in one /24.
    pub fn create(hosts: &[(&str, &str)], programs: &Path) -> anyhow::Result<Self> {
        let turn = Turn::take()?;
        let folder = tempfile::Builder::new().prefix("ashlar-hosts-").tempdir().context("cannot make a directory")?;
        let number = std::process::id() % 100_000;
        let mut made = Self { _turn: turn, folder, bridge: format!("ashin{number}"), hosts: Vec::new() };
        let stand_ins = made.folder.path().join("bin");
        std::fs::create_dir_all(&stand_ins).context("cannot make a folder")?;
        std::fs::create_dir_all(made.folder.path().join("hosts")).context("cannot make a folder")?;
        executable(&stand_ins.join("systemctl"), SYSTEMCTL)?;
        executable(&stand_ins.join("scp"), SCP)?;
        ip(&["link", "add", &made.bridge, "type", "bridge"])?;
        ip(&["link", "set", &made.bridge, "up"])?;
        for (index, (name, address)) in hosts.iter().enumerate() {
            made.add(index, name, address, programs)?;
        }
        Ok(made)
    }

    fn add(&mut self, index: usize, name: &str, address: &str, programs: &Path) -> anyhow::Result<()> {
        let namespace = format!("{}-{name}", self.bridge);
        let outer = format!("{}v{index}", self.bridge.trim_start_matches("ash"));
        let home = self.folder.path().join(name);
        let run = home.join("run");
        std::fs::create_dir_all(&run).context("cannot make a folder")?;
        ip(&["netns", "add", &namespace])?;
        // From here on the host is ours to take down.
        let keeper = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{namespace}"))
            .args(["--", "unshare", "--mount", "--propagation", "private", "sleep", "infinity"])
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot run nsenter")?;
        let pid = keeper.id();
        self.hosts.push(Host { name: name.to_owned(), namespace: namespace.clone(), keeper, run });
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        ip(&["link", "set", &outer, "master", &self.bridge, "up"])?;
        ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        // The keeper runs `unshare` for a moment before it is `sleep` in its own namespace.
        shell::wait_until("the host has its mount namespace", Duration::from_secs(10), || {
            let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Ok(command.trim() == "sleep" && link(&pid.to_string()) != link("self"))
        })?;
        std::fs::write(self.folder.path().join("hosts").join(name), pid.to_string()).context("cannot note a host")?;
        self.furnish(name, &home, programs)
    }

    /// Lays the host's own folders over this machine's, and the stand-ins and the programs where they are found.
    fn furnish(&self, name: &str, home: &Path, programs: &Path) -> anyhow::Result<()> {
        let home = home.display();
        let all = self.folder.path().display();
        let mut script =
            String::from("mount -t tmpfs tmpfs /run\nmkdir -p /run/host /run/hosts /run/stand-ins /run/home\n");
        // A layer cannot lie on a layer: the uppers are on a file system of their own.
        script.push_str(&format!("mkdir -p {home}/layers\nmount -t tmpfs tmpfs {home}/layers\n"));
        for (index, folder) in OWN_FOLDERS.iter().enumerate() {
            script.push_str(&format!(
                "mkdir -p {home}/layers/{index}/upper {home}/layers/{index}/work\n\
                 mount -t overlay overlay -o lowerdir={folder},upperdir={home}/layers/{index}/upper,workdir={home}/layers/{index}/work {folder}\n"
            ));
        }
        // Devices of the guide are files of some size: they lie on this machine's disk, not in memory.
        script.push_str(&format!("mkdir -p {home}/data /var/lib/ashlar\nmount --bind {home}/data /var/lib/ashlar\n"));
        script.push_str(&format!("mount --bind {home}/run /run/host\nmount --bind {all}/hosts /run/hosts\n"));
        script.push_str(&format!("mount --bind {all}/bin /run/stand-ins\n"));
        script.push_str(&format!(
            "mkdir -p /usr/local/bin\nmkdir -p /run/programs\nmount --bind {} /run/programs\n",
            programs.display()
        ));
        script.push_str("mkdir -p /etc/systemd/system\n");
        script.push_str(&format!("echo {name} >/run/host/name\n"));
        self.type_on(name, &script).map(drop)
    }

    fn host(&self, name: &str) -> anyhow::Result<&Host> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| format!("there is no host {name}"))
    }

    /// Types lines on a host, in the folder that holds the programs, as `bash -e` takes them.
    pub fn type_on(&self, name: &str, lines: &str) -> anyhow::Result<String> {
        let host = self.host(name)?;
        let script = format!("set -euo pipefail\nif [ -d /run/programs ]; then cd /run/programs; fi\n{lines}");
        let mut command = Command::new("nsenter");
        command.args(["--target", &host.keeper.id().to_string(), "--mount", "--net", "--", "bash", "-c", &script]);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("/run/stand-ins:/usr/local/bin:{path}")).env("HOME", "/run/home");
        for name in ["CARGO", "CARGO_MANIFEST_DIR", "ASHLAR_MDM", "ASHLAR_CA", "ASHLAR_SESSION", "ASHLAR_JOIN_TOKEN"] {
            command.env_remove(name);
        }
        shell::run(&mut command)
    }

    /// Carries a step out; the error names its line.
    pub fn carry_out(&self, step: &Step) -> anyhow::Result<()> {
        let names: Vec<&str> = match step.host.as_str() {
            EVERY_HOST => self.hosts.iter().map(|host| host.name.as_str()).collect(),
            one => vec![one],
        };
        for name in names {
            let lines = match &step.action {
                Action::Type(lines) => lines.clone(),
                Action::Write { path, text } => {
                    if text.lines().any(|line| line == "END-OF-FILE") || path.contains('\'') {
                        bail!("line {}: cannot write this file", step.line);
                    }
                    format!("mkdir -p \"$(dirname '{path}')\"\ncat >'{path}' <<'END-OF-FILE'\n{text}END-OF-FILE\n")
                }
            };
            self.type_on(name, &lines).with_context(|| format!("on {name}, the block of line {}", step.line))?;
        }
        Ok(())
    }

    /// The last words of every daemon, on the standard error.
    pub fn complain(&self) {
        for host in &self.hosts {
            let Ok(entries) = std::fs::read_dir(&host.run) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "log") {
                    let text = std::fs::read(&path).unwrap_or_default();
                    let text = String::from_utf8_lossy(&text);
                    let lines: Vec<&str> = text.lines().collect();
                    eprintln!("---- {}: {} ----", host.name, path.display());
                    lines[lines.len().saturating_sub(20)..].iter().for_each(|line| eprintln!("{line}"));
                }
            }
        }
    }

    /// Everything that runs on the hosts but their keepers: daemons, and what outlives them.
    fn daemons(&self) -> Vec<Pid> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let keepers: Vec<String> = self.hosts.iter().map(|host| host.keeper.id().to_string()).collect();
        // A host that was not finished may still be in this machine's namespace, where nothing is ours to end.
        let Some(machine) = namespace("self") else { return Vec::new() };
        let own = keepers.iter().filter_map(|keeper| namespace(keeper)).filter(|own| *own != machine);
        let own: Vec<PathBuf> = own.collect();
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let there = names.filter(|name| !keepers.contains(name) && namespace(name).is_some_and(|ns| own.contains(&ns)));
        there.filter_map(|name| name.parse().ok()).filter_map(Pid::from_raw).collect()
    }

    fn take_down(&mut self) {
        let complain = |error: anyhow::Error| eprintln!("cluster: {error:#}");
        for signal in [Signal::TERM, Signal::KILL] {
            let daemons = self.daemons();
            for pid in &daemons {
                // Those that are gone already are fine.
                let _gone = kill_process(*pid, signal);
            }
            let ended = shell::wait_until("the daemons have ended", Duration::from_secs(10), || {
                Ok(daemons.iter().all(|pid| !is_alive(*pid)))
            });
            if ended.is_ok() {
                break;
            }
        }
        for host in &mut self.hosts {
            if let Err(error) = host.keeper.kill().and_then(|()| host.keeper.wait()) {
                complain(error.into());
            }
            ip(&["netns", "del", &host.namespace]).unwrap_or_else(complain);
        }
        ip(&["link", "del", &self.bridge]).unwrap_or_else(complain);
    }
}

/// True unless it is gone or only waits for its parent to notice.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.take_down();
    }
}
