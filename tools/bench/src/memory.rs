//! `bench memory`: what a filled store takes of memory, and how long it takes to open it.
//!
//! The device keeps super blocks, journal and metadata in a file and makes its data up: every block of it is the same. So a
//! TiB is filled in minutes, and opened as a data server would open it, by a process of its own.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::Bytes;
use mdm_api::epoch::{Nanos, Seq, SnapSeq, Term, Version};
use mdm_api::ids::{DeviceId, DeviceIncarnation, PgId, StoragePoolId, SystemId, VtreeId};
use sds_api::block::{BLOCK_BYTES, BlockRange, CHUNK_BYTES, ChunkId, LayerKey};
use sds_api::buf::AlignedBuf;
use sds_api::checksum::block_checksums;
use sds_api::entry::{Entry, EntryBody};
use sds_store::error::StoreError;
use sds_store::format::{FormatParameters, Formatter};
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest};
use sds_store::open::{OpenParameters, Opened, Opener};
use sds_store::request::{Answer, Event, Output, Request, Token};
use sds_store::store::{Options, Store};
use serde_json::{Value, json};

use crate::Format;
use crate::usage::resident_bytes;

const GROUPS: u64 = 64;
/// Small writes that are handed in together, so that they share frames.
const TOGETHER: u64 = 32;

/// How much, and where.
#[derive(clap::Args)]
pub struct Arguments {
    /// Data to fill in, in GiB.
    #[arg(long, default_value_t = 1024)]
    data_gib: u64,
    /// A file for journal and metadata; made and removed again.
    #[arg(long, default_value = "bench-memory.device")]
    scratch: PathBuf,
    /// Only open the device that is there, and say what it took.
    #[arg(long, hide = true)]
    reopen: bool,
}

/// A device with made-up data.
struct Device {
    file: File,
    size: u64,
    data: std::ops::Range<u64>,
    zero: Bytes,
}

impl Device {
    fn open(path: &Path, size: u64) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(size)?;
        Ok(Self { file, size, data: 0..0, zero: AlignedBuf::zeroed(CHUNK_BYTES).freeze() })
    }

    fn carry_out(&self, request: DiskRequest) -> DiskDone {
        let failed = |_| DiskError::Io;
        let result = match request.op {
            DiskOp::Read { offset, length } if self.data.contains(&offset) => Ok(self.zero.slice(..length as usize)),
            DiskOp::Read { offset, length } => {
                let mut buffer = AlignedBuf::zeroed(length as usize);
                self.file.read_exact_at(&mut buffer, offset).map(|()| buffer.freeze()).map_err(failed)
            }
            DiskOp::Write { offset, .. } if self.data.contains(&offset) => Ok(Bytes::new()),
            DiskOp::Write { offset, buffers, .. } => {
                let mut at = offset;
                let written = buffers.iter().try_for_each(|buffer| {
                    at += buffer.len() as u64;
                    self.file.write_all_at(buffer, at - buffer.len() as u64)
                });
                written.map(|()| Bytes::new()).map_err(failed)
            }
            DiskOp::Flush | DiskOp::Discard { .. } => Ok(Bytes::new()),
        };
        DiskDone { id: request.id, result }
    }
}

fn drive<T>(
    device: &Device,
    first: Vec<DiskRequest>,
    mut step: impl FnMut(DiskDone, &mut Vec<DiskRequest>) -> Option<T>,
) -> anyhow::Result<T> {
    let mut queue: VecDeque<DiskRequest> = first.into();
    let mut more = Vec::new();
    while let Some(request) = queue.pop_front() {
        if let Some(result) = step(device.carry_out(request), &mut more) {
            return Ok(result);
        }
        queue.extend(more.drain(..));
    }
    bail!("nothing is left to do, and it is not done")
}

fn open(device: &mut Device) -> anyhow::Result<Opened> {
    let mut opener = Opener::new(OpenParameters { size_bytes: device.size, ..OpenParameters::default() });
    let mut first = Vec::new();
    opener.start(&mut first)?;
    let opened = drive(device, first, |done, out| opener.step(done, out))??;
    let geometry = opened.store.super_block().geometry;
    device.data = geometry.data_offset..geometry.super_offsets[3];
    Ok(opened)
}

fn pg(chunk: u64) -> PgId {
    PgId { pool: StoragePoolId(1), index: (chunk % GROUPS) as u32 }
}

/// A store on such a device, and a primary that never waits.
struct Filler {
    device: Device,
    store: Store,
    queue: VecDeque<DiskRequest>,
    out: Vec<Output>,
    now: u64,
    token: u64,
    last: Vec<u64>,
    done: Vec<u64>,
    refused: bool,
    drained: bool,
    chunk: (Bytes, Vec<u32>),
}

impl Filler {
    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        self.now += 1_000;
        let mut out = std::mem::take(&mut self.out);
        self.store.step(Nanos(self.now), event, &mut out);
        let mut wanted = Vec::new();
        for output in out.drain(..) {
            match output {
                Output::Disk(request) => self.queue.push_back(request),
                Output::Done { result: Err(StoreError::NoJournalSpace | StoreError::NoSpace), .. } => {
                    self.refused = true
                }
                Output::Done { token, result } => {
                    if let Answer::Done = result?
                        && token == Token(0)
                    {
                        self.drained = true;
                    }
                }
                Output::WantState { pg } => wanted.push(pg),
                Output::Failed { cause } => bail!("the store failed: {cause}"),
            }
        }
        self.out = out;
        for pg in wanted {
            let through = Seq(self.done[pg.index as usize]);
            self.request(Request::SaveState { pg, through, state: Bytes::from_static(&[7; 500]) })?;
        }
        Ok(())
    }

    fn request(&mut self, request: Request) -> anyhow::Result<()> {
        self.token += 1;
        self.step(Event::Request { token: Token(self.token), request })
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        while let Some(request) = self.queue.pop_front() {
            let done = self.device.carry_out(request);
            self.step(Event::Disk(done))?;
        }
        Ok(())
    }

    /// Hands a write in. False if it was refused.
    fn write(&mut self, chunk: u64, blocks: BlockRange) -> anyhow::Result<bool> {
        let group = &mut self.last[(chunk % GROUPS) as usize];
        *group += 1;
        let seq = Seq(*group);
        let layer = LayerKey { chunk: ChunkId { vtree: VtreeId(1), index: chunk }, snap_seq: SnapSeq(0) };
        let checksums = self.chunk.1[..usize::from(blocks.count())].to_vec();
        let data = self.chunk.0.slice(..blocks.bytes());
        let body = EntryBody::Write { layer, blocks, checksums, data };
        let entry = Entry { pg: pg(chunk), version: Version { term: Term(1), seq }, identity: None, body };
        self.refused = false;
        self.request(Request::Append { entries: vec![entry] })?;
        if self.refused {
            self.last[(chunk % GROUPS) as usize] -= 1;
        }
        Ok(!self.refused)
    }

    fn fill(&mut self, chunks: u64) -> anyhow::Result<()> {
        for chunk in 0..chunks {
            while !self.write(chunk, BlockRange::WHOLE)? {
                self.now += 50_000_000;
                self.step(Event::Tick)?;
                self.settle()?;
            }
            self.settle()?;
            let group = (chunk % GROUPS) as usize;
            self.done[group] = self.last[group];
            self.request(Request::Commit { pg: pg(chunk), through: Seq(self.done[group]) })?;
        }
        self.drained = false;
        self.step(Event::Request { token: Token(0), request: Request::Checkpoint })?;
        while !self.drained {
            self.now += 50_000_000;
            self.step(Event::Tick)?;
            self.settle()?;
        }
        Ok(())
    }

    /// Small writes that are never committed, until the journal takes no more.
    fn fill_journal(&mut self, chunks: u64) -> anyhow::Result<u64> {
        let mut count = 0;
        let block = BlockRange::new(7, 1).context("one block")?;
        loop {
            for _ in 0..TOGETHER {
                if !self.write(count * 7919 % chunks, block)? {
                    self.settle()?;
                    return Ok(count);
                }
                count += 1;
            }
            self.settle()?;
        }
    }
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
    let store = open(&mut device)?.store;
    let data = device.zero.clone();
    let sums = block_checksums(&data);
    let mut filler = Filler {
        device,
        store,
        queue: VecDeque::new(),
        out: Vec::new(),
        now: 1 << 30,
        token: 0,
        last: vec![0; GROUPS as usize],
        done: vec![0; GROUPS as usize],
        refused: false,
        drained: false,
        chunk: (data, sums),
    };
    let chunks = (arguments.data_gib << 30) / CHUNK_BYTES as u64;
    let begin = Instant::now();
    filler.fill(chunks)?;
    eprintln!("filled {chunks} chunks in {:.0} s", begin.elapsed().as_secs_f64());
    let clean = child(arguments)?;
    // The child's opening counts as one; this store's frames would be refused behind it.
    filler.store = open(&mut filler.device)?.store;
    let entries = filler.fill_journal(chunks)?;
    eprintln!("{entries} small writes fill the journal");
    let crashed = child(arguments)?;
    report(arguments.data_gib, &clean, &crashed, format)
}

/// Opens the device in a process of its own.
fn child(arguments: &Arguments) -> anyhow::Result<Value> {
    let output = Command::new(std::env::current_exe()?)
        .args(["memory", "--reopen", "--data-gib", &arguments.data_gib.to_string(), "--scratch"])
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
    let seconds = begin.elapsed().as_secs_f64();
    let verdict = format!("{:?}", opened.recovered.verdict);
    let entries: usize = opened.recovered.pgs.iter().map(|pg| pg.entries.len()).sum();
    drop(opened.recovered);
    let space = opened.store.space();
    let value = json!({
        "seconds": seconds,
        "resident_bytes": resident_bytes().saturating_sub(before),
        "chunks": space.records_total - space.records_free,
        "entries": entries,
        "verdict": verdict,
        "block_bytes": BLOCK_BYTES,
    });
    println!("{value}");
    Ok(())
}

fn report(data_gib: u64, clean: &Value, crashed: &Value, format: Format) -> anyhow::Result<()> {
    let cache = Options::default().checksum_cache_bytes as f64;
    let resident = clean["resident_bytes"].as_f64().unwrap_or_default();
    let index = (resident - cache).max(0.0) / (1 << 20) as f64 / data_gib as f64 * 1024.0;
    let seconds = |value: &Value| value["seconds"].as_f64().unwrap_or_default();
    let per_tib = seconds(clean) / data_gib as f64 * 1024.0;
    let more = seconds(crashed) - seconds(clean);
    if format == Format::Json {
        let all = json!({
            "data_gib": data_gib,
            "clean": clean,
            "full_journal": crashed,
            "index_mib_per_tib": index,
            "opening_seconds_per_tib": per_tib,
            "full_journal_seconds_more": more,
        });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!("{data_gib} GiB of data, {} chunk layers", clean["chunks"]);
    println!(
        "index             {index:.0} MiB for each TiB of data (all but the checksum cache of {:.0} MiB)",
        cache / 1048576.0
    );
    println!("opening           {:.1} s, {per_tib:.1} s for each TiB; {}", seconds(clean), clean["verdict"]);
    println!("with full journal {more:.1} s more, {} entries; {}", crashed["entries"], crashed["verdict"]);
    Ok(())
}
