//! Coverage marks: which rows of the failure matrix and which invariants a run has reached.

use std::collections::BTreeMap;

/// Rows that a run can reach; each is hit where the simulator sees it happen.
pub const ROWS: [(&str, &str); 35] = [
    ("F1", "a primary's process dies"),
    ("F2", "a primary's host dies"),
    ("F3", "a secondary dies"),
    ("F4a", "both die, the primary returns first"),
    ("F4b", "both die, the secondary returns first"),
    ("F4c", "a secondary that was dropped returns alone"),
    ("F5", "power loss everywhere"),
    ("F6", "a primary is cut from the metadata manager"),
    ("F7", "primary and secondary are cut from each other"),
    ("F8", "a primary is alone with a client"),
    ("F9", "a secondary is cut from the metadata manager"),
    ("F10", "a one-way or lossy link"),
    ("F11", "a client is cut from a primary"),
    ("F12", "a client's map is stale"),
    ("F13", "a write or flush error at a primary"),
    ("F14", "a write error at a secondary"),
    ("F15", "a bad block at a primary, good at the secondary"),
    ("F16", "a block is bad on both"),
    ("F17", "rot in a journal"),
    ("F18", "rot in a super block or a metadata page"),
    ("F19", "a hung or slow disk"),
    ("F20", "no space"),
    ("F21", "the metadata manager's leader changes"),
    ("F22", "the metadata manager has no majority"),
    ("F23", "a write is sent again"),
    ("F24", "a late packet of a dead connection"),
    ("F25", "two clients write one block"),
    ("F26", "a client is detached by force"),
    ("F27", "a snapshot while a primary fails over"),
    ("F28", "a primary dies during resync"),
    ("F29", "a learner dies during resync"),
    ("F30", "a primary is suspended and resumed"),
    ("F31", "a secondary restarts just after granting"),
    ("F32", "an old device returns"),
    ("F33", "mixed versions"),
];

/// Invariants; each is hit where it is checked and could have been broken.
pub const INVARIANTS: [(&str, &str); 24] = [
    ("I1", "a configuration follows another one"),
    ("I2", "a device leads again under a new process"),
    ("I3", "a configuration is looked at"),
    ("I4", "a configuration comes after a device was retired"),
    ("I5", "a learner joins the ISR"),
    ("I6", "two replicas committed the same entry"),
    ("I7", "a replica that had promised starts anew"),
    ("I8", "a replica that had acknowledged starts anew"),
    ("I9", "an appointed primary has all that was committed"),
    ("I10", "a replica that does not lead commits"),
    ("I11", "a primary begins to serve"),
    ("I12", "a replica is suspect"),
    ("I13", "a primary serves while an older one does not know"),
    ("I14", "a primary waits for leases that its server granted"),
    ("I15", "a grant excludes a group"),
    ("I16", "a write comes again that was committed before"),
    ("I17", "a fence is confirmed"),
    ("I18", "a snapshot is complete"),
    ("I19", "a freed unit waits for a checkpoint"),
    ("I20", "a checkpoint moves the journal's tail"),
    ("I21", "a block fails its checksum"),
    ("I22", "a store fails"),
    ("I23", "copies of a chunk are compared"),
    ("I24", "a write waits for space, or is refused"),
];

/// What seeds reach seldom or never, and what speaks for it: a story (`tests/sim/stories`), or a test of real processes.
pub const ELSEWHERE: [(&str, &str); 7] = [
    ("F16", "story F16-bad-on-both"),
    ("F20", "story F20-no-space: what seeds write does not fill a device"),
    ("I24", "story F20-no-space"),
    ("F28", "story F28-resync-interrupted"),
    ("F27", "there are no snapshots in this version: nothing can be asked for"),
    ("I18", "there are no snapshots in this version"),
    ("F33", "one build runs here; tests/cluster, programs_of_another_version_are_told_so"),
];

/// How often each was hit.
#[derive(Clone, Debug, Default)]
pub struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    /// It happened.
    pub fn hit(&mut self, row: &'static str) {
        *self.0.entry(row).or_default() += 1;
    }

    /// It happened, if so.
    pub fn hit_if(&mut self, row: &'static str, holds: bool) {
        if holds {
            self.hit(row);
        }
    }

    /// Rows and invariants that were not hit, and are not spoken for elsewhere.
    pub fn missing(&self) -> Vec<&'static str> {
        let names = ROWS.iter().chain(&INVARIANTS).map(|(name, _)| *name);
        let is_spoken_for = |name: &str| ELSEWHERE.iter().any(|(other, _)| *other == name);
        names.filter(|name| self.count(name) == 0 && !is_spoken_for(name)).collect()
    }

    /// How often.
    pub fn count(&self, row: &str) -> u64 {
        self.0.get(row).copied().unwrap_or(0)
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(row, count)| *self.0.entry(row).or_default() += count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_invariants_are_named_once() {
        let all = || ROWS.iter().chain(&INVARIANTS).map(|(name, _)| *name);
        let names: std::collections::BTreeSet<&str> = all().collect();
        assert_eq!(names.len(), ROWS.len() + INVARIANTS.len());
        assert!(ELSEWHERE.iter().all(|(name, _)| names.contains(name)));
        assert_eq!(Marks::default().missing().len(), names.len() - ELSEWHERE.len());
    }
}
