//! The command line of `sds`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::logging::LogFormat;

/// The data server of an Ashlar system: serves the devices of one host.
#[derive(Debug, Parser)]
#[command(name = "sds", version, after_help = "ASHLAR_LOG sets what is logged, for example ASHLAR_LOG=debug.")]
pub struct Arguments {
    /// Form of the log on the standard error.
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join a system as the data server that was added there under this name.
    Join(Join),
    /// Run the data server of this host.
    Run(Run),
    /// Print the manual page.
    Man,
}

/// Arguments of `sds join`.
#[derive(Debug, Args)]
pub struct Join {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The join token. A secret: better given by the environment, which other users cannot see.
    #[arg(long, value_name = "TOKEN", env = "ASHLAR_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
}

/// Arguments of `sds run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
