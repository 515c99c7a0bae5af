//! The command line, made from the table of verbs.

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use mdm_api::verbs::{self, Kind, VERBS, Values, Verb};

use crate::ask::{self, Asked};
use crate::output::{self, Format};
use crate::session::{self, Session};

/// Runs one command line.
pub async fn run(arguments: Vec<String>) -> anyhow::Result<()> {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return wrong_line(&error),
    };
    let format = match matches.get_one::<String>("output").map(String::as_str) {
        Some("json") => Format::Json,
        _ => Format::Table,
    };
    match matches.subcommand() {
        Some(("login", sub)) => login(&matches, sub, format).await,
        Some(("logout", _)) => session::forget(&matches),
        Some(("completion", sub)) => {
            let shell = *sub.get_one::<clap_complete::Shell>("shell").context("name a shell")?;
            clap_complete::generate(shell, &mut command(), "scli", &mut std::io::stdout());
            Ok(())
        }
        Some(("man", sub)) => man(sub),
        Some((noun, sub)) => {
            let (name, given) = sub.subcommand().context("name a verb")?;
            let verb = verbs::find(noun, name).context("the table of verbs has no such entry")?;
            let values = values(verb, given);
            values.check(verb)?;
            let session = Session::open(&matches)?;
            let asked = ask::perform(&session, verb, &values).await?;
            show(asked, format)
        }
        None => bail!("name what to do: see 'scli --help'"),
    }
}

/// Help and version are printed as they are; a wrong line gets one line, as everything else that is refused.
fn wrong_line(error: &clap::Error) -> anyhow::Result<()> {
    if !error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.to_string();
    let first: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let what = first.join(" ");
    eprintln!("scli: {}: see 'scli --help'", what.trim_start_matches("error: "));
    std::process::exit(2);
}

fn show(asked: Asked, format: Format) -> anyhow::Result<()> {
    match asked {
        Asked::Rows { rows, single } => output::print_rows(&rows, single, format),
        Asked::Said { text, fields } => output::print_said(&text, &fields, format),
    }
}

async fn login(matches: &ArgMatches, sub: &ArgMatches, format: Format) -> anyhow::Result<()> {
    let user = sub.get_one::<String>("username").cloned().unwrap_or_else(|| "admin".to_owned());
    let password = match sub.get_one::<String>("password-file") {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim_end().to_owned()
        }
        None => match std::env::var("ASHLAR_PASSWORD") {
            Ok(password) => password,
            Err(_) => session::read_password(&format!("Password of {user}: "))?,
        },
    };
    let role = session::login(matches, &user, &password).await?;
    output::print_said(&format!("Logged in as {user} with role {role:?}."), &[("user", user.clone())], format)
}

fn man(sub: &ArgMatches) -> anyhow::Result<()> {
    let directory = sub.get_one::<String>("directory").context("name a directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {directory}"))?;
    clap_mangen::generate_to(command(), directory).with_context(|| format!("cannot write into {directory}"))
}

/// Values of a verb's arguments from what clap parsed.
fn values(verb: &Verb, matches: &ArgMatches) -> Values {
    let mut values = Values::default();
    for argument in verb.arguments {
        if argument.kind == Kind::Flag {
            if matches.get_flag(argument.name) {
                values.set(argument.name, "true".to_owned());
            }
        } else if let Some(given) = matches.get_many::<String>(argument.name) {
            given.for_each(|value| values.set(argument.name, value.clone()));
        }
    }
    values
}

/// The whole command, for parsing, help, completion and man pages.
pub fn command() -> Command {
    let mut command = Command::new("scli")
        .about("Administers an Ashlar system")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "ScaleIO's classic spellings work too: scli --query_all_volumes, scli --add_volume ..; see docs/scli.md.",
        )
        .arg(
            Arg::new("mdm")
                .long("mdm")
                .global(true)
                .env("ASHLAR_MDM")
                .value_delimiter(',')
                .help("Addresses of metadata managers, host:port; remembered by login"),
        )
        .arg(
            Arg::new("ca")
                .long("ca")
                .global(true)
                .env("ASHLAR_CA")
                .help("File with the system's certificate authority, authority.pem of any MDM; remembered by login"),
        )
        .arg(
            Arg::new("session")
                .long("session")
                .global(true)
                .env("ASHLAR_SESSION")
                .help("File that keeps the session; default ~/.ashlar/session.json"),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .global(true)
                .value_parser(["table", "json"])
                .default_value("table")
                .help("How to show answers"),
        )
        .subcommand(
            Command::new("login")
                .about("Log in; later commands use the session")
                .arg(Arg::new("username").long("username").short('u').help("Account; default admin"))
                .arg(Arg::new("password-file").long("password-file").help(
                    "File with the password; without it the variable ASHLAR_PASSWORD is taken, else it is asked for",
                )),
        )
        .subcommand(Command::new("logout").about("Forget the session"))
        .subcommand(
            Command::new("completion")
                .about("Print a shell's completion script")
                .arg(Arg::new("shell").required(true).value_parser(clap::value_parser!(clap_complete::Shell))),
        )
        .subcommand(
            Command::new("man").about("Write the man pages into a directory").arg(Arg::new("directory").required(true)),
        );
    for (noun, about) in verbs::nouns() {
        let mut group = Command::new(noun).about(about).subcommand_required(true).arg_required_else_help(true);
        for verb in VERBS.iter().filter(|verb| verb.noun == noun) {
            group = group.subcommand(verb_command(verb));
        }
        command = command.subcommand(group);
    }
    command
}

fn verb_command(verb: &'static Verb) -> Command {
    let errors: Vec<String> = verb.errors.iter().map(|code| format!("{code:?} ({})", code.number())).collect();
    let mut after = format!("Needs the role {:?}.", verb.role);
    if !errors.is_empty() {
        after.push_str(&format!(" Refusals of its own: {}.", errors.join(", ")));
    }
    let mut command = Command::new(verb.verb).about(verb.about).visible_aliases(verb.aliases).after_help(after);
    for argument in verb.arguments {
        let mut arg = Arg::new(argument.name).help(argument.help).required(argument.required);
        if !argument.positional {
            arg = arg.long(argument.name);
        }
        arg = match argument.kind {
            Kind::Flag => arg.action(ArgAction::SetTrue),
            Kind::Choice(words) => arg.value_parser(words.to_vec()),
            _ if argument.repeated => arg.action(ArgAction::Append),
            _ => arg,
        };
        command = command.arg(arg);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_verb_is_parsed_into_its_values() {
        let line = ["scli", "volume", "map", "v1", "--sdc", "host1", "--access", "read-only", "--allow-multiple"];
        let matches = command().get_matches_from(line);
        let (noun, sub) = matches.subcommand().unwrap();
        let (name, given) = sub.subcommand().unwrap();
        let values = values(verbs::find(noun, name).unwrap(), given);
        assert_eq!((values.text("volume"), values.text("access")), ("v1".to_owned(), "read-only".to_owned()));
        assert!(values.flag("allow-multiple"));
    }

    #[test]
    fn a_wrong_flag_is_refused() {
        assert!(command().try_get_matches_from(["scli", "volume", "list", "--sizes"]).is_err());
        assert!(command().try_get_matches_from(["scli", "volume", "add", "--name", "x"]).is_err());
    }
}
