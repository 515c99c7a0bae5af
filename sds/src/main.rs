//! `sds`: arguments in, one line out when something is wrong.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use sds::args::{Arguments, Command};
use sds::{identity, logging, run};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return wrong_line(&error),
    };
    logging::start(arguments.log_format);
    match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sds: {}", format!("{error:#}").replace('\n', " "));
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
    eprintln!("sds: {}: see 'sds --help'", what.trim_start_matches("error: "));
    ExitCode::from(2)
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Join(arguments) => {
            let membership = identity::join(&arguments.config, &arguments.token)?;
            println!("Joined system {} as data server {}.", membership.system, membership.sds);
            println!("Start it with: sds run --config {}", arguments.config.display());
            Ok(())
        }
        Command::Run(arguments) => run::run(&arguments.config),
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page).context("manual page")?;
            std::io::stdout().write_all(&page).context("cannot print the manual page")
        }
    }
}
