//! Somebody else's verification: `fio` writes every block of a device in random order past the page cache, each with a
//! checksum in it, then reads and verifies all, again and again. Prints how often, and the longest request of all rounds.

use std::path::Path;
use std::process::Command;

use cluster::fio::{Rounds, report};

/// Requests that are under way at a time.
const DEPTH: u32 = 8;

/// Works until the file `until` exists, and ends with a whole round.
pub fn run(device: &Path, until: &Path) -> anyhow::Result<()> {
    let mut outcome = Rounds::default();
    println!("begun");
    while !until.exists() || outcome.rounds == 0 {
        let mut command = Command::new("fio");
        command.args(["--name=verify", "--ioengine=libaio", "--direct=1", "--thread", "--rw=randwrite"]);
        command.args(["--bsrange=4k-64k", "--blockalign=4k", "--verify=crc32c", "--verify_fatal=1"]);
        command.args(["--verify_state_save=0", "--randrepeat=0", "--output-format=json"]);
        command.arg(format!("--iodepth={DEPTH}")).arg(format!("--filename={}", device.display()));
        outcome.take(&report(&mut command)?)?;
    }
    println!("rounds {}", outcome.rounds);
    println!("requests {}", outcome.requests);
    println!("longest-request-ms {}", outcome.longest.as_millis());
    Ok(())
}
