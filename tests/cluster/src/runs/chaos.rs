//! Random kills, pauses and cuts of real processes under three loads: `fio` with verification, registers that several clients
//! on two hosts share, and a writer that notes the longest gap. Nothing may fail, and nothing may be seen that one copy
//! could not have shown.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fio;
use crate::gaps::Writer;
use crate::registers::{Checked, Registers};
use crate::runs::faults::Fault;
use crate::runs::{HEALING, Moments, let_pass, show};
use crate::system::{Options, System, with_system};

/// How much.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Faults.
    pub faults: usize,
    /// At least so long in all.
    pub span: Duration,
}

/// Three faults.
pub const SHORT: Extent = Extent { faults: 3, span: Duration::from_secs(10) };
/// A hundred in twenty minutes.
pub const FULL: Extent = Extent { faults: 100, span: Duration::from_secs(1200) };

/// Clients of the registers.
const CLIENTS: u64 = 12;
/// How long a fault lasts.
const FAULT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(6));

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How long it took.
    pub span: Duration,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// What the registers' clients saw.
    pub checked: Checked,
    /// Requests of `fio`, all verified, and its rounds.
    pub fio: fio::Rounds,
    /// Writes of the third load.
    pub writes: u64,
    /// Its longest gap.
    pub longest_gap: Duration,
    /// The longest time to full health after a fault was undone.
    pub longest_healing: Duration,
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    let volumes = vec!["demo:64MiB", "checked:64MiB", "shared:16MiB"];
    let options = Options { sdc: 2, isolate: true, volumes, ..Options::default() };
    with_system(&options, |system| {
        system.wait_healthy(HEALING)?;
        let folder = tempfile::tempdir()?;
        let mut moments = Moments::fresh()?;
        system.scli(&["volume", "map", "shared", "--sdc", "sdc2", "--allow-multiple"])?;
        let shared = [system.nbd("shared")?, system.nbd_at("shared", "sdc2")?];
        let target = format!("ioengine=nbd\nuri={}", system.nbd("checked")?.uri);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| fio::rounds(folder.path(), &target, "64m", &stop));
            let outcome = storm(system, extent, &shared, &mut moments);
            stop.store(true, Ordering::Relaxed);
            let load = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
            Ok(Outcome { fio: load?, ..outcome? })
        })
    })
}

fn storm(
    system: &System,
    extent: &Extent,
    shared: &[crate::nbd::Address],
    moments: &mut Moments,
) -> anyhow::Result<Outcome> {
    let registers = Registers::start(shared, CLIENTS, moments.number(u64::MAX))?;
    let writer = Writer::start(&system.nbd("demo")?)?;
    let begun = Instant::now();
    let mut outcome = Outcome::default();
    for number in 0..extent.faults {
        let fault = Fault::random(moments, system)?;
        let since = Instant::now();
        fault.strike(system)?;
        let_pass(FAULT.0 + moments.below(FAULT.1 - FAULT.0));
        fault.undo(system)?;
        let healing = system.wait_healthy(HEALING)?;
        let gap = writer.longest_since(since);
        println!("{number}: {}: longest gap {}, healthy after {}", fault.name(), show(gap), show(healing));
        *outcome.faults.entry(fault.kind()).or_default() += 1;
        outcome.longest_gap = outcome.longest_gap.max(gap);
        outcome.longest_healing = outcome.longest_healing.max(healing);
        // Faults are spread over the whole span.
        let due = extent.span.mul_f64((number + 1) as f64 / extent.faults as f64);
        let_pass(due.saturating_sub(begun.elapsed()));
    }
    outcome.span = begun.elapsed();
    outcome.writes = writer.finish()?;
    outcome.checked = registers.finish()?;
    Ok(outcome)
}
