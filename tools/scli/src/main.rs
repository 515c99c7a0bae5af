//! `scli`: the administrator's command.
//!
//! Verbs come from the one table in `mdm_api::verbs`; this program adds how they are typed, asked and shown. ScaleIO's
//! classic spellings (`scli --query_all_volumes`) are synonyms for the same verbs, with the output that scripts know.

mod args;
mod ask;
mod classic;
mod output;
mod rows;
mod session;

use std::process::ExitCode;

/// Exit code of a refusal in the modern spelling.
const EXIT_REFUSED: u8 = 1;
/// Exit code of wrong usage, as clap's.
const EXIT_USAGE: u8 = 2;
/// Exit code of a refusal by the MDM in the classic spelling; scripts test it.
const EXIT_CLASSIC_REFUSED: u8 = 7;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("scli: cannot start: {error}");
            return ExitCode::from(EXIT_REFUSED);
        }
    };
    if classic::is_classic(&arguments) {
        return match runtime.block_on(classic::run(&arguments[1..])) {
            Ok(()) => ExitCode::SUCCESS,
            Err(classic::Failure::Usage(text)) => {
                eprintln!("Error: {text}");
                ExitCode::from(EXIT_USAGE)
            }
            Err(classic::Failure::Refused(text)) => {
                eprintln!("Error: MDM failed command.  Status: {text}");
                ExitCode::from(EXIT_CLASSIC_REFUSED)
            }
            Err(classic::Failure::Unreachable(text)) => {
                eprintln!("Error: Failed to connect to MDM: {text}");
                ExitCode::from(EXIT_REFUSED)
            }
        };
    }
    match runtime.block_on(args::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scli: {error:#}");
            ExitCode::from(EXIT_REFUSED)
        }
    }
}
