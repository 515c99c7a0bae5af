//! The store's side: a store on the device, and what a primary would do with it.
//!
//! Requests name blocks of one V-Tree whose chunks belong to 32 placement groups in turn. Every write is one entry, committed
//! as soon as it is durable, as if the other copies were always faster. States are saved when the store asks for them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use bytes::Bytes;
use mdm_api::epoch::{AttachGeneration, Nanos, RequestNumber, Seq, SnapSeq, Term, Version};
use mdm_api::ids::{DeviceId, DeviceIncarnation, PgId, SdcId, StoragePoolId, SystemId, VolumeId, VtreeId};
use sds_api::block::{AU_BYTES, BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, CHUNK_BYTES, ChunkId, LayerKey};
use sds_api::buf::AlignedBuf;
use sds_api::checksum::block_checksums;
use sds_api::entry::{Entry, EntryBody, WriteIdentity};
use sds_store::error::StoreError;
use sds_store::format::{FormatParameters, Formatter};
use sds_store::io::DiskRequest;
use sds_store::open::{OpenParameters, Opened, Opener};
use sds_store::request::{Answer, Event, Output, PieceContent, Request, Token};
use sds_store::store::Store;

use super::Disk;
use super::cell::{Cell, Kind, Latencies, Place, Random, Round, Stop};
use crate::usage;

const GROUPS: u64 = 32;
const TICK: Duration = Duration::from_millis(10);
/// Chunks from here on have never been written when a cell begins.
const FRESH_FROM: u64 = 1 << 32;
/// A state as long as that of a group with some clients.
const STATE_BYTES: usize = 1000;

/// What waits for an answer.
enum Waiting {
    Write { pg: u64, seq: Seq, since: Instant },
    Read { since: Instant },
    Other,
}

/// One group as its primary sees it.
#[derive(Clone, Copy, Default)]
struct Group {
    last: u64,
    done: u64,
}

/// A store, its device, and requests under way.
pub struct Rig {
    pub disk: Disk,
    pub store_bytes: u64,
    store: Store,
    journal_bytes: u64,
    begin: Instant,
    groups: Vec<Group>,
    next_token: u64,
    waiting: BTreeMap<Token, Waiting>,
    batch: Vec<DiskRequest>,
    outputs: Vec<Output>,
    /// Chunks with data.
    filled: u64,
    /// The next chunk never written.
    fresh: u64,
    /// What is written, one for each length.
    pieces: BTreeMap<usize, (Bytes, Vec<u32>)>,
    latencies: Latencies,
    round: Round,
}

fn drive<T>(
    disk: &Disk,
    mut batch: Vec<DiskRequest>,
    mut step: impl FnMut(sds_store::io::DiskDone, &mut Vec<DiskRequest>) -> Option<T>,
) -> anyhow::Result<T> {
    loop {
        disk.submit(std::mem::take(&mut batch))?;
        for done in disk.wait(Duration::from_secs(30)) {
            if let Some(result) = step(done, &mut batch) {
                return Ok(result);
            }
        }
    }
}

impl Rig {
    /// Formats the first bytes of the device and opens them.
    pub fn new(disk: Disk, store_bytes: u64, journal_bytes: Option<u64>) -> anyhow::Result<Self> {
        let (system, device, incarnation) = (SystemId(1), DeviceId(2), DeviceIncarnation(3));
        let mut formatter = Formatter::new(FormatParameters {
            system,
            device,
            incarnation,
            size_bytes: store_bytes,
            salt: 0x5eed,
            journal_bytes,
            force: true,
        })?;
        let mut batch = Vec::new();
        formatter.start(&mut batch);
        let geometry = drive(&disk, batch, |done, out| formatter.step(done, out))??;
        let mut opener = Opener::new(OpenParameters { size_bytes: store_bytes, ..OpenParameters::default() });
        let mut batch = Vec::new();
        opener.start(&mut batch)?;
        let Opened { store, .. } = drive(&disk, batch, |done, out| opener.step(done, out))??;
        let rig = Self {
            disk,
            store_bytes,
            store,
            journal_bytes: geometry.journal_bytes,
            begin: Instant::now(),
            groups: vec![Group::default(); GROUPS as usize],
            next_token: 0,
            waiting: BTreeMap::new(),
            batch: Vec::new(),
            outputs: Vec::new(),
            filled: 0,
            fresh: FRESH_FROM,
            pieces: BTreeMap::new(),
            latencies: Latencies::default(),
            round: Round::default(),
        };
        Ok(rig)
    }

    /// Writes so many chunks once.
    pub fn fill(&mut self, chunks: u64) -> anyhow::Result<()> {
        let mut next = 0;
        while next < chunks || !self.waiting.is_empty() {
            while next < chunks && self.waiting.len() < 8 && self.write(next, 0, CHUNK_BYTES)? {
                next += 1;
            }
            self.turn()?;
        }
        self.filled = chunks;
        self.drain()
    }

    /// Waits until everything is applied.
    pub fn drain(&mut self) -> anyhow::Result<()> {
        self.request(Request::Checkpoint, Waiting::Other)?;
        while !self.waiting.is_empty() {
            self.turn()?;
        }
        // What freed units waits for is behind one more checkpoint.
        for _ in 0..3 {
            self.request(Request::Checkpoint, Waiting::Other)?;
            while !self.waiting.is_empty() {
                self.turn()?;
            }
        }
        Ok(())
    }

    /// Ends.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.drain()?;
        Ok(self.disk.device.close()?)
    }

    /// Runs a cell.
    pub fn run(&mut self, cell: &Cell, stop: Stop) -> anyhow::Result<Round> {
        (self.round, self.latencies) = (Round::default(), Latencies::default());
        let mut random = Random(11);
        let mut next = 0;
        let fresh = self.fresh;
        let cpu = usage::cpu_ns();
        let begin = Instant::now();
        loop {
            let goes_on = match stop {
                // What is written for the first time ends where the device is full, however fast that was.
                Stop::After(time) => begin.elapsed() < time && !(cell.is_fresh() && self.is_nearly_full(cell)),
                Stop::PartOfJournal(part) => self.round.written_bytes < self.journal_bytes / part,
            };
            while goes_on && self.waiting.len() < cell.depth {
                let (chunk, block) = self.place(cell, &mut random, &mut next, fresh);
                let is_read = match cell.kind {
                    Kind::Read => true,
                    Kind::Write => false,
                    Kind::Mixed(reads) => random.below(100) < reads,
                };
                if is_read {
                    self.read(chunk, block, cell.bytes)?;
                } else if !self.write(chunk, block, cell.bytes)? {
                    break;
                }
            }
            if !goes_on && self.waiting.is_empty() {
                break;
            }
            self.turn()?;
        }
        let mut round = std::mem::take(&mut self.round);
        round.seconds = begin.elapsed().as_secs_f64();
        round.cpu_ns = usage::cpu_ns().saturating_sub(cpu);
        (round.p50_us, round.p99_us) = (self.latencies.at(500), self.latencies.at(990));
        round.resident_bytes = usage::resident_bytes();
        if cell.is_fresh() {
            self.remove_fresh(fresh)?;
        }
        Ok(round)
    }

    fn place(&mut self, cell: &Cell, random: &mut Random, next: &mut u64, fresh: u64) -> (u64, u16) {
        let in_chunk = (CHUNK_BYTES / cell.bytes) as u64;
        let blocks = (cell.bytes / BLOCK_BYTES) as u64;
        let at = *next;
        *next += 1;
        let (chunk, piece) = match cell.place {
            Place::Random => (random.below(self.filled), random.below(in_chunk)),
            Place::Hot(count) => {
                let at = random.below(count);
                (at / in_chunk % self.filled, at % in_chunk)
            }
            Place::Sequential => (at / in_chunk % self.filled, at % in_chunk),
            Place::FreshSequential => (fresh + at / in_chunk, at % in_chunk),
            // Every block once, spread over the units of its chunk.
            Place::Fresh => (fresh + at / in_chunk, at * 97 % in_chunk),
        };
        self.fresh = self.fresh.max(chunk + 1);
        (chunk, (piece * blocks) as u16)
    }

    /// What a cell has written for the first time goes again.
    fn remove_fresh(&mut self, from: u64) -> anyhow::Result<()> {
        self.drain()?;
        let chunks: Vec<u64> = (from..self.fresh).collect();
        for group in 0..GROUPS {
            let of_group: Vec<LayerKey> = chunks.iter().filter(|c| **c % GROUPS == group).map(|c| layer(*c)).collect();
            for layers in of_group.chunks(1000) {
                let request = Request::RemoveLayers { pg: pg(group), layers: layers.to_vec() };
                self.request(request, Waiting::Other)?;
                while !self.waiting.is_empty() {
                    self.turn()?;
                }
            }
        }
        self.drain()
    }

    fn now(&self) -> Nanos {
        Nanos(self.begin.elapsed().as_nanos() as u64)
    }

    fn request(&mut self, request: Request, waiting: Waiting) -> anyhow::Result<()> {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.waiting.insert(token, waiting);
        self.step(Event::Request { token, request })
    }

    fn read(&mut self, chunk: u64, block: u16, bytes: usize) -> anyhow::Result<()> {
        let blocks = range(block, bytes)?;
        self.request(Request::Read { layer: layer(chunk), blocks }, Waiting::Read { since: Instant::now() })
    }

    /// Room for no more than what may be under way, and as much again.
    fn is_nearly_full(&self, cell: &Cell) -> bool {
        let space = self.store.space();
        let under_way = (2 * cell.depth * cell.bytes.div_ceil(AU_BYTES)) as u64;
        space.aus_free < under_way.max(64) || space.records_free < under_way
    }

    /// False if there is no room at the moment.
    fn write(&mut self, chunk: u64, block: u16, bytes: usize) -> anyhow::Result<bool> {
        let space = self.store.space();
        if space.journal_free < (bytes + 4 * BLOCK_BYTES) as u64 || space.aus_free < 32 || space.records_free < 2 {
            return Ok(false);
        }
        let blocks = range(block, bytes)?;
        let (data, checksums) = self
            .pieces
            .entry(bytes)
            .or_insert_with(|| {
                let data: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8).collect();
                let data = AlignedBuf::copy_of(&data).freeze();
                let sums = block_checksums(&data);
                (data, sums)
            })
            .clone();
        let index = chunk % GROUPS;
        let group = &mut self.groups[index as usize];
        group.last += 1;
        let seq = Seq(group.last);
        let identity = WriteIdentity {
            volume: VolumeId(1),
            sdc: SdcId(2),
            session: AttachGeneration(3),
            request: RequestNumber(seq.0),
            oldest_unacked: RequestNumber(seq.0),
        };
        let entry = Entry {
            pg: pg(index),
            version: Version { term: Term(1), seq },
            identity: Some(identity),
            body: EntryBody::Write { layer: layer(chunk), blocks, checksums, data },
        };
        self.round.written_bytes += bytes as u64;
        let waiting = Waiting::Write { pg: index, seq, since: Instant::now() };
        self.request(Request::Append { entries: vec![entry] }, waiting)?;
        Ok(true)
    }

    /// Hands over what is to be done, and takes what has come back.
    fn turn(&mut self) -> anyhow::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.disk.submit(batch)?;
        let done = self.disk.wait(TICK);
        if done.is_empty() {
            self.step(Event::Tick)?;
        }
        for done in done {
            self.step(Event::Disk(done))?;
        }
        Ok(())
    }

    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        let mut outputs = std::mem::take(&mut self.outputs);
        let now = self.now();
        self.store.step(now, event, &mut outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Disk(request) => self.batch.push(request),
                Output::Done { token, result } => self.answered(token, result)?,
                Output::WantState { pg } => self.save_state(pg)?,
                Output::BadBlock { layer, block, .. } => bail!("block {block} of {layer:?} is bad"),
                Output::Damaged { damage } => bail!("{damage}"),
                Output::Failed { cause } => bail!("the store failed: {cause}"),
            }
        }
        if self.outputs.is_empty() {
            self.outputs = outputs;
        }
        Ok(())
    }

    fn save_state(&mut self, pg: PgId) -> anyhow::Result<()> {
        let through = Seq(self.groups[pg.index as usize].done);
        let state = Bytes::from(vec![0x77; STATE_BYTES]);
        self.request(Request::SaveState { pg, through, state }, Waiting::Other)
    }

    fn answered(&mut self, token: Token, result: Result<Answer, StoreError>) -> anyhow::Result<()> {
        match self.waiting.remove(&token) {
            Some(Waiting::Write { pg: index, seq, since }) => {
                result?;
                self.latencies.add(since.elapsed().as_nanos() as u64);
                self.round.operations += 1;
                self.groups[index as usize].done = seq.0;
                self.next_token += 1;
                let (token, request) = (Token(self.next_token), Request::Commit { pg: pg(index), through: seq });
                self.step(Event::Request { token, request })
            }
            Some(Waiting::Read { since }) => {
                let Answer::Read(pieces) = result? else { bail!("the answer to another question") };
                if pieces.iter().any(|piece| matches!(piece.content, PieceContent::Bad { .. })) {
                    bail!("a bad block");
                }
                self.latencies.add(since.elapsed().as_nanos() as u64);
                self.round.operations += 1;
                Ok(())
            }
            // Room for a state or a removal may be short for a moment; it is asked for again.
            Some(Waiting::Other) => match result {
                Ok(_) | Err(StoreError::NoJournalSpace) => Ok(()),
                Err(error) => Err(error.into()),
            },
            None => Err(anyhow!("an answer to no question")),
        }
    }
}

fn range(block: u16, bytes: usize) -> anyhow::Result<BlockRange> {
    debug_assert!(block < CHUNK_BLOCKS);
    BlockRange::new(block, (bytes / BLOCK_BYTES) as u16).ok_or_else(|| anyhow!("a request past its chunk"))
}

fn pg(index: u64) -> PgId {
    PgId { pool: StoragePoolId(1), index: index as u32 }
}

fn layer(chunk: u64) -> LayerKey {
    LayerKey { chunk: ChunkId { vtree: VtreeId(1), index: chunk }, snap_seq: SnapSeq(0) }
}
