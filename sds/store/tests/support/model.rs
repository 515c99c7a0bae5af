//! What a store must hold, kept the simple way: every entry ever sent, and for each layer what it began with.

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_api::epoch::{Seq, SnapSeq, Term, Version};
use mdm_api::ids::{PgId, StoragePoolId, VtreeId};
use sds_api::block::{BlockRange, ChunkId, LayerKey};
use sds_api::buf::AlignedBuf;
use sds_api::checksum::block_checksums;
use sds_api::entry::{Entry, EntryBody};
use sds_store::request::LayerContent;

pub fn pg(index: u32) -> PgId {
    PgId { pool: StoragePoolId(7), index }
}

pub fn layer(vtree: u64, index: u64, snap: u64) -> LayerKey {
    LayerKey { chunk: ChunkId { vtree: VtreeId(vtree), index }, snap_seq: SnapSeq(snap) }
}

/// The bytes of a block that stands for a number.
pub fn fill(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(512)
}

pub fn data(values: &[u64]) -> Bytes {
    let all: Vec<u8> = values.iter().flat_map(|value| fill(*value)).collect();
    AlignedBuf::copy_of(&all).freeze()
}

pub fn write(pg: PgId, term: u64, seq: u64, key: LayerKey, first: u16, values: &[u64]) -> Entry {
    let data = data(values);
    let blocks = BlockRange::new(first, values.len() as u16).unwrap();
    let body = EntryBody::Write { layer: key, blocks, checksums: block_checksums(&data), data };
    Entry { pg, version: Version { term: Term(term), seq: Seq(seq) }, identity: None, body }
}

pub fn zero(pg: PgId, term: u64, seq: u64, key: LayerKey, first: u16, count: u16) -> Entry {
    let body = EntryBody::Zero { layer: key, blocks: BlockRange::new(first, count).unwrap() };
    Entry { pg, version: Version { term: Term(term), seq: Seq(seq) }, identity: None, body }
}

/// What a block of a layer is: a number, zeroed, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    Value(u64),
    Zero,
}

/// What a layer began with: nothing, or a copy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Base {
    pub cells: BTreeMap<u16, Cell>,
    pub version: Version,
    /// Entries up to here have no effect any more.
    pub floor: Seq,
}

/// A layer as it must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    pub cells: BTreeMap<u16, Cell>,
    pub version: Version,
}

#[derive(Clone, Default, Debug)]
pub struct PgModel {
    pub entries: BTreeMap<Seq, Entry>,
    pub bases: BTreeMap<LayerKey, Base>,
    pub acked: Seq,
    pub committed: Seq,
    /// A crash may leave any of these promises, at least the first.
    pub promise: (u64, u64),
    pub state: (Seq, u64),
    pub state_sent: Vec<(Seq, u64)>,
    pub term: u64,
}

impl PgModel {
    pub fn last(&self) -> Seq {
        self.entries.keys().next_back().copied().unwrap_or_default()
    }

    /// All layers when entries up to `through` have had their effect.
    pub fn contents(&self, through: Seq) -> BTreeMap<LayerKey, Content> {
        let mut contents: BTreeMap<LayerKey, Content> = BTreeMap::new();
        for (key, base) in self.bases.iter().filter(|(_, base)| base.version != Version::default()) {
            contents.insert(*key, Content { cells: base.cells.clone(), version: base.version });
        }
        let floor = |key: &LayerKey| self.bases.get(key).map_or(Seq(0), |base| base.floor);
        for (seq, entry) in self.entries.range(..=through) {
            match &entry.body {
                EntryBody::Write { layer, blocks, data, .. } if *seq > floor(layer) => {
                    let content = contents.entry(*layer).or_default();
                    content.version = entry.version;
                    for (index, block) in blocks.iter().enumerate() {
                        let value = u64::from_le_bytes(data[index * 4096..index * 4096 + 8].try_into().unwrap());
                        content.cells.insert(block, Cell::Value(value));
                    }
                }
                EntryBody::Zero { layer, blocks } if *seq > floor(layer) => {
                    let content = contents.entry(*layer).or_default();
                    content.version = entry.version;
                    content.cells.extend(blocks.iter().map(|block| (block, Cell::Zero)));
                }
                EntryBody::DropVtree { vtree } => {
                    contents.retain(|key, _| key.chunk.vtree != *vtree || floor(key) > *seq);
                }
                _ => {}
            }
        }
        contents
    }

    /// Voids entries beyond.
    pub fn void(&mut self, after: Seq) {
        self.entries.split_off(&after.next());
        self.acked = self.acked.min(after);
    }

    pub fn install(&mut self, key: LayerKey, content: &LayerContent) {
        let mut cells = BTreeMap::new();
        let all: Vec<u8> = content.data.iter().flat_map(|piece| piece.to_vec()).collect();
        for (index, block) in content.present.iter().enumerate() {
            let value = u64::from_le_bytes(all[index * 4096..index * 4096 + 8].try_into().unwrap());
            cells.insert(block, Cell::Value(value));
        }
        cells.extend(content.zeroed.iter().map(|block| (block, Cell::Zero)));
        self.bases.insert(key, Base { cells, version: content.version, floor: content.version.seq });
    }

    pub fn remove(&mut self, key: LayerKey) {
        self.bases.insert(key, Base { floor: self.committed, ..Base::default() });
    }
}
