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

/// Tests touch no block from here on.
pub const BLOCKS: u16 = 112;

/// A layer as it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    pub cells: Vec<Option<Cell>>,
    pub version: Version,
}

impl Default for Content {
    fn default() -> Self {
        Self { cells: vec![None; usize::from(BLOCKS)], version: Version::default() }
    }
}

impl Content {
    /// As a copy has it.
    pub fn of(copy: &LayerContent) -> Self {
        let mut content = Self { version: copy.version, ..Self::default() };
        let blocks = copy.data.iter().flat_map(|piece| piece.chunks_exact(4096));
        for (block, bytes) in copy.present.iter().zip(blocks) {
            content.cells[usize::from(block)] = Some(Cell::Value(value_of(bytes)));
        }
        copy.zeroed.iter().for_each(|block| content.cells[usize::from(block)] = Some(Cell::Zero));
        content
    }
}

/// The number that a block stands for. A block that stands for none, since it is mixed, is no admissible content.
pub fn value_of(block: &[u8]) -> u64 {
    assert!(block[..4088] == block[8..], "a mixed block");
    u64::from_le_bytes(block[..8].try_into().unwrap())
}

#[derive(Clone, Default, Debug)]
pub struct PgModel {
    pub entries: BTreeMap<Seq, Entry>,
    /// The layers with everything committed.
    pub folded: BTreeMap<LayerKey, Content>,
    pub acked: Seq,
    pub committed: Seq,
    /// A crash may leave any of these promises, at least the first.
    pub promise: (u64, u64),
    pub state: (Seq, u64),
    pub state_sent: Vec<(Seq, u64)>,
    pub term: u64,
}

fn fold(contents: &mut BTreeMap<LayerKey, Content>, entry: &Entry) {
    match &entry.body {
        EntryBody::Write { layer, blocks, data, .. } => {
            let content = contents.entry(*layer).or_default();
            content.version = entry.version;
            for (index, block) in blocks.iter().enumerate() {
                let value = u64::from_le_bytes(data[index * 4096..index * 4096 + 8].try_into().unwrap());
                content.cells[usize::from(block)] = Some(Cell::Value(value));
            }
        }
        EntryBody::Zero { layer, blocks } => {
            let content = contents.entry(*layer).or_default();
            content.version = entry.version;
            blocks.iter().for_each(|block| content.cells[usize::from(block)] = Some(Cell::Zero));
        }
        EntryBody::DropVtree { vtree } => contents.retain(|key, _| key.chunk.vtree != *vtree),
        EntryBody::EpochStart { .. } | EntryBody::Elsewhere { .. } => {}
    }
}

impl PgModel {
    pub fn last(&self) -> Seq {
        self.entries.keys().next_back().copied().unwrap_or_default()
    }

    /// All layers when entries up to `through`, which are the committed ones at least, have had their effect.
    pub fn contents(&self, through: Seq) -> BTreeMap<LayerKey, Content> {
        let mut contents = self.folded.clone();
        if through > self.committed {
            self.entries.range(self.committed.next()..=through).for_each(|(_, entry)| fold(&mut contents, entry));
        }
        contents
    }

    /// Entries up to `through` are committed.
    pub fn commit(&mut self, through: Seq) {
        if through > self.committed {
            self.folded = self.contents(through);
            self.committed = through;
        }
    }

    /// Voids entries beyond.
    pub fn void(&mut self, after: Seq) {
        self.entries.split_off(&after.next());
        self.acked = self.acked.min(after);
    }

    /// A copy as of what is committed takes the place of a layer.
    pub fn install(&mut self, key: LayerKey, copy: &LayerContent) {
        self.folded.insert(key, Content::of(copy));
    }

    pub fn remove(&mut self, key: LayerKey) {
        self.folded.remove(&key);
    }
}
