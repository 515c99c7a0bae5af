//! What is known of one layer of a chunk while the store is open.
//!
//! The resident part is small, since there is one for every chunk on the device: where its data is and how old, without the
//! checksums ([`crate::sums`]). What goes on with a layer is kept apart and only while something does.

use std::collections::VecDeque;

use bytes::Bytes;
use mdm_api::epoch::{Seq, Version};
use mdm_api::ids::{PgId, StoragePoolId};
use sds_api::block::{AU_BLOCKS, BlockRange, CHUNK_AUS, LayerKey};

use crate::blockmap::BlockMap;
use crate::journal::record::NO_AU;
use crate::meta::page::ChunkRecord;

/// A block that is to be rewritten in place with the content it should have.
#[derive(Clone, Debug)]
pub(crate) struct Mend {
    /// The frame that holds it, needed until it is done.
    pub(crate) lsn: u64,
    /// The block.
    pub(crate) block: u16,
    /// What the record must still say, if it still knows.
    pub(crate) checksum: u32,
    /// The content.
    pub(crate) data: Bytes,
}

/// An entry that is not applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) seq: Seq,
    pub(crate) blocks: BlockRange,
    /// It zeroes them; else it writes them.
    pub(crate) is_zero: bool,
}

/// Bytes of memory that a layer takes for the first entry that is pending: mostly it is the only one.
pub(crate) const PENDING_BYTES: usize = size_of::<Active>() + 4 * size_of::<Pending>() + 32;

/// What goes on with a layer.
#[derive(Default)]
pub(crate) struct Active {
    /// Entries for it that are not applied, ascending.
    pub(crate) pending: VecDeque<Pending>,
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
    /// Units that an applied entry in the log still speaks of, one bit each: not to be overwritten in place.
    pub(crate) pinned: Vec<(Seq, u16)>,
}

impl Active {
    fn is_over(&self) -> bool {
        self.pending.is_empty()
            && self.mends.is_empty()
            && !self.busy
            && self.holds == 0
            && !self.queued
            && self.reserved == 0
            && self.pinned.is_empty()
    }

    /// Units not to be overwritten in place, one bit each.
    pub(crate) fn pins(&self) -> u16 {
        self.pinned.iter().fold(0, |all, (_, mask)| all | mask)
    }

    /// A unit is no longer the layer's: nobody minds what becomes of its place in the chunk.
    pub(crate) fn unpin(&mut self, au: usize) {
        self.pinned.iter_mut().for_each(|(_, mask)| *mask &= !(1 << au));
        self.pinned.retain(|(_, mask)| *mask != 0);
    }
}

/// One layer of a chunk.
pub(crate) struct Layer {
    /// Which.
    pub(crate) key: LayerKey,
    pool: StoragePoolId,
    pg_index: u32,
    /// Its place in the metadata pages.
    pub(crate) slot: u32,
    /// The last write applied.
    pub(crate) version: Version,
    /// Journal position before which everything is older than what is at home: removals and copies at lower ones are done.
    pub(crate) base: u64,
    /// Blocks with data at home.
    pub(crate) present: BlockMap,
    /// Blocks that read as zeros and hide older layers; seldom any.
    zeroed: Option<Box<BlockMap>>,
    /// Its units, [`NO_AU`] where there is none.
    pub(crate) aus: [u32; CHUNK_AUS],
    /// The next older layer of the chunk; for the table of layers.
    pub(crate) older: u32,
    /// Its place in its group's list; for the group.
    pub(crate) member: u32,
    /// Grows with every change at home: reads notice that what they planned on has moved.
    pub(crate) changes: u32,
    /// True if there is anything at home: only then it goes into a page.
    pub(crate) recorded: bool,
    active: Option<Box<Active>>,
}

impl Layer {
    /// Nothing yet.
    pub(crate) fn new(pg: PgId, key: LayerKey) -> Self {
        Self {
            key,
            pool: pg.pool,
            pg_index: pg.index,
            slot: 0,
            version: Version::default(),
            base: 0,
            present: BlockMap::EMPTY,
            zeroed: None,
            aus: [NO_AU; CHUNK_AUS],
            older: 0,
            member: 0,
            changes: 0,
            recorded: false,
            active: None,
        }
    }

    /// As a page has it.
    pub(crate) fn of_record(record: &ChunkRecord) -> Self {
        let mut layer = Self::new(record.pg, record.layer);
        (layer.version, layer.base, layer.present, layer.aus) =
            (record.version, record.base, record.present, record.aus);
        layer.set_zeroed(record.zeroed);
        layer.recorded = true;
        layer
    }

    /// The group of the chunk.
    pub(crate) fn pg(&self) -> PgId {
        PgId { pool: self.pool, index: self.pg_index }
    }

    /// Blocks that read as zeros and hide older layers.
    pub(crate) fn zeroed(&self) -> BlockMap {
        self.zeroed.as_deref().copied().unwrap_or(BlockMap::EMPTY)
    }

    pub(crate) fn set_zeroed(&mut self, zeroed: BlockMap) {
        self.zeroed = (!zeroed.is_empty()).then(|| Box::new(zeroed));
    }

    /// What goes on, if anything does.
    pub(crate) fn active(&self) -> Option<&Active> {
        self.active.as_deref()
    }

    /// The place for what goes on.
    pub(crate) fn active_mut(&mut self) -> &mut Active {
        self.active.get_or_insert_default()
    }

    /// Gives memory back when nothing goes on any more.
    pub(crate) fn tidy(&mut self) {
        if self.active.as_ref().is_some_and(|active| active.is_over()) {
            self.active = None;
        }
    }

    /// Entries that are not applied, ascending.
    pub(crate) fn pending(&self) -> impl DoubleEndedIterator<Item = &Pending> {
        self.active.iter().flat_map(|active| &active.pending)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.busy)
    }

    /// True if nothing holds it in memory.
    pub(crate) fn is_unused(&self) -> bool {
        let idle =
            |active: &Active| active.pending.is_empty() && active.mends.is_empty() && !active.busy && active.holds == 0;
        !self.recorded && self.active.as_deref().is_none_or(idle)
    }

    /// What was at home is gone.
    pub(crate) fn clear(&mut self) {
        (self.version, self.base, self.present) = (Version::default(), 0, BlockMap::EMPTY);
        (self.zeroed, self.aus, self.recorded) = (None, [NO_AU; CHUNK_AUS], false);
        self.changes = self.changes.wrapping_add(1);
    }

    /// The units that it has.
    pub(crate) fn units(&self) -> impl Iterator<Item = u32> + '_ {
        self.aus.iter().copied().filter(|au| *au != NO_AU)
    }

    /// The units that writing these blocks needs and that the layer neither has nor was promised.
    pub(crate) fn units_wanted(&self, blocks: BlockRange) -> u16 {
        let reserved = self.active.as_ref().map_or(0, |active| active.reserved);
        units_of(blocks) & !reserved & !self.units_held()
    }

    /// The units that the layer has, one bit each.
    pub(crate) fn units_held(&self) -> u16 {
        (0..CHUNK_AUS).filter(|au| self.aus[*au] != NO_AU).fold(0, |mask, au| mask | 1 << au)
    }
}

/// The units (0..16) of a chunk that some blocks lie in, one bit each.
pub(crate) fn units_of(blocks: BlockRange) -> u16 {
    let first = blocks.first() / AU_BLOCKS;
    let last = (blocks.end() - 1) / AU_BLOCKS;
    (first..=last).fold(0, |mask, au| mask | 1 << au)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_at_rest_is_small() {
        // With a place in the table of chunks, one in the group's list and the home of its page this stays below 256.
        assert!(size_of::<Option<Layer>>() <= 192, "{}", size_of::<Option<Layer>>());
    }
}
