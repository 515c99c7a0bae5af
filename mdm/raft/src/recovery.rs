//! Reading the log back, and the decision what an invalid record means.
//!
//! A write that was under way at a power cut leaves torn bytes; nobody was told of it, so the log simply ends there. Rot or a
//! lost write leaves an invalid record too, and there the log must not end: it held entries that were acknowledged. The two
//! cannot be told from the bytes of the record itself, only from what else is durable:
//!
//! | the first record that is not valid | what else is there | case |
//! |---|---|---|
//! | none | | `Clean` |
//! | in a segment that has a successor | the successor's header continues exactly here | abandoned tail: go on with the successor |
//! | in a segment that has a successor | it continues later | damaged: `Middle` |
//! | in the last segment | a later valid record says that this position was durable before it | damaged: `Middle` |
//! | in the last segment | nothing, or only records of the same unfinished write | `Torn`: the log ends here |
//!
//! The caller then compares the end with the marks in the stable file and in the snapshot: a log that ends before them is
//! damaged (`Short`), however clean it looks. What stays undecided is rot of the very last write since the last mark.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::codec::{DecodeError, Reader, unseal};
use crate::files::{Damage, RecoverError, damaged, unreadable};
use crate::identity::StoreId;
use crate::log::{
    HEADER_BYTES, KIND_ENTRY, KIND_RESTART, LogWriter, RECORD_HEADER_BYTES, RECORD_MAGIC, SEGMENT_MAGIC,
    SEGMENT_VERSION, Segment, segment_name,
};
use crate::message;

/// How the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// With a valid record.
    Clean,
    /// With bytes of a write that was never completed.
    Torn,
}

/// The log, read back.
#[derive(Debug)]
pub(crate) struct Replayed {
    /// Index and term before the first of `entries`, where a restart record says so.
    pub(crate) base: Option<(u64, u64)>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) log: LogWriter,
    pub(crate) tail: Tail,
}

struct Header {
    first_position: u64,
    chain: u32,
}

/// A record whose own checksum is right.
struct Record<'a> {
    kind: u8,
    position: u64,
    before: u64,
    index: u64,
    term: u64,
    /// Header and body, which the chained checksum covers.
    covered: &'a [u8],
    chain: u32,
    length: usize,
}

/// Reads all segments, oldest first.
pub(crate) fn replay(store: StoreId, segments: &BTreeMap<u64, &Bytes>) -> Result<Replayed, RecoverError> {
    let (Some((&oldest, _)), Some((&newest, _))) = (segments.first_key_value(), segments.last_key_value()) else {
        return Err(damaged(&segment_name(1), Damage::Missing));
    };
    let mut headers = BTreeMap::new();
    for number in oldest..=newest {
        let bytes = segments.get(&number).ok_or_else(|| damaged(&segment_name(number), Damage::Missing))?;
        headers.insert(number, (header(store, number, bytes)?, *bytes));
    }
    let Header { first_position, chain } = headers[&oldest].0;
    let log = LogWriter { store, segments: VecDeque::new(), size: 0, position: first_position - 1, chain };
    let mut replayed = Replayed { base: None, entries: Vec::new(), log, tail: Tail::Clean };
    for (number, (header, bytes)) in &headers {
        let file = segment_name(*number);
        if header.first_position != replayed.log.position + 1 || header.chain != replayed.log.chain {
            let cause = Damage::Short { expected: header.first_position - 1, found: replayed.log.position };
            return Err(damaged(&segment_name(number - 1), cause));
        }
        replayed.log.segments.push_back(Segment { number: *number, last_index: 0 });
        let end = headers.get(&(number + 1)).map(|(next, _)| next.first_position - 1);
        let offset = replayed.read_segment(bytes, end, &file)?;
        replayed.log.size = bytes.len() as u64;
        if offset < bytes.len() && end.is_none() {
            replayed.judge_tail(&bytes[offset..], offset, &file)?;
        }
    }
    Ok(replayed)
}

fn header(store: StoreId, number: u64, bytes: &[u8]) -> Result<Header, RecoverError> {
    let file = segment_name(number);
    let (found, header) = parse_header(number, bytes).map_err(|e| unreadable(&file, e))?;
    if found != store {
        return Err(damaged(&file, Damage::OtherStore { expected: store, found }));
    }
    Ok(header)
}

fn parse_header(number: u64, bytes: &[u8]) -> Result<(StoreId, Header), DecodeError> {
    let header = bytes.get(..HEADER_BYTES).ok_or(DecodeError::Truncated)?;
    let mut reader = Reader::new(unseal(header)?);
    if reader.u32()? != SEGMENT_MAGIC {
        return Err(DecodeError::Magic);
    }
    match reader.u8()? {
        SEGMENT_VERSION => {}
        version => return Err(DecodeError::Version(version)),
    }
    let store = StoreId(reader.u64()?);
    if reader.u64()? != number {
        return Err(DecodeError::Unknown("segment number"));
    }
    let first_position = reader.number("position")?.max(1);
    Ok((store, Header { first_position, chain: reader.u32()? }))
}

impl Replayed {
    /// Takes the valid records up to position `end`. Returns the offset after the last of them.
    fn read_segment(&mut self, bytes: &[u8], end: Option<u64>, file: &str) -> Result<usize, RecoverError> {
        let mut offset = HEADER_BYTES;
        while end.is_none_or(|end| self.log.position < end) {
            let Some(record) = self.next_record(&bytes[offset..]) else { break };
            self.take(&record).map_err(|cause| damaged(file, cause))?;
            offset += record.length;
        }
        match end {
            Some(end) if self.log.position < end => Err(damaged(file, Damage::Middle { offset: offset as u64 })),
            _ => Ok(offset),
        }
    }

    /// The record at the start of `bytes`, if it is valid here: right in itself, next in position and in the chain.
    fn next_record<'a>(&self, bytes: &'a [u8]) -> Option<Record<'a>> {
        let record = parse_record(bytes)?;
        let in_chain = crc32c::crc32c_append(self.log.chain, record.covered) == record.chain;
        (in_chain && record.position == self.log.position + 1).then_some(record)
    }

    fn take(&mut self, record: &Record<'_>) -> Result<(), Damage> {
        let out_of_order = Damage::Order { position: record.position };
        self.log.position = record.position;
        self.log.chain = record.chain;
        match record.kind {
            KIND_RESTART => {
                self.base = Some((record.index, record.term));
                self.entries.clear();
                self.log.segments.iter_mut().for_each(|segment| segment.last_index = 0);
            }
            KIND_ENTRY => {
                let body = &record.covered[RECORD_HEADER_BYTES..];
                let entry = message::decode_entry_body(record.index, record.term, body)?;
                let first = self
                    .base
                    .map(|(index, _)| index + 1)
                    .or_else(|| self.entries.first().map(|e| e.index))
                    .unwrap_or(record.index);
                if record.index < first && self.base.is_none() {
                    // Replay began in the middle, after older segments were removed: nothing from here on counts.
                    self.entries.clear();
                } else if record.index < first || record.index > first + self.entries.len() as u64 {
                    return Err(out_of_order);
                } else {
                    self.entries.truncate((record.index - first) as usize);
                }
                self.entries.push(entry);
                if let Some(segment) = self.log.segments.back_mut() {
                    segment.last_index = segment.last_index.max(record.index);
                }
            }
            _ => return Err(Damage::Unreadable(DecodeError::Unknown("kind of record"))),
        }
        Ok(())
    }

    /// The decision about what follows the last valid record of the last segment.
    fn judge_tail(&mut self, rest: &[u8], offset: usize, file: &str) -> Result<(), RecoverError> {
        self.tail = Tail::Torn;
        let magic = RECORD_MAGIC.to_le_bytes();
        let mut at = 0;
        while let Some(found) = rest[at..].windows(4).position(|window| window == magic) {
            at += found;
            // A survivor whose `before` lies behind the end proves that the invalid record had been durable.
            if parse_record(&rest[at..]).is_some_and(|survivor| survivor.before > self.log.position) {
                return Err(damaged(file, Damage::Middle { offset: offset as u64 }));
            }
            at += 1;
        }
        Ok(())
    }
}

/// A record whose header is right in itself and whose body is all there. Whether the body is right, only the chain says.
fn parse_record(bytes: &[u8]) -> Option<Record<'_>> {
    let header = bytes.get(..RECORD_HEADER_BYTES)?;
    let mut reader = Reader::new(unseal(header).ok()?);
    if reader.u32().ok()? != RECORD_MAGIC {
        return None;
    }
    let kind = reader.u8().ok()?;
    let position = reader.number("position").ok()?;
    let before = reader.number("position").ok()?;
    let index = reader.number("index").ok()?;
    let term = reader.number("term").ok()?;
    let body = reader.u32().ok()? as usize;
    let covered = bytes.get(..RECORD_HEADER_BYTES.checked_add(body)?)?;
    let chain = bytes.get(covered.len()..covered.len() + 4)?;
    let chain = u32::from_le_bytes(chain.try_into().ok()?);
    Some(Record { kind, position, before, index, term, covered, chain, length: covered.len() + 4 })
}
