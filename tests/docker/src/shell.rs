//! Running commands, with their words in the error.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A command line in words, for messages.
fn words(command: &Command) -> String {
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

/// Runs it, demands success and gives what it printed, without the line end.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let said = words(command);
    let output = output(command)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if !output.status.success() {
        bail!("{said}: {}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
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
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut last = None;
    loop {
        match holds() {
            Ok(true) => return Ok(started.elapsed()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        if started.elapsed() > patience {
            let why = last.map(|error| format!(" ({error:#})")).unwrap_or_default();
            bail!("after {} s still not so: {what}{why}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
