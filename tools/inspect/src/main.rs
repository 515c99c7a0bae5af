//! `inspect`: an offline look at devices. Never writes.
//!
//! The store's own recovery runs on the device with everything that it would write kept in memory, so what is shown is what
//! a data server would find.

mod compare;
mod image;
mod show;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// An offline look at Ashlar devices. Never writes.
#[derive(Parser)]
#[command(name = "inspect", version)]
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
    /// The four copies of the super block.
    Superblock {
        /// The device.
        device: PathBuf,
    },
    /// The journal, frame by frame.
    Journal {
        /// The device.
        device: PathBuf,
    },
    /// What recovery finds: verdict, placement groups, entries that are not applied.
    Verdict {
        /// The device.
        device: PathBuf,
    },
    /// Space: units, records, journal.
    Space {
        /// The device.
        device: PathBuf,
    },
    /// The chunks on a device, with their versions; or one chunk, block by block.
    Chunks {
        /// The device.
        device: PathBuf,
        /// Only this V-Tree.
        #[arg(long)]
        vtree: Option<mdm_api::ids::VtreeId>,
        /// Only this chunk of it.
        #[arg(long, requires = "vtree")]
        chunk: Option<u64>,
    },
    /// Read everything and check every checksum.
    Verify {
        /// The device.
        device: PathBuf,
    },
    /// Compare the copies on several devices of one system that has come to rest: every chunk must be alike wherever it is.
    Compare {
        /// The devices.
        #[arg(required = true, num_args = 2..)]
        devices: Vec<PathBuf>,
        /// How many copies every chunk must have.
        #[arg(long, default_value_t = 2)]
        copies: usize,
    },
}

/// Prints a line. A reader that has seen enough (`| head`) is no failure.
fn say(text: &str) -> std::io::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = arguments.output;
    let result = match arguments.command {
        Command::Superblock { device } => show::superblock(&device, format),
        Command::Journal { device } => show::journal(&device, format),
        Command::Verdict { device } => show::verdict(&device, format),
        Command::Space { device } => show::space(&device, format),
        Command::Chunks { device, vtree, chunk } => show::chunks(&device, vtree, chunk, format),
        Command::Verify { device } => show::verify(&device, format),
        Command::Compare { devices, copies } => compare::compare(&devices, copies, format),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("inspect: {error:#}");
            ExitCode::FAILURE
        }
    }
}
