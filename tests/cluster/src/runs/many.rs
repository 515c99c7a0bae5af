//! A thousand volumes mapped to one host at once: all are served, all keep what was written, all are back after a kill of
//! the data client.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::nbd::{Address, Client};
use crate::runs::memory::resident;
use crate::shell;
use crate::system::{Options, System, with_system};

/// How many.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Volumes.
    pub volumes: usize,
}

/// As many as one host is promised to have.
pub const FULL: Extent = Extent { volumes: 1000 };

/// How long opening may take, for all.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// To make and map all of them, one command after the other.
    pub making: Duration,
    /// From the last command until the last volume was served.
    pub serving: Duration,
    /// To write and read a block of each in turn.
    pub touching: Duration,
    /// From the start of a data client that had been killed until the last volume was served again.
    pub returning: Duration,
    /// Resident memory of the data client with all volumes open, before and after the kill, bytes.
    pub resident_bytes: (u64, u64),
}

fn name(index: usize) -> String {
    format!("m{index:04}")
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    let options =
        Options { mdm: 1, devices: 1, device_size: "4GiB", volumes: vec!["first:16MiB"], ..Options::default() };
    with_system(&options, |system| {
        let socket = system.nbd("first")?.socket;
        let addresses: Vec<Address> = (0..extent.volumes)
            .map(|index| Address::parse(&format!("nbd+unix:///{}?socket={}", name(index), socket.display())))
            .collect::<anyhow::Result<_>>()?;
        let mut outcome = Outcome::default();
        let since = Instant::now();
        for index in 0..extent.volumes {
            system.scli(&["volume", "add", "--name", &name(index), "--size", "16MiB"])?;
            system.scli(&["volume", "map", &name(index), "--sdc", "sdc1"])?;
        }
        outcome.making = since.elapsed();
        outcome.serving = served(&addresses)?;
        let since = Instant::now();
        for (index, address) in addresses.iter().enumerate() {
            let mut client = Client::connect(address)?;
            client.write(4096, &stamp(index))?;
            check(&mut client, index)?;
            client.close()?;
        }
        outcome.touching = since.elapsed();
        outcome.resident_bytes.0 = memory(system)?;
        system.kill("sdc1")?;
        system.start("sdc1")?;
        outcome.returning = served(&addresses)?;
        for (index, address) in addresses.iter().enumerate() {
            let mut client = Client::connect(address)?;
            check(&mut client, index)?;
            client.close()?;
        }
        outcome.resident_bytes.1 = memory(system)?;
        Ok(outcome)
    })
}

/// Waits until all are served.
fn served(addresses: &[Address]) -> anyhow::Result<Duration> {
    let since = Instant::now();
    for address in addresses {
        let patience = PATIENCE.saturating_sub(since.elapsed());
        shell::wait_until(&format!("{} is served", address.export), patience, || {
            Client::connect(address)?.close()?;
            Ok(true)
        })?;
    }
    Ok(since.elapsed())
}

fn stamp(index: usize) -> Vec<u8> {
    (index as u64).to_le_bytes().repeat(512)
}

fn check(client: &mut Client, index: usize) -> anyhow::Result<()> {
    let mut found = vec![0; 4096];
    client.read(4096, &mut found)?;
    ensure!(found == stamp(index), "{} holds what another was given", name(index));
    client.read(0, &mut found)?;
    ensure!(found.iter().all(|byte| *byte == 0), "{} holds what nobody wrote", name(index));
    Ok(())
}

fn memory(system: &System) -> anyhow::Result<u64> {
    let processes = system.processes()?;
    let pid = processes.iter().find(|(name, _)| name == "sdc1").context("no data client runs")?.1;
    resident(pid)
}
