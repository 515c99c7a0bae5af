//! What a store holds of one chunk layer: its record, and what the journal has for it.

use std::collections::VecDeque;

use bytes::Bytes;
use mdm_api::epoch::Seq;
use mdm_api::ids::PgId;
use sds_api::block::{AU_BLOCKS, BlockRange, CHUNK_AUS, LayerKey};

use crate::journal::record::NO_AU;
use crate::meta::page::ChunkRecord;

/// A block that is to be rewritten in place with the content it should have.
#[derive(Clone, Debug)]
pub(crate) struct Mend {
    /// The frame that holds it, needed until it is done.
    pub(crate) lsn: u64,
    /// The block.
    pub(crate) block: u16,
    /// What the record must still say.
    pub(crate) checksum: u32,
    /// The content.
    pub(crate) data: Bytes,
}

/// One layer of a chunk.
pub(crate) struct Layer {
    /// Its state at home.
    pub(crate) record: ChunkRecord,
    /// Its place in the metadata pages.
    pub(crate) slot: u32,
    /// True if the record says anything: only then it goes into a page.
    pub(crate) recorded: bool,
    /// Entries for it that are not applied, ascending.
    pub(crate) pending: VecDeque<Seq>,
    /// Blocks to rewrite.
    pub(crate) mends: Vec<Mend>,
    /// It is being applied; no second job and no removal until that is done.
    pub(crate) busy: bool,
    /// Copies on their way in: nothing is applied until they are there.
    pub(crate) holds: u32,
    /// It waits to be applied.
    pub(crate) queued: bool,
    /// Units promised to its pending entries, one bit each.
    pub(crate) reserved: u16,
    /// Grows with every change of the record: reads notice that what they planned on has moved.
    pub(crate) changes: u64,
}

impl Layer {
    /// Nothing yet.
    pub(crate) fn new(pg: PgId, key: LayerKey, slot: u32) -> Self {
        Self {
            record: ChunkRecord::new(pg, key, 0),
            slot,
            recorded: false,
            pending: VecDeque::new(),
            mends: Vec::new(),
            busy: false,
            holds: 0,
            queued: false,
            reserved: 0,
            changes: 0,
        }
    }

    /// True if nothing holds it in memory.
    pub(crate) fn is_unused(&self) -> bool {
        !self.recorded && self.pending.is_empty() && self.mends.is_empty() && !self.busy && self.holds == 0
    }

    /// The units that writing these blocks needs and that the layer neither has nor was promised.
    pub(crate) fn units_wanted(&self, blocks: BlockRange) -> u16 {
        units_of(blocks) & !self.reserved & !self.units_held()
    }

    /// The units that the layer has, one bit each.
    pub(crate) fn units_held(&self) -> u16 {
        (0..CHUNK_AUS).filter(|au| self.record.aus[*au] != NO_AU).fold(0, |mask, au| mask | 1 << au)
    }
}

/// The units (0..16) of a chunk that some blocks lie in, one bit each.
pub(crate) fn units_of(blocks: BlockRange) -> u16 {
    let first = blocks.first() / AU_BLOCKS;
    let last = (blocks.end() - 1) / AU_BLOCKS;
    (first..=last).fold(0, |mask, au| mask | 1 << au)
}
