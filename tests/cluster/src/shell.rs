//! Running commands, with their words in the error.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A command line in words, for messages.
pub fn words(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Runs it to its end; nothing is read from this program's input.
pub fn output(command: &mut Command) -> anyhow::Result<Output> {
    let said = words(command);
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {said}"))
}

/// Runs it, demands success and gives what it printed.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let said = words(command);
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{said}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program with arguments and demands success.
pub fn succeed(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    run(Command::new(program).args(arguments))
}

/// Runs somebody else's program and demands success within a time: what hangs is ended.
pub fn succeed_within(limit: Duration, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    run(&mut limited(limit, program, arguments))
}

/// A command that ends, one way or the other, within a time.
pub fn limited(limit: Duration, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg("--signal=KILL").arg(limit.as_secs().to_string()).arg(program).args(arguments);
    command
}

/// Looks again and again until something holds; says what it waited for when it does not.
pub fn wait_until(
    what: &str,
    patience: Duration,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let mut last = None;
    loop {
        match holds() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        if Instant::now() > deadline {
            let why = last.map(|error| format!(" ({error:#})")).unwrap_or_default();
            bail!("after {} s still not so: {what}{why}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
