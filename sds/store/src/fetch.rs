//! Metadata pages are read again when checksums in them are wanted and not in memory.
//!
//! Always true: a page whose records changed since it was written is in memory as far as they changed, and pinned; so what is
//! read from its home fills gaps only. A page that turns out to be bad leaves the checksums of its records lost: those blocks
//! are bad until they are repaired or written again, and nothing unverified is served (I21).

use bytes::Bytes;
use sds_api::block::{CHUNK_BLOCKS, LayerKey};

use crate::blockmap::BlockMap;
use crate::io::{DiskError, DiskOp, IoClass};
use crate::layout::{PAGE, RECORDS_PER_PAGE};
use crate::meta::page::{ChunkRecord, Kind, decode_page, is_current};
use crate::request::Output;
use crate::store::{Owner, Store};

const PER_PAGE: u32 = RECORDS_PER_PAGE as u32;

/// Who waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A layer that is to be applied.
    Job(LayerKey),
    /// A read.
    Read(u64),
    /// The next checkpoint.
    Checkpoint,
    /// The scrub.
    Scrub,
}

impl Store {
    /// The record in this slot has changed, come or gone.
    pub(crate) fn touch(&mut self, slot: u32) {
        self.touch_page(slot / PER_PAGE);
    }

    pub(crate) fn touch_page(&mut self, page: u32) {
        if self.meta.touch_page(page) {
            self.sums.pin(page);
        }
    }

    /// True if the checksums of every record of the page are in memory, as they must be before it is written.
    pub(crate) fn is_page_here(&self, page: u32) -> bool {
        (page * PER_PAGE..(page + 1) * PER_PAGE).all(|slot| {
            let is_recorded = self.layers.at(slot).is_some_and(|layer| layer.recorded);
            !is_recorded || self.sums.get(slot).is_some()
        })
    }

    /// Reads a page for somebody who will be told.
    pub(crate) fn fetch_page(&mut self, page: u32, waiter: Waiter, class: IoClass, out: &mut Vec<Output>) {
        let waiters = self.fetching.entry(page).or_default();
        waiters.push(waiter);
        if waiters.len() == 1 {
            self.counters.pages_read += 1;
            let offset = self.super_block.geometry.page_home(u64::from(page), self.meta.page(page).home);
            self.submit(Owner::Sums(page), class, DiskOp::Read { offset, length: PAGE as u32 }, out);
        }
    }

    pub(crate) fn sums_read(&mut self, page: u32, result: Result<Bytes, DiskError>, out: &mut Vec<Output>) {
        let reference = self.meta.page(page);
        let salt = self.super_block.salt;
        let current = result.ok().filter(|bytes| is_current(bytes, Kind::Page, salt, u64::from(page), &reference));
        let records = current.and_then(|bytes| decode_page(&bytes));
        // Stays for as long as those who waited need to look at it.
        self.sums.pin(page);
        match records {
            Some(records) => {
                for (slot, record) in (page * PER_PAGE..).zip(records) {
                    self.fill_sums(slot, record);
                }
            }
            None => self.lose_sums(page),
        }
        for waiter in self.fetching.remove(&page).unwrap_or_default() {
            match waiter {
                Waiter::Job(key) => self.job_page_here(key, out),
                Waiter::Read(id) => self.read_page_here(id, out),
                Waiter::Checkpoint => self.pages_wanted -= 1,
                Waiter::Scrub => self.scrub_page_here(out),
            }
        }
        self.sums.unpin(page);
    }

    fn fill_sums(&mut self, slot: u32, record: Option<ChunkRecord>) {
        let known = self.layers.at(slot).filter(|layer| layer.recorded && self.sums.get(slot).is_none());
        let (Some(layer), Some(record)) = (known, record) else { return };
        assert!(layer.key == record.layer, "a record changes its page's slot only with its checksums in memory");
        self.sums.set(slot, record.checksums, record.lost);
    }

    /// What the page knew is gone. Its next image says so.
    fn lose_sums(&mut self, page: u32) {
        self.counters.pages_lost += 1;
        for slot in page * PER_PAGE..(page + 1) * PER_PAGE {
            let known = self.layers.at(slot).filter(|layer| layer.recorded && self.sums.get(slot).is_none());
            if let Some(present) = known.map(|layer| layer.present) {
                self.sums.set(slot, Box::new([0; CHUNK_BLOCKS as usize]), present);
            }
        }
        self.touch_page(page);
    }

    /// A layer without anything at home begins with no checksums.
    pub(crate) fn begin_sums(&mut self, slot: u32) {
        if self.layers.at(slot).is_some_and(|layer| !layer.recorded) {
            self.sums.set(slot, Box::new([0; CHUNK_BLOCKS as usize]), BlockMap::EMPTY);
        }
    }
}
