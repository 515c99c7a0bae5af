//! The holder as a program of its own; see `sdc_nbd::hold`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match sdc_nbd::hold::main(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
