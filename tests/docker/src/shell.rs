//! Running commands: those of the cluster tests, with what Docker's stories ask beyond them.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;
pub use cluster::shell::output;
use cluster::shell::words;

/// Runs it, demands success and gives what it printed, without the line end.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    Ok(cluster::shell::run(command)?.trim_end().to_owned())
}

/// Runs it, demands a refusal and gives what it complained.
pub fn refused(command: &mut Command) -> anyhow::Result<String> {
    let said = words(command);
    let output = output(command)?;
    if output.status.success() {
        bail!("{said}: succeeded, and should not have");
    }
    Ok(String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout))
}

/// Runs a program with arguments and demands success.
pub fn succeed(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    run(Command::new(program).args(arguments))
}

/// Looks again and again until something holds; says what it waited for when it does not, and how long it took when it does.
pub fn wait_until(
    what: &str,
    patience: Duration,
    holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    cluster::shell::wait_until(what, patience, holds)?;
    Ok(started.elapsed())
}
