//! `dev`: a whole system of real processes on this machine, for people and for tests.
//!
//! One directory holds everything: configurations, data, logs, devices, and `dev.json`, which says what was started.
//! Nodes are called `mdm1..`, `sds1..`, `sdc1..`. They are ordinary daemons with ordinary configurations, made a system by
//! the ordinary commands (`create-system`, `join`, the verbs of `scli`), so what works here works on three hosts.
//!
//! Always true: only processes that this tool started are ever signalled (a process is known by its id *and* its start
//! time); every node that was started is in `dev.json` before anything else happens to it; `down --wipe` leaves nothing.

mod admin;
mod build;
mod network;
mod node;
mod progress;
mod state;
mod status;
mod up;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::state::State;

/// A whole Ashlar system of real processes on this machine.
#[derive(Parser)]
#[command(name = "dev", version, propagate_version = true)]
struct Arguments {
    /// Directory of the system.
    #[arg(long, global = true, env = "ASHLAR_DEV_DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a system, make a volume, attach and mount it.
    Up(up::UpArguments),
    /// Show nodes, volumes and health.
    Status {
        /// How to show it.
        #[arg(long, short, value_enum, default_value_t = status::Format::Table)]
        output: status::Format,
    },
    /// Send a node a signal; SIGKILL unless said otherwise.
    Kill {
        /// The node, such as sds1; or `all`.
        name: String,
        /// KILL, TERM, STOP, CONT, HUP, INT, QUIT or ABRT.
        #[arg(long, default_value = "KILL")]
        signal: String,
    },
    /// Start a node that was killed; or `all` that are dead.
    Start {
        /// The node.
        name: String,
    },
    /// Stop a node's process where it stands (SIGSTOP).
    Pause {
        /// The node.
        name: String,
    },
    /// Let a paused node go on.
    Resume {
        /// The node.
        name: String,
    },
    /// Drop all packets between two nodes; only with `up --isolate`.
    Cut {
        /// One node.
        a: String,
        /// The other; or `all`.
        b: String,
        /// Only the packets from the first to the second.
        #[arg(long)]
        one_way: bool,
    },
    /// Undo all cuts.
    Heal,
    /// Print what scli and others need to reach the system, for `eval`.
    Env,
    /// Unmount, detach and end everything.
    Down {
        /// Remove the directory too.
        #[arg(long)]
        wipe: bool,
    },
    /// Write the man pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return wrong_line(&error),
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Help and version are printed as they are; a wrong line gets one line, as everything else that is refused.
fn wrong_line(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.to_string();
    let first: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let what = first.join(" ");
    eprintln!("dev: {}: see 'dev --help'", what.trim_start_matches("error: "));
    ExitCode::from(2)
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let directory = state::directory(arguments.dir)?;
    match arguments.command {
        Command::Up(up) => up::up(&directory, &up),
        Command::Status { output } => status::show(&State::load(&directory)?, output),
        Command::Kill { name, signal } => node::signal(&State::load(&directory)?, &name, &signal),
        Command::Start { name } => node::start(&mut State::lock(&directory)?, &name),
        Command::Pause { name } => node::signal(&State::load(&directory)?, &name, "STOP"),
        Command::Resume { name } => node::signal(&State::load(&directory)?, &name, "CONT"),
        Command::Cut { a, b, one_way } => network::cut(&State::load(&directory)?, &a, &b, one_way),
        Command::Heal => network::heal(&State::load(&directory)?),
        Command::Env => admin::print_environment(&State::load(&directory)?),
        Command::Down { wipe } => up::down(&directory, wipe),
        Command::Man { directory } => {
            use clap::CommandFactory;
            std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
            let file = directory.join("dev.1");
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            std::fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))
        }
    }
}
