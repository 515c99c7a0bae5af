//! The log on stable storage: segments of checksummed, chained records.
//!
//! ```text
//! segment  = header record*
//! header   = magic u32, version u8, store u64, number u64, first position u64, chain u32, crc u32      (37 bytes)
//! record   = magic u32, kind u8, position u64, before u64, index u64, term u64, length u32, crc u32    (45 bytes)
//!            body, crc u32 over header and body, seeded with the chain
//! ```
//!
//! * `position` counts the records of a log, for ever: it never goes back, also when entries are overwritten.
//! * `before` is the position up to which everything was durable when the record was written. So a record that survives
//!   proves that all up to its `before` were durable once: if one of them is not valid, the log is damaged, not torn.
//! * The second checksum continues the one of the record before (and the first of all the store id), so a record of
//!   another log, or out of its place, is not valid.
//! * A record with index *i* supersedes all entries from *i* on: that is how a conflicting suffix is overwritten. A restart
//!   record says that the log goes on after a snapshot and holds nothing before.
//! * A segment is created whole with its header; a torn tail is left behind by starting the next segment, whose header says
//!   where the previous one ends. Segments are removed from the front, when a durable snapshot covers them.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::codec::Put;
use crate::files::{FileName, FileOp, SEGMENT_PREFIX};
use crate::identity::StoreId;
use crate::message;

pub(crate) const SEGMENT_MAGIC: u32 = 0x474c_5341;
/// Version 1: the first.
pub(crate) const SEGMENT_VERSION: u8 = 1;
pub(crate) const RECORD_MAGIC: u32 = 0x4552_5341;
/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 37;
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER_BYTES: usize = 45;

pub(crate) const KIND_ENTRY: u8 = 1;
pub(crate) const KIND_RESTART: u8 = 2;

/// One segment that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    /// Highest index of an entry in it; 0 if none counts any more.
    pub(crate) last_index: u64,
}

/// Knows where the log ends on disk, and turns entries into file operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWriter {
    pub(crate) store: StoreId,
    /// Oldest first; never empty; the last one is written.
    pub(crate) segments: VecDeque<Segment>,
    /// Bytes in the last segment.
    pub(crate) size: u64,
    /// The last record that was written.
    pub(crate) position: u64,
    /// Its checksum, where the next one continues.
    pub(crate) chain: u32,
}

impl LogWriter {
    /// A new log, and the operation that creates it.
    pub fn create(store: StoreId) -> (Self, FileOp) {
        let mut log = Self {
            store,
            segments: VecDeque::new(),
            size: 0,
            position: 0,
            chain: crc32c::crc32c(&store.0.to_le_bytes()),
        };
        let op = log.begin_segment(1);
        (log, op)
    }

    /// Position of the last record.
    pub fn last_position(&self) -> u64 {
        self.position
    }

    /// The file that is appended to.
    pub fn current_file(&self) -> FileName {
        segment_name(self.current().number)
    }

    fn current(&self) -> &Segment {
        self.segments.back().expect("a log has at least one segment")
    }

    /// Leaves the last segment as it is and begins the next one.
    pub fn next_segment(&mut self) -> FileOp {
        let number = self.current().number + 1;
        self.begin_segment(number)
    }

    fn begin_segment(&mut self, number: u64) -> FileOp {
        let header = encode_header(self.store, number, self.position + 1, self.chain);
        self.size = header.len() as u64;
        self.segments.push_back(Segment { number, last_index: 0 });
        FileOp::Replace { file: segment_name(number), bytes: header }
    }

    /// Writes entries. Everything up to position `before` is durable by now. The caller makes them durable by
    /// [`LogWriter::sync`].
    pub fn append(&mut self, entries: &[Entry], before: u64, segment_bytes: u64, ops: &mut Vec<FileOp>) {
        let mut bytes = Vec::new();
        for entry in entries {
            if self.size >= segment_bytes {
                self.flush(&mut bytes, ops);
                ops.push(self.sync());
                ops.push(self.next_segment());
            }
            let mut body = Vec::new();
            message::encode_entry_body(entry, &mut body);
            self.record(KIND_ENTRY, before, (entry.index, entry.term), &body, &mut bytes);
            let segment = self.segments.back_mut().expect("a log has at least one segment");
            segment.last_index = segment.last_index.max(entry.index);
        }
        self.flush(&mut bytes, ops);
    }

    /// Says that the log goes on after a snapshot.
    pub fn restart(&mut self, index: u64, term: u64, before: u64, ops: &mut Vec<FileOp>) {
        let mut bytes = Vec::new();
        self.record(KIND_RESTART, before, (index, term), &[], &mut bytes);
        for segment in &mut self.segments {
            segment.last_index = 0;
        }
        self.flush(&mut bytes, ops);
    }

    /// Makes what was appended durable.
    pub fn sync(&self) -> FileOp {
        FileOp::Sync { file: self.current_file() }
    }

    /// Removes the segments from the front that hold nothing after `index`, never the one that is written.
    pub fn remove_through(&mut self, index: u64, ops: &mut Vec<FileOp>) {
        while self.segments.len() > 1 && self.segments[0].last_index <= index {
            if let Some(segment) = self.segments.pop_front() {
                ops.push(FileOp::Remove { file: segment_name(segment.number) });
            }
        }
    }

    fn record(&mut self, kind: u8, before: u64, (index, term): (u64, u64), body: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        self.position += 1;
        out.put_u32(RECORD_MAGIC);
        out.put_u8(kind);
        out.put_u64(self.position);
        out.put_u64(before);
        out.put_u64(index);
        out.put_u64(term);
        out.put_count(body.len());
        let sum = crc32c::crc32c(&out[start..]);
        out.put_u32(sum);
        out.extend_from_slice(body);
        self.chain = crc32c::crc32c_append(self.chain, &out[start..]);
        out.put_u32(self.chain);
        self.size += (out.len() - start) as u64;
    }

    fn flush(&self, bytes: &mut Vec<u8>, ops: &mut Vec<FileOp>) {
        if !bytes.is_empty() {
            ops.push(FileOp::Append { file: self.current_file(), bytes: Bytes::from(std::mem::take(bytes)) });
        }
    }
}

fn encode_header(store: StoreId, number: u64, first_position: u64, chain: u32) -> Bytes {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put_u32(SEGMENT_MAGIC);
    out.put_u8(SEGMENT_VERSION);
    out.put_u64(store.0);
    out.put_u64(number);
    out.put_u64(first_position);
    out.put_u32(chain);
    let header = crate::codec::seal(out);
    assert_eq!(header.len(), HEADER_BYTES, "the header is as long as its picture says");
    header
}

/// The file of a segment.
pub fn segment_name(number: u64) -> FileName {
    format!("{SEGMENT_PREFIX}{number:016x}")
}

/// The segment of a file.
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(SEGMENT_PREFIX)?;
    let lower_hex = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if digits.len() == 16 && lower_hex { u64::from_str_radix(digits, 16).ok() } else { None }
}
