//! The command line of `mdm`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::logging::LogFormat;

/// The metadata manager of an Ashlar system: keeps what the system is, and decides who keeps and leads what.
#[derive(Debug, Parser)]
#[command(name = "mdm", version, after_help = "ASHLAR_LOG sets what is logged, for example ASHLAR_LOG=debug.")]
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
    /// Create a system; this host becomes its first metadata manager.
    CreateSystem(CreateSystem),
    /// Join a system as a further metadata manager.
    Join(Join),
    /// Run the metadata manager of this host.
    Run(Run),
    /// Print the manual page.
    Man,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Arguments of `mdm create-system`.
#[derive(Debug, Args)]
pub struct CreateSystem {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Name of the system.
    #[arg(long)]
    pub name: String,
    /// File that holds the password of `admin`.
    #[arg(long, value_name = "FILE", required_unless_present = "admin_password_stdin")]
    pub admin_password_file: Option<PathBuf>,
    /// Read the password of `admin` from the standard input.
    #[arg(long, conflicts_with = "admin_password_file")]
    pub admin_password_stdin: bool,
    /// How the result is printed.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Arguments of `mdm join`.
#[derive(Debug, Args)]
pub struct Join {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The join token. A secret: better given by the environment, which other users cannot see.
    #[arg(long, value_name = "TOKEN", env = "ASHLAR_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Only vote and keep the log; take no commands.
    #[arg(long)]
    pub tie_breaker: bool,
    /// How the result is printed.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Arguments of `mdm run`.
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
