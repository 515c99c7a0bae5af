//! Reads: for each block the newest committed place that has it (entries, then home, then older layers), gathered into few
//! disk reads, verified, handed out.
//!
//! A read holds nothing while it waits for the disk. If a block comes back wrong and its layer has moved meanwhile, the read is
//! planned anew; if nothing has moved the block is bad, alone (I21).

use bytes::Bytes;
use mdm_api::epoch::{Seq, Version};
use mdm_api::ids::PgId;
use mdm_api::mutants::{self, Mutant};
use sds_api::block::{AU_BLOCKS, BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, LayerKey};
use sds_api::checksum::crc32c;
use sds_api::entry::EntryBody;

use crate::append::Accepted;
use crate::blockmap::BlockMap;
use crate::error::{BlockError, StoreError};
use crate::fetch::Waiter;
use crate::io::{DiskError, DiskOp, IoClass};
use crate::journal::record::NO_AU;
use crate::layer::Layer;
use crate::layout::RECORDS_PER_PAGE;
use crate::pg::LogEntry;
use crate::request::{Answer, LayerContent, Output, Piece, PieceContent, Token};
use crate::store::{Owner, Store};

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Nowhere: zeros.
    Absent,
    /// Zeroed.
    Zero(LayerKey),
    /// In an entry, as its block number so and so; on the device there, if not in memory.
    Log { layer: LayerKey, pg: PgId, seq: Seq, index: usize, offset: u64 },
    /// At home.
    Home { layer: LayerKey, slot: u32, offset: u64 },
}

/// Content of some blocks.
enum Found {
    Zeros,
    /// In memory, verified when it came in.
    Memory(Bytes),
    /// On its way from the disk.
    Waiting,
    Disk(Result<Bytes, DiskError>),
}

/// A run of blocks from one place.
struct Part {
    blocks: BlockRange,
    first: Source,
    /// What it must be; none while the metadata page is on its way that knows.
    checksums: Option<Vec<u32>>,
    /// Blocks whose checksums are lost.
    lost: BlockMap,
    found: Found,
    /// What came from the disk is what the checksums say: looked at once, for it costs as much as all the rest of a read.
    is_right: bool,
    /// `changes` of the layer when the read was planned.
    changes: u32,
}

impl Part {
    fn look_at(&mut self) {
        if let (Found::Disk(result), Some(checksums)) = (&self.found, &self.checksums) {
            self.is_right = first_bad(result, checksums).is_none();
        }
    }
}

/// What the bytes are for.
#[derive(Clone)]
enum Purpose {
    Read,
    Capture {
        version: Version,
        zeroed: BlockMap,
    },
    /// An entry's payload, from the journal; without a token to be written again at the head.
    Entry {
        pg: PgId,
        version: Version,
    },
}

/// A request that waits for the disk.
pub(crate) struct ReadJob {
    token: Option<Token>,
    purpose: Purpose,
    layer: LayerKey,
    blocks: BlockRange,
    parts: Vec<Part>,
    left: usize,
}

impl ReadJob {
    pub(crate) fn token(&self) -> Option<Token> {
        self.token
    }

    /// The entry that is to be written again at the head, if it is for that.
    pub(crate) fn carried(&self) -> Option<(PgId, Seq)> {
        match &self.purpose {
            Purpose::Entry { pg, version } if self.token.is_none() => Some((*pg, version.seq)),
            _ => None,
        }
    }
}

impl Store {
    /// Where on the device a block of an entry's payload is.
    fn payload_offset(&self, log: &LogEntry, blocks: BlockRange, index: usize) -> u64 {
        let geometry = &self.super_block.geometry;
        match &log.staged {
            Some(staged) => {
                let block = blocks.first() + index as u16;
                geometry.au_block(staged.aus[usize::from(block / AU_BLOCKS)], block % AU_BLOCKS)
            }
            None => geometry.ring_pieces(log.payload_lsn + (index * BLOCK_BYTES) as u64, 0)[0].0,
        }
    }

    /// Decides those blocks that this layer has something for and that are undecided.
    fn resolve_layer(&self, layer: &Layer, blocks: BlockRange, sources: &mut [Source], open: &mut usize) {
        let (key, pg_id) = (layer.key, layer.pg());
        let Some(pg) = self.pgs.get(&pg_id) else { return };
        if pg.has_dropped(key.chunk.vtree) {
            return;
        }
        let at = |block: u16| usize::from(block - blocks.first());
        let mut decide = |block: u16, source: Source| {
            if sources[at(block)] == Source::Absent {
                sources[at(block)] = source;
                *open -= 1;
            }
            *open == 0
        };
        let pending = layer.pending().rev().filter(|pending| pending.blocks.overlaps(blocks));
        for pending in pending.filter(|pending| pg.is_visible(pending.seq)) {
            let range = pending.blocks;
            let Some(log) = pg.log.get(&pending.seq) else { continue };
            for block in range.first().max(blocks.first())..range.end().min(blocks.end()) {
                let index = usize::from(block - range.first());
                let source = if pending.is_zero {
                    Source::Zero(key)
                } else {
                    let offset = self.payload_offset(log, range, index);
                    Source::Log { layer: key, pg: pg_id, seq: pending.seq, index, offset }
                };
                if decide(block, source) {
                    return;
                }
            }
        }
        let zeroed = layer.zeroed();
        for block in blocks.iter() {
            let decided = if layer.present.contains(block) {
                let au = layer.aus[usize::from(block / AU_BLOCKS)];
                assert!(au != NO_AU, "a present block has a unit");
                let offset = self.super_block.geometry.au_block(au, block % AU_BLOCKS);
                decide(block, Source::Home { layer: key, slot: layer.slot, offset })
            } else if zeroed.contains(block) {
                decide(block, Source::Zero(key))
            } else {
                false
            };
            if decided {
                return;
            }
        }
    }

    /// Where each of the blocks is; `through` older layers, or in this one alone.
    fn resolve(&self, layer: LayerKey, blocks: BlockRange, through: bool) -> Vec<Source> {
        let mut sources = vec![Source::Absent; usize::from(blocks.count())];
        let mut open = sources.len();
        for layer in self.layers.through(layer).take_while(|found| through || found.key == layer) {
            self.resolve_layer(layer, blocks, &mut sources, &mut open);
            if open == 0 {
                break;
            }
        }
        sources
    }

    fn plan(&self, layer: LayerKey, blocks: BlockRange, through: bool) -> Vec<Part> {
        self.parts(blocks, &self.resolve(layer, blocks, through))
    }

    /// Runs of blocks that lie together.
    fn parts(&self, blocks: BlockRange, sources: &[Source]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut start = 0;
        while start < sources.len() {
            let mut end = start + 1;
            while end < sources.len() && follows(sources[start], sources[end], end - start) {
                end += 1;
            }
            let first = blocks.first() + start as u16;
            let range = BlockRange::new(first, (end - start) as u16).expect("a part of the blocks asked for");
            parts.push(self.part(range, &sources[start..end]));
            start = end;
        }
        parts
    }

    fn part(&self, blocks: BlockRange, sources: &[Source]) -> Part {
        let first = sources[0];
        let (checksums, lost, found) = (None, BlockMap::EMPTY, Found::Zeros);
        let mut part = Part { blocks, first, checksums, lost, found, is_right: false, changes: 0 };
        match first {
            Source::Absent | Source::Zero(_) => {}
            Source::Home { slot, .. } => {
                part.found = Found::Waiting;
                part.changes = self.layers.at(slot).map_or(0, |layer| layer.changes);
                self.fill_in(&mut part);
            }
            Source::Log { pg, seq, index, .. } => {
                let log = self.pgs.get(&pg).and_then(|pg| pg.log.get(&seq)).expect("it was just found there");
                let EntryBody::Write { checksums, data, .. } = &log.entry.body else {
                    unreachable!("only writes have content")
                };
                part.checksums = Some(checksums[index..index + sources.len()].to_vec());
                part.found = if data.is_empty() {
                    Found::Waiting
                } else {
                    Found::Memory(data.slice(index * BLOCK_BYTES..(index + sources.len()) * BLOCK_BYTES))
                };
            }
        }
        part
    }

    /// Notes what blocks at home must be, if that is in memory.
    fn fill_in(&self, part: &mut Part) {
        let (None, Source::Home { slot, .. }) = (&part.checksums, part.first) else { return };
        if let Some(sums) = self.sums.get(slot) {
            part.checksums = Some(sums[usize::from(part.blocks.first())..usize::from(part.blocks.end())].to_vec());
            part.lost = self.sums.lost(slot);
        }
    }

    pub(crate) fn read(&mut self, token: Token, layer: LayerKey, blocks: BlockRange, out: &mut Vec<Output>) {
        let job = ReadJob { token: Some(token), purpose: Purpose::Read, layer, blocks, parts: Vec::new(), left: 0 };
        self.start_read(job, out);
    }

    pub(crate) fn capture(&mut self, token: Token, layer: LayerKey, out: &mut Vec<Output>) {
        let purpose = Purpose::Capture { version: Version::default(), zeroed: BlockMap::EMPTY };
        let job = ReadJob { token: Some(token), purpose, layer, blocks: BlockRange::WHOLE, parts: Vec::new(), left: 0 };
        self.start_read(job, out);
    }

    /// Plans a read, sends what it needs to the disk, or finishes it at once.
    fn start_read(&mut self, mut job: ReadJob, out: &mut Vec<Output>) {
        let through = matches!(job.purpose, Purpose::Read);
        job.parts = self.plan(job.layer, job.blocks, through);
        if let Purpose::Capture { version, zeroed } = &mut job.purpose {
            *version = self.visible_version(job.layer);
            let sources = self.resolve(job.layer, BlockRange::WHOLE, false);
            let zeros = (0..CHUNK_BLOCKS).zip(sources).filter(|(_, source)| matches!(source, Source::Zero(_)));
            *zeroed = zeros.map(|(block, _)| block).collect();
        }
        self.send_read(job, out);
    }

    fn send_read(&mut self, mut job: ReadJob, out: &mut Vec<Output>) {
        let class = if matches!(job.purpose, Purpose::Read) { IoClass::Foreground } else { IoClass::Background };
        let (mut reads, mut pages) = (Vec::new(), Vec::new());
        for (index, part) in job.parts.iter().enumerate().filter(|(_, part)| matches!(part.found, Found::Waiting)) {
            let (Source::Home { offset, .. } | Source::Log { offset, .. }) = part.first else { continue };
            if let (None, Source::Home { slot, .. }) = (&part.checksums, part.first) {
                pages.push(slot / RECORDS_PER_PAGE as u32);
            }
            reads.push((index, offset, part.blocks.bytes() as u32));
        }
        pages.sort_unstable();
        pages.dedup();
        job.left = reads.len() + pages.len();
        if job.left == 0 {
            self.finish_read(job, out);
            return;
        }
        let id = self.fresh_id();
        self.reads.insert(id, job);
        for page in pages {
            self.fetch_page(page, Waiter::Read(id), class, out);
        }
        for (index, offset, length) in reads {
            self.submit(Owner::Read(id, index), class, DiskOp::Read { offset, length }, out);
        }
    }

    pub(crate) fn read_done(&mut self, id: u64, part: usize, result: Result<Bytes, DiskError>, out: &mut Vec<Output>) {
        let Some(job) = self.reads.get_mut(&id) else { return };
        job.parts[part].found = Found::Disk(result);
        self.read_proceeds(id, out);
    }

    /// A metadata page that the read needs is in memory.
    pub(crate) fn read_page_here(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(mut job) = self.reads.remove(&id) else { return };
        for part in &mut job.parts {
            let Source::Home { slot, .. } = part.first else { continue };
            // Changed meanwhile, the checksums are those of something else: it will be planned anew.
            if self.layers.at(slot).is_some_and(|layer| layer.changes == part.changes) {
                self.fill_in(part);
            }
        }
        self.reads.insert(id, job);
        self.read_proceeds(id, out);
    }

    fn read_proceeds(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(job) = self.reads.get_mut(&id) else { return };
        job.left -= 1;
        if job.left > 0 {
            return;
        }
        let mut job = self.reads.remove(&id).expect("it was just there");
        job.parts.iter_mut().for_each(Part::look_at);
        if self.has_moved(&job) {
            match job.purpose {
                Purpose::Entry { pg, version } => self.fetch_entry(pg, version.seq, job.token, out),
                _ => self.start_read(job, out),
            }
        } else {
            self.finish_read(job, out);
        }
    }

    /// True if a part came back wrong, or from a unit that is no longer the layer's, and the plan is out of date.
    fn has_moved(&self, job: &ReadJob) -> bool {
        job.parts.iter().any(|part| {
            if !matches!(part.found, Found::Disk(_)) {
                return false;
            }
            match part.first {
                Source::Home { layer, offset, .. } => {
                    if part.checksums.is_none() {
                        return true;
                    }
                    let now = self.layers.get(&layer);
                    let au = now.map_or(NO_AU, |layer| layer.aus[usize::from(part.blocks.first() / AU_BLOCKS)]);
                    let place = self.super_block.geometry.au_block(au, part.blocks.first() % AU_BLOCKS);
                    let wrong = !part.is_right;
                    let changed = now.is_none_or(|layer| layer.changes != part.changes);
                    let is_being_written = || {
                        let mut blocks = BlockMap::EMPTY;
                        blocks.insert_range(part.blocks);
                        self.is_being_written(layer, &blocks)
                    };
                    (changed && (wrong || place != offset)) || (wrong && is_being_written())
                }
                Source::Log { pg, seq, .. } => {
                    let log = self.pgs.get(&pg).and_then(|pg| pg.log.get(&seq));
                    let gone = match job.purpose {
                        Purpose::Entry { version, .. } => log.is_none_or(|log| log.entry.version != version),
                        _ => log.is_none_or(|log| log.applied),
                    };
                    !part.is_right && gone
                }
                Source::Absent | Source::Zero(_) => false,
            }
        })
    }

    fn finish_read(&mut self, job: ReadJob, out: &mut Vec<Output>) {
        self.counters.reads += 1;
        let pieces: Vec<Piece> = job.parts.into_iter().flat_map(verified).collect();
        let bad = pieces.iter().filter(|piece| matches!(piece.content, PieceContent::Bad { .. }));
        let bad: u64 = bad.map(|piece| u64::from(piece.blocks.count())).sum();
        self.counters.bad_blocks += bad;
        let result = match job.purpose {
            Purpose::Read => Ok(Answer::Read(pieces)),
            _ if bad > 0 => Err(StoreError::BadBlock),
            Purpose::Capture { version, zeroed } => Ok(Answer::Captured(content(version, zeroed, pieces))),
            Purpose::Entry { pg, version } => {
                let log = self.pgs.get(&pg).and_then(|pg| pg.log.get(&version.seq));
                let mut entry = match log.filter(|log| log.entry.version == version) {
                    Some(log) => log.entry.clone(),
                    None => return self.answer_entry(job.token, Err(StoreError::NotFound), out),
                };
                entry.attach(join(pieces));
                if job.token.is_none() {
                    self.add_again(entry);
                    return;
                }
                Ok(Answer::Entry(entry))
            }
        };
        self.answer_entry(job.token, result, out);
    }

    fn answer_entry(&mut self, token: Option<Token>, result: Result<Answer, StoreError>, out: &mut Vec<Output>) {
        if let Some(token) = token {
            out.push(Output::Done { token, result });
        }
    }

    /// The version of a layer's committed content.
    pub(crate) fn visible_version(&self, key: LayerKey) -> Version {
        let Some(layer) = self.layers.get(&key) else { return Version::default() };
        let Some(pg) = self.pgs.get(&layer.pg()).filter(|pg| !pg.has_dropped(key.chunk.vtree)) else {
            return Version::default();
        };
        let newest = layer.pending().rev().find(|pending| pg.is_visible(pending.seq));
        let newest = newest.and_then(|pending| pg.log.get(&pending.seq)).map(|log| log.entry.version);
        newest.unwrap_or(layer.version)
    }

    pub(crate) fn list_chunks(&self, pg_id: PgId) -> Vec<(LayerKey, Version)> {
        let versions = self.keys_of(pg_id).into_iter().map(|key| (key, self.visible_version(key)));
        versions.filter(|(_, version)| *version != Version::default()).collect()
    }

    pub(crate) fn status(&self, layer: LayerKey, blocks: BlockRange) -> BlockMap {
        let sources = self.resolve(layer, blocks, true);
        let data =
            blocks.iter().zip(sources).filter(|(_, source)| matches!(source, Source::Home { .. } | Source::Log { .. }));
        data.map(|(block, _)| block).collect()
    }

    pub(crate) fn read_entry(&mut self, token: Token, pg: PgId, seq: Seq, out: &mut Vec<Output>) -> Accepted {
        let known = self.pgs.get(&pg).and_then(|pg| pg.log.get(&seq)).ok_or(StoreError::NotFound)?;
        if known.entry.payload().len() == known.entry.payload_bytes() {
            return Ok(Some(Answer::Entry(known.entry.clone())));
        }
        self.fetch_entry(pg, seq, Some(token), out);
        Ok(None)
    }

    /// Reads an entry's payload from the journal, for a request or (without a token) to write it again at the head.
    pub(crate) fn fetch_entry(&mut self, pg_id: PgId, seq: Seq, token: Option<Token>, out: &mut Vec<Output>) {
        let Some(log) = self.pgs.get(&pg_id).and_then(|pg| pg.log.get(&seq)) else {
            return self.answer_entry(token, Err(StoreError::NotFound), out);
        };
        let EntryBody::Write { layer, blocks, .. } = &log.entry.body else {
            let entry = log.entry.clone();
            return self.answer_entry(token, Ok(Answer::Entry(entry)), out);
        };
        let (layer, blocks, version) = (*layer, *blocks, log.entry.version);
        let source = |index| {
            let offset = self.payload_offset(log, blocks, index);
            Source::Log { layer, pg: pg_id, seq, index, offset }
        };
        let sources: Vec<Source> = (0..usize::from(blocks.count())).map(source).collect();
        let parts = self.parts(blocks, &sources);
        let job = ReadJob { token, purpose: Purpose::Entry { pg: pg_id, version }, layer, blocks, parts, left: 0 };
        self.send_read(job, out);
    }
}

/// True if `next` goes on where `first` is, `distance` blocks further.
fn follows(first: Source, next: Source, distance: usize) -> bool {
    let beyond = |offset: u64| offset + (distance * BLOCK_BYTES) as u64;
    match (first, next) {
        (Source::Absent | Source::Zero(_), Source::Absent | Source::Zero(_)) => true,
        (Source::Log { pg, seq, index, offset, .. }, Source::Log { pg: p, seq: s, index: i, offset: o, .. }) => {
            (pg, seq, index + distance, beyond(offset)) == (p, s, i, o)
        }
        (Source::Home { slot, offset, .. }, Source::Home { slot: s, offset: o, .. }) => {
            (slot, beyond(offset)) == (s, o)
        }
        _ => false,
    }
}

fn content(version: Version, zeroed: BlockMap, pieces: Vec<Piece>) -> LayerContent {
    let mut content = LayerContent { version, zeroed, ..LayerContent::default() };
    for piece in pieces {
        if let PieceContent::Data { bytes, checksums } = piece.content {
            content.present.insert_range(piece.blocks);
            content.checksums.extend(checksums);
            content.data.push(bytes);
        }
    }
    content
}

/// The first block of a result that is not what it should be.
fn first_bad(result: &Result<Bytes, DiskError>, checksums: &[u32]) -> Option<usize> {
    match result {
        Err(_) => Some(0),
        Ok(_) if mutants::is_on(Mutant::ServeUnverified) => None,
        Ok(bytes) => sds_api::checksum::first_mismatch(bytes, checksums),
    }
}

/// The pieces of a part: data where it is what its checksums say, errors for those blocks that are not (I21).
fn verified(part: Part) -> Vec<Piece> {
    let checksums = part.checksums.unwrap_or_default();
    let bytes = match part.found {
        Found::Zeros | Found::Waiting => return vec![Piece { blocks: part.blocks, content: PieceContent::Zeros }],
        Found::Memory(bytes) => {
            return vec![Piece { blocks: part.blocks, content: PieceContent::Data { bytes, checksums } }];
        }
        Found::Disk(Ok(bytes)) if bytes.len() == part.blocks.bytes() => Ok(bytes),
        Found::Disk(Ok(_)) => Err(BlockError::Unreadable(DiskError::Io)),
        Found::Disk(Err(error)) => Err(BlockError::Unreadable(error)),
    };
    let layer = match part.first {
        Source::Home { layer, .. } | Source::Log { layer, .. } | Source::Zero(layer) => layer,
        Source::Absent => LayerKey::default(),
    };
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) => {
            return vec![Piece { blocks: part.blocks, content: PieceContent::Bad { error, layer, checksums } }];
        }
    };
    let mut checksums = checksums;
    if mutants::is_on(Mutant::ServeUnverified) {
        checksums = bytes.chunks_exact(BLOCK_BYTES).map(crc32c).collect();
    }
    if part.is_right && !part.blocks.iter().any(|block| part.lost.contains(block)) {
        return vec![Piece { blocks: part.blocks, content: PieceContent::Data { bytes, checksums } }];
    }
    let is_good = |(index, (block, sum)): (usize, (&[u8], &u32))| {
        !part.lost.contains(part.blocks.first() + index as u16) && crc32c(block) == *sum
    };
    let good: Vec<bool> = bytes.chunks_exact(BLOCK_BYTES).zip(&checksums).enumerate().map(is_good).collect();
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < good.len() {
        let end = (start..good.len()).find(|at| good[*at] != good[start]).unwrap_or(good.len());
        let blocks = BlockRange::new(part.blocks.first() + start as u16, (end - start) as u16);
        let checksums = checksums[start..end].to_vec();
        let content = if good[start] {
            PieceContent::Data { bytes: bytes.slice(start * BLOCK_BYTES..end * BLOCK_BYTES), checksums }
        } else {
            PieceContent::Bad { error: BlockError::Checksum, layer, checksums }
        };
        pieces.push(Piece { blocks: blocks.expect("a part of the part"), content });
        start = end;
    }
    pieces
}

/// The data of pieces in one buffer; without a copy if it is one piece.
fn join(pieces: Vec<Piece>) -> Bytes {
    let mut data = pieces.into_iter().filter_map(|piece| match piece.content {
        PieceContent::Data { bytes, .. } => Some(bytes),
        PieceContent::Zeros | PieceContent::Bad { .. } => None,
    });
    let first = data.next().unwrap_or_default();
    let rest: Vec<Bytes> = data.collect();
    if rest.is_empty() {
        return first;
    }
    let total = first.len() + rest.iter().map(Bytes::len).sum::<usize>();
    let mut joined = sds_api::buf::AlignedBuf::zeroed(total);
    let mut at = 0;
    for bytes in std::iter::once(first).chain(rest) {
        joined[at..at + bytes.len()].copy_from_slice(&bytes);
        at += bytes.len();
    }
    joined.freeze()
}
