//! Where chunk records live: pages of three slots, pages in two homes, a directory that says which home is the newest.
//!
//! A home that is not the newest is an older version, not a copy, and what the journal had to say since may be overwritten.
//! So the directory names for every page the home, the checkpoint that wrote it and its CRC; the root does the same for the
//! blocks of the directory; the super block for the root. What does not match is *lost*, never used.

pub mod page;

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::layout::{Geometry, PAGES_PER_DIRECTORY, RECORDS_PER_PAGE};
use crate::limits::PAGE_BYTES;
use crate::meta::page::{HomeRef, Kind, RecordParts, encode_page, encode_refs};

/// Pages and directory as they are in memory.
pub struct Meta {
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
    /// The pages among them.
    pub pages: BTreeSet<u32>,
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

    /// Where the newest home of a page is; generation 0 if it was never written.
    pub fn page(&self, page: u32) -> HomeRef {
        self.pages.get(page as usize).copied().unwrap_or_default()
    }

    /// Where the newest home of a directory block is; generation 0 if it was never written.
    pub fn directory(&self, block: usize) -> HomeRef {
        self.directory.get(block).copied().unwrap_or_default()
    }

    /// Pages up to the last that was ever written.
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// A page must be written anew. True if it was not known to differ from the medium before.
    pub fn touch_page(&mut self, page: u32) -> bool {
        self.dirty.insert(page)
    }

    /// The pages that differ from the medium, ascending.
    pub fn dirty(&self) -> impl Iterator<Item = u32> + '_ {
        self.dirty.iter().copied()
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
    pub(crate) fn image<'a>(
        &mut self,
        geometry: &Geometry,
        salt: u64,
        record: impl Fn(u32) -> Option<RecordParts<'a>>,
    ) -> MetaImage {
        self.generation += 1;
        let generation = self.generation;
        let dirty = std::mem::take(&mut self.dirty);
        let mut writes = Vec::with_capacity(dirty.len() + 2);
        let mut dirty_directory = BTreeSet::new();
        for index in &dirty {
            if self.pages.len() <= *index as usize {
                self.pages.resize(*index as usize + 1, HomeRef::default());
            }
            let slots = (0..RECORDS_PER_PAGE as u32).map(|at| record(*index * RECORDS_PER_PAGE as u32 + at));
            let (bytes, crc) = encode_page(salt, u64::from(*index), generation, slots);
            let reference = &mut self.pages[*index as usize];
            *reference = HomeRef { generation, crc, home: 1 - reference.home };
            writes.push((geometry.page_home(u64::from(*index), reference.home), bytes.freeze()));
            dirty_directory.insert(u64::from(*index) / PAGES_PER_DIRECTORY);
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
        MetaImage { writes, pages: dirty, generation, root_home: self.root_home, root_crc }
    }
}
