//! The checksums of blocks at home, of which only some are in memory: they are kept page by page, and read again from the
//! metadata pages when they are wanted.
//!
//! Always true: what is here is at least as new as the page at home; a page that differs from the medium, or is being written,
//! or is in use by a job, is pinned and stays.

use std::cell::Cell;

use sds_api::block::CHUNK_BLOCKS;

use crate::blockmap::BlockMap;
use crate::layout::RECORDS_PER_PAGE;

/// The checksums of one layer; 0 for blocks without data.
pub type BlockSums = [u32; CHUNK_BLOCKS as usize];

/// Bytes that one layer's checksums take here, with what belongs to them.
const BYTES_PER_LAYER: usize = size_of::<BlockSums>() + 40;
/// Pages looked at for one that can go before memory is allowed to be short.
const LOOKED_AT_MAX: usize = 4096;
const PER_PAGE: usize = RECORDS_PER_PAGE as usize;

#[derive(Default)]
struct Page {
    slots: [Option<Box<BlockSums>>; PER_PAGE],
    /// Blocks with data whose checksums are lost.
    lost: [Option<Box<BlockMap>>; PER_PAGE],
    pins: u32,
    used: Cell<bool>,
}

/// The checksums in memory.
pub(crate) struct Sums {
    pages: Vec<Option<Box<Page>>>,
    held: usize,
    most: usize,
    hand: usize,
}

impl Sums {
    /// None, and at most so many bytes of them that are not pinned.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { pages: Vec::new(), held: 0, most: (bytes / BYTES_PER_LAYER).max(PER_PAGE), hand: 0 }
    }

    fn page(&self, page: u32) -> Option<&Page> {
        self.pages.get(page as usize)?.as_deref()
    }

    fn page_mut(&mut self, page: u32) -> &mut Page {
        let at = page as usize;
        if self.pages.len() <= at {
            self.pages.resize_with(at + 1, || None);
        }
        self.pages[at].get_or_insert_default()
    }

    /// A layer's checksums, if they are in memory.
    pub(crate) fn get(&self, slot: u32) -> Option<&BlockSums> {
        let page = self.page(slot / PER_PAGE as u32)?;
        page.used.set(true);
        page.slots[slot as usize % PER_PAGE].as_deref()
    }

    /// A layer's checksums, to be changed. The page is pinned by whoever changes them.
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut BlockSums> {
        let page = self.pages.get_mut(slot as usize / PER_PAGE)?.as_mut()?;
        page.slots[slot as usize % PER_PAGE].as_deref_mut()
    }

    /// Blocks with data whose checksums are lost.
    pub(crate) fn lost(&self, slot: u32) -> BlockMap {
        let lost = self.page(slot / PER_PAGE as u32).and_then(|page| page.lost[slot as usize % PER_PAGE].as_deref());
        lost.copied().unwrap_or(BlockMap::EMPTY)
    }

    /// These blocks have good checksums, or no data, from here on.
    pub(crate) fn found(&mut self, slot: u32, block: u16) {
        let Some(Some(page)) = self.pages.get_mut(slot as usize / PER_PAGE) else { return };
        let place = &mut page.lost[slot as usize % PER_PAGE];
        if let Some(lost) = place {
            lost.remove(block);
            if lost.is_empty() {
                *place = None;
            }
        }
    }

    /// Keeps a layer's checksums. What is not pinned may go for it.
    pub(crate) fn set(&mut self, slot: u32, sums: Box<BlockSums>, lost: BlockMap) {
        let page = self.page_mut(slot / PER_PAGE as u32);
        let at = slot as usize % PER_PAGE;
        let is_new = page.slots[at].replace(sums).is_none();
        page.lost[at] = (!lost.is_empty()).then(|| Box::new(lost));
        page.used.set(true);
        self.held += usize::from(is_new);
        self.make_room();
    }

    /// The same, but only if nothing must go for it.
    pub(crate) fn set_if_room(&mut self, slot: u32, sums: Box<BlockSums>, lost: BlockMap) {
        if self.held < self.most {
            self.set(slot, sums, lost);
        }
    }

    /// The layer has no checksums any more.
    pub(crate) fn clear(&mut self, slot: u32) {
        let Some(place) = self.pages.get_mut(slot as usize / PER_PAGE) else { return };
        let Some(page) = place else { return };
        let at = slot as usize % PER_PAGE;
        self.held -= usize::from(page.slots[at].take().is_some());
        page.lost[at] = None;
        if page.pins == 0 && page.slots.iter().all(Option::is_none) {
            *place = None;
        }
    }

    /// The page stays until it is unpinned as often.
    pub(crate) fn pin(&mut self, page: u32) {
        self.page_mut(page).pins += 1;
    }

    /// See [`Sums::pin`].
    pub(crate) fn unpin(&mut self, page: u32) {
        let at = page as usize;
        let page = self.page_mut(page);
        page.pins = page.pins.checked_sub(1).expect("unpinned as often as pinned");
        if page.pins == 0 && page.slots.iter().all(Option::is_none) {
            self.pages[at] = None;
        }
        self.make_room();
    }

    /// Lets pages go that were not used since the hand last passed them, until there is room.
    fn make_room(&mut self) {
        let mut looked_at = 0;
        let most = LOOKED_AT_MAX.min(2 * self.pages.len());
        while self.held > self.most && looked_at < most {
            looked_at += 1;
            self.hand = (self.hand + 1) % self.pages.len().max(1);
            let Some(place) = self.pages.get_mut(self.hand) else { return };
            let Some(page) = place else { continue };
            if page.pins == 0 && !page.used.replace(false) {
                self.held -= page.slots.iter().flatten().count();
                *place = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(value: u32) -> Box<BlockSums> {
        Box::new([value; CHUNK_BLOCKS as usize])
    }

    #[test]
    fn what_is_pinned_stays_and_the_rest_is_bounded() {
        let mut all = Sums::new(9 * BYTES_PER_LAYER);
        all.pin(0);
        for slot in 0..300 {
            all.set(slot, sums(slot), BlockMap::EMPTY);
        }
        assert!((0..3).all(|slot| all.get(slot) == Some(&sums(slot))), "pinned");
        assert!((0..300).filter(|slot| all.get(*slot).is_some()).count() <= 9 + 3);
        all.unpin(0);
        for slot in 300..330 {
            all.set(slot, sums(slot), BlockMap::EMPTY);
        }
        assert!(all.get(0).is_none());
    }

    #[test]
    fn lost_checksums_are_found_one_by_one() {
        let mut all = Sums::new(1 << 20);
        all.set(4, sums(0), [1, 2].into_iter().collect());
        all.found(4, 1);
        assert_eq!(all.lost(4), [2].into_iter().collect());
        all.found(4, 2);
        assert!(all.lost(4).is_empty());
        all.set(4, sums(0), [1].into_iter().collect());
        all.clear(4);
        assert!(all.get(4).is_none() && all.lost(4).is_empty());
    }
}
