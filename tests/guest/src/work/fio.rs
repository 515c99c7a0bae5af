//! Somebody else's verification: `fio` writes every block of a device in random order past the page cache, each with a
//! checksum in it, then reads and verifies all, again and again. Prints how often, and the longest request of all rounds.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

/// Requests that are under way at a time.
const DEPTH: u32 = 8;

/// Works until the file `until` exists, and ends with a whole round.
pub fn run(device: &Path, until: &Path) -> anyhow::Result<()> {
    let (mut rounds, mut requests, mut longest_ms) = (0_u64, 0_u64, 0_u64);
    println!("begun");
    while !until.exists() || rounds == 0 {
        let mut command = Command::new("fio");
        command.args(["--name=verify", "--ioengine=libaio", "--direct=1", "--thread", "--rw=randwrite"]);
        command.args(["--bsrange=4k-64k", "--blockalign=4k", "--verify=crc32c", "--verify_fatal=1"]);
        command.args(["--verify_state_save=0", "--randrepeat=0", "--output-format=json"]);
        command.arg(format!("--iodepth={DEPTH}")).arg(format!("--filename={}", device.display()));
        let output = command.stdin(Stdio::null()).output().context("cannot run fio")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("fio: {}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        let json = text.get(text.find('{').unwrap_or_default()..).unwrap_or_default();
        let report: Value = serde_json::from_str(json).with_context(|| format!("fio's report is no JSON: {text}"))?;
        let job = &report["jobs"][0];
        if job["error"] != 0 {
            bail!("fio says error {}: {text}", job["error"]);
        }
        for way in ["write", "read"] {
            let count = job[way]["total_ios"].as_u64().with_context(|| format!("no count of {way}s in {text}"))?;
            if count == 0 {
                bail!("fio made no {way}s: {text}");
            }
            requests += count;
            longest_ms = longest_ms.max(job[way]["clat_ns"]["max"].as_u64().unwrap_or_default() / 1_000_000);
        }
        rounds += 1;
    }
    println!("rounds {rounds}");
    println!("requests {requests}");
    println!("longest-request-ms {longest_ms}");
    Ok(())
}
