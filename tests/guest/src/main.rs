//! The data client on a real kernel.
//!
//! Why it exists: whether a mounted file system outlives a restart of the daemon is decided by the kernel's nbd driver, and
//! no fake of it would tell. Debian's kernel boots in QEMU, with the data client inside; the data servers run on this
//! machine, under `dev`, where they can be killed.
//!
//! ```text
//!   this machine                                   guest (QEMU, no hardware virtualisation)
//!   ┌───────────────────────────┐                  ┌──────────────────────────────────────┐
//!   │ mdm1  sds1  sds2  sds3    │◀── user network ─│ sdc ── unix socket ── nbd.ko ── ext4  │
//!   │ this program ─────────────│── shells ───────▶│ this program: churn, stamp, fio       │
//!   └───────────────────────────┘                  └──────────────────────────────────────┘
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`initrd`] | the guest's file system, as a cpio archive |
//! | [`machine`] | QEMU, and commands typed into the guest |
//! | [`world`] | the system, the guest and the data client in it |
//! | [`steps`] | what is tested, one promise each |
//! | [`work`] | the same program inside the guest: file activity, stamped blocks, `fio` |

mod initrd;
mod machine;
mod steps;
mod work;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tests of the data client on a real kernel.
#[derive(Parser)]
#[command(name = "guest")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a guest and run the steps.
    Run {
        /// A kernel package of Debian, unpacked.
        #[arg(long)]
        kernel: PathBuf,
        /// Orderly restarts of the data client under load.
        #[arg(long, default_value_t = 1)]
        restarts: u32,
        /// SIGKILLs of the data client under load.
        #[arg(long, default_value_t = 1)]
        kills: u32,
        /// Run only the steps whose names contain this.
        #[arg(long)]
        only: Option<String>,
    },
    /// In the guest: heavy file activity in a directory until a file appears.
    Churn {
        /// Where.
        directory: PathBuf,
        /// Ends when this exists.
        #[arg(long)]
        until: PathBuf,
        /// Threads, each with a folder of its own.
        #[arg(long, default_value_t = 3)]
        threads: u32,
    },
    /// In the guest: ask the data client over its control socket; the request and the answer are JSON.
    Ask {
        /// Such as `{"request":"status"}`.
        request: String,
    },
    /// In the guest: compare what `churn` left with what it noted.
    Check {
        /// Where.
        directory: PathBuf,
    },
    /// In the guest: `fio` writes a device at random and verifies it, again and again until a file appears.
    Fio {
        /// The block device.
        device: PathBuf,
        /// Ends when this exists.
        #[arg(long)]
        until: PathBuf,
    },
    /// In the guest: write stamped blocks to a device and verify them, until a file appears.
    Stamp {
        /// The block device.
        device: PathBuf,
        /// Ends when this exists.
        #[arg(long)]
        until: PathBuf,
        /// Threads, each with a part of the device.
        #[arg(long, default_value_t = 4)]
        threads: u32,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { kernel, restarts, kills, only } => steps::run(&kernel, restarts, kills, only.as_deref()),
        Command::Ask { request } => work::ask(&request),
        Command::Churn { directory, until, threads } => work::churn::run(&directory, &until, threads),
        Command::Check { directory } => work::churn::check(&directory),
        Command::Fio { device, until } => work::fio::run(&device, &until),
        Command::Stamp { device, until, threads } => work::stamp::run(&device, &until, threads),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
