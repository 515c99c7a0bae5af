//! Reads: for each block the newest committed place that has it (entries, then home, then older layers), gathered into few
//! disk reads, verified, handed out.
//!
//! A read holds nothing while it waits for the disk. If a block comes back wrong and its layer has moved meanwhile, the read is
//! planned anew; if nothing has moved the block is bad, alone (I21).

use bytes::Bytes;
use mdm_api::epoch::{Seq, SnapSeq, Version};
use mdm_api::ids::PgId;
use mdm_api::mutants::{self, Mutant};
use sds_api::block::{AU_BLOCKS, BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, LayerKey};
use sds_api::checksum::crc32c;
use sds_api::entry::EntryBody;

use crate::append::Accepted;
use crate::blockmap::BlockMap;
use crate::error::{BlockError, StoreError};
use crate::io::{DiskError, DiskOp, IoClass};
use crate::journal::record::NO_AU;
use crate::request::{Answer, LayerContent, Output, Piece, PieceContent, Token};
use crate::store::{Owner, Store};

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Nowhere: zeros.
    Absent,
    /// Zeroed.
    Zero(LayerKey),
    /// In an entry, as its block number so and so.
    Log { layer: LayerKey, pg: PgId, seq: Seq, index: usize },
    /// At home.
    Home { layer: LayerKey, offset: u64, checksum: u32 },
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
    checksums: Vec<u32>,
    found: Found,
    /// `changes` of the layer when the read was planned.
    changes: u64,
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
}

impl Store {
    /// True if reads see the entry.
    fn is_visible(&self, pg: PgId, seq: Seq) -> bool {
        let Some(pg) = self.pgs.get(&pg) else { return false };
        let durable = self.journal.durable();
        seq <= pg.committed && pg.log.get(&seq).is_some_and(|log| log.lsn.is_some_and(|lsn| lsn < durable))
    }

    /// Decides those blocks that this layer has something for and that are undecided.
    fn resolve_layer(&self, key: LayerKey, blocks: BlockRange, sources: &mut [Source], open: &mut usize) {
        let Some(layer) = self.layers.get(&key) else { return };
        let Some(pg) = self.pgs.get(&layer.record.pg) else { return };
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
        for seq in layer.pending.iter().rev().filter(|seq| self.is_visible(layer.record.pg, **seq)) {
            let Some(log) = pg.log.get(seq) else { continue };
            let (range, is_write) = match &log.entry.body {
                EntryBody::Write { blocks, .. } => (*blocks, true),
                EntryBody::Zero { blocks, .. } => (*blocks, false),
                _ => continue,
            };
            for block in range.first().max(blocks.first())..range.end().min(blocks.end()) {
                let index = usize::from(block - range.first());
                let log = Source::Log { layer: key, pg: layer.record.pg, seq: *seq, index };
                if decide(block, if is_write { log } else { Source::Zero(key) }) {
                    return;
                }
            }
        }
        for block in blocks.iter() {
            let record = &layer.record;
            let decided = if record.present.contains(block) {
                let au = record.aus[usize::from(block / AU_BLOCKS)];
                assert!(au != NO_AU, "a present block has a unit");
                let offset = self.super_block.geometry.au_block(au, block % AU_BLOCKS);
                decide(block, Source::Home { layer: key, offset, checksum: record.checksums[usize::from(block)] })
            } else if record.zeroed.contains(block) {
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
        if through {
            let oldest = LayerKey { chunk: layer.chunk, snap_seq: SnapSeq(0) };
            for (key, _) in self.layers.range(oldest..=layer).rev() {
                self.resolve_layer(*key, blocks, &mut sources, &mut open);
                if open == 0 {
                    break;
                }
            }
        } else {
            self.resolve_layer(layer, blocks, &mut sources, &mut open);
        }
        sources
    }

    /// True if `next` goes on where `last` is, `distance` blocks further.
    fn follows(&self, first: Source, next: Source, distance: usize) -> bool {
        match (first, next) {
            (Source::Absent | Source::Zero(_), Source::Absent | Source::Zero(_)) => true,
            (Source::Log { layer, pg, seq, index }, Source::Log { layer: l, pg: p, seq: s, index: i }) => {
                let ring = self.super_block.geometry.journal_bytes;
                let place = self.log_place(pg, seq).map_or(0, |lsn| lsn + (i * BLOCK_BYTES) as u64);
                (layer, pg, seq, index + distance) == (l, p, s, i) && !place.is_multiple_of(ring)
            }
            (Source::Home { layer, offset, .. }, Source::Home { layer: l, offset: o, .. }) => {
                layer == l && offset + (distance * BLOCK_BYTES) as u64 == o
            }
            _ => false,
        }
    }

    fn log_place(&self, pg: PgId, seq: Seq) -> Option<u64> {
        self.pgs.get(&pg)?.log.get(&seq).map(|log| log.payload_lsn)
    }

    fn plan(&self, layer: LayerKey, blocks: BlockRange, through: bool) -> Vec<Part> {
        let sources = self.resolve(layer, blocks, through);
        let mut parts = Vec::new();
        let mut start = 0;
        while start < sources.len() {
            let mut end = start + 1;
            while end < sources.len() && self.follows(sources[start], sources[end], end - start) {
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
        let changes = |key: &LayerKey| self.layers.get(key).map_or(0, |layer| layer.changes);
        match first {
            Source::Absent | Source::Zero(_) => {
                Part { blocks, first, checksums: Vec::new(), found: Found::Zeros, changes: 0 }
            }
            Source::Home { layer, .. } => {
                let sum = |source: &Source| if let Source::Home { checksum, .. } = source { *checksum } else { 0 };
                let checksums = sources.iter().map(sum).collect();
                Part { blocks, first, checksums, found: Found::Waiting, changes: changes(&layer) }
            }
            Source::Log { layer, pg, seq, index } => {
                let log = self.pgs.get(&pg).and_then(|pg| pg.log.get(&seq)).expect("it was just found there");
                let EntryBody::Write { checksums, data, .. } = &log.entry.body else {
                    unreachable!("only writes have content")
                };
                let checksums = checksums[index..index + sources.len()].to_vec();
                let found = if data.is_empty() {
                    Found::Waiting
                } else {
                    Found::Memory(data.slice(index * BLOCK_BYTES..(index + sources.len()) * BLOCK_BYTES))
                };
                Part { blocks, first, checksums, found, changes: changes(&layer) }
            }
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
        let mut reads = Vec::new();
        for (index, part) in job.parts.iter().enumerate().filter(|(_, part)| matches!(part.found, Found::Waiting)) {
            let offset = match part.first {
                Source::Home { offset, .. } => offset,
                Source::Log { pg, seq, index, .. } => {
                    let lsn = self.log_place(pg, seq).expect("it was just found there") + (index * BLOCK_BYTES) as u64;
                    self.super_block.geometry.ring_pieces(lsn, 0)[0].0
                }
                Source::Absent | Source::Zero(_) => continue,
            };
            reads.push((index, offset, part.blocks.bytes() as u32));
        }
        job.left = reads.len();
        if reads.is_empty() {
            self.finish_read(job, out);
            return;
        }
        let id = self.fresh_id();
        self.reads.insert(id, job);
        for (index, offset, length) in reads {
            self.submit(Owner::Read(id, index), class, DiskOp::Read { offset, length }, out);
        }
    }

    pub(crate) fn read_done(&mut self, id: u64, part: usize, result: Result<Bytes, DiskError>, out: &mut Vec<Output>) {
        let Some(job) = self.reads.get_mut(&id) else { return };
        job.parts[part].found = Found::Disk(result);
        job.left -= 1;
        if job.left > 0 {
            return;
        }
        let job = self.reads.remove(&id).expect("it was just there");
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
            let Found::Disk(result) = &part.found else { return false };
            match part.first {
                Source::Home { layer, offset, .. } => {
                    let now = self.layers.get(&layer);
                    let au = now.map_or(NO_AU, |l| l.record.aus[usize::from(part.blocks.first() / AU_BLOCKS)]);
                    let place = self.super_block.geometry.au_block(au, part.blocks.first() % AU_BLOCKS);
                    let wrong = first_bad(result, &part.checksums).is_some();
                    let changed = now.is_none_or(|layer| layer.changes != part.changes);
                    let mut blocks = BlockMap::EMPTY;
                    blocks.insert_range(part.blocks);
                    (changed && (wrong || place != offset)) || (wrong && self.is_being_written(layer, &blocks))
                }
                Source::Log { pg, seq, .. } => {
                    let log = self.pgs.get(&pg).and_then(|pg| pg.log.get(&seq));
                    let gone = match job.purpose {
                        Purpose::Entry { version, .. } => log.is_none_or(|log| log.entry.version != version),
                        _ => log.is_none_or(|log| log.applied),
                    };
                    first_bad(result, &part.checksums).is_some() && gone
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
        let Some(pg) = self.pgs.get(&layer.record.pg).filter(|pg| !pg.has_dropped(key.chunk.vtree)) else {
            return Version::default();
        };
        let newest = layer.pending.iter().rev().find(|seq| self.is_visible(layer.record.pg, **seq));
        let newest = newest.and_then(|seq| pg.log.get(seq)).map(|log| log.entry.version);
        newest.unwrap_or(layer.record.version)
    }

    pub(crate) fn list_chunks(&self, pg_id: PgId) -> Vec<(LayerKey, Version)> {
        let Some(pg) = self.pgs.get(&pg_id) else { return Vec::new() };
        let versions = pg.layers.iter().map(|key| (*key, self.visible_version(*key)));
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
        let sources: Vec<Source> =
            (0..usize::from(blocks.count())).map(|index| Source::Log { layer, pg: pg_id, seq, index }).collect();
        let cut = (1..sources.len()).find(|at| !self.follows(sources[0], sources[*at], *at)).unwrap_or(sources.len());
        let mut parts = Vec::new();
        for range in [0..cut, cut..sources.len()] {
            let Some(part) = BlockRange::new(blocks.first() + range.start as u16, range.len() as u16) else { continue };
            parts.push(self.part(part, &sources[range]));
        }
        let job = ReadJob { token, purpose: Purpose::Entry { pg: pg_id, version }, layer, blocks, parts, left: 0 };
        self.send_read(job, out);
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
    let bytes = match part.found {
        Found::Zeros | Found::Waiting => return vec![Piece { blocks: part.blocks, content: PieceContent::Zeros }],
        Found::Memory(bytes) => {
            let content = PieceContent::Data { bytes, checksums: part.checksums };
            return vec![Piece { blocks: part.blocks, content }];
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
            let content = PieceContent::Bad { error, layer, checksums: part.checksums };
            return vec![Piece { blocks: part.blocks, content }];
        }
    };
    let mut sums = part.checksums;
    if mutants::is_on(Mutant::ServeUnverified) {
        sums = bytes.chunks_exact(BLOCK_BYTES).map(crc32c).collect();
    }
    let good: Vec<bool> =
        bytes.chunks_exact(BLOCK_BYTES).zip(&sums).map(|(block, sum)| crc32c(block) == *sum).collect();
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < good.len() {
        let end = (start..good.len()).find(|at| good[*at] != good[start]).unwrap_or(good.len());
        let blocks = BlockRange::new(part.blocks.first() + start as u16, (end - start) as u16);
        let checksums = sums[start..end].to_vec();
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
