//! What a session remembers of a placement group: the numbers of its requests there, and who leads.
//!
//! Always true (I16): numbers are dense from 1 and never given twice; every number below `oldest_unacked` was answered;
//! no number is [`REQUEST_WINDOW`] or more above it, so that the servers' table can hold them all.

use std::collections::{BTreeSet, VecDeque};

use mdm_api::config::PgConfig;
use mdm_api::epoch::RequestNumber;

use super::piece::Slot;
use crate::limits::REQUEST_WINDOW;
use crate::route::Route;

#[derive(Debug)]
pub(super) struct Group {
    next: RequestNumber,
    unanswered: BTreeSet<RequestNumber>,
    /// Changes that wait for room in the window, in order.
    pub queue: VecDeque<Slot>,
    /// A configuration newer than the map's, told by a server.
    pub told: Option<PgConfig>,
    /// Where requests went last.
    pub route: Option<Route>,
}

impl Default for Group {
    fn default() -> Self {
        Self { next: RequestNumber(1), unanswered: BTreeSet::new(), queue: VecDeque::new(), told: None, route: None }
    }
}

impl Group {
    /// All below were answered.
    pub fn oldest_unacked(&self) -> RequestNumber {
        self.unanswered.first().copied().unwrap_or(self.next)
    }

    /// A number for a change, if the window has room.
    pub fn admit(&mut self) -> Option<RequestNumber> {
        if self.next.0 - self.oldest_unacked().0 >= REQUEST_WINDOW {
            return None;
        }
        let number = self.next;
        self.next = number.next();
        self.unanswered.insert(number);
        Some(number)
    }

    /// The change with this number was answered for good.
    pub fn answered(&mut self, number: RequestNumber) {
        assert!(self.unanswered.remove(&number), "I16: {number:?} is answered once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_counts_from_the_oldest_unanswered_request() {
        let mut group = Group::default();
        let numbers: Vec<_> = std::iter::from_fn(|| group.admit()).collect();
        assert_eq!(numbers.len() as u64, REQUEST_WINDOW);
        assert_eq!((numbers[0], group.oldest_unacked()), (RequestNumber(1), RequestNumber(1)));
        group.answered(RequestNumber(2));
        assert_eq!(group.admit(), None, "request 1 still holds the window");
        group.answered(RequestNumber(1));
        assert_eq!(group.oldest_unacked(), RequestNumber(3));
        assert_eq!(group.admit(), Some(RequestNumber(REQUEST_WINDOW + 1)));
    }
}
