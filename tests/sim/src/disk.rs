//! A device of a data server: pages in memory, and everything that media do to them.
//!
//! By the rules of `sds_store::io`: a write without `durable` may reach the medium in any subset, torn at 512 bytes, until a
//! flush that began after it had ended; a durable write that ended is on the medium, whole. At a power cut operations under
//! way count as not ended. When only the process dies the kernel keeps what it was given.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sds_api::buf::AlignedBuf;
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest};

use crate::clock::Time;
use crate::rng::Rng;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
const SECTOR: usize = 512;
static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// How a device behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Condition {
    /// Times that everything takes; 0 and 1: as usual.
    pub slowness: u64,
    /// Reads that fail, of a million.
    pub read_errors_ppm: u64,
    /// Every write and flush fails from now on.
    pub fails_writes: bool,
    /// The next flush fails, and takes with it what it was to make durable; all goes on as if nothing had been.
    pub fails_flush: bool,
    /// No operation ends any more.
    pub hangs: bool,
    /// The next write goes elsewhere.
    pub misdirects: bool,
    /// The file system below has no room.
    pub full: bool,
}

struct Running {
    request: DiskRequest,
    /// For a flush: writes that had ended when it began.
    through: u64,
}

/// What was done to a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Damage {
    /// Read errors.
    pub read_errors: u64,
    /// Write and flush errors.
    pub write_errors: u64,
    /// Pages that rotted.
    pub rotten: u64,
    /// Writes that went elsewhere.
    pub misdirected: u64,
    /// Sectors of undurable writes that a power cut took.
    pub lost_sectors: u64,
    /// Pages that were left torn.
    pub torn: u64,
}

impl Damage {
    /// Adds another device's.
    pub fn add(&mut self, other: &Self) {
        self.read_errors += other.read_errors;
        self.write_errors += other.write_errors;
        self.rotten += other.rotten;
        self.misdirected += other.misdirected;
        self.lost_sectors += other.lost_sectors;
        self.torn += other.torn;
    }
}

/// What was on a device.
#[derive(Clone, Debug)]
pub struct Image(BTreeMap<u64, Bytes>);

/// A device.
pub struct Disk {
    size: u64,
    pages: BTreeMap<u64, Bytes>,
    /// Completed and not flushed: versions in order.
    cached: BTreeMap<u64, Vec<(u64, Bytes)>>,
    running: BTreeMap<u64, Running>,
    unreadable: BTreeSet<u64>,
    next: u64,
    writes: u64,
    rng: Rng,
    /// How it behaves now.
    pub condition: Condition,
    /// What was done to it.
    pub damage: Damage,
}

impl Disk {
    /// A blank device.
    pub fn new(size: u64, rng: Rng) -> Self {
        Self {
            size,
            pages: BTreeMap::new(),
            cached: BTreeMap::new(),
            running: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            next: 0,
            writes: 0,
            rng,
            condition: Condition::default(),
            damage: Damage::default(),
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes an operation: its number, and how long it takes. `None`: it hangs.
    pub fn begin(&mut self, request: DiskRequest) -> (u64, Option<Time>) {
        let base = match &request.op {
            DiskOp::Read { length, .. } => 60_000 + u64::from(*length) / 3,
            DiskOp::Write { buffers, durable, .. } => {
                let bytes: usize = buffers.iter().map(Bytes::len).sum();
                bytes as u64 / 2 + if *durable { 40_000 } else { 15_000 }
            }
            DiskOp::Flush => 80_000,
            DiskOp::Discard { .. } => 20_000,
        };
        let takes = (base + self.rng.around(base / 4 + 1)) * self.condition.slowness.max(1);
        self.next += 1;
        self.running.insert(self.next, Running { request, through: self.writes });
        (self.next, (!self.condition.hangs).then_some(takes))
    }

    /// An operation is over.
    pub fn finish(&mut self, number: u64) -> Option<DiskDone> {
        if self.condition.hangs {
            return None;
        }
        let Running { request, through } = self.running.remove(&number)?;
        let result = match request.op {
            DiskOp::Read { offset, length } => self.read(offset, u64::from(length)),
            DiskOp::Write { offset, buffers, durable } => self.write(offset, &buffers, durable),
            DiskOp::Flush => self.flush(through),
            DiskOp::Discard { offset, length } => self.discard(offset, length),
        };
        Some(DiskDone { id: request.id, result })
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Bytes, DiskError> {
        let (first, count) = (offset / PAGE, length / PAGE);
        let is_bad = (first..first + count).any(|page| self.unreadable.contains(&page));
        if is_bad || self.rng.ppm(self.condition.read_errors_ppm) {
            self.damage.read_errors += 1;
            return Err(DiskError::Io);
        }
        if count == 1 {
            return Ok(self.page(first).map_or(Bytes::from_static(&ZEROS), sds_api::buf::aligned));
        }
        let mut buffer = AlignedBuf::zeroed(length as usize);
        for (page, part) in (first..first + count).zip(buffer.chunks_exact_mut(PAGE as usize)) {
            if let Some(bytes) = self.page(page) {
                part.copy_from_slice(&bytes);
            }
        }
        Ok(buffer.freeze())
    }

    fn page(&self, page: u64) -> Option<Bytes> {
        let cached = self.cached.get(&page).and_then(|versions| versions.last()).map(|(_, bytes)| bytes);
        cached.or_else(|| self.pages.get(&page)).cloned()
    }

    fn write(&mut self, offset: u64, buffers: &[Bytes], durable: bool) -> Result<Bytes, DiskError> {
        if self.condition.fails_writes || self.condition.full {
            self.damage.write_errors += 1;
            // Some of it may have got there all the same.
            let parts = split(offset, buffers);
            let keep = self.rng.index(parts.len() + 1);
            self.store(&parts[..keep], false);
            return Err(if self.condition.full { DiskError::NoSpace } else { DiskError::Io });
        }
        let mut parts = split(offset, buffers);
        if self.condition.misdirects {
            self.condition.misdirects = false;
            self.damage.misdirected += 1;
            let shift = self.rng.between(1, 64);
            parts.iter_mut().for_each(|(page, _)| *page = (*page + shift) % (self.size / PAGE));
        }
        self.store(&parts, durable);
        Ok(Bytes::new())
    }

    fn store(&mut self, parts: &[(u64, Bytes)], durable: bool) {
        self.writes += 1;
        for (page, bytes) in parts {
            self.unreadable.remove(page);
            if durable {
                self.cached.remove(page);
                self.set(*page, bytes.clone());
            } else {
                self.cached.entry(*page).or_default().push((self.writes, bytes.clone()));
            }
        }
    }

    fn set(&mut self, page: u64, bytes: Bytes) {
        if bytes[..] == ZEROS[..] {
            self.pages.remove(&page);
        } else {
            self.pages.insert(page, bytes);
        }
    }

    fn flush(&mut self, through: u64) -> Result<Bytes, DiskError> {
        if self.condition.fails_writes {
            self.damage.write_errors += 1;
            return Err(DiskError::Io);
        }
        if std::mem::take(&mut self.condition.fails_flush) {
            // What could not be written counts as clean from then on.
            self.damage.write_errors += 1;
            self.cached.clear();
            return Err(DiskError::Io);
        }
        for (page, mut versions) in std::mem::take(&mut self.cached) {
            let later = versions.iter().position(|(write, _)| *write > through).unwrap_or(versions.len());
            let rest = versions.split_off(later);
            if let Some((_, bytes)) = versions.pop() {
                self.set(page, bytes);
            }
            if !rest.is_empty() {
                self.cached.insert(page, rest);
            }
        }
        Ok(Bytes::new())
    }

    fn discard(&mut self, offset: u64, length: u64) -> Result<Bytes, DiskError> {
        for page in offset / PAGE..(offset + length) / PAGE {
            // Contents are undefined afterwards: half of them stay.
            if self.rng.one_in(2) {
                self.cached.remove(&page);
                self.pages.remove(&page);
            }
        }
        Ok(Bytes::new())
    }

    /// The process has ended: what the kernel was given it may carry out, or not.
    pub fn process_ended(&mut self) {
        for (_, running) in std::mem::take(&mut self.running) {
            if let DiskOp::Write { offset, buffers, .. } = running.request.op
                && !self.condition.fails_writes
                && self.rng.one_in(2)
            {
                let parts = split(offset, &buffers);
                let keep = if self.rng.one_in(2) { parts.len() } else { self.rng.index(parts.len() + 1) };
                self.store(&parts[..keep], false);
            }
        }
        self.condition.hangs = false;
    }

    /// The power goes.
    pub fn power_lost(&mut self) {
        let mut candidates = std::mem::take(&mut self.cached);
        for (_, running) in std::mem::take(&mut self.running) {
            if let DiskOp::Write { offset, buffers, .. } = running.request.op {
                for (page, bytes) in split(offset, &buffers) {
                    candidates.entry(page).or_default().push((u64::MAX, bytes));
                }
            }
        }
        let chance = self.rng.below(5);
        for (page, versions) in candidates {
            let old = self.pages.get(&page).cloned().unwrap_or(Bytes::from_static(&ZEROS));
            let mut new = AlignedBuf::copy_of(&old);
            let mut from = BTreeSet::new();
            for (index, sector) in new.chunks_exact_mut(SECTOR).enumerate() {
                // Each sector is as it was, or as any of the writes would have it.
                let survives = self.rng.below(4) < chance;
                let choice = if survives { self.rng.index(versions.len()) } else { usize::MAX };
                from.insert(choice);
                match versions.get(choice) {
                    Some((_, bytes)) => sector.copy_from_slice(&bytes[index * SECTOR..(index + 1) * SECTOR]),
                    None => self.damage.lost_sectors += 1,
                }
            }
            self.damage.torn += u64::from(from.len() > 1);
            self.set(page, new.freeze());
        }
        self.condition.hangs = false;
    }

    /// Everything on it is gone: another device, or this one wiped.
    pub fn wipe(&mut self) {
        self.pages.clear();
        self.cached.clear();
        self.unreadable.clear();
    }

    /// What is on the medium, for an older state of it to come back.
    pub fn image(&self) -> Image {
        Image(self.pages.clone())
    }

    /// An older state comes back: a restored virtual machine, a copy that was mistaken for the device.
    pub fn restore(&mut self, image: Image) {
        self.wipe();
        self.pages = image.0;
    }

    /// Flips a bit of a page that holds something. The page, or `None` if there is none.
    pub fn rot(&mut self, from: u64, to: u64) -> Option<u64> {
        let held: Vec<u64> = self.held(from, to).map(|(page, _)| page).collect();
        if held.is_empty() {
            return None;
        }
        let page = *self.rng.pick(&held);
        self.rot_page(page)
    }

    /// Flips a bit of this page. The page, or `None` if it holds nothing.
    pub fn rot_page(&mut self, page: u64) -> Option<u64> {
        let mut bytes = AlignedBuf::copy_of(self.pages.get(&page)?);
        let at = self.rng.index(PAGE as usize);
        bytes[at] ^= 1 << self.rng.below(8);
        self.pages.insert(page, bytes.freeze());
        self.damage.rotten += 1;
        Some(page)
    }

    /// Pages on the medium that hold something, between two places.
    pub fn held(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &Bytes)> {
        self.pages.range(from / PAGE..to / PAGE).map(|(page, bytes)| (*page, bytes))
    }

    /// Damages every page from there on.
    pub fn rot_all(&mut self, from: u64) {
        for (_, bytes) in self.pages.range_mut(from / PAGE..) {
            let mut rotten = AlignedBuf::copy_of(bytes);
            rotten[7] = rotten[7].wrapping_add(1);
            *bytes = rotten.freeze();
            self.damage.rotten += 1;
        }
    }

    /// A page that holds something cannot be read until it is written again.
    pub fn spoil(&mut self) -> Option<u64> {
        let held: Vec<u64> = self.pages.keys().copied().collect();
        if held.is_empty() {
            return None;
        }
        let page = *self.rng.pick(&held);
        self.unreadable.insert(page);
        Some(page)
    }

    /// Reads everything that is asked for without delay or trouble: for looking at it afterwards.
    pub fn at_once(&mut self, request: DiskRequest) -> DiskDone {
        let (number, _) = self.begin(request);
        self.finish(number).expect("a device that is looked at does not hang")
    }
}

fn split(offset: u64, buffers: &[Bytes]) -> Vec<(u64, Bytes)> {
    let mut parts = Vec::new();
    let mut page = offset / PAGE;
    for buffer in buffers {
        for at in (0..buffer.len()).step_by(PAGE as usize) {
            parts.push((page, buffer.slice(at..at + PAGE as usize)));
            page += 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use sds_store::io::{IoClass, OpId};

    fn go(disk: &mut Disk, op: DiskOp) -> Bytes {
        disk.at_once(DiskRequest { id: OpId(1), class: IoClass::Foreground, op }).result.unwrap()
    }

    fn write(disk: &mut Disk, offset: u64, fill: u8, durable: bool) {
        let buffers = vec![AlignedBuf::copy_of(&[fill; PAGE as usize]).freeze()];
        go(disk, DiskOp::Write { offset, buffers, durable });
    }

    fn read(disk: &mut Disk, offset: u64) -> Bytes {
        go(disk, DiskOp::Read { offset, length: PAGE as u32 })
    }

    #[test]
    fn durable_and_flushed_writes_survive_a_power_cut_and_others_may_tear() {
        let mut torn = 0;
        for seed in 0..40 {
            let mut disk = Disk::new(1 << 20, Rng::new(seed));
            write(&mut disk, 0, 1, true);
            write(&mut disk, 4096, 2, false);
            go(&mut disk, DiskOp::Flush);
            write(&mut disk, 4096, 3, false);
            write(&mut disk, 8192, 4, false);
            assert_eq!(read(&mut disk, 4096)[0], 3);
            disk.power_lost();
            assert!(read(&mut disk, 0).iter().all(|byte| *byte == 1));
            let page = read(&mut disk, 4096);
            assert!(page.iter().all(|byte| matches!(byte, 2 | 3)));
            torn += usize::from(page.contains(&2) && page.contains(&3));
            assert!(read(&mut disk, 8192).iter().all(|byte| matches!(byte, 0 | 4)));
        }
        assert!(torn > 0);
    }

    #[test]
    fn a_flush_covers_only_what_had_ended_when_it_began() {
        let mut disk = Disk::new(1 << 20, Rng::new(1));
        let request = |op| DiskRequest { id: OpId(2), class: IoClass::Foreground, op };
        write(&mut disk, 0, 1, false);
        let (flush, _) = disk.begin(request(DiskOp::Flush));
        write(&mut disk, 4096, 2, false);
        assert!(disk.finish(flush).unwrap().result.is_ok());
        assert!(disk.pages.contains_key(&0) && !disk.pages.contains_key(&1));
    }

    #[test]
    fn a_rotten_page_differs_and_an_unreadable_one_is_cured_by_writing() {
        let mut disk = Disk::new(1 << 20, Rng::new(3));
        write(&mut disk, 0, 7, true);
        assert_eq!(disk.rot(0, 1 << 20), Some(0));
        assert!(read(&mut disk, 0).iter().any(|byte| *byte != 7));
        assert_eq!(disk.spoil(), Some(0));
        let op = DiskOp::Read { offset: 0, length: PAGE as u32 };
        let failed = disk.at_once(DiskRequest { id: OpId(1), class: IoClass::Foreground, op });
        assert_eq!(failed.result.unwrap_err(), DiskError::Io);
        write(&mut disk, 0, 8, true);
        assert_eq!(read(&mut disk, 0)[0], 8);
    }
}
