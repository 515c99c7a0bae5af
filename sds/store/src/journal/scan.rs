//! Reading the ring after a start: which frames count, and how far the end can be believed.
//!
//! | at position n                      | later whole frames of this life                        | verdict        |
//! |------------------------------------|--------------------------------------------------------|----------------|
//! | whole, chains to the one before    | -                                                      | accept         |
//! | whole, does not chain              | none that knew n durable                               | end, clean     |
//! | nothing of this lap                | none                                                   | end, clean     |
//! | not whole                          | none                                                  | end, uncertain |
//! | not whole, or nothing of this lap  | fewer than K, none knew n durable: a torn group        | end, uncertain |
//! | anything but "accept"              | K of one open count, or one that knew n durable        | suspect        |
//!
//! Whole and chaining, but written before the last opening, which went on here: as "not whole".
//!
//! "Of this life": at the position its `lsn` says, with the device's salt, written under the open count of the last accepted
//! frame or a later one. What an earlier recovery cut off carries a lower one and is never picked up again.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use sds_api::buf::AlignedBuf;
use sds_api::checksum::first_mismatch;
use sds_api::entry::EntryDecodeError;

use crate::journal::Mark;
use crate::journal::frame::{FRAME_HEAD_BYTES, FRAME_VERSION, FrameHead};
use crate::journal::record::Record;
use crate::limits::{FRAMES_IN_FLIGHT, PAGE_BYTES};

const PAGE: u64 = PAGE_BYTES as u64;

/// A frame that counts.
#[derive(Debug)]
pub struct ScannedFrame {
    /// Its head.
    pub head: FrameHead,
    /// Its records; payloads apart.
    pub records: Vec<(Record, Bytes)>,
}

/// What there is at the scanner's position.
#[derive(Debug)]
pub enum Scanned {
    /// A frame.
    Frame(ScannedFrame),
    /// More of the ring is needed to tell.
    NeedMore,
    /// The journal ends here; the rest of the ring is still wanted as evidence.
    Ended,
    /// A frame or a record of a version that this software does not know.
    Newer(u16),
}

/// How the journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndVerdict {
    /// Nothing was cut off.
    Clean,
    /// Something is there that is not a whole frame.
    Uncertain,
    /// A frame that was acknowledged is bad.
    Corrupt,
    /// A whole frame says impossible things.
    Contradiction,
}

/// Where the journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEnd {
    /// Position after the last accepted frame.
    pub lsn: u64,
    /// CRC of the last accepted frame.
    pub chain: u32,
    /// Open count under which it was written.
    pub incarnation: u64,
    /// How far it can be believed.
    pub verdict: EndVerdict,
}

enum Got {
    Bytes(Bytes),
    NeedMore,
    Unreadable,
}

/// Why the frame at the end does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    NothingOfThisLap,
    DoesNotChain,
    NotWhole,
    Contradiction,
}

/// Takes the ring in order, from the tail once around.
pub struct Scanner {
    salt: u64,
    next: u64,
    chain: u32,
    incarnation: u64,
    limit: u64,
    fed: u64,
    pieces: VecDeque<(u64, u64, Option<Bytes>)>,
    stop: Option<Stop>,
    search: u64,
    /// Whole frames behind the end, by the open count under which they were written.
    later: BTreeMap<u64, usize>,
    known_durable: bool,
    /// From this position on there is nothing that was written under an older open count than this one.
    resumed: (u64, u64),
    /// A bug on purpose: neither chains nor lives are looked at.
    pub(crate) ignores_chain: bool,
}

impl Scanner {
    /// Begins at the tail. `chain` and `incarnation` are those of the frame before it.
    pub fn new(ring_bytes: u64, salt: u64, tail: u64, chain: u32, incarnation: u64) -> Self {
        Self {
            salt,
            next: tail,
            chain,
            incarnation,
            limit: tail + ring_bytes,
            fed: tail,
            pieces: VecDeque::new(),
            stop: None,
            search: 0,
            later: BTreeMap::new(),
            known_durable: false,
            resumed: (0, 0),
            ignores_chain: false,
        }
    }

    /// At the last opening the journal went on at this position, under this open count; 0: not known.
    pub fn goes_on(&mut self, lsn: u64, incarnation: u64) {
        self.resumed = (lsn, incarnation);
    }

    /// True for what the last opening cut off. It may chain all the same: of a frame that was torn then, the part that was missing
    /// may have come by a write of the next life, torn in its turn, that had the same content there.
    fn is_cut_off(&self, head: &FrameHead) -> bool {
        let (lsn, incarnation) = self.resumed;
        lsn > 0 && head.lsn >= lsn && head.incarnation < incarnation && !self.ignores_chain
    }

    /// Hands in the next bytes of the ring (whole 4 KiB blocks).
    pub fn feed(&mut self, bytes: Bytes) {
        let length = bytes.len() as u64;
        self.pieces.push_back((self.fed, length, Some(bytes)));
        self.fed += length;
    }

    /// Says that the next bytes of the ring are unreadable.
    pub fn feed_unreadable(&mut self, length: u64) {
        self.pieces.push_back((self.fed, length, None));
        self.fed += length;
    }

    /// True when the whole ring has been handed in.
    pub fn is_fed(&self) -> bool {
        self.fed >= self.limit
    }

    /// Goes one frame further.
    pub fn advance(&mut self) -> Scanned {
        if self.stop.is_none() {
            match self.try_frame() {
                Ok(scanned) => return scanned,
                Err(stop) => {
                    self.stop = Some(stop);
                    self.search = self.next + if stop == Stop::DoesNotChain { 0 } else { PAGE };
                }
            }
        }
        self.search_evidence();
        Scanned::Ended
    }

    /// The verdict, once everything has been handed in and `advance` has said `Ended`.
    pub fn end(&self) -> JournalEnd {
        // One life has at most K frames in flight, the one at the end among them; several lives may have died here.
        let suspect = self.known_durable || self.later.values().any(|count| *count >= FRAMES_IN_FLIGHT);
        let verdict = match self.stop {
            Some(Stop::Contradiction) => EndVerdict::Contradiction,
            _ if suspect => EndVerdict::Corrupt,
            None | Some(Stop::DoesNotChain) => EndVerdict::Clean,
            Some(Stop::NothingOfThisLap) if self.later.is_empty() => EndVerdict::Clean,
            Some(Stop::NothingOfThisLap | Stop::NotWhole) => EndVerdict::Uncertain,
        };
        JournalEnd { lsn: self.next, chain: self.chain, incarnation: self.incarnation, verdict }
    }

    fn try_frame(&mut self) -> Result<Scanned, Stop> {
        if self.next >= self.limit {
            return Err(Stop::NothingOfThisLap);
        }
        let block = match self.get(self.next, PAGE) {
            Got::Bytes(block) => block,
            Got::NeedMore => return Ok(Scanned::NeedMore),
            Got::Unreadable => return Err(Stop::NotWhole),
        };
        let of_this_lap = FrameHead::decode(&block).filter(|head| head.salt == self.salt && head.lsn == self.next);
        let Some(head) = of_this_lap else {
            return Err(Stop::NothingOfThisLap);
        };
        if self.next + head.total_bytes() > self.limit {
            return Err(Stop::NotWhole);
        }
        let whole = match self.get(self.next, head.total_bytes()) {
            Got::Bytes(whole) => whole,
            Got::NeedMore => return Ok(Scanned::NeedMore),
            Got::Unreadable => return Err(Stop::NotWhole),
        };
        let area = whole.slice(..head.header_bytes as usize);
        if !head.is_whole(&area) {
            return Err(Stop::NotWhole);
        }
        if head.version > FRAME_VERSION {
            return Ok(Scanned::Newer(head.version));
        }
        let chains = head.previous_crc == self.chain && head.incarnation >= self.incarnation;
        if !chains && !self.ignores_chain {
            return Err(Stop::DoesNotChain);
        }
        if self.is_cut_off(&head) {
            return Err(Stop::NotWhole);
        }
        match decode_records(&head, &whole) {
            Ok(Some(records)) => {
                self.next += head.total_bytes();
                self.chain = head.crc;
                self.incarnation = head.incarnation;
                self.forget_before(self.next);
                Ok(Scanned::Frame(ScannedFrame { head, records }))
            }
            Ok(None) => Err(Stop::NotWhole),
            Err(EntryDecodeError::UnknownVersion(version)) => Ok(Scanned::Newer(u16::from(version))),
            Err(_) => Err(Stop::Contradiction),
        }
    }

    /// Looks for frames behind the end that could only be there if the end was once durable.
    fn search_evidence(&mut self) {
        while self.search < self.limit {
            let block = match self.get(self.search, PAGE) {
                Got::Bytes(block) => block,
                Got::NeedMore => break,
                Got::Unreadable => {
                    self.search += PAGE;
                    continue;
                }
            };
            let head = FrameHead::decode(&block).filter(|head| {
                head.salt == self.salt
                    && head.lsn == self.search
                    && head.incarnation >= self.incarnation
                    && !self.is_cut_off(head)
            });
            let mut step = PAGE;
            if let Some(head) = head
                && self.search + u64::from(head.header_bytes) <= self.limit
            {
                match self.get(self.search, u64::from(head.header_bytes)) {
                    Got::Bytes(area) if head.is_whole(&area) => {
                        // The frame at the end itself, if it merely does not chain, is no evidence.
                        if self.search > self.next {
                            *self.later.entry(head.incarnation).or_default() += 1;
                        }
                        self.known_durable |= head.durable_through > self.next;
                        step = head.total_bytes();
                    }
                    Got::NeedMore => break,
                    Got::Bytes(_) | Got::Unreadable => {}
                }
            }
            self.search += step;
        }
        self.forget_before(self.search.min(self.fed));
    }

    fn forget_before(&mut self, lsn: u64) {
        while self.pieces.front().is_some_and(|(start, length, _)| start + length <= lsn) {
            self.pieces.pop_front();
        }
    }

    fn get(&self, lsn: u64, length: u64) -> Got {
        if lsn + length > self.fed {
            return Got::NeedMore;
        }
        let first = self.pieces.partition_point(|(start, len, _)| start + len <= lsn);
        let Some((start, piece_length, bytes)) = self.pieces.get(first) else { return Got::NeedMore };
        let offset = (lsn - start) as usize;
        if lsn + length <= start + piece_length {
            return match bytes {
                Some(bytes) => Got::Bytes(bytes.slice(offset..offset + length as usize)),
                None => Got::Unreadable,
            };
        }
        let mut out = AlignedBuf::zeroed(length as usize);
        let mut filled = 0;
        for (start, piece_length, bytes) in self.pieces.iter().skip(first) {
            if *start >= lsn + length {
                break;
            }
            let Some(bytes) = bytes else { return Got::Unreadable };
            let from = lsn.saturating_sub(*start) as usize;
            let take = (*piece_length as usize - from).min(length as usize - filled);
            out[filled..filled + take].copy_from_slice(&bytes[from..from + take]);
            filled += take;
        }
        Got::Bytes(out.freeze())
    }
}

/// The records of a frame with their payloads; `None` if a payload block is not what its checksum says.
fn decode_records(head: &FrameHead, whole: &Bytes) -> Result<Option<Vec<(Record, Bytes)>>, EntryDecodeError> {
    let mut input = &whole[FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + head.record_bytes as usize];
    let mut at = head.header_bytes as usize;
    let mut records = Vec::new();
    for _ in 0..head.record_count {
        let record = Record::decode(&mut input)?;
        let length = record.payload_bytes();
        if at + length > whole.len() {
            return Err(EntryDecodeError::Short);
        }
        let payload = whole.slice(at..at + length);
        if length > 0 && first_mismatch(&payload, record.payload_checksums()).is_some() {
            return Ok(None);
        }
        at += length;
        records.push((record, payload));
    }
    if !input.is_empty() || at != whole.len() {
        return Err(EntryDecodeError::Short);
    }
    Ok(Some(records))
}

/// True if these bytes are the frame that was written behind `mark` and ends at `end`, payload and all.
pub fn is_as_written(salt: u64, mark: &Mark, end: u64, whole: &Bytes) -> bool {
    let head = FrameHead::decode(whole).filter(|head| head.salt == salt && head.lsn == mark.lsn);
    let Some(head) =
        head.filter(|head| head.lsn + head.total_bytes() == end && whole.len() as u64 == head.total_bytes())
    else {
        return false;
    };
    head.previous_crc == mark.chain
        && head.is_whole(&whole.slice(..head.header_bytes as usize))
        && matches!(decode_records(&head, whole), Ok(Some(_)))
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
