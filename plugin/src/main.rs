//! `ashlar-docker`: the Docker volume plugin.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use plugin::config::Config;
use plugin::daemon;

/// Docker volumes on Ashlar.
#[derive(Parser)]
#[command(name = "ashlar-docker", version, about, max_term_width = 100)]
struct Arguments {
    /// The configuration; variables ASHLAR_DOCKER_<KEY> stand over it.
    #[arg(long, global = true, default_value = "/etc/ashlar/docker.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve Docker until told to end.
    Run,
    /// Forget mounts of a volume on this host that Docker has forgotten, and unmount it if none is left.
    Release {
        /// The volume.
        volume: String,
        /// Only this mount.
        #[arg(long)]
        id: Option<String>,
    },
    /// Write the man page into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ashlar-docker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Run => {
            let config = Config::load(&arguments.config, std::env::vars())?;
            start_log();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let result = runtime.block_on(daemon::run(config));
            // A tool that hangs on storage must not keep the daemon from ending.
            runtime.shutdown_background();
            result
        }
        Command::Release { volume, id } => {
            let config = Config::load(&arguments.config, std::env::vars())?;
            daemon::release(&config.socket, &volume, id.as_deref())
        }
        Command::Man { directory } => {
            use clap::CommandFactory;
            std::fs::create_dir_all(&directory)?;
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            Ok(std::fs::write(directory.join("ashlar-docker.1"), page)?)
        }
    }
}

/// `ASHLAR_LOG` filters the log, `info` by default.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ASHLAR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
}
