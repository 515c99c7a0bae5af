//! All layers of all chunks: a table by slot, and for each chunk its newest layer.
//!
//! A slot is the layer's place here and in the metadata pages. Layers of one chunk are a list from the newest to the oldest.
//!
//! Always true: every layer in the table is in the list of its chunk, once, in descending order of snapshots; segments of the
//! table never move, so memory grows by what is needed and not by doubling.

use mdm_api::epoch::SnapSeq;
use sds_api::block::{ChunkId, LayerKey};

use crate::chunks::Chunks;
use crate::layer::Layer;

/// Slots of one segment of the table.
const SEGMENT: usize = 512;
/// No slot.
const NOTHING: u32 = u32::MAX;

/// The table.
pub(crate) struct Layers {
    segments: Vec<Box<[Option<Layer>]>>,
    /// For each chunk its newest layer.
    chunks: Chunks,
    /// Slots below `used` without a layer.
    free: Vec<u32>,
    used: u32,
    slot_count: u64,
    count: u64,
}

impl Layers {
    /// Nothing, with room for so many.
    pub(crate) fn new(slot_count: u64) -> Self {
        Self { segments: Vec::new(), chunks: Chunks::new(slot_count), free: Vec::new(), used: 0, slot_count, count: 0 }
    }

    /// All slots.
    pub(crate) fn slot_count(&self) -> u64 {
        self.slot_count
    }

    /// Slots that nobody has.
    pub(crate) fn free_slots(&self) -> u64 {
        self.slot_count - self.count
    }

    /// The layer in a slot.
    pub(crate) fn at(&self, slot: u32) -> Option<&Layer> {
        self.segments.get(slot as usize / SEGMENT)?.get(slot as usize % SEGMENT)?.as_ref()
    }

    /// The layer in a slot.
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut Layer> {
        self.segments.get_mut(slot as usize / SEGMENT)?.get_mut(slot as usize % SEGMENT)?.as_mut()
    }

    fn newest(&self, key: &LayerKey) -> u32 {
        self.chunks.get(key.chunk, |slot| chunk_of(&self.segments, slot)).unwrap_or(NOTHING)
    }

    /// The layers of a chunk from this snapshot on, newest first.
    pub(crate) fn through(&self, key: LayerKey) -> impl Iterator<Item = &Layer> {
        let mut slot = self.newest(&key);
        std::iter::from_fn(move || {
            let layer = self.at(slot)?;
            slot = layer.older;
            Some(layer)
        })
        .skip_while(move |layer| layer.key.snap_seq > key.snap_seq)
    }

    /// One layer.
    pub(crate) fn get(&self, key: &LayerKey) -> Option<&Layer> {
        self.through(*key).next().filter(|layer| layer.key == *key)
    }

    /// One layer.
    pub(crate) fn get_mut(&mut self, key: &LayerKey) -> Option<&mut Layer> {
        let slot = self.get(key)?.slot;
        self.at_mut(slot)
    }

    /// Takes a layer in, at a free slot. `None` if there is none.
    pub(crate) fn insert(&mut self, layer: Layer) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if u64::from(self.used) < self.slot_count => {
                self.used += 1;
                self.used - 1
            }
            None => return None,
        };
        self.put(slot, layer);
        Some(slot)
    }

    /// Takes a layer in, at the slot in which a page has it. To be followed by [`Layers::finish_loading`].
    pub(crate) fn load(&mut self, slot: u32, layer: Layer) {
        self.used = self.used.max(slot + 1);
        self.put(slot, layer);
    }

    /// All slots are loaded: the others are free.
    pub(crate) fn finish_loading(&mut self) {
        self.free = (0..self.used).rev().filter(|slot| self.at(*slot).is_none()).collect();
    }

    fn put(&mut self, slot: u32, mut layer: Layer) {
        let (segment, place) = (slot as usize / SEGMENT, slot as usize % SEGMENT);
        while self.segments.len() <= segment {
            self.segments.push(std::iter::repeat_with(|| None).take(SEGMENT).collect());
        }
        let key = layer.key;
        let newer = self.newer_than(&key);
        layer.slot = slot;
        layer.older = match newer {
            Some(newer) => self.at(newer).map_or(NOTHING, |layer| layer.older),
            None => self.newest(&key),
        };
        self.link(newer, &key, slot);
        self.segments[segment][place] = Some(layer);
        self.count += 1;
    }

    /// The slot of the chunk's next newer layer.
    fn newer_than(&self, key: &LayerKey) -> Option<u32> {
        let top = LayerKey { snap_seq: SnapSeq(u64::MAX), ..*key };
        let newer = self.through(top).take_while(|layer| layer.key.snap_seq > key.snap_seq);
        newer.last().map(|layer| layer.slot)
    }

    /// Makes `slot` what follows `newer`, or the newest of its chunk.
    fn link(&mut self, newer: Option<u32>, key: &LayerKey, slot: u32) {
        match newer.and_then(|newer| self.at_mut(newer)) {
            Some(newer) => newer.older = slot,
            None if slot == NOTHING => self.chunks.remove(key.chunk, |slot| chunk_of(&self.segments, slot)),
            None => self.chunks.set(key.chunk, slot, |slot| chunk_of(&self.segments, slot)),
        }
    }

    /// Takes a layer out.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<Layer> {
        let (key, older) = self.at(slot).map(|layer| (layer.key, layer.older))?;
        let newer = self.newer_than(&key);
        self.link(newer, &key, older);
        self.free.push(slot);
        self.count -= 1;
        self.segments.get_mut(slot as usize / SEGMENT)?.get_mut(slot as usize % SEGMENT)?.take()
    }

    /// Every layer, by slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.segments.iter().flat_map(|segment| segment.iter().flatten())
    }
}

/// The chunk of the layer in a slot.
fn chunk_of(segments: &[Box<[Option<Layer>]>], slot: u32) -> ChunkId {
    let layer = segments[slot as usize / SEGMENT][slot as usize % SEGMENT].as_ref();
    layer.expect("what a chunk has is in the table").key.chunk
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm_api::ids::{PgId, VtreeId};

    fn key(vtree: u64, index: u64, snap: u64) -> LayerKey {
        LayerKey { chunk: ChunkId { vtree: VtreeId(vtree), index }, snap_seq: SnapSeq(snap) }
    }

    #[test]
    fn layers_of_a_chunk_are_walked_from_the_newest_in_whatever_order_they_came() {
        let mut layers = Layers::new(10);
        for snap in [4, 1, 9, 6] {
            layers.insert(Layer::new(PgId::default(), key(1, 7, snap))).unwrap();
        }
        layers.insert(Layer::new(PgId::default(), key(1, 8, 5))).unwrap();
        let snaps = |layers: &Layers, from| -> Vec<u64> {
            layers.through(key(1, 7, from)).map(|layer| layer.key.snap_seq.0).collect()
        };
        assert_eq!(
            (snaps(&layers, 100), snaps(&layers, 6), snaps(&layers, 0)),
            (vec![9, 6, 4, 1], vec![6, 4, 1], vec![])
        );
        assert!(layers.get(&key(1, 7, 5)).is_none() && layers.get(&key(1, 7, 4)).is_some());
        for (snap, left) in [(6, vec![9, 4, 1]), (9, vec![4, 1]), (1, vec![4]), (4, vec![])] {
            let slot = layers.get(&key(1, 7, snap)).unwrap().slot;
            layers.remove(slot).unwrap();
            assert_eq!(snaps(&layers, 100), left);
        }
        assert_eq!((layers.free_slots(), layers.iter().count()), (9, 1));
    }

    #[test]
    fn slots_are_given_out_once_and_again_when_free() {
        let mut layers = Layers::new(3);
        let slots: Vec<_> = (0..4).map(|index| layers.insert(Layer::new(PgId::default(), key(1, index, 0)))).collect();
        assert_eq!(slots, [Some(0), Some(1), Some(2), None]);
        layers.remove(1).unwrap();
        assert_eq!(layers.insert(Layer::new(PgId::default(), key(2, 0, 0))), Some(1));
    }
}
