//! The order of one client's changes.
//!
//! Two changes of one client that overlap must not be under way together: each is retried on its own, and whichever came
//! last to the primary would win, though it may have been submitted first. So a change waits until every earlier one that
//! it overlaps was answered. Reads wait for nobody: a read and a write that are under way together may come in either
//! order, as on any disk (P2).
//!
//! Always true: a change waits only for earlier ones, so there is no circle and the oldest waits for none.

use std::collections::BTreeMap;

use crate::io::IoId;

#[derive(Debug)]
struct Change {
    start: u64,
    end: u64,
    /// Later changes that overlap this one.
    dependents: Vec<IoId>,
}

/// The changes that were submitted and not answered.
#[derive(Debug, Default)]
pub struct Order {
    // Bounded by limits::OPERATIONS_MAX; a scan of it is cheaper than any index at usual depths.
    changes: BTreeMap<IoId, Change>,
}

impl Order {
    /// A new change of the bytes `start..end`. Gives the number of earlier ones that it has to wait for.
    ///
    /// # Panics
    /// If it is not newer than all others.
    pub fn enter(&mut self, id: IoId, start: u64, end: u64) -> usize {
        assert!(self.changes.last_key_value().is_none_or(|(last, _)| *last < id), "changes enter in order");
        let mut blockers = 0;
        for change in self.changes.values_mut() {
            if change.start < end && start < change.end {
                change.dependents.push(id);
                blockers += 1;
            }
        }
        self.changes.insert(id, Change { start, end, dependents: Vec::new() });
        blockers
    }

    /// A change was answered, or will not be made. Each of the changes given back waits for one fewer; some of them may
    /// have left already.
    pub fn leave(&mut self, id: IoId) -> Vec<IoId> {
        self.changes.remove(&id).map(|change| change.dependents).unwrap_or_default()
    }

    /// The oldest change that is not answered.
    pub fn oldest(&self) -> Option<IoId> {
        self.changes.first_key_value().map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlapping_change_waits_for_every_earlier_one_it_overlaps() {
        let mut order = Order::default();
        assert_eq!(order.enter(IoId(1), 0, 10), 0);
        assert_eq!(order.enter(IoId(2), 20, 30), 0);
        assert_eq!(order.enter(IoId(3), 9, 21), 2);
        assert_eq!(order.enter(IoId(4), 10, 20), 1);
        assert_eq!(order.enter(IoId(5), 30, 40), 0);
        assert_eq!(order.leave(IoId(1)), [IoId(3)]);
        assert_eq!(order.oldest(), Some(IoId(2)));
        assert_eq!(order.leave(IoId(2)), [IoId(3)]);
        assert_eq!(order.leave(IoId(3)), [IoId(4)]);
        assert_eq!(order.leave(IoId(3)), []);
    }
}
