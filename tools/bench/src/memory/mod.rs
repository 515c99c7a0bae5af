//! `bench memory`: what a filled store takes of memory, and how long it takes to open it.
//!
//! The device keeps super blocks, journal and metadata in a file and makes its data up: every block of it is the same. So a
//! TiB is filled in minutes, and opened as a data server would open it, by a process of its own: once at rest, and once
//! behind a journal that is full of writes which nobody committed.

mod device;
mod filler;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use mdm_api::ids::{DeviceId, DeviceIncarnation, SystemId};
use sds_api::block::CHUNK_BYTES;
use sds_store::format::{FormatParameters, Formatter};
use sds_store::store::Options;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Format;
use crate::evidence::Evidence;
use crate::usage::resident_bytes;
use device::{Device, drive, open};
use filler::Filler;

/// Bounds of the index and of the time to open, for each TiB of data; and of the time more behind a full journal.
const INDEX_MIB: f64 = 256.0;
const OPENING_SECONDS: f64 = 10.0;
const FULL_JOURNAL_SECONDS: f64 = 5.0;

/// How much, and where.
#[derive(clap::Args)]
pub struct Arguments {
    /// Data to fill in, in GiB.
    #[arg(long, default_value_t = 1024)]
    data_gib: u64,
    /// Small writes over the filled store, after which its memory is looked at again.
    #[arg(long, default_value_t = 1 << 20)]
    overwrites: u64,
    /// A file for journal and metadata; made and removed again.
    #[arg(long, default_value = "bench-memory.device")]
    scratch: PathBuf,
    /// Writes what was measured into this document.
    #[arg(long)]
    evidence: Option<PathBuf>,
    /// Only open the device that is there, write over it, and say what it took.
    #[arg(long, hide = true)]
    reopen: bool,
}

/// What a process of its own found.
#[derive(Serialize, Deserialize)]
struct Opening {
    seconds: f64,
    /// Memory that came with the opening.
    resident_bytes: u64,
    /// The same after writing over the store and coming to rest.
    resident_bytes_after: u64,
    chunks: u64,
    /// Entries found in the journal.
    entries: usize,
    journal_bytes: u64,
    verdict: String,
}

/// `bench memory`.
pub fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    // Data, metadata, journal, and some room for what is freed later than it is taken.
    let size = (arguments.data_gib << 30) / 100 * 103 + (6 << 30);
    if arguments.reopen {
        return reopen(arguments, size);
    }
    if arguments.scratch.exists() {
        bail!("{} exists", arguments.scratch.display());
    }
    let measured = measure(arguments, size, format);
    std::fs::remove_file(&arguments.scratch).context("removing the scratch file")?;
    measured
}

fn chunks(arguments: &Arguments) -> u64 {
    (arguments.data_gib << 30) / CHUNK_BYTES as u64
}

fn measure(arguments: &Arguments, size: u64, format: Format) -> anyhow::Result<()> {
    let mut device = Device::open(&arguments.scratch, size)?;
    let mut formatter = Formatter::new(FormatParameters {
        system: SystemId(1),
        device: DeviceId(2),
        incarnation: DeviceIncarnation(3),
        size_bytes: size,
        salt: 4,
        journal_bytes: None,
        force: true,
    })?;
    let mut first = Vec::new();
    formatter.start(&mut first);
    drive(&device, first, |done, out| formatter.step(done, out))??;
    let opened = open(&mut device)?;
    let mut filler = Filler::new(device, opened.store, &opened.recovered);
    let begin = Instant::now();
    filler.fill(chunks(arguments))?;
    drop(filler);
    eprintln!("filled {} GiB in {:.0} s", arguments.data_gib, begin.elapsed().as_secs_f64());
    let clean = child(arguments, arguments.overwrites)?;
    let mut device = Device::open(&arguments.scratch, size)?;
    let opened = open(&mut device)?;
    let mut filler = Filler::new(device, opened.store, &opened.recovered);
    let begin = Instant::now();
    let entries = filler.fill_journal(chunks(arguments))?;
    drop(filler);
    eprintln!("{entries} small writes filled the journal in {:.0} s", begin.elapsed().as_secs_f64());
    let crashed = child(arguments, 0)?;
    report(arguments, &clean, &crashed, format)
}

/// Opens the device in a process of its own.
fn child(arguments: &Arguments, overwrites: u64) -> anyhow::Result<Opening> {
    let (data, overwrites) = (arguments.data_gib.to_string(), overwrites.to_string());
    let output = Command::new(std::env::current_exe()?)
        .args(["memory", "--reopen", "--data-gib", &data, "--overwrites", &overwrites, "--scratch"])
        .arg(&arguments.scratch)
        .output()?;
    if !output.status.success() {
        bail!("opening failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn reopen(arguments: &Arguments, size: u64) -> anyhow::Result<()> {
    let mut device = Device::open(&arguments.scratch, size)?;
    let before = resident_bytes();
    let begin = Instant::now();
    let opened = open(&mut device)?;
    let mut opening = Opening { seconds: begin.elapsed().as_secs_f64(), ..describe(&opened) };
    let mut filler = Filler::new(device, opened.store, &opened.recovered);
    drop(opened.recovered);
    opening.resident_bytes = resident_bytes().saturating_sub(before);
    if arguments.overwrites > 0 {
        filler.overwrite(arguments.overwrites, chunks(arguments))?;
    }
    opening.resident_bytes_after = resident_bytes().saturating_sub(before);
    println!("{}", serde_json::to_string(&opening)?);
    Ok(())
}

fn describe(opened: &sds_store::open::Opened) -> Opening {
    let space = opened.store.space();
    Opening {
        seconds: 0.0,
        resident_bytes: 0,
        resident_bytes_after: 0,
        chunks: space.records_total - space.records_free,
        entries: opened.recovered.pgs.iter().map(|pg| pg.entries.len()).sum(),
        journal_bytes: space.journal_total,
        verdict: format!("{:?}", opened.recovered.verdict),
    }
}

/// One figure and its bound.
struct Figure {
    what: String,
    bound: String,
    measured: String,
}

fn figures(arguments: &Arguments, clean: &Opening, crashed: &Opening) -> Vec<Figure> {
    let tib = arguments.data_gib as f64 / 1024.0;
    let mib = |bytes: usize| bytes as f64 / 1048576.0;
    let options = Options::default();
    let (sums, payload) = (options.checksum_cache_bytes, options.payload_cache_bytes);
    let index = (mib(clean.resident_bytes as usize) - mib(sums)).max(0.0) / tib;
    let allowed = INDEX_MIB * tib + mib(sums + payload);
    let figure = |what: String, bound: String, measured: String| Figure { what, bound, measured };
    let (opening, more) = (clean.seconds / tib, crashed.seconds - clean.seconds);
    vec![
        figure(
            format!(
                "memory of the index for each TiB, after opening: all but the checksum cache of {:.0} MiB",
                mib(sums)
            ),
            format!("{INDEX_MIB:.0} MiB"),
            format!("{index:.0} MiB"),
        ),
        figure(
            format!("memory of all after {} small writes all over it, at rest", arguments.overwrites),
            format!("{allowed:.0} MiB: the index and both caches"),
            format!("{:.0} MiB", mib(clean.resident_bytes_after as usize)),
        ),
        figure(
            "opening, for each TiB".to_owned(),
            format!("{OPENING_SECONDS:.0} s"),
            format!("{opening:.1} s ({})", clean.verdict),
        ),
        figure(
            format!(
                "more behind {:.0} MiB of journal full of {} writes",
                mib(crashed.journal_bytes as usize),
                crashed.entries
            ),
            format!("{FULL_JOURNAL_SECONDS:.0} s"),
            format!("{more:.1} s ({})", crashed.verdict),
        ),
        figure(
            format!(
                "memory of all then: index, both caches ({:.0} MiB), and {} entries that wait to be committed",
                mib(sums + payload),
                crashed.entries
            ),
            "-".to_owned(),
            format!("{:.0} MiB", mib(crashed.resident_bytes as usize)),
        ),
    ]
}

fn report(arguments: &Arguments, clean: &Opening, crashed: &Opening, format: Format) -> anyhow::Result<()> {
    let figures = figures(arguments, clean, crashed);
    let filled = format!("{} GiB of data in {} chunk layers", arguments.data_gib, clean.chunks);
    if let Some(path) = &arguments.evidence {
        let mut evidence = Evidence::begin("Memory and opening time of a filled store")?;
        evidence.text(&format!(
            "{filled}, on a device that keeps super blocks, journal and metadata in a file and makes its data up; opened by \
             processes of their own, on one thread."
        ));
        let rows =
            figures.iter().map(|figure| vec![figure.what.clone(), figure.bound.clone(), figure.measured.clone()]);
        evidence.table(&["", "at most", "measured"], rows);
        evidence.write(path)?;
    }
    if format == Format::Json {
        let all = json!({ "data_gib": arguments.data_gib, "clean": clean, "full_journal": crashed });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!("{filled}");
    for Figure { what, bound, measured } in figures {
        println!("{what}: {measured} (at most {bound})");
    }
    Ok(())
}
