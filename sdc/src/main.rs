//! `sdc`: the data client of a host. Follows the map of its system, serves the volumes that are mapped to this host over
//! NBD, and makes them block devices. Wiring only: what decides is in `sdc-client` and `sdc-nbd`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use sdc::{config::Config, daemon, identity};

/// Ashlar's data client.
#[derive(Parser)]
#[command(name = "sdc", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the volumes that are mapped to this host.
    Run {
        /// The configuration file.
        #[arg(long, default_value = "/etc/ashlar/sdc.toml")]
        config: PathBuf,
        /// How to write the log.
        #[arg(long, value_enum, default_value_t = daemon::LogFormat::Text)]
        log_format: daemon::LogFormat,
    },
    /// Make this host a client of a system.
    Join {
        /// The configuration file.
        #[arg(long, default_value = "/etc/ashlar/sdc.toml")]
        config: PathBuf,
        /// A token of 'scli system join-token'.
        #[arg(long, env = "ASHLAR_JOIN_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// Answer for the file under a loop device; started by the daemon.
    #[command(hide = true)]
    Hold {
        /// Socket, export, size in bytes, threads.
        arguments: Vec<std::ffi::OsString>,
    },
    /// Print the man page.
    #[command(hide = true)]
    Man,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return wrong_line(&error),
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sdc: {}", format!("{error:#}").replace('\n', " "));
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
    eprintln!("sdc: {}: see 'sdc --help'", what.trim_start_matches("error: "));
    ExitCode::from(2)
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Run { config, log_format } => {
            let config = Config::load(&config)?;
            daemon::start_log(log_format);
            runtime()?.block_on(daemon::run(config))
        }
        Command::Join { config, token } => {
            let config = Config::load(&config)?;
            let joined = identity::join(&config.data_directory, config.name, &token);
            let membership = runtime()?.block_on(joined)?;
            println!("This host is client {} of system {}.", membership.sdc, membership.system);
            Ok(())
        }
        Command::Hold { arguments } => Ok(sdc_nbd::hold::main(arguments.into_iter())?),
        Command::Man => {
            use clap::CommandFactory;
            clap_mangen::Man::new(Arguments::command()).render(&mut std::io::stdout()).context("cannot print")
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}
