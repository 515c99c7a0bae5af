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

/// How often each was hit.
#[derive(Clone, Debug, Default)]
pub struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    /// It happened.
    pub fn hit(&mut self, row: &'static str) {
        *self.0.entry(row).or_default() += 1;
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
    fn rows_are_named_once() {
        let names: std::collections::BTreeSet<&str> = ROWS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), ROWS.len());
    }
}
