//! Processes of nodes: started apart from this one, found again, signalled.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::state::{Node, Process, Role, State};

/// Where a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Running,
    /// It is stopped by a signal.
    Paused,
    /// It is not there.
    Dead,
}

impl Life {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Dead => "dead",
        }
    }
}

/// State letter and start time of a process, from /proc.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; fields count from behind the last one.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let letter = fields.next()?.chars().next()?;
    Some((letter, fields.nth(18)?.parse().ok()?))
}

/// Where a node's process is.
pub fn life(node: &Node) -> Life {
    let Some(process) = node.process else { return Life::Dead };
    match stat(process.pid) {
        Some((letter, started)) if started == process.started => match letter {
            'Z' | 'X' => Life::Dead,
            'T' | 't' => Life::Paused,
            _ => Life::Running,
        },
        _ => Life::Dead,
    }
}

/// The program of a role, beside this one.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let path = own.with_file_name(name);
    if !path.exists() {
        bail!("{} is missing: build it with 'cargo build --release -p {name}'", path.display());
    }
    Ok(path)
}

/// A command of a daemon, in its network namespace if it has one. Mounts stay this machine's: `nsenter` changes nothing but
/// the network.
pub fn command(node: &Node, arguments: &[&str]) -> anyhow::Result<Command> {
    let program = program(node.role.program())?;
    let mut command = match &node.namespace {
        Some(namespace) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args(arguments).arg("--config").arg(&node.config);
    Ok(command)
}

/// Runs a daemon's command to its end and gives what it printed.
pub fn run(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    let output = command(node, arguments)?
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", node.role.program()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{} {}: {}", node.name, arguments.join(" "), words.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a node's daemon in a process group of its own and records it.
pub fn spawn(state: &mut State, name: &str) -> anyhow::Result<()> {
    let node = state.node(name)?.clone();
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&node.log)
        .with_context(|| format!("cannot write {}", node.log.display()))?;
    let child = command(&node, &["run"])?
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let pid = i32::try_from(child.id()).context("a process id beyond 31 bits")?;
    let (_, started) = stat(pid).with_context(|| format!("{name} ended at once: see {}", node.log.display()))?;
    for saved in &mut state.saved.nodes {
        if saved.name == name {
            saved.process = Some(Process { pid, started });
        }
    }
    state.save()
}

/// The last lines of a node's log, for error messages.
pub fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// Sends a signal to the nodes that a name means.
pub fn signal(state: &State, name: &str, signal: &str) -> anyhow::Result<()> {
    let number = match signal.trim_start_matches("SIG").to_ascii_uppercase().as_str() {
        "KILL" | "9" => Signal::KILL,
        "TERM" | "15" => Signal::TERM,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "ABRT" => Signal::ABORT,
        other => {
            bail!("'{other}' is not a signal that is sent here: choose KILL, TERM, STOP, CONT, HUP, INT, QUIT or ABRT")
        }
    };
    let nodes = state.nodes(name)?;
    let all = name == "all";
    for node in &nodes {
        match (life(node), node.process) {
            (Life::Dead, _) | (_, None) if all => {}
            (Life::Dead, _) | (_, None) => {
                bail!("{} is not running: start it with 'dev start {}'", node.name, node.name)
            }
            (_, Some(process)) => send(process, number).with_context(|| format!("cannot signal {}", node.name))?,
        }
    }
    if number == Signal::KILL {
        // The signal is certain; that the process is gone, and its ports and locks with it, takes a moment.
        wait_dead(&nodes, Duration::from_secs(10))?;
    }
    Ok(())
}

fn send(process: Process, signal: Signal) -> anyhow::Result<()> {
    let pid = Pid::from_raw(process.pid).context("no such process")?;
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until all of them are gone.
pub fn wait_dead(nodes: &[&Node], patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    for node in nodes {
        while life(node) != Life::Dead {
            if Instant::now() > deadline {
                bail!("{} does not end", node.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// Starts what is dead.
pub fn start(state: &mut State, name: &str) -> anyhow::Result<()> {
    let names: Vec<(String, Life)> = state.nodes(name)?.iter().map(|n| (n.name.clone(), life(n))).collect();
    for (node, life) in names {
        match life {
            Life::Dead => spawn(state, &node)?,
            _ if name == "all" => {}
            Life::Running => bail!("{node} runs already"),
            Life::Paused => bail!("{node} is paused: let it go on with 'dev resume {node}'"),
        }
    }
    Ok(())
}

/// Ends all nodes: clients first, so that devices are given back in good order; then what is left, hard.
pub fn stop_all(state: &State) -> anyhow::Result<()> {
    for role in [Role::Sdc, Role::Sds, Role::Mdm] {
        let nodes: Vec<&Node> = state.saved.nodes.iter().filter(|n| n.role == role && life(n) != Life::Dead).collect();
        for node in &nodes {
            if let Some(process) = node.process {
                send(process, Signal::CONT)?;
                send(process, Signal::TERM)?;
            }
        }
        if wait_dead(&nodes, Duration::from_secs(10)).is_err() {
            for node in nodes.iter().filter(|n| life(n) != Life::Dead) {
                if let Some(process) = node.process {
                    send(process, Signal::KILL)?;
                }
            }
            wait_dead(&nodes, Duration::from_secs(10))?;
        }
    }
    Ok(())
}
