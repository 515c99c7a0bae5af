//! `bench`: what a part costs beside its ceiling, measured in one run, in alternation.
//!
//! Figures of one machine at one moment say little; ratios to what the same device does bare, minutes apart on the same
//! machine, say much. So everything here measures both, in turn, and prints the ratio.

mod evidence;
mod memory;
mod store;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Measures parts of Ashlar beside their ceilings.
#[derive(Parser)]
#[command(name = "bench", version)]
struct Arguments {
    /// How to show it.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

/// How to show it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// The chunk store beside the bare device.
    Store(store::Arguments),
    /// Memory and opening time of a filled store, on a device that keeps journal and metadata and makes its data up.
    Memory(memory::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Store(options) => store::run(&options, arguments.output),
        Command::Memory(options) => memory::run(&options, arguments.output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
