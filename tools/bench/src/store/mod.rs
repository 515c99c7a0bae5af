//! `bench store`: the chunk store of one device beside the bare device.
//!
//! The device is written through once, so that neither side meets unwritten extents; its end is kept for the bare side, the
//! rest is formatted. Both go through the same engine of `sds-disk` from one thread, cell by cell, one after the other.
//! Every write counts only when it is durable, on both sides.

mod cell;
mod raw;
mod report;
mod rig;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use sds_api::buf::AlignedBuf;
use sds_disk::{Device, EngineChoice, OpenOptions, create_file, open};
use sds_store::io::{DiskDone, DiskOp, DiskRequest, IoClass, OpId};

use crate::Format;
use crate::usage::CallCounter;
use cell::{Cell, Measured, Round, Stop};
use rig::Rig;

/// Bytes at the end of the device for the bare side.
const RAW_BYTES: u64 = 1 << 30;

/// What to measure, and where.
#[derive(clap::Args)]
pub struct Arguments {
    /// A block device, or a file. A file that does not exist is made and removed again.
    #[arg(long, default_value = "bench-store.device")]
    device: PathBuf,
    /// Everything on an existing device may be destroyed.
    #[arg(long)]
    destroy: bool,
    /// Size of a file that is made, in MiB.
    #[arg(long, default_value_t = 5120)]
    size_mib: u64,
    /// Data written beforehand, over which reads and overwrites go, in MiB. The bare side has 1024: with more, one side may
    /// find less of it in caches on the way.
    #[arg(long, default_value_t = 1024)]
    data_mib: u64,
    /// Bytes of the journal, in MiB; as for any device of the size if it is not given.
    #[arg(long)]
    journal_mib: Option<u64>,
    /// Seconds for each side of a cell.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Seconds of the sustained cell.
    #[arg(long, default_value_t = 60)]
    sustained_seconds: u64,
    /// How often both sides take turns in a cell; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only cells whose name contains this, or one of these.
    #[arg(long)]
    only: Vec<String>,
    /// The engine.
    #[arg(long, value_enum, default_value_t = Engine::Automatic)]
    engine: Engine,
    /// Count system calls by strace, in a run of their own.
    #[arg(long)]
    calls: bool,
    /// Writes what was measured into this document.
    #[arg(long)]
    evidence: Option<PathBuf>,
}

/// Engines of `sds-disk`.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// What a data server takes.
    Automatic,
    /// tokio-uring.
    Uring,
    /// A ring of our own.
    Ring,
    /// Threads.
    Blocking,
}

impl From<Engine> for EngineChoice {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Automatic => Self::Automatic,
            Engine::Uring => Self::Uring,
            Engine::Ring => Self::Ring,
            Engine::Blocking => Self::Blocking,
        }
    }
}

/// The open device, and what comes back from it.
pub struct Disk {
    pub device: Arc<dyn Device>,
    answers: Receiver<Vec<DiskDone>>,
    next: u64,
}

impl Disk {
    fn open(path: &Path, engine: Engine) -> anyhow::Result<Self> {
        let (sender, answers) = channel();
        let sender = Mutex::new(sender);
        // Fails only when nobody listens any more.
        let sink = move |done| drop(sender.lock().unwrap_or_else(PoisonError::into_inner).send(done));
        let options = OpenOptions { engine: engine.into(), ..OpenOptions::default() };
        Ok(Self { device: open(path, options, Arc::new(sink))?, answers, next: 1 << 62 })
    }

    /// Hands operations over.
    pub fn submit(&self, batch: Vec<DiskRequest>) -> anyhow::Result<()> {
        Ok(self.device.submit(batch)?)
    }

    /// Everything that has come back; waits for something, at most so long.
    pub fn wait(&self, most: Duration) -> Vec<DiskDone> {
        let mut done = self.answers.recv_timeout(most).unwrap_or_default();
        done.extend(self.answers.try_iter().flatten());
        done
    }

    /// An operation of the bare side, with an id that no store uses.
    pub fn request(&mut self, op: DiskOp) -> DiskRequest {
        self.next += 1;
        DiskRequest { id: OpId(self.next), class: IoClass::Foreground, op }
    }

    /// Writes the whole device once.
    fn write_through(&mut self) -> anyhow::Result<()> {
        let size = self.device.geometry().size;
        let piece = AlignedBuf::copy_of(&vec![0x5a; 4 << 20]).freeze();
        let (mut at, mut in_flight) = (0, 0);
        while at < size || in_flight > 0 {
            while at < size && in_flight < 8 {
                let length = (piece.len() as u64).min(size - at);
                let buffers = vec![piece.slice(..length as usize)];
                let request = self.request(DiskOp::Write { offset: at, buffers, durable: false });
                self.submit(vec![request])?;
                at += length;
                in_flight += 1;
            }
            for done in self.wait(Duration::from_secs(10)) {
                done.result?;
                in_flight -= 1;
            }
        }
        let request = self.request(DiskOp::Flush);
        self.submit(vec![request])?;
        for done in self.wait(Duration::from_secs(60)) {
            done.result?;
        }
        Ok(())
    }
}

/// `bench store`.
pub fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let made = !arguments.device.exists();
    if made {
        create_file(&arguments.device, arguments.size_mib << 20)?;
    } else if !arguments.destroy {
        anyhow::bail!("{} exists; --destroy says that it may be destroyed", arguments.device.display());
    }
    let measured = measure(arguments, format);
    if made {
        std::fs::remove_file(&arguments.device).context("removing the device file")?;
    }
    measured
}

fn measure(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let mut disk = Disk::open(&arguments.device, arguments.engine)?;
    let size = disk.device.geometry().size;
    let store_bytes = size.saturating_sub(RAW_BYTES);
    eprintln!("writing {} MiB through", size >> 20);
    disk.write_through()?;
    let engine = disk.device.engine();
    let mut rig = Rig::new(disk, store_bytes, arguments.journal_mib.map(|mib| mib << 20))?;
    let chunks = arguments.data_mib.max(1);
    eprintln!("filling {chunks} MiB of the store");
    rig.fill(chunks)?;
    let mut rows = Vec::new();
    for cell in cell::all(arguments.seconds, arguments.sustained_seconds) {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| cell.name.contains(only.as_str())) {
            continue;
        }
        eprintln!("{}", cell.name);
        let rounds = if cell.is_long { 1 } else { arguments.rounds };
        let mut both = Vec::new();
        for _ in 0..rounds {
            let raw = raw::run(&mut rig.disk, store_bytes, &cell)?;
            both.push((raw, one(&mut rig, &cell)?));
        }
        let calls = if arguments.calls { calls(&mut rig, &cell)? } else { None };
        rows.push(Measured::of(cell, &both, calls));
    }
    let device = format!("engine {engine}, {}", rig.disk.device.geometry());
    report::show(&rows, &device, format)?;
    if let Some(path) = &arguments.evidence {
        report::document(&rows, &device, path)?;
    }
    rig.close()
}

/// The store's side of a cell, from rest to rest.
fn one(rig: &mut Rig, cell: &Cell) -> anyhow::Result<Round> {
    rig.drain()?;
    let before = rig.disk.device.statistics().written_bytes;
    let mut round = rig.run(cell, cell.stop)?;
    let user = round.written_bytes.max(1) as f64;
    let written = rig.disk.device.statistics().written_bytes - before;
    rig.drain()?;
    let applied = rig.disk.device.statistics().written_bytes - before;
    if round.written_bytes > 0 {
        (round.device_bytes, round.device_bytes_applied) = (written as f64 / user, applied as f64 / user);
    }
    Ok(round)
}

/// System calls for each operation of both sides: bare, store. Under strace everything is slower, but it calls as often.
fn calls(rig: &mut Rig, cell: &Cell) -> anyhow::Result<Option<(f64, f64)>> {
    let short = Stop::After(Duration::from_secs(1));
    let Some(counter) = CallCounter::attach() else { return Ok(None) };
    let raw = raw::run(&mut rig.disk, rig.store_bytes, &Cell { stop: short, ..cell.clone() });
    let raw_calls = counter.count();
    let raw = raw?;
    rig.drain()?;
    let Some(counter) = CallCounter::attach() else { return Ok(None) };
    let round = rig.run(cell, short);
    let store_calls = counter.count();
    let round = round?;
    let per = |calls: Option<u64>, round: &Round| Some(calls? as f64 / round.operations.max(1) as f64);
    Ok(per(raw_calls, &raw).zip(per(store_calls, &round)))
}
