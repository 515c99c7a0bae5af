//! ScaleIO's classic spellings: `scli --query_all_volumes` and kin.
//!
//! They are synonyms: each builds the same command as a verb of the table, asks the same way, and prints what ScaleIO's
//! scripts expect. Sizes round up to 8 GiB here, and it says so. Differences to ScaleIO are listed in `docs/scli.md`.

mod flags;
mod print;
mod run;

pub use run::run;

/// How a classic command fails; the exit codes differ.
pub enum Failure {
    /// The line is wrong.
    Usage(String),
    /// The MDM said no: exit code 7.
    Refused(String),
    /// Nobody answered.
    Unreachable(String),
}

/// True if the line is a classic one: its first word is an option that names a command.
pub fn is_classic(arguments: &[String]) -> bool {
    arguments
        .iter()
        .skip(1)
        .any(|word| run::COMMANDS.iter().any(|command| word.strip_prefix("--") == Some(command.name)))
}
