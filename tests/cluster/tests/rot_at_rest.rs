//! What rots on a disk is found and repaired though nobody reads it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use cluster::nbd::Client;
use cluster::shell;
use cluster::system::{Options, System, with_system};

const BLOCK_BYTES: usize = 4096;
const MIB: u64 = 1 << 20;
/// Blocks that are written, 1 MiB apart so that they lie in chunks, and so in groups, of their own.
const BLOCKS: u64 = 24;
/// No journal is shorter: what lies behind it is data at home.
const JOURNAL_BYTES: u64 = 64 * MIB;
const PATIENCE: Duration = Duration::from_secs(60);

fn content(number: u64) -> Vec<u8> {
    let word = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    word.repeat(BLOCK_BYTES / word.len())
}

/// Where a block lies at home in a device, if it does.
fn home_of(device: &Path, wanted: &[u8]) -> anyhow::Result<Option<u64>> {
    let file = File::open(device)?;
    let mut part = vec![0; MIB as usize];
    let length = file.metadata()?.len();
    let mut at = JOURNAL_BYTES / MIB * MIB + MIB;
    while at < length {
        let count = file.read_at(&mut part, at)?;
        let found = part[..count].chunks_exact(BLOCK_BYTES).position(|block| block == wanted);
        if let Some(index) = found {
            return Ok(Some(at + (index * BLOCK_BYTES) as u64));
        }
        at += MIB;
    }
    Ok(None)
}

fn block_at(device: &Path, at: u64) -> anyhow::Result<Vec<u8>> {
    let mut block = vec![0; BLOCK_BYTES];
    File::open(device)?.read_exact_at(&mut block, at)?;
    Ok(block)
}

/// Restarts every server with a scrub that takes seconds, not a week.
fn hurry(system: &System, servers: &[&str]) -> anyhow::Result<()> {
    for server in servers {
        let config = system.directory().join(format!("{server}.toml"));
        let text = std::fs::read_to_string(&config).context("no configuration")?;
        std::fs::write(&config, format!("{text}scrub_period_s = 4\n"))?;
        system.kill(server)?;
        system.start(server)?;
        system.wait_healthy(PATIENCE)?;
    }
    Ok(())
}

#[test]
fn what_rots_at_rest_is_repaired_on_primaries_and_secondaries_while_nobody_reads_it() {
    let options = Options {
        mdm: 1,
        sds: 2,
        devices: 1,
        device_size: "512MiB",
        volumes: vec!["demo:32MiB"],
        ..Options::default()
    };
    with_system(&options, |system| {
        let servers = ["sds1", "sds2"];
        hurry(system, &servers)?;
        let address = system.nbd("demo")?;
        let mut client = Client::connect(&address)?;
        for number in 0..BLOCKS {
            client.write(number * MIB, &content(number))?;
        }
        client.close()?;
        // With two servers each has a copy of every block, and each leads half of the groups.
        let mut rotten: Vec<(PathBuf, u64, u64)> = Vec::new();
        for number in 0..BLOCKS {
            let server = servers[(number % 2) as usize];
            let device = system.directory().join(server).join("device1");
            let mut home = None;
            shell::wait_until("what was written is at home", PATIENCE, || {
                home = home_of(&device, &content(number))?;
                Ok(home.is_some())
            })?;
            rotten.push((device, home.context("it was just there")?, number));
        }
        for (device, at, number) in &rotten {
            let mut block = content(*number);
            block[100] ^= 0x40;
            let file = File::options().write(true).open(device)?;
            file.write_all_at(&block, *at)?;
            file.sync_all()?;
        }
        for (device, at, number) in &rotten {
            shell::wait_until("the block is right again", PATIENCE, || Ok(block_at(device, *at)? == content(*number)))
                .with_context(|| format!("block {number} of {}", device.display()))?;
        }
        let mut client = Client::connect(&address)?;
        let mut block = vec![0; BLOCK_BYTES];
        for number in 0..BLOCKS {
            client.read(number * MIB, &mut block)?;
            ensure!(block == content(number), "block {number} is not what was written");
        }
        client.close()
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
}
