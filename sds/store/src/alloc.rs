//! Which allocation units are in use: derived at open from the chunk records and the journal, never written down.
//!
//! Always true: a unit is free, used by one chunk layer (I19), or quarantined: freed by a journal record that a replay could
//! still meet. A quarantined unit is not given out before a checkpoint has moved the tail past that record.

use std::collections::VecDeque;

use mdm_api::mutants::{self, Mutant};

/// The units of a device.
pub struct Allocator {
    taken: Vec<u64>,
    count: u64,
    free: u64,
    reserved: u64,
    cursor: u64,
    /// By the tail that releases them, ascending.
    quarantine: VecDeque<(u64, u32)>,
    /// A bug on purpose: there is no quarantine.
    pub(crate) frees_at_once: bool,
}

impl Allocator {
    /// All free.
    pub fn new(count: u64) -> Self {
        let mut taken = vec![0; count.div_ceil(64) as usize];
        if let (Some(last), true) = (taken.last_mut(), !count.is_multiple_of(64)) {
            *last = u64::MAX << (count % 64);
        }
        Self { taken, count, free: count, reserved: 0, cursor: 0, quarantine: VecDeque::new(), frees_at_once: false }
    }

    /// Notes at open that a unit is in use. False if it is already, or does not exist: corruption.
    pub fn claim(&mut self, au: u32) -> bool {
        let (word, bit) = (au as usize / 64, 1 << (au % 64));
        if u64::from(au) >= self.count || self.taken[word] & bit != 0 {
            return false;
        }
        self.taken[word] |= bit;
        self.free -= 1;
        true
    }

    /// True if the unit is neither free nor out of range.
    pub fn is_taken(&self, au: u32) -> bool {
        self.taken.get(au as usize / 64).is_some_and(|word| word & (1 << (au % 64)) != 0)
    }

    /// Gives a unit out, the next free one behind the last, so that what is written together lies together.
    pub fn allocate(&mut self) -> Option<u32> {
        let words = self.taken.len() as u64;
        let start = self.cursor / 64;
        for step in 0..=words {
            let word = (start + step) % words;
            let mut free = !self.taken[word as usize];
            if step == 0 {
                free &= u64::MAX << (self.cursor % 64);
            }
            if free != 0 {
                let au = word * 64 + u64::from(free.trailing_zeros());
                self.taken[word as usize] |= 1 << (au % 64);
                self.free -= 1;
                self.cursor = (au + 1) % self.count;
                return Some(au as u32);
            }
        }
        None
    }

    /// A unit lost its owner through journal records before the position `until` (I19): it is free once the tail is there.
    ///
    /// For a record at `lsn` that is `lsn + 1`; for all that the journal holds now it is the head, which a tail reaches
    /// without another record, so that an idle device gives everything back.
    pub fn quarantine(&mut self, au: u32, until: u64) {
        assert!(self.is_taken(au), "I19: only what was given out is freed");
        if self.frees_at_once {
            return self.give_back(au);
        }
        if mutants::is_on(Mutant::ReuseFreedUnit) {
            // Left to itself the cursor comes back after the whole device, which few runs live to see.
            self.cursor = u64::from(au);
            return self.give_back(au);
        }
        let at = match self.quarantine.back() {
            Some((last, _)) if *last > until => self.quarantine.partition_point(|(other, _)| *other <= until),
            _ => self.quarantine.len(),
        };
        self.quarantine.insert(at, (until, au));
    }

    /// A unit that was given out and never recorded anywhere is free again at once.
    pub fn give_back(&mut self, au: u32) {
        assert!(self.is_taken(au), "I19: only what was given out is given back");
        self.taken[au as usize / 64] &= !(1 << (au % 64));
        self.free += 1;
    }

    /// The durable tail has reached `tail`: what waits for no more than that is free.
    pub fn release_before(&mut self, tail: u64) {
        while let Some((_, au)) = self.quarantine.pop_front_if(|(until, _)| *until <= tail) {
            self.give_back(au);
        }
    }

    /// Units that a tail at this position would release.
    pub fn releasable(&self, tail: u64) -> u64 {
        self.quarantine.partition_point(|(until, _)| *until <= tail) as u64
    }

    /// Promises units to entries in the journal. Whoever admits them has looked at [`Allocator::available`].
    pub fn reserve(&mut self, units: u64) {
        self.reserved += units;
    }

    /// Takes a promise back, because it was fulfilled or is no longer needed.
    pub fn unreserve(&mut self, units: u64) {
        self.reserved = self.reserved.checked_sub(units).expect("I24: only what was reserved is taken back");
    }

    /// Units neither taken nor promised.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }

    /// Units promised.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Units in quarantine.
    pub fn quarantined(&self) -> u64 {
        self.quarantine.len() as u64
    }

    /// The tail must come here for all of the quarantine to be released; 0 if there is none.
    pub fn quarantined_before(&self) -> u64 {
        self.quarantine.back().map_or(0, |(until, _)| *until)
    }

    /// All units.
    pub fn total(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_unit_is_not_given_out_before_the_tail_has_passed() {
        let mut units = Allocator::new(2);
        assert_eq!((units.allocate(), units.allocate(), units.allocate()), (Some(0), Some(1), None));
        units.quarantine(1, 501);
        assert_eq!(units.allocate(), None);
        units.release_before(500);
        assert_eq!(units.allocate(), None);
        units.release_before(501);
        assert_eq!(units.allocate(), Some(1));
    }

    #[test]
    fn a_unit_is_claimed_once() {
        let mut units = Allocator::new(70);
        assert!(units.claim(69) && !units.claim(69) && !units.claim(70));
        assert_eq!((0..69).filter_map(|_| units.allocate()).count(), 69);
        assert_eq!(units.allocate(), None);
    }
}
