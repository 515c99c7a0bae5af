//! A store on the made-up device, and a primary that never waits.

use std::collections::VecDeque;

use anyhow::{Context, bail};
use bytes::Bytes;
use mdm_api::epoch::{Nanos, Seq, SnapSeq, Term, Version};
use mdm_api::ids::{PgId, StoragePoolId, VtreeId};
use sds_api::block::{BlockRange, CHUNK_BLOCKS, ChunkId, LayerKey};
use sds_api::checksum::block_checksums;
use sds_api::entry::{Entry, EntryBody};
use sds_store::error::StoreError;
use sds_store::io::DiskRequest;
use sds_store::request::{Answer, Event, Output, Recovered, Request, Token};
use sds_store::store::Store;

use super::device::Device;

const GROUPS: u64 = 64;
/// Small writes that are handed in together, so that they share frames.
const TOGETHER: u64 = 32;

fn pg(chunk: u64) -> PgId {
    PgId { pool: StoragePoolId(1), index: (chunk % GROUPS) as u32 }
}

/// A store on such a device, and a primary that never waits.
pub struct Filler {
    device: Device,
    store: Store,
    queue: VecDeque<DiskRequest>,
    out: Vec<Output>,
    now: u64,
    token: u64,
    /// The last entry of each group, and the last that is committed.
    last: Vec<u64>,
    done: Vec<u64>,
    refused: bool,
    drained: bool,
    /// What is written, and its checksums.
    chunk: (Bytes, Vec<u32>),
}

impl Filler {
    /// Goes on where the store left off.
    pub fn new(device: Device, store: Store, recovered: &Recovered) -> Self {
        let data = device.zero.clone();
        let sums = block_checksums(&data);
        let mut last = vec![0; GROUPS as usize];
        for group in &recovered.pgs {
            let entry = group.entries.last().map_or(Seq(0), |entry| entry.entry.version.seq);
            last[group.pg.index as usize] = entry.max(group.committed).max(group.highest_applied.seq).0;
        }
        Self {
            device,
            store,
            queue: VecDeque::new(),
            out: Vec::new(),
            now: 1 << 30,
            token: 0,
            done: last.clone(),
            last,
            refused: false,
            drained: false,
            chunk: (data, sums),
        }
    }

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
                Output::BadBlock { layer, block, .. } => bail!("block {block} of {layer:?} is bad"),
                Output::Damaged { damage } => bail!("{damage}"),
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

    /// Time passes, and what it brings is done.
    fn pause(&mut self) -> anyhow::Result<()> {
        self.now += 50_000_000;
        self.step(Event::Tick)?;
        self.settle()
    }

    /// Hands a write in. False if it was refused.
    fn write(&mut self, chunk: u64, blocks: BlockRange) -> anyhow::Result<bool> {
        let group = (chunk % GROUPS) as usize;
        let seq = Seq(self.last[group] + 1);
        let layer = LayerKey { chunk: ChunkId { vtree: VtreeId(1), index: chunk }, snap_seq: SnapSeq(0) };
        let checksums = self.chunk.1[..usize::from(blocks.count())].to_vec();
        let data = self.chunk.0.slice(..blocks.bytes());
        let body = EntryBody::Write { layer, blocks, checksums, data };
        let entry = Entry { pg: pg(chunk), version: Version { term: Term(1), seq }, identity: None, body };
        self.refused = false;
        self.request(Request::Append { entries: vec![entry] })?;
        self.last[group] += u64::from(!self.refused);
        Ok(!self.refused)
    }

    /// What was written so far is committed.
    fn commit(&mut self) -> anyhow::Result<()> {
        for group in 0..GROUPS as usize {
            if self.done[group] < self.last[group] {
                self.done[group] = self.last[group];
                self.request(Request::Commit { pg: pg(group as u64), through: Seq(self.done[group]) })?;
            }
        }
        Ok(())
    }

    /// Waits until everything is applied.
    fn rest(&mut self) -> anyhow::Result<()> {
        self.drained = false;
        self.step(Event::Request { token: Token(0), request: Request::Checkpoint })?;
        while !self.drained {
            self.pause()?;
        }
        Ok(())
    }

    /// Writes every block of so many chunks.
    pub fn fill(&mut self, chunks: u64) -> anyhow::Result<()> {
        for chunk in 0..chunks {
            while !self.write(chunk, BlockRange::WHOLE)? {
                self.pause()?;
            }
            self.settle()?;
            self.commit()?;
        }
        self.rest()?;
        self.save_states()
    }

    /// Every group's state covers what it has written, so that its entries are let go: what is left is the index.
    fn save_states(&mut self) -> anyhow::Result<()> {
        for group in 0..GROUPS {
            let through = Seq(self.done[group as usize]);
            self.request(Request::SaveState { pg: pg(group), through, state: Bytes::from_static(&[7; 500]) })?;
            self.settle()?;
        }
        self.rest()
    }

    /// Writes so many blocks again, spread over so many chunks, to the end.
    pub fn overwrite(&mut self, blocks: u64, chunks: u64) -> anyhow::Result<()> {
        for at in 0..blocks {
            let block = BlockRange::new((at * 97 % u64::from(CHUNK_BLOCKS)) as u16, 1).context("one block")?;
            while !self.write(spread(at, chunks), block)? {
                self.pause()?;
            }
            if (at + 1).is_multiple_of(TOGETHER) {
                self.settle()?;
                self.commit()?;
            }
        }
        self.settle()?;
        self.commit()?;
        self.rest()
    }

    /// Small writes that are never committed, until the journal takes no more. How many.
    pub fn fill_journal(&mut self, chunks: u64) -> anyhow::Result<u64> {
        let mut count = 0;
        let block = BlockRange::new(7, 1).context("one block")?;
        loop {
            for _ in 0..TOGETHER {
                if !self.write(spread(count, chunks), block)? {
                    self.settle()?;
                    return Ok(count);
                }
                count += 1;
            }
            self.settle()?;
        }
    }
}

/// A chunk for each number, near to none of those before.
fn spread(at: u64, chunks: u64) -> u64 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15) % chunks.max(1)
}
