//! From bytes to a running store, or to the reason why not.
//!
//! ```text
//! super blocks 0, 3 (else a search for 1) -> 1, 2 -> root -> directory -> pages -> ring, once around -> super blocks 0, 1 -> 2, 3 -> Opened
//! ```
//!
//! Nothing is written before everything was read, and then only the super block: with the open count one higher, and with
//! what was found wrong, so that a restart does not forget it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mdm_api::ids::{DeviceId, DeviceIncarnation, SystemId};
use mdm_api::mutants::{self, Mutant};

use crate::error::OpenError;
use crate::io::{DiskDone, DiskError, DiskOp, DiskRequest, IoClass, OpId};
use crate::journal::scan::{EndVerdict, JournalEnd, Scanned, Scanner};
use crate::layout::{
    Geometry, PAGE, PAGES_PER_DIRECTORY, RECORDS_PER_PAGE, SUPER_AREA_BYTES, SUPER_COPIES, default_journal_bytes,
    last_super_offset,
};
use crate::limits::{JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN, OPEN_READ_BYTES, OPEN_READS, READ_TRIES};
use crate::meta::page::{HomeRef, Kind, decode_page, decode_refs, is_current};
use crate::planted::Bug;
use crate::replay::Replay;
use crate::request::{Recovered, Suspicion, Verdict};
use crate::store::{Options, Store};
use crate::superblock::{Copy, FORMAT_VERSION, SUPER_MAGIC, SuperBlock, quorum};

/// What the opener is told about the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenParameters {
    /// Bytes of the device as it is now.
    pub size_bytes: u64,
    /// Whose it must be; none: anybody's.
    pub system: Option<SystemId>,
    /// Which it must be.
    pub device: Option<DeviceId>,
    /// Which life of it.
    pub incarnation: Option<DeviceIncarnation>,
    /// How the store is to run.
    pub options: Options,
}

/// An open device.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// What it knows.
    pub recovered: Recovered,
}

/// Pieces of a wanted range, in order; `None` where the device could not deliver.
type Parts = Vec<(u64, Option<Bytes>)>;

/// Reads ranges, several at a time, and hands them over in order. A range that fails is read again block by block, and a
/// block a few times: one that fails for good makes the copy suspect, and that may be the only one.
#[derive(Default)]
struct Reader {
    wanted: VecDeque<(u64, u64)>,
    slots: VecDeque<Slot>,
    first_slot: u64,
    in_flight: BTreeMap<OpId, (u64, usize, u32)>,
    next_op: u64,
}

struct Slot {
    offset: u64,
    parts: Vec<(u64, Option<Result<Bytes, DiskError>>)>,
}

impl Reader {
    fn want(&mut self, offset: u64, length: u64) {
        let mut at = 0;
        while at < length {
            let piece = OPEN_READ_BYTES.min(length - at);
            self.wanted.push_back((offset + at, piece));
            at += piece;
        }
    }

    fn pump(&mut self, out: &mut Vec<DiskRequest>) {
        while self.in_flight.len() < OPEN_READS
            && let Some((offset, length)) = self.wanted.pop_front()
        {
            let slot = self.first_slot + self.slots.len() as u64;
            self.slots.push_back(Slot { offset, parts: vec![(length, None)] });
            self.send((slot, 0, 1), offset, length, out);
        }
    }

    /// `place`: which slot, which of its parts, and for the how manieth time.
    fn send(&mut self, place: (u64, usize, u32), offset: u64, length: u64, out: &mut Vec<DiskRequest>) {
        let id = OpId(self.next_op);
        self.next_op += 1;
        self.in_flight.insert(id, place);
        let op = DiskOp::Read { offset, length: length as u32 };
        out.push(DiskRequest { id, class: IoClass::Foreground, op });
    }

    fn done(&mut self, done: DiskDone, out: &mut Vec<DiskRequest>) {
        let Some((number, part, tries)) = self.in_flight.remove(&done.id) else { return };
        let slot = &mut self.slots[(number - self.first_slot) as usize];
        let length = slot.parts[part].0;
        let result = done.result.and_then(|b| if b.len() as u64 == length { Ok(b) } else { Err(DiskError::Io) });
        if result.is_err() && length > PAGE {
            let (offset, count) = (slot.offset, length / PAGE);
            slot.parts = (0..count).map(|_| (PAGE, None)).collect();
            for index in 0..count {
                self.send((number, index as usize, 1), offset + index * PAGE, PAGE, out);
            }
            return;
        }
        if result.is_err() && tries < READ_TRIES {
            let offset = slot.offset + part as u64 * PAGE;
            self.send((number, part, tries + 1), offset, length, out);
            return;
        }
        slot.parts[part].1 = Some(result);
        self.pump(out);
    }

    fn next(&mut self) -> Option<(u64, Parts)> {
        if !self.slots.front()?.parts.iter().all(|(_, result)| result.is_some()) {
            return None;
        }
        let slot = self.slots.pop_front()?;
        self.first_slot += 1;
        let parts = slot.parts.into_iter().map(|(length, result)| (length, result.and_then(Result::ok)));
        Some((slot.offset, parts.collect()))
    }

    /// Nothing more is wanted; what is on its way still comes.
    fn forget_wanted(&mut self) {
        self.wanted.clear();
    }

    fn is_done(&self) -> bool {
        self.wanted.is_empty() && self.slots.is_empty()
    }
}

/// A block of a range that was read.
fn block_at(start: u64, parts: &Parts, offset: u64, length: u64) -> Option<Bytes> {
    let mut at = start;
    for (part, bytes) in parts {
        if offset >= at && offset + length <= at + part {
            let from = (offset - at) as usize;
            return bytes.as_ref().map(|bytes| bytes.slice(from..from + length as usize));
        }
        at += part;
    }
    None
}

enum Phase {
    OuterSupers,
    Search,
    /// By the geometry of one that was good; a second look at that one may fail.
    InnerSupers(Geometry),
    Root(Gathered),
    Directory,
    Pages,
    Ring(Box<Scanner>),
    WriteFirst,
    WriteSecond,
    Ended,
}

/// Bytes gathered from several reads.
type Gathered = Vec<u8>;

/// Opens a device; a pure state machine like the store itself.
pub struct Opener {
    parameters: OpenParameters,
    phase: Phase,
    reader: Reader,
    copies: [Copy; SUPER_COPIES],
    /// Super blocks that are all zeros: they were wiped, and who knows what else.
    blank_copies: u64,
    /// There was something that may have been a super block.
    is_damaged: bool,
    newest: u64,
    store: Option<Store>,
    replay: Replay,
    directory: Vec<HomeRef>,
    /// Pages from the first to the last one that was ever written.
    page_end: u64,
    lost_pages: u64,
    sound: bool,
    contradiction: Option<u64>,
    verdict: Verdict,
    writes_left: usize,
}

impl Opener {
    /// Begins.
    pub fn new(parameters: OpenParameters) -> Self {
        Self {
            parameters,
            phase: Phase::OuterSupers,
            reader: Reader::default(),
            copies: [Copy::Bad; SUPER_COPIES],
            blank_copies: 0,
            is_damaged: false,
            newest: 0,
            store: None,
            replay: Replay::default(),
            directory: Vec::new(),
            page_end: 0,
            lost_pages: 0,
            sound: true,
            contradiction: None,
            verdict: Verdict::Clean,
            writes_left: 0,
        }
    }

    /// The first operations. An error if the device is too small to be one.
    pub fn start(&mut self, out: &mut Vec<DiskRequest>) -> Result<(), OpenError> {
        let last = last_super_offset(self.parameters.size_bytes);
        if last == 0 {
            return Err(OpenError::NotFormatted);
        }
        self.reader.want(0, PAGE);
        self.reader.want(last, PAGE);
        self.reader.pump(out);
        Ok(())
    }

    /// Takes a result; at the end returns the store.
    pub fn step(&mut self, done: DiskDone, out: &mut Vec<DiskRequest>) -> Option<Result<Opened, OpenError>> {
        let result = match self.phase {
            Phase::WriteFirst | Phase::WriteSecond => self.written(done, out),
            Phase::Ended => return None,
            _ => {
                self.reader.done(done, out);
                self.advance(out).map(|()| None)
            }
        };
        match result {
            Ok(None) => None,
            Ok(Some(opened)) => {
                self.phase = Phase::Ended;
                Some(Ok(opened))
            }
            Err(error) => {
                self.phase = Phase::Ended;
                Some(Err(error))
            }
        }
    }

    fn advance(&mut self, out: &mut Vec<DiskRequest>) -> Result<(), OpenError> {
        while let Some((offset, parts)) = self.reader.next() {
            match &mut self.phase {
                Phase::OuterSupers => {
                    let index = if offset == 0 { 0 } else { SUPER_COPIES - 1 };
                    self.take_super(index, &parts);
                }
                Phase::Search => {
                    let page = parts.first().and_then(|(_, bytes)| bytes.clone()).unwrap_or_default();
                    if let Copy::Good(block) = SuperBlock::decode(&page) {
                        self.copies[1] = Copy::Good(block);
                        self.reader.forget_wanted();
                    }
                }
                Phase::InnerSupers(geometry) => {
                    let index = geometry.super_offsets.iter().position(|place| *place == offset);
                    self.take_super(index.unwrap_or(0), &parts);
                }
                Phase::Root(bytes) => {
                    for (length, part) in &parts {
                        match part {
                            Some(part) => bytes.extend_from_slice(part),
                            None => bytes.resize(bytes.len() + *length as usize, 0),
                        }
                    }
                }
                Phase::Directory => self.take_directory(offset, &parts),
                Phase::Pages => self.take_pages(offset, &parts),
                Phase::Ring(scanner) => {
                    for (length, part) in parts {
                        match part {
                            Some(part) => scanner.feed(part),
                            None => scanner.feed_unreadable(length),
                        }
                    }
                    self.scan()?;
                }
                Phase::WriteFirst | Phase::WriteSecond | Phase::Ended => {}
            }
            self.reader.pump(out);
        }
        while self.reader.is_done() && !matches!(self.phase, Phase::WriteFirst | Phase::WriteSecond | Phase::Ended) {
            self.next_phase(out)?;
            self.reader.pump(out);
        }
        Ok(())
    }

    fn take_super(&mut self, index: usize, parts: &Parts) {
        let page = parts.first().and_then(|(_, bytes)| bytes.clone()).unwrap_or_default();
        // The last one's place is known for certain only in the second look: the device may have grown.
        let is_certain = index == 0 || matches!(self.phase, Phase::InnerSupers(_));
        self.blank_copies += u64::from(is_certain && !page.is_empty() && page.iter().all(|byte| *byte == 0));
        let looks_like_one = page.starts_with(&SUPER_MAGIC) || page.is_empty();
        self.is_damaged |= looks_like_one;
        self.copies[index] = SuperBlock::decode(&page);
    }

    fn geometry(&self) -> Geometry {
        self.store.as_ref().expect("chosen before").super_block.geometry
    }

    /// Neither super block whose place is known is good. The second stands behind the journal: looked for where it would be
    /// by default, and, if there was something, wherever it could be.
    fn search(&mut self) {
        let size = self.parameters.size_bytes;
        let default = Geometry::new(size, default_journal_bytes(size)).map(|geometry| geometry.super_offsets);
        default.iter().flat_map(|offsets| &offsets[1..3]).for_each(|offset| self.reader.want(*offset, PAGE));
        if self.is_damaged {
            let first = (SUPER_AREA_BYTES + JOURNAL_BYTES_MIN).next_multiple_of(SUPER_AREA_BYTES);
            let last = (SUPER_AREA_BYTES + JOURNAL_BYTES_MAX).min(size.saturating_sub(PAGE));
            (first..=last).step_by(SUPER_AREA_BYTES as usize).for_each(|offset| self.reader.want(offset, PAGE));
        }
    }

    fn next_phase(&mut self, out: &mut Vec<DiskRequest>) -> Result<(), OpenError> {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::OuterSupers => {
                let outer = [self.copies[0], self.copies[SUPER_COPIES - 1]];
                if let Some(version) = outer.iter().find_map(|c| if let Copy::Newer(v) = c { Some(*v) } else { None }) {
                    return Err(OpenError::NewerVersion { found: version, known: FORMAT_VERSION });
                }
                if !outer.iter().any(|copy| matches!(copy, Copy::Good(_))) {
                    self.phase = Phase::Search;
                    self.search();
                    return Ok(());
                }
                self.look_inside()?;
            }
            Phase::Search => {
                self.look_inside()?;
            }
            Phase::InnerSupers(_) => {
                let store = self.choose()?;
                let (geometry, root) = (store.super_block.geometry, store.super_block.checkpoint);
                self.store = Some(store);
                self.phase = Phase::Root(Vec::new());
                if root.generation > 0 {
                    self.reader.want(geometry.root_home(root.root_home), geometry.root_bytes);
                }
            }
            Phase::Root(bytes) => self.load_root(&bytes),
            Phase::Directory => {
                self.phase = Phase::Pages;
                self.reader.want(self.geometry().page_home(0, 0), 2 * PAGE * self.page_end);
            }
            Phase::Pages => self.begin_ring(),
            Phase::Ring(scanner) => {
                let end = scanner.end();
                self.conclude(&end, out)?;
            }
            Phase::WriteFirst | Phase::WriteSecond | Phase::Ended => {}
        }
        Ok(())
    }

    /// A super block is known, and with it the places of the others.
    fn look_inside(&mut self) -> Result<(), OpenError> {
        let good = |copy: &Copy| if let Copy::Good(block) = copy { Some(block.geometry) } else { None };
        let Some(geometry) = self.copies.iter().find_map(good) else { return Err(OpenError::NotFormatted) };
        let found = self.parameters.size_bytes;
        if geometry.size_bytes > found {
            return Err(OpenError::Truncated { found, expected: geometry.size_bytes });
        }
        self.phase = Phase::InnerSupers(geometry);
        geometry.super_offsets[1..].iter().for_each(|offset| self.reader.want(*offset, PAGE));
        Ok(())
    }

    /// Finds the super block that counts and compares it with what the caller expects.
    fn choose(&mut self) -> Result<Store, OpenError> {
        let mut quorum = quorum(&self.copies);
        if self.parameters.options.has(Bug::TrustLoneSuper) {
            let newest = self.copies.iter().filter_map(|copy| if let Copy::Good(b) = copy { Some(*b) } else { None });
            quorum.chosen = newest.max_by_key(|block| block.sequence);
        }
        self.newest = quorum.newest;
        let Some(block) = quorum.chosen else {
            return Err(OpenError::TooFewSuperBlocks { valid: quorum.valid, newest: quorum.newest });
        };
        let expected = self.parameters;
        if let Some(system) = expected.system.filter(|system| *system != block.system) {
            return Err(OpenError::OtherSystem { found: block.system, expected: system });
        }
        if let Some(device) = expected.device.filter(|device| *device != block.device) {
            return Err(OpenError::OtherDevice { found: block.device, expected: device });
        }
        if let Some(incarnation) = expected.incarnation.filter(|incarnation| *incarnation != block.incarnation) {
            return Err(OpenError::OtherIncarnation { found: block.incarnation, expected: incarnation });
        }
        Ok(Store::blank(block, self.parameters.options))
    }

    fn load_root(&mut self, bytes: &[u8]) {
        let store = self.store.as_mut().expect("chosen before");
        let (geometry, root, salt) = (store.super_block.geometry, store.super_block.checkpoint, store.super_block.salt);
        self.phase = Phase::Directory;
        if root.generation == 0 {
            return;
        }
        let home = HomeRef { generation: root.generation, crc: root.root_crc, home: root.root_home };
        if !is_current(bytes, Kind::Root, salt, 0, &home) {
            self.lost_pages += geometry.page_count;
            return;
        }
        self.directory = decode_refs(bytes);
        self.directory.truncate(geometry.directory_count as usize);
        for (block, reference) in self.directory.iter().enumerate() {
            store.meta.load_directory(block, *reference);
            if reference.generation > 0 {
                self.reader.want(geometry.directory_home(block as u64, reference.home), PAGE);
            }
        }
    }

    fn take_directory(&mut self, offset: u64, parts: &Parts) {
        let geometry = self.geometry();
        let store = self.store.as_mut().expect("chosen before");
        let block = (offset - geometry.directory_offset) / PAGE / 2;
        let reference = self.directory[block as usize];
        let bytes = block_at(offset, parts, offset, PAGE).unwrap_or_default();
        if !is_current(&bytes, Kind::Directory, store.super_block.salt, block, &reference) {
            self.lost_pages += PAGES_PER_DIRECTORY.min(geometry.page_count - block * PAGES_PER_DIRECTORY);
            return;
        }
        for (index, reference) in decode_refs(&bytes).into_iter().take(PAGES_PER_DIRECTORY as usize).enumerate() {
            let page = block * PAGES_PER_DIRECTORY + index as u64;
            if reference.generation > 0 && page < geometry.page_count {
                store.meta.load_page(page as usize, reference);
                self.page_end = self.page_end.max(page + 1);
            }
        }
    }

    fn take_pages(&mut self, offset: u64, parts: &Parts) {
        let geometry = self.geometry();
        let store = self.store.as_mut().expect("chosen before");
        let length: u64 = parts.iter().map(|(length, _)| length).sum();
        let first = (offset - geometry.page_offset) / PAGE / 2;
        let last = (offset + length - geometry.page_offset).div_ceil(2 * PAGE);
        for page in first..last {
            let reference = store.meta.page(page as u32);
            if reference.generation == 0 {
                continue;
            }
            let place = geometry.page_home(page, reference.home);
            let mut bytes = block_at(offset, parts, place, PAGE).unwrap_or_default();
            let mut current = is_current(&bytes, Kind::Page, store.super_block.salt, page, &reference);
            if !current && mutants::is_on(Mutant::StaleMetadataHome) {
                let older = geometry.page_home(page, 1 - reference.home);
                bytes = block_at(offset, parts, older, PAGE).unwrap_or_default();
                current = decode_page(&bytes).is_some();
            }
            let Some(records) = current.then(|| decode_page(&bytes)).flatten() else {
                self.lost_pages += 1;
                store.touch_page(page as u32);
                continue;
            };
            for (index, record) in records.into_iter().enumerate() {
                let slot = page * RECORDS_PER_PAGE + index as u64;
                if let Some(record) = record {
                    self.sound &= store.load_record(slot as u32, record, &mut self.replay);
                }
            }
        }
    }

    fn begin_ring(&mut self) {
        let store = self.store.as_mut().expect("chosen before");
        store.layers.finish_loading();
        let (geometry, root, salt) = (store.super_block.geometry, store.super_block.checkpoint, store.super_block.salt);
        let mut scanner = Scanner::new(geometry.journal_bytes, salt, root.tail, root.tail_chain, root.tail_incarnation);
        scanner.goes_on(store.super_block.resumed_at, store.super_block.open_count);
        scanner.ignores_chain = self.parameters.options.has(Bug::IgnoreChain);
        self.phase = Phase::Ring(Box::new(scanner));
        for (offset, length) in geometry.ring_pieces(root.tail, geometry.journal_bytes) {
            self.reader.want(offset, length);
        }
    }

    fn scan(&mut self) -> Result<(), OpenError> {
        let Phase::Ring(scanner) = &mut self.phase else { return Ok(()) };
        let store = self.store.as_mut().expect("chosen before");
        loop {
            match scanner.advance() {
                Scanned::Frame(frame) => {
                    let lsn = frame.head.lsn;
                    if !store.replay_frame(frame, &mut self.replay) && self.contradiction.is_none() {
                        self.contradiction = Some(lsn);
                    }
                }
                Scanned::NeedMore => return Ok(()),
                Scanned::Ended => return Ok(()),
                Scanned::Newer(found) => {
                    return Err(OpenError::NewerVersion { found, known: FORMAT_VERSION });
                }
            }
        }
    }

    /// All is read: the verdict, and the super block that remembers it.
    fn conclude(&mut self, end: &JournalEnd, out: &mut Vec<DiskRequest>) -> Result<(), OpenError> {
        let store = self.store.as_mut().expect("chosen before");
        let mut replay = std::mem::take(&mut self.replay);
        self.sound &= store.finish_replay(&mut replay);
        let twice = replay.twice;
        let block = &mut store.super_block;
        let known = block.checkpoint.durable;
        let contradiction = self.contradiction.or((!self.sound).then_some(end.lsn));
        let why = match end.verdict {
            EndVerdict::Corrupt => Some(Suspicion::JournalCorrupt { lsn: end.lsn }),
            EndVerdict::Contradiction => Some(Suspicion::JournalContradiction { lsn: end.lsn }),
            _ if end.lsn < known => Some(Suspicion::JournalShort { lsn: end.lsn, known }),
            _ if self.lost_pages > 0 => Some(Suspicion::PagesLost { pages: self.lost_pages }),
            // Before the first opening it is a format that was cut short.
            _ if self.blank_copies > 0 && block.open_count > 0 => Some(Suspicion::Wiped { copies: self.blank_copies }),
            _ if twice > 0 => Some(Suspicion::ClaimedTwice { units: twice }),
            _ => contradiction.map(|lsn| Suspicion::JournalContradiction { lsn }),
        };
        block.tail_uncertain |= end.verdict == EndVerdict::Uncertain;
        self.verdict = match why {
            Some(why) => Verdict::Suspect { why },
            None if block.suspect => Verdict::Suspect { why: Suspicion::Remembered },
            None if block.tail_uncertain => Verdict::TailUncertain,
            None => Verdict::Clean,
        };
        block.suspect |= why.is_some();
        block.open_count += 1;
        block.resumed_at = end.lsn;
        block.sequence = self.newest + 1;
        let incarnation = block.open_count;
        store.journal.resume(end, incarnation);
        self.phase = Phase::WriteFirst;
        self.write_supers(0, out);
        Ok(())
    }

    fn write_supers(&mut self, first: usize, out: &mut Vec<DiskRequest>) {
        let store = self.store.as_mut().expect("chosen before");
        let bytes = store.super_block.encode().freeze();
        for offset in &store.super_block.geometry.super_offsets[first..first + 2] {
            let id = OpId(self.reader.next_op);
            self.reader.next_op += 1;
            let op = DiskOp::Write { offset: *offset, buffers: vec![bytes.clone()], durable: true };
            out.push(DiskRequest { id, class: IoClass::Foreground, op });
        }
        self.writes_left = 2;
    }

    fn written(&mut self, done: DiskDone, out: &mut Vec<DiskRequest>) -> Result<Option<Opened>, OpenError> {
        done.result?;
        self.writes_left -= 1;
        if self.writes_left > 0 {
            return Ok(None);
        }
        if matches!(self.phase, Phase::WriteFirst) {
            self.phase = Phase::WriteSecond;
            self.write_supers(2, out);
            return Ok(None);
        }
        let mut store = self.store.take().expect("chosen before");
        store.next_op = self.reader.next_op;
        let recovered =
            Recovered { verdict: self.verdict, open_count: store.super_block.open_count, pgs: store.recovered_pgs() };
        Ok(Some(Opened { store, recovered }))
    }
}
