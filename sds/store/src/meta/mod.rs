//! Where chunk records live: slots of pages, pages in two homes, a directory that says which home is the newest.
//!
//! A home that is not the newest is an older version, not a copy, and what the journal had to say since may be overwritten.
//! So the directory names for every page the home, the checkpoint that wrote it and its CRC; the root does the same for the
//! blocks of the directory; the super block for the root. What does not match is *lost*, never used.

pub mod page;

use std::collections::BTreeSet;

use bytes::Bytes;
use sds_api::block::LayerKey;

use crate::layout::{Geometry, PAGES_PER_DIRECTORY, RECORDS_PER_PAGE};
use crate::limits::PAGE_BYTES;
use crate::meta::page::{ChunkRecord, HomeRef, Kind, encode_page, encode_refs};

/// Slots, pages and directory as they are in memory.
pub struct Meta {
    slots: Vec<Option<LayerKey>>,
    free: Vec<u32>,
    slot_count: u64,
    dirty: BTreeSet<u32>,
    pages: Vec<HomeRef>,
    directory: Vec<HomeRef>,
    root_home: u8,
    generation: u64,
}

/// What a checkpoint writes, besides the super block.
pub struct MetaImage {
    /// Offsets and bytes of all blocks, every one at a home that nothing refers to yet.
    pub writes: Vec<(u64, Bytes)>,
    /// The number of the checkpoint.
    pub generation: u64,
    /// The root's home.
    pub root_home: u8,
    /// The root's CRC.
    pub root_crc: u32,
}

impl Meta {
    /// Nothing written. `root_home` is the one that the super block names.
    pub fn new(geometry: &Geometry, generation: u64, root_home: u8) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            slot_count: geometry.record_count(),
            dirty: BTreeSet::new(),
            pages: Vec::new(),
            directory: vec![HomeRef::default(); geometry.directory_count as usize],
            root_home,
            generation,
        }
    }

    /// Notes at open where the newest home of a directory block is.
    pub fn load_directory(&mut self, block: usize, reference: HomeRef) {
        self.directory[block] = reference;
    }

    /// Notes at open where the newest home of a page is.
    pub fn load_page(&mut self, page: usize, reference: HomeRef) {
        if self.pages.len() <= page {
            self.pages.resize(page + 1, HomeRef::default());
        }
        self.pages[page] = reference;
    }

    /// Notes at open who is in a slot.
    pub fn load_slot(&mut self, slot: u32, layer: LayerKey) {
        if self.slots.len() <= slot as usize {
            self.slots.resize(slot as usize + 1, None);
        }
        self.slots[slot as usize] = Some(layer);
    }

    /// To be called when all slots are loaded.
    pub fn finish_loading(&mut self) {
        self.free = (0..self.slots.len() as u32).rev().filter(|slot| self.slots[*slot as usize].is_none()).collect();
    }

    /// Slots that nobody has.
    pub fn free_slots(&self) -> u64 {
        self.slot_count - self.slots.len() as u64 + self.free.len() as u64
    }

    /// All slots.
    pub fn slot_count(&self) -> u64 {
        self.slot_count
    }

    /// Gives a slot to a layer.
    pub fn take_slot(&mut self, layer: LayerKey) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if (self.slots.len() as u64) < self.slot_count => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        self.slots[slot as usize] = Some(layer);
        Some(slot)
    }

    /// Takes a slot back.
    pub fn free_slot(&mut self, slot: u32) {
        self.slots[slot as usize] = None;
        self.free.push(slot);
    }

    /// The record in this slot has changed, come or gone.
    pub fn touch(&mut self, slot: u32) {
        self.dirty.insert(slot / RECORDS_PER_PAGE as u32);
    }

    /// A page must be written anew.
    pub fn touch_page(&mut self, page: u32) {
        self.dirty.insert(page);
    }

    /// Pages that differ from the medium.
    pub fn dirty_pages(&self) -> usize {
        self.dirty.len()
    }

    /// The number of the last checkpoint begun.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes all dirty pages and what refers to them as bytes. From here on the images count as the newest homes: the next
    /// image is taken only after these are durable and the super block names them.
    pub fn image<'a>(
        &mut self,
        geometry: &Geometry,
        salt: u64,
        record: impl Fn(LayerKey) -> Option<&'a ChunkRecord>,
    ) -> MetaImage {
        self.generation += 1;
        let generation = self.generation;
        let dirty = std::mem::take(&mut self.dirty);
        let mut writes = Vec::with_capacity(dirty.len() + 2);
        let mut dirty_directory = BTreeSet::new();
        for index in dirty {
            if self.pages.len() <= index as usize {
                self.pages.resize(index as usize + 1, HomeRef::default());
            }
            let first = index as usize * RECORDS_PER_PAGE as usize;
            let slots = (first..first + RECORDS_PER_PAGE as usize).map(|slot| self.slots.get(slot).copied().flatten());
            let (bytes, crc) =
                encode_page(salt, u64::from(index), generation, slots.map(|layer| layer.and_then(&record)));
            let reference = &mut self.pages[index as usize];
            *reference = HomeRef { generation, crc, home: 1 - reference.home };
            writes.push((geometry.page_home(u64::from(index), reference.home), bytes.freeze()));
            dirty_directory.insert(u64::from(index) / PAGES_PER_DIRECTORY);
        }
        for block in dirty_directory {
            let first = (block * PAGES_PER_DIRECTORY) as usize;
            let last = (first + PAGES_PER_DIRECTORY as usize).min(self.pages.len());
            let refs = &self.pages[first..last];
            let (bytes, crc) = encode_refs(Kind::Directory, salt, block, generation, PAGE_BYTES, refs);
            let reference = &mut self.directory[block as usize];
            *reference = HomeRef { generation, crc, home: 1 - reference.home };
            writes.push((geometry.directory_home(block, reference.home), bytes.freeze()));
        }
        let length = geometry.root_bytes as usize;
        let (bytes, root_crc) = encode_refs(Kind::Root, salt, 0, generation, length, &self.directory);
        self.root_home = 1 - self.root_home;
        writes.push((geometry.root_home(self.root_home), bytes.freeze()));
        MetaImage { writes, generation, root_home: self.root_home, root_crc }
    }
}
