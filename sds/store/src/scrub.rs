//! Reading everything again, slowly, so that damage is found while there is a good copy to repair it from.
//!
//! One pass takes super blocks, the homes of the directory and of every page (the inactive ones too: they are the next to be
//! written, and a sector that cannot be read is better known before), all units of all layers, and last the frames of the
//! journal that are still needed. One read at a time, spread evenly over [`Options::scrub_period_ms`]. Where a pass stands is
//! in the super block, so that a restart goes on there.
//!
//! What is found: a bad block is named in [`Output::BadBlock`], and whoever has another copy repairs it; metadata is written
//! again by the next checkpoint, at the other home; of a bad frame all that still hangs on it goes home, or to the head, and
//! the tail passes it.
//!
//! Always true: nothing is judged that changed between the read and its end; a scrub writes nothing itself.
//!
//! [`Options::scrub_period_ms`]: crate::store::Options::scrub_period_ms

use std::collections::VecDeque;

use bytes::Bytes;
use mdm_api::epoch::Nanos;
use sds_api::block::{AU_BLOCKS, AU_BYTES, BLOCK_BYTES, BlockRange, CHUNK_AUS, LayerKey};
use sds_api::checksum::crc32c;

use crate::fetch::Waiter;
use crate::io::{DiskError, DiskOp, IoClass};
use crate::journal::record::NO_AU;
use crate::journal::{Mark, scan};
use crate::layout::{PAGE, PAGES_PER_DIRECTORY, RECORDS_PER_PAGE, SUPER_COPIES};
use crate::meta::page::{HomeRef, Kind, is_current};
use crate::request::{Damage, Output};
use crate::store::{Owner, Store};
use crate::superblock::{Copy, SuperBlock};

/// Places without anything to read that are passed in one go.
const PASSED_AT_ONCE: usize = 1024;
/// Milliseconds that a scrub may be behind its time and catch up: more would be a burst after a pause.
const CATCH_UP_MS: u64 = 1000;
/// Times that a unit is read again because it changed meanwhile. What is written that often has been looked at.
const TRIES_MAX: u8 = 3;
const PER_PAGE: u32 = RECORDS_PER_PAGE as u32;

/// What is looked at next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Super(usize),
    Root(u8),
    Directory(u64, u8),
    Page(u32, u8),
    /// The checksums of a page's layers.
    Sums(u32),
    Unit(u32, usize),
    /// The first frame from a position on, up to where the journal ended when the pass came to it.
    Frame(u64, u64),
}

impl Place {
    fn is_metadata(self) -> bool {
        matches!(self, Self::Super(_) | Self::Root(_) | Self::Directory(..) | Self::Page(..))
    }
}

/// What is being read.
enum Step {
    /// A super block, as of this sequence.
    Super(u64),
    /// The home at the place of the pass, as it was referred to.
    Meta(HomeRef),
    Sums,
    Unit(Unit),
    Frame {
        mark: Mark,
        end: u64,
        pieces: Vec<Option<Result<Bytes, DiskError>>>,
    },
}

struct Unit {
    key: LayerKey,
    slot: u32,
    au: usize,
    unit: u32,
    changes: u32,
    reading: BlockRange,
    left: VecDeque<BlockRange>,
    tries: u8,
}

/// Where the scrub of a device stands.
pub(crate) struct Scrub {
    place: Place,
    /// Where the pass goes on behind the directory: a pass before the last restart came so far.
    resumes_at: u32,
    due: Nanos,
    step: Option<Step>,
    /// The page whose checksums are kept in memory meanwhile.
    pinned: Option<u32>,
    /// Frames before this position are damaged: the tail must pass them.
    pub(crate) rotten_before: u64,
    /// Metadata is to be written anew.
    pub(crate) rewrites: bool,
}

impl Scrub {
    /// Goes on at a page.
    pub(crate) fn from(page: u32) -> Self {
        Self {
            place: Place::Super(0),
            resumes_at: page,
            due: Nanos(0),
            step: None,
            pinned: None,
            rotten_before: 0,
            rewrites: false,
        }
    }

    /// The page that it has come to.
    pub(crate) fn page(&self) -> u32 {
        match self.place {
            Place::Super(_) | Place::Root(_) | Place::Directory(..) => self.resumes_at,
            Place::Page(page, _) | Place::Sums(page) => page,
            Place::Unit(slot, _) => slot / PER_PAGE,
            Place::Frame(..) => 0,
        }
    }
}

impl Store {
    /// Goes on with the scrub, if it is time.
    pub(crate) fn scrub(&mut self, out: &mut Vec<Output>) {
        let period_ms = self.options.scrub_period_ms;
        if period_ms == 0 || self.scrub.step.is_some() || self.now < self.scrub.due {
            return;
        }
        for _ in 0..PASSED_AT_ONCE {
            if self.scrub.place.is_metadata() && self.checkpoint.is_some() {
                return; // what it is about to write says nothing until it has
            }
            let bytes = self.begin_place(out);
            if bytes > 0 {
                let earliest = Nanos(self.now.0.saturating_sub(CATCH_UP_MS * 1_000_000));
                let share_ms = u128::from(bytes) * u128::from(period_ms) / u128::from(self.bytes_of_a_pass());
                self.scrub.due = self.scrub.due.max(earliest).plus_ms(share_ms as u64);
                self.counters.scrubbed_bytes += bytes;
                return;
            }
            self.next_place();
            if self.scrub.place == Place::Super(0) {
                return; // a pass has ended
            }
        }
    }

    /// Bytes that a pass reads, as things are now.
    fn bytes_of_a_pass(&self) -> u64 {
        let units = self.units.total() - self.units.available().min(self.units.total());
        let pages = self.meta.page_count() as u64;
        let metadata =
            2 * PAGE * (pages + pages.div_ceil(PAGES_PER_DIRECTORY)) + 2 * self.super_block.geometry.root_bytes;
        units * AU_BYTES as u64 + metadata + self.journal.used() + SUPER_COPIES as u64 * PAGE
    }

    fn next_place(&mut self) {
        let pages = self.meta.page_count() as u32;
        let directories = u64::from(pages).div_ceil(PAGES_PER_DIRECTORY);
        let page_or_end = |page: u32, store: &Self| {
            if page < pages {
                Place::Page(page, 0)
            } else {
                Place::Frame(store.journal.tail(), store.journal.durable())
            }
        };
        let resumes_at = self.scrub.resumes_at;
        self.scrub.place = match self.scrub.place {
            Place::Super(copy) if copy + 1 < SUPER_COPIES => Place::Super(copy + 1),
            Place::Super(_) => Place::Root(0),
            Place::Root(0) => Place::Root(1),
            Place::Root(_) if directories > 0 => Place::Directory(0, 0),
            Place::Directory(block, 0) => Place::Directory(block, 1),
            Place::Directory(block, _) if block + 1 < directories => Place::Directory(block + 1, 0),
            Place::Root(_) | Place::Directory(..) => page_or_end(resumes_at, self),
            Place::Page(page, 0) => Place::Page(page, 1),
            Place::Page(page, _) => Place::Sums(page),
            Place::Sums(page) => Place::Unit(page * PER_PAGE, 0),
            Place::Unit(slot, au) if au + 1 < CHUNK_AUS => Place::Unit(slot, au + 1),
            Place::Unit(slot, _) if (slot + 1) % PER_PAGE != 0 => Place::Unit(slot + 1, 0),
            Place::Unit(slot, _) => {
                self.let_sums_go();
                page_or_end(slot / PER_PAGE + 1, self)
            }
            Place::Frame(lsn, until) => match self.frame_from(lsn, until) {
                Some((_, end)) => Place::Frame(end, until),
                None => {
                    self.counters.scrubs += 1;
                    self.scrub.resumes_at = 0;
                    Place::Super(0)
                }
            },
        };
    }

    fn let_sums_go(&mut self) {
        if let Some(page) = self.scrub.pinned.take() {
            self.sums.unpin(page);
        }
    }

    fn frame_from(&self, lsn: u64, until: u64) -> Option<(Mark, u64)> {
        self.journal.frame_from(lsn).filter(|(_, end)| *end <= until)
    }

    /// Reads what there is at the place: so many bytes.
    fn begin_place(&mut self, out: &mut Vec<Output>) -> u64 {
        let geometry = self.super_block.geometry;
        let place = self.scrub.place;
        match place {
            Place::Super(copy) => {
                let step = Step::Super(self.super_block.sequence);
                self.read_for_scrub(step, &[(geometry.super_offsets[copy], PAGE)], out)
            }
            Place::Root(_) | Place::Directory(..) | Place::Page(..) => {
                let (reference, offset, length) = self.home_at(place);
                if reference.generation == 0 {
                    return 0; // never written
                }
                self.read_for_scrub(Step::Meta(reference), &[(offset, length)], out)
            }
            Place::Sums(page) => self.begin_sums_of(page, out),
            Place::Unit(slot, au) => self.begin_unit(slot, au, 0, out),
            Place::Frame(lsn, until) => match self.frame_from(lsn, until) {
                Some((mark, end)) => {
                    let pieces = geometry.ring_pieces(mark.lsn, end - mark.lsn);
                    let pieces: Vec<(u64, u64)> = pieces.into_iter().filter(|(_, length)| *length > 0).collect();
                    let none = pieces.iter().map(|_| None).collect();
                    self.read_for_scrub(Step::Frame { mark, end, pieces: none }, &pieces, out)
                }
                None => 0,
            },
        }
    }

    /// What refers to a home of metadata, where it lies and how long it is.
    fn home_at(&self, place: Place) -> (HomeRef, u64, u64) {
        let geometry = &self.super_block.geometry;
        match place {
            Place::Root(home) => {
                let root = &self.super_block.checkpoint;
                let reference = HomeRef { generation: root.generation, crc: root.root_crc, home: root.root_home };
                (reference, geometry.root_home(home), geometry.root_bytes)
            }
            Place::Directory(block, home) => {
                (self.meta.directory(block as usize), geometry.directory_home(block, home), PAGE)
            }
            Place::Page(page, home) => (self.meta.page(page), geometry.page_home(u64::from(page), home), PAGE),
            _ => unreachable!("only metadata has homes"),
        }
    }

    fn read_for_scrub(&mut self, step: Step, reads: &[(u64, u64)], out: &mut Vec<Output>) -> u64 {
        self.scrub.step = Some(step);
        for (piece, (offset, length)) in reads.iter().enumerate() {
            let op = DiskOp::Read { offset: *offset, length: *length as u32 };
            self.submit(Owner::Scrub(piece), IoClass::Background, op, out);
        }
        reads.iter().map(|(_, length)| length).sum()
    }

    fn begin_sums_of(&mut self, page: u32, out: &mut Vec<Output>) -> u64 {
        let holds_any = (page * PER_PAGE..(page + 1) * PER_PAGE).any(|slot| self.layers.at(slot).is_some());
        if !holds_any {
            return 0;
        }
        self.sums.pin(page);
        self.scrub.pinned = Some(page);
        if self.is_page_here(page) {
            return 0;
        }
        self.scrub.step = Some(Step::Sums);
        self.fetch_page(page, Waiter::Scrub, IoClass::Background, out);
        PAGE
    }

    /// The checksums that were asked for are in memory.
    pub(crate) fn scrub_page_here(&mut self, out: &mut Vec<Output>) {
        self.scrub.step = None;
        self.next_place();
        self.scrub(out);
    }

    fn begin_unit(&mut self, slot: u32, au: usize, tries: u8, out: &mut Vec<Output>) -> u64 {
        let Some(layer) = self.layers.at(slot).filter(|layer| layer.recorded) else { return 0 };
        let (unit, first) = (layer.aus[au], au as u16 * AU_BLOCKS);
        let mut present = (first..first + AU_BLOCKS).filter(|block| layer.present.contains(*block));
        let (Some(from), true) = (present.next(), unit != NO_AU) else { return 0 };
        let to = present.next_back().unwrap_or(from);
        let Some(reading) = BlockRange::new(from, to - from + 1) else { return 0 };
        let (key, changes, left) = (layer.key, layer.changes, VecDeque::new());
        self.read_unit(Unit { key, slot, au, unit, changes, reading, left, tries }, out)
    }

    fn read_unit(&mut self, unit: Unit, out: &mut Vec<Output>) -> u64 {
        let offset = self.super_block.geometry.au_block(unit.unit, unit.reading.first() % AU_BLOCKS);
        let length = unit.reading.bytes() as u64;
        self.read_for_scrub(Step::Unit(unit), &[(offset, length)], out)
    }

    pub(crate) fn scrub_read(&mut self, piece: usize, result: Result<Bytes, DiskError>, out: &mut Vec<Output>) {
        match self.scrub.step.take() {
            None | Some(Step::Sums) => {}
            Some(Step::Super(sequence)) => self.judge_super(sequence, &result, out),
            Some(Step::Meta(reference)) => self.judge_home(reference, &result, out),
            Some(Step::Unit(unit)) => {
                if self.judge_unit(unit, result, out) {
                    return;
                }
            }
            Some(Step::Frame { mark, end, mut pieces }) => {
                pieces[piece] = Some(result);
                if pieces.iter().any(Option::is_none) {
                    self.scrub.step = Some(Step::Frame { mark, end, pieces });
                    return;
                }
                self.judge_frame(mark, end, pieces, out);
            }
        }
        self.next_place();
    }

    fn judge_super(&mut self, sequence: u64, result: &Result<Bytes, DiskError>, out: &mut Vec<Output>) {
        if self.checkpoint.is_some() || self.super_block.sequence != sequence {
            return;
        }
        let is_good =
            |bytes: &Bytes| matches!(SuperBlock::decode(bytes), Copy::Good(found) if found.sequence == sequence);
        if !result.as_ref().is_ok_and(is_good) {
            self.damaged(Damage::SuperBlock, out);
        }
    }

    fn judge_home(&mut self, reference: HomeRef, result: &Result<Bytes, DiskError>, out: &mut Vec<Output>) {
        let place = self.scrub.place;
        if self.home_at(place).0 != reference {
            return; // written anew meanwhile
        }
        let (kind, index, home) = match place {
            Place::Root(home) => (Kind::Root, 0, home),
            Place::Directory(block, home) => (Kind::Directory, block, home),
            Place::Page(page, home) => (Kind::Page, u64::from(page), home),
            _ => return,
        };
        let salt = self.super_block.salt;
        // The other home may hold anything that can be read: what was never written, or what a power cut left of a write.
        let is_good = |bytes: &Bytes| home != reference.home || is_current(bytes, kind, salt, index, &reference);
        if result.as_ref().is_ok_and(is_good) {
            return;
        }
        // The page that is written again takes what refers to it along.
        let page = match place {
            Place::Page(page, _) => page,
            Place::Directory(block, _) => (block * PAGES_PER_DIRECTORY) as u32,
            _ => 0,
        };
        self.touch_page(page);
        self.damaged(Damage::Metadata, out);
    }

    fn damaged(&mut self, damage: Damage, out: &mut Vec<Output>) {
        self.counters.damages += 1;
        self.scrub.rewrites = true;
        out.push(Output::Damaged { damage });
    }

    /// True if more of the unit is being read.
    fn judge_unit(&mut self, mut unit: Unit, result: Result<Bytes, DiskError>, out: &mut Vec<Output>) -> bool {
        let Some(layer) = self.layers.at(unit.slot).filter(|layer| layer.key == unit.key) else { return false };
        let (pg, present) = (layer.pg(), layer.present);
        let has_changed = layer.changes != unit.changes || layer.aus[unit.au] != unit.unit;
        let again = |store: &mut Self, out: &mut Vec<Output>| {
            unit.tries < TRIES_MAX && store.begin_unit(unit.slot, unit.au, unit.tries + 1, out) > 0
        };
        if has_changed {
            return again(self, out);
        }
        let (Some(sums), lost) = (self.sums.get(unit.slot), self.sums.lost(unit.slot)) else { return false };
        let is_good = |block: u16, bytes: &Bytes| {
            let at = usize::from(block - unit.reading.first()) * BLOCK_BYTES;
            bytes.get(at..at + BLOCK_BYTES).is_some_and(|found| crc32c(found) == sums[usize::from(block)])
        };
        let read = unit.reading.iter().filter(|block| present.contains(*block));
        let bad: Vec<u16> = match &result {
            Ok(bytes) => read.filter(|block| lost.contains(*block) || !is_good(*block, bytes)).collect(),
            Err(DiskError::Io) if unit.reading.count() == 1 => read.collect(),
            Err(DiskError::Io) => {
                unit.left = read.filter_map(|block| BlockRange::new(block, 1)).collect();
                Vec::new()
            }
            // The device as a whole: somebody else sees to that.
            Err(_) => Vec::new(),
        };
        if !bad.is_empty() && self.is_being_written(unit.key, &bad.iter().copied().collect()) {
            return again(self, out);
        }
        for block in bad {
            self.counters.bad_blocks += 1;
            out.push(Output::BadBlock { pg, layer: unit.key, block });
        }
        if let Some(next) = unit.left.pop_front() {
            unit.reading = next;
            self.read_unit(unit, out);
            return true;
        }
        false
    }

    fn judge_frame(
        &mut self,
        mark: Mark,
        end: u64,
        pieces: Vec<Option<Result<Bytes, DiskError>>>,
        out: &mut Vec<Output>,
    ) {
        if self.journal.tail() > mark.lsn {
            return; // its place may be another's by now
        }
        let pieces: Option<Vec<Bytes>> = pieces.into_iter().map(|piece| piece.and_then(Result::ok)).collect();
        let whole = pieces.map(|pieces| match <[Bytes; 1]>::try_from(pieces) {
            Ok([only]) => only,
            Err(pieces) => Bytes::from(pieces.concat()),
        });
        if !whole.is_some_and(|whole| scan::is_as_written(self.super_block.salt, &mark, end, &whole)) {
            self.scrub.rotten_before = self.scrub.rotten_before.max(end);
            self.counters.damages += 1;
            out.push(Output::Damaged { damage: Damage::Journal });
        }
    }

    /// True while the tail must pass a damaged frame.
    pub(crate) fn is_passing_damage(&self) -> bool {
        self.journal.tail() < self.scrub.rotten_before
    }
}
