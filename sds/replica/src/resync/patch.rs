//! Only what changed: a learner that was away has most of a chunk already (architecture 5.6, shortcut).
//!
//! While a group has a learner its primary notes which blocks of which layers are written. A layer that the learner has as of
//! a moment within that time is sent as a *patch*: the noted blocks, as they are now. The learner reads its
//! own copy of the layer at that very version, puts the patch on top, and installs the whole as it would install a copy.
//!
//! Always true: every entry beyond `since` that touches a layer is in its map, or the layer is not in the map at all and is
//! copied whole. What cannot be proven is copied whole: a version from another history, a map that became too large, a base
//! that cannot be read. Checksums are never compared to find out what differs.

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_api::epoch::{Seq, Version};
use mdm_api::ids::DeviceId;
use sds_api::block::{BLOCK_BYTES, BlockRange, LayerKey};
use sds_api::entry::{Entry, EntryBody};
use sds_api::peer::LayerCopy;

use crate::limits::DIRTY_LAYERS_MAX;
use crate::replica::Replica;

/// One bit for each block of a layer.
pub(crate) type Blocks = [u64; 4];

/// What was written since a moment of the order.
#[derive(Clone, Debug)]
pub(crate) struct Dirty {
    /// Entries beyond this are noted.
    since: Seq,
    layers: BTreeMap<LayerKey, Blocks>,
}

impl Dirty {
    pub(crate) fn new(since: Seq) -> Self {
        Self { since, layers: BTreeMap::new() }
    }

    /// Notes an entry. False if there is no room to go on: then nothing is known any more.
    pub(crate) fn note(&mut self, entry: &Entry) -> bool {
        match &entry.body {
            EntryBody::Write { layer, blocks, .. } | EntryBody::Zero { layer, blocks } => {
                set(self.layers.entry(*layer).or_default(), *blocks);
            }
            // What it writes is not known here.
            EntryBody::Elsewhere { .. } => return false,
            // A layer that comes to life again is another one, whatever version the learner has of the old.
            EntryBody::DropVtree { vtree } => self.layers.retain(|layer, _| layer.chunk.vtree != *vtree),
            EntryBody::EpochStart { .. } => {}
        }
        self.layers.len() <= DIRTY_LAYERS_MAX
    }

    /// The blocks in which a layer as of that entry may differ from the present one.
    fn blocks_since(&self, layer: LayerKey, as_of: Seq) -> Option<Blocks> {
        if as_of < self.since { None } else { self.layers.get(&layer).copied() }
    }
}

fn set(map: &mut Blocks, blocks: BlockRange) {
    blocks.iter().for_each(|block| map[usize::from(block) / 64] |= 1 << (block % 64));
}

fn contains(map: &Blocks, block: usize) -> bool {
    map[block / 64] & 1 << (block % 64) != 0
}

/// The present blocks of a copy, by number.
fn present(copy: &LayerCopy) -> BTreeMap<usize, (u32, Bytes)> {
    let numbers = (0..copy.presence.len() * 64).filter(|block| contains(&copy.presence, *block));
    let blocks = copy.data.iter().flat_map(|piece| (0..piece.len() / BLOCK_BYTES).map(move |at| (piece, at)));
    let data = blocks.map(|(piece, at)| piece.slice(at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES));
    numbers.zip(copy.checksums.iter().copied().zip(data)).collect()
}

fn copy_of(version: Version, blocks: BTreeMap<usize, (u32, Bytes)>) -> LayerCopy {
    let mut copy = LayerCopy { version, presence: [0; 4], checksums: Vec::new(), data: Vec::new() };
    for (block, (sum, bytes)) in blocks {
        copy.presence[block / 64] |= 1 << (block % 64);
        copy.checksums.push(sum);
        copy.data.push(bytes);
    }
    copy
}

/// Those blocks of a copy.
pub(crate) fn cut(copy: &LayerCopy, blocks: &Blocks) -> LayerCopy {
    let mut wanted = present(copy);
    wanted.retain(|block, _| contains(blocks, *block));
    copy_of(copy.version, wanted)
}

/// A base with a patch of those blocks on top. Both are verified.
pub(crate) fn merge(base: &LayerCopy, blocks: &Blocks, patch: &LayerCopy) -> LayerCopy {
    let mut merged = present(base);
    merged.retain(|block, _| !contains(blocks, *block));
    merged.extend(present(patch));
    copy_of(patch.version, merged)
}

impl Replica {
    /// What has to be sent of a layer to a learner that has this version of it; all of it if nothing less is certain.
    pub(crate) fn blocks_to_send(
        &mut self,
        learner: DeviceId,
        stream: u64,
        layer: LayerKey,
    ) -> Option<(Version, Blocks)> {
        let resync = self.resync(learner, stream)?;
        let (base, has) = (resync.bases.get(&layer).copied()?, resync.has);
        // I6: equal terms at a place of the order mean equal orders up to there.
        let is_ours = base.seq <= self.log.committed() && self.log.version_at(base.seq) == base;
        let dirty = self.leader.as_ref()?.dirty.as_ref().filter(|_| is_ours && base != Version::default())?;
        Some((base, dirty.blocks_since(layer, has.max(base.seq))?))
    }

    /// Begins or ends to note what is written, as there is a learner or none.
    pub(crate) fn watch_dirty(&mut self) {
        let has_learners = self.config.as_ref().is_some_and(|config| !config.learners.is_empty());
        let Some(leader) = self.leader.as_mut() else { return };
        if !has_learners {
            leader.dirty = None;
            leader.dirty_is_lost = false;
            return;
        }
        if leader.dirty.is_some() || leader.dirty_is_lost {
            return;
        }
        let since = self.log.whole_since();
        let mut dirty = Dirty::new(since);
        let known = self.log.range(since, self.log.last().seq).all(|entry| dirty.note(entry));
        leader.dirty_is_lost = !known;
        leader.dirty = known.then_some(dirty);
    }

    /// An entry was ordered.
    pub(crate) fn note_dirty(&mut self, entry: &Entry) {
        let Some(leader) = self.leader.as_mut() else { return };
        if leader.dirty.as_mut().is_some_and(|dirty| !dirty.note(entry)) {
            (leader.dirty, leader.dirty_is_lost) = (None, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use mdm_api::epoch::{Epoch, Term};
    use mdm_api::ids::PgId;
    use sds_api::checksum::crc32c;

    use super::*;

    fn version(seq: u64) -> Version {
        Version { term: Term(1), seq: Seq(seq) }
    }

    fn layer_with(seq: u64, blocks: &[(usize, u8)]) -> LayerCopy {
        let block = |fill: u8| Bytes::from(vec![fill; BLOCK_BYTES]);
        copy_of(version(seq), blocks.iter().map(|(at, fill)| (*at, (crc32c(&block(*fill)), block(*fill)))).collect())
    }

    fn zeroed(seq: u64, first: u16, count: u16) -> Entry {
        let blocks = BlockRange::new(first, count).unwrap();
        let body = EntryBody::Zero { layer: LayerKey::default(), blocks };
        Entry { pg: PgId::default(), version: version(seq), identity: None, body }
    }

    #[test]
    fn a_base_with_what_changed_on_top_is_the_present_content() {
        let old = layer_with(5, &[(0, 1), (63, 1), (64, 1), (255, 1)]);
        // Block 0 was zeroed, 64 overwritten, 7 written for the first time.
        let new = layer_with(9, &[(7, 2), (63, 1), (64, 2), (255, 1)]);
        let mut blocks = Blocks::default();
        for block in [0, 7, 64] {
            set(&mut blocks, BlockRange::new(block, 1).unwrap());
        }
        let patch = cut(&new, &blocks);
        assert_eq!(patch.block_count(), 2);
        assert!(patch.verify());
        let merged = merge(&old, &blocks, &patch);
        assert!(merged.verify());
        assert_eq!((present(&merged), merged.version), (present(&new), new.version));
    }

    #[test]
    fn only_what_is_certain_is_sent_in_part() {
        let mut dirty = Dirty::new(Seq(10));
        assert!(dirty.note(&zeroed(11, 3, 2)));
        let layer = LayerKey::default();
        assert_eq!(dirty.blocks_since(layer, Seq(10)), Some([0b11000, 0, 0, 0]));
        assert_eq!(dirty.blocks_since(layer, Seq(9)), None, "what came before was not noted");
        let other = LayerKey { chunk: sds_api::block::ChunkId { index: 7, ..layer.chunk }, ..layer };
        assert_eq!(dirty.blocks_since(other, Seq(10)), None);
        let epoch = EntryBody::EpochStart { epoch: Epoch(1) };
        assert!(dirty.note(&Entry { body: epoch, ..zeroed(12, 0, 1) }));
        assert!(!dirty.note(&Entry { body: EntryBody::Elsewhere { layer }, ..zeroed(13, 0, 1) }));
    }
}
