//! `mdm`: arguments in, one line out when something is wrong.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use mdm::args::{Arguments, Command, Output};
use mdm::{create, join, logging, run};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logging::start(arguments.log_format);
    match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mdm: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
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
