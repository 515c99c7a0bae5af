//! A disk in memory that forgets what was not flushed, and what drives a store on it.
//!
//! The disk follows the media rules of `sds_store::io` and takes every liberty that they give.

#![allow(dead_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mdm_api::epoch::Nanos;
use mdm_api::ids::{DeviceId, DeviceIncarnation, SystemId};
use sds_api::buf::AlignedBuf;
use sds_store::error::OpenError;
use sds_store::format::{FormatParameters, Formatter};
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest, OpId};
use sds_store::open::{OpenParameters, Opened, Opener};
use sds_store::request::{Event, Output, Recovered, Request, Token};
use sds_store::store::{Options, Store};

pub mod compare;
pub mod model;
pub mod world;

/// Small, seeded, good enough (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

type Block = Arc<[u8; 4096]>;

/// The medium, its cache, and what is on its way.
#[derive(Clone, Default)]
pub struct Disk {
    pub durable: BTreeMap<u64, Block>,
    /// Completed writes that no flush covers yet, in order.
    cache: Vec<(u64, u64, Block)>,
    next: u64,
    /// Operations handed in and not completed; flushes remember what they cover.
    pub in_flight: VecDeque<(DiskRequest, u64)>,
    /// Blocks that cannot be read.
    pub unreadable: Vec<u64>,
    /// So many reads go well, and none after them.
    pub reads_left: Option<u64>,
    /// Of so many reads the last one fails, and goes well when it is tried again.
    pub stutters_every: Option<u64>,
    reads: u64,
    pub size: u64,
    /// Breaks the rules on purpose: flushes do nothing.
    pub fail_writes: bool,
}

fn blocks_of(offset: u64, buffers: &[Bytes]) -> Vec<(u64, Block)> {
    let all = buffers.concat();
    assert!(all.len().is_multiple_of(4096) && offset.is_multiple_of(4096), "whole blocks");
    let number = |index: usize| offset / 4096 + index as u64;
    all.chunks_exact(4096).enumerate().map(|(i, b)| (number(i), Arc::new(b.try_into().unwrap()))).collect()
}

impl Disk {
    pub fn new(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    pub fn submit(&mut self, request: DiskRequest) {
        let (offset, length) = match &request.op {
            DiskOp::Read { offset, length } => (*offset, u64::from(*length)),
            DiskOp::Write { offset, buffers, .. } => (*offset, buffers.iter().map(|b| b.len() as u64).sum()),
            DiskOp::Flush | DiskOp::Discard { .. } => (0, 0),
        };
        assert!(offset + length <= self.size, "within the device");
        self.in_flight.push_back((request, self.next));
    }

    fn visible(&self, block: u64) -> Block {
        let cached = self.cache.iter().rev().find(|(_, number, _)| *number == block).map(|(.., data)| data.clone());
        cached.or_else(|| self.durable.get(&block).cloned()).unwrap_or_else(|| Arc::new([0; 4096]))
    }

    /// Completes one operation.
    pub fn complete(&mut self, index: usize) -> DiskDone {
        let (request, covers) = self.in_flight.remove(index).unwrap();
        let done = |result| DiskDone { id: request.id, result };
        match &request.op {
            DiskOp::Read { offset, length } => {
                let blocks = offset / 4096..(offset + u64::from(*length)) / 4096;
                let is_dead = self.reads_left == Some(0);
                self.reads_left = self.reads_left.map(|left| left.saturating_sub(1));
                self.reads += 1;
                let stutters = self.stutters_every.is_some_and(|every| self.reads.is_multiple_of(every));
                if is_dead || stutters || blocks.clone().any(|block| self.unreadable.contains(&block)) {
                    return done(Err(DiskError::Io));
                }
                let mut out = AlignedBuf::zeroed(*length as usize);
                for (at, block) in out.chunks_exact_mut(4096).zip(blocks) {
                    at.copy_from_slice(self.visible(block).as_ref());
                }
                done(Ok(out.freeze()))
            }
            _ if self.fail_writes => done(Err(DiskError::Io)),
            DiskOp::Write { offset, buffers, durable } => {
                for (number, data) in blocks_of(*offset, buffers) {
                    if *durable {
                        self.cache.retain(|(_, cached, _)| *cached != number);
                        self.durable.insert(number, data);
                    } else {
                        self.cache.push((self.next, number, data));
                        self.next += 1;
                    }
                }
                done(Ok(Bytes::new()))
            }
            DiskOp::Flush => {
                let cache = std::mem::take(&mut self.cache);
                for (id, number, data) in cache {
                    if id < covers {
                        self.durable.insert(number, data);
                    } else {
                        self.cache.push((id, number, data));
                    }
                }
                done(Ok(Bytes::new()))
            }
            DiskOp::Discard { .. } => done(Ok(Bytes::new())),
        }
    }

    /// What the medium may hold after the power went: any subset of what is not durable, torn at 512 bytes.
    pub fn crash(&self, random: &mut Random) -> Self {
        let mut durable = self.durable.clone();
        let mut maybe: Vec<(u64, Block)> = self.cache.iter().map(|(_, number, data)| (*number, data.clone())).collect();
        for (request, _) in &self.in_flight {
            if let DiskOp::Write { offset, buffers, .. } = &request.op {
                maybe.extend(blocks_of(*offset, buffers));
            }
        }
        let (none, whole) =
            [(100, 0), (0, 100), (50, 50), (20, 40), (60, 30), (5, 90), (90, 5)][random.below(7) as usize];
        for (number, data) in maybe {
            let what = random.below(100);
            if what < none {
                continue;
            }
            let mut block = *durable.get(&number).cloned().unwrap_or_else(|| Arc::new([0; 4096]));
            for (sector, bytes) in block.chunks_exact_mut(512).enumerate() {
                if what < none + whole || random.chance(50) {
                    bytes.copy_from_slice(&data[sector * 512..(sector + 1) * 512]);
                }
            }
            durable.insert(number, Arc::new(block));
        }
        Self { durable, size: self.size, unreadable: self.unreadable.clone(), ..Self::default() }
    }

    /// Of the first write on its way the first block reaches the medium.
    pub fn tear_first_write(&mut self) {
        let Some((DiskRequest { op: DiskOp::Write { offset, buffers, .. }, .. }, _)) = self.in_flight.pop_front()
        else {
            panic!("no write is on its way");
        };
        let (number, data) = blocks_of(offset, &buffers).swap_remove(0);
        self.durable.insert(number, data);
    }

    /// Nothing that was not flushed reaches the medium.
    pub fn without_cache(&self) -> Self {
        Self { durable: self.durable.clone(), size: self.size, ..Self::default() }
    }

    /// Turns bits of a block over.
    pub fn rot(&mut self, block: u64) {
        let mut data = *self.visible(block);
        data[100] ^= 0x55;
        data[3000] ^= 0xaa;
        self.cache.retain(|(_, number, _)| *number != block);
        self.durable.insert(block, Arc::new(data));
    }

    /// Writes bytes past everybody.
    pub fn overwrite(&mut self, offset: u64, bytes: &[u8]) {
        let number = offset / 4096;
        let mut data = *self.visible(number);
        let at = (offset % 4096) as usize;
        data[at..at + bytes.len()].copy_from_slice(bytes);
        self.durable.insert(number, Arc::new(data));
    }

    pub fn is_written(&self, block: u64) -> bool {
        self.durable.contains_key(&block)
    }
}

pub const SYSTEM: SystemId = SystemId(0x11);
pub const DEVICE: DeviceId = DeviceId(0x22);
pub const INCARNATION: DeviceIncarnation = DeviceIncarnation(0x33);

pub fn parameters(size: u64, journal: u64) -> FormatParameters {
    FormatParameters {
        system: SYSTEM,
        device: DEVICE,
        incarnation: INCARNATION,
        size_bytes: size,
        salt: 0x5a17,
        journal_bytes: Some(journal),
        force: false,
    }
}

/// Formats a disk, to the end.
pub fn format(disk: &mut Disk, parameters: FormatParameters) -> Result<(), sds_store::error::FormatError> {
    let mut formatter = Formatter::new(parameters)?;
    let mut out = Vec::new();
    formatter.start(&mut out);
    loop {
        out.drain(..).for_each(|request| disk.submit(request));
        let done = disk.complete(0);
        if let Some(result) = formatter.step(done, &mut out) {
            disk.in_flight.clear();
            return result.map(|_| ());
        }
    }
}

pub fn open_parameters(disk: &Disk, options: Options) -> OpenParameters {
    OpenParameters {
        size_bytes: disk.size,
        system: Some(SYSTEM),
        device: Some(DEVICE),
        incarnation: Some(INCARNATION),
        options,
    }
}

/// Opens a disk, to the end.
pub fn open(disk: &mut Disk, options: Options) -> Result<(Store, Recovered), OpenError> {
    open_as(disk, open_parameters(disk, options))
}

pub fn open_as(disk: &mut Disk, parameters: OpenParameters) -> Result<(Store, Recovered), OpenError> {
    let mut opener = Opener::new(parameters);
    let mut out = Vec::new();
    opener.start(&mut out)?;
    loop {
        out.drain(..).for_each(|request| disk.submit(request));
        let done = disk.complete(0);
        if let Some(result) = opener.step(done, &mut out) {
            let Opened { store, recovered } = result?;
            return Ok((store, recovered));
        }
    }
}

/// A store, its disk, and the time.
pub struct Machine {
    pub disk: Disk,
    pub store: Store,
    pub now: Nanos,
    pub token: u64,
    pub outputs: VecDeque<Output>,
    scratch: Vec<Output>,
}

impl Machine {
    pub fn new(disk: Disk, store: Store) -> Self {
        Self { disk, store, now: Nanos(1_000_000_000), token: 0, outputs: VecDeque::new(), scratch: Vec::new() }
    }

    pub fn fresh(size: u64, journal: u64) -> Self {
        Self::fresh_with(size, journal, Options::default())
    }

    pub fn fresh_with(size: u64, journal: u64, options: Options) -> Self {
        let mut disk = Disk::new(size);
        format(&mut disk, parameters(size, journal)).unwrap();
        let (store, recovered) = open(&mut disk, options).unwrap();
        assert_eq!(recovered.open_count, 1);
        Self::new(disk, store)
    }

    pub fn event(&mut self, event: Event) {
        let mut out = std::mem::take(&mut self.scratch);
        self.store.step(self.now, event, &mut out);
        for output in out.drain(..) {
            match output {
                Output::Disk(request) => self.disk.submit(request),
                other => self.outputs.push_back(other),
            }
        }
        self.scratch = out;
    }

    pub fn request(&mut self, request: Request) -> Token {
        self.token += 1;
        let token = Token(self.token);
        self.event(Event::Request { token, request });
        token
    }

    pub fn tick(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.event(Event::Tick);
    }

    /// Completes one operation, if there is one.
    pub fn complete(&mut self, index: usize) {
        let done = self.disk.complete(index);
        self.event(Event::Disk(done));
    }

    pub fn run_disk(&mut self) {
        while !self.disk.in_flight.is_empty() {
            self.complete(0);
        }
    }

    /// Runs until the request is answered.
    pub fn answer(&mut self, token: Token) -> Result<sds_store::request::Answer, sds_store::error::StoreError> {
        for _ in 0..1_000_000 {
            let found = self.outputs.iter().position(|o| matches!(o, Output::Done { token: t, .. } if *t == token));
            if let Some(index) = found {
                let Some(Output::Done { result, .. }) = self.outputs.remove(index) else { unreachable!() };
                return result;
            }
            if self.disk.in_flight.is_empty() { self.tick(50) } else { self.complete(0) }
        }
        panic!("never answered: {}", self.store.describe());
    }

    pub fn call(&mut self, request: Request) -> Result<sds_store::request::Answer, sds_store::error::StoreError> {
        let token = self.request(request);
        self.answer(token)
    }

    /// Power fails; the disk as it may be then is opened again.
    pub fn reopen_after_crash(&mut self, random: &mut Random) -> Result<Recovered, OpenError> {
        let mut disk = self.disk.crash(random);
        let (store, recovered) = open(&mut disk, Options::default())?;
        let (now, token) = (self.now, self.token);
        *self = Self::new(disk, store);
        (self.now, self.token) = (now, token);
        Ok(recovered)
    }
}

/// An id that no operation has.
pub const NO_OP: OpId = OpId(u64::MAX);
