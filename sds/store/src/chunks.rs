//! From a chunk to the slot of its newest layer, in five bytes for each slot of the device.
//!
//! A table with open places, made once, for as many chunks as there are slots: it never grows, so nobody waits for that. The
//! keys are not in it, they are asked of the layers. Its order means nothing and is never looked at.
//!
//! Always true: between the place where a chunk belongs and the place where it is, no place is empty.

use sds_api::block::ChunkId;

/// The table.
pub(crate) struct Chunks {
    /// A slot and one more; zero where there is none.
    places: Vec<u32>,
}

impl Chunks {
    /// Empty, with room for so many chunks. Memory is taken as it is used.
    pub(crate) fn new(most: u64) -> Self {
        Self { places: vec![0; (most + most / 4 + 1) as usize] }
    }

    /// Where a chunk belongs.
    fn home(&self, chunk: ChunkId) -> usize {
        let mut mixed = chunk.vtree.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ chunk.index;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * self.places.len() as u128) >> 64) as usize
    }

    fn after(&self, place: usize) -> usize {
        if place + 1 == self.places.len() { 0 } else { place + 1 }
    }

    /// The chunk's place, or the empty one where it would be put.
    fn find(&self, chunk: ChunkId, chunk_of: impl Fn(u32) -> ChunkId) -> usize {
        let mut place = self.home(chunk);
        while self.places[place] != 0 && chunk_of(self.places[place] - 1) != chunk {
            place = self.after(place);
        }
        place
    }

    /// The slot that a chunk has.
    pub(crate) fn get(&self, chunk: ChunkId, chunk_of: impl Fn(u32) -> ChunkId) -> Option<u32> {
        self.places[self.find(chunk, chunk_of)].checked_sub(1)
    }

    /// Gives a chunk a slot, in place of the one that it has.
    pub(crate) fn set(&mut self, chunk: ChunkId, slot: u32, chunk_of: impl Fn(u32) -> ChunkId) {
        let place = self.find(chunk, chunk_of);
        self.places[place] = slot + 1;
    }

    /// Takes a chunk out. Those behind it that could no longer be found move up.
    pub(crate) fn remove(&mut self, chunk: ChunkId, chunk_of: impl Fn(u32) -> ChunkId) {
        let mut hole = self.find(chunk, &chunk_of);
        let mut place = hole;
        loop {
            self.places[hole] = 0;
            loop {
                place = self.after(place);
                if self.places[place] == 0 {
                    return;
                }
                let home = self.home(chunk_of(self.places[place] - 1));
                // Not if its home lies behind the hole, going around.
                let stays = if hole <= place { hole < home && home <= place } else { hole < home || home <= place };
                if !stays {
                    break;
                }
            }
            self.places[hole] = self.places[place];
            hole = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm_api::ids::VtreeId;
    use std::collections::BTreeMap;

    #[test]
    fn chunks_are_found_whatever_came_and_went_before() {
        const MOST: u64 = 40;
        let chunk = |number: u64| ChunkId { vtree: VtreeId(number % 3), index: number / 3 };
        // Slots are given out by the test; which chunk has which is all that the table is told.
        let mut slots = vec![ChunkId::default(); MOST as usize];
        let mut free: Vec<u32> = (0..MOST as u32).collect();
        let (mut table, mut model) = (Chunks::new(MOST), BTreeMap::new());
        let mut state = 1_u64;
        for step in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 33) % 90;
            match model.remove(&number) {
                Some(slot) => {
                    table.remove(chunk(number), |slot| slots[slot as usize]);
                    free.push(slot);
                }
                None => {
                    // Full at times.
                    let Some(slot) = free.pop() else { continue };
                    table.set(chunk(number), slot, |slot| slots[slot as usize]);
                    slots[slot as usize] = chunk(number);
                    model.insert(number, slot);
                }
            }
            for number in 0..90 {
                let found = table.get(chunk(number), |slot| slots[slot as usize]);
                assert_eq!(found, model.get(&number).copied(), "step {step}, chunk {number}");
            }
        }
    }
}
