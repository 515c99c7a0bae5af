//! `mdm`: arguments in, one line out when something is wrong.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use mdm::args::{Arguments, Command, Output};
use mdm::{create, join, logging, run};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return wrong_line(&error),
    };
    logging::start(arguments.log_format);
    match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mdm: {}", format!("{error:#}").replace('\n', " "));
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
    eprintln!("mdm: {}: see 'mdm --help'", what.trim_start_matches("error: "));
    ExitCode::from(2)
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::CreateSystem(arguments) => {
            let password = create::read_password(arguments.admin_password_file.as_deref())?;
            let created = create::create(&arguments.config, &arguments.name, &password)?;
            match arguments.output {
                Output::Json => print_json(&created),
                Output::Text => {
                    println!("System {} was created; its id is {}.", created.name, created.system_id);
                    println!("  authority   {}", created.authority.display());
                    println!("  user        {}", created.user);
                    println!("  join token  {}", created.join_token);
                    println!("Start it with: mdm run --config {}", arguments.config.display());
                    Ok(())
                }
            }
        }
        Command::Join(arguments) => {
            let member = join::join(&arguments.config, &arguments.token, arguments.tie_breaker)?;
            match arguments.output {
                Output::Json => print_json(&member),
                Output::Text => {
                    println!("Joined system {} as metadata manager {}.", member.system_id, member.mdm_id);
                    println!("Start it with: mdm run --config {}", arguments.config.display());
                    Ok(())
                }
            }
        }
        Command::Run(arguments) => run::run(&arguments.config),
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page).context("manual page")?;
            std::io::stdout().write_all(&page).context("cannot print the manual page")
        }
    }
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value).context("JSON")?);
    Ok(())
}
