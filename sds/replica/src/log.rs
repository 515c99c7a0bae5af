//! The order of a group as one replica has it: entries in memory, term history, what is durable, what is committed.
//!
//! Always true:
//! - Entries are dense from `base + 1` to `last`; terms never decrease (I6).
//! - `base <= committed <= last` and `durable <= last`; everything uncommitted is in memory.
//! - Nothing at or below `committed` is ever taken back.

use std::collections::VecDeque;

use mdm_api::epoch::{Seq, Term, Version};
use sds_api::entry::{Entry, EntryBody};
use sds_api::peer::{HISTORY_TERMS_MAX, TermStart};

use crate::RetainedBudget;
use crate::event::Token;
use crate::limits::{LEARNER_LAG_BYTES_MAX, LEARNER_LAG_ENTRIES_MAX, RETAINED_BYTES_MAX, RETAINED_ENTRIES_MAX};

/// Something on its way into the journal.
#[derive(Clone, Copy, Debug)]
struct Pending {
    token: Token,
    through: Seq,
    done: bool,
}

/// The order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    base: Version,
    entries: VecDeque<Entry>,
    bytes: usize,
    history: Vec<TermStart>,
    durable: Seq,
    committed: Seq,
    /// Entries above this are whole, not `Elsewhere`.
    whole_from: Seq,
    pending: VecDeque<Pending>,
}

impl Log {
    /// From a saved state: everything through `base` is durable and committed.
    pub(crate) fn at(base: Version, history: Vec<TermStart>) -> Self {
        Self { base, history, durable: base.seq, committed: base.seq, whole_from: base.seq, ..Self::default() }
    }

    pub(crate) fn last(&self) -> Version {
        self.entries.back().map_or(self.base, |entry| entry.version)
    }

    pub(crate) fn durable(&self) -> Seq {
        self.durable
    }

    pub(crate) fn committed(&self) -> Seq {
        self.committed
    }

    pub(crate) fn history(&self) -> &[TermStart] {
        &self.history
    }

    /// The history of the entries through `seq`.
    pub(crate) fn history_through(&self, seq: Seq) -> Vec<TermStart> {
        self.history.iter().filter(|start| start.first <= seq).copied().collect()
    }

    /// True if every entry beyond `after` is here, whole.
    pub(crate) fn reaches_back_to(&self, after: Seq) -> bool {
        after >= self.base.seq && after >= self.whole_from
    }

    /// True if every entry beyond `after` is here.
    pub(crate) fn holds_from(&self, after: Seq) -> bool {
        after >= self.base.seq
    }

    /// The entry's version, if it is known.
    pub(crate) fn version_at(&self, seq: Seq) -> Version {
        let term = self.history.iter().rev().find(|start| start.first <= seq).map_or(Term(0), |start| start.term);
        Version { term, seq }
    }

    /// Every entry beyond this is here, whole.
    pub(crate) fn whole_since(&self) -> Seq {
        self.base.seq.max(self.whole_from)
    }

    /// The entries in `(after, through]`.
    pub(crate) fn range(&self, after: Seq, through: Seq) -> impl Iterator<Item = &Entry> {
        let skip = after.0.saturating_sub(self.base.seq.0) as usize;
        let count = through.0.saturating_sub(after.0.max(self.base.seq.0)) as usize;
        self.entries.iter().skip(skip).take(count)
    }

    /// Entries and payload that are not committed.
    pub(crate) fn uncommitted_bytes(&self) -> usize {
        self.range(self.committed, self.last().seq).map(Entry::payload_bytes).sum()
    }

    /// Adds the next entry.
    pub(crate) fn push(&mut self, entry: Entry, budget: &mut RetainedBudget) {
        let last = self.last();
        assert!(
            entry.version.seq == last.seq.next() && entry.version.term >= last.term,
            "I6: {:?} does not follow {last:?}",
            entry.version
        );
        if self.history.last().is_none_or(|start| start.term < entry.version.term) {
            self.history.push(TermStart { term: entry.version.term, first: entry.version.seq });
            if self.history.len() > HISTORY_TERMS_MAX {
                // A member whose tail is older than that many terms cannot be matched, and is compared by content.
                self.history.remove(0);
            }
        }
        if matches!(entry.body, EntryBody::Elsewhere { .. }) {
            self.whole_from = entry.version.seq;
        }
        self.bytes += entry.payload_bytes();
        budget.used += entry.payload_bytes();
        self.entries.push_back(entry);
    }

    /// Everything through `through` is on its way into the journal under this token.
    pub(crate) fn journal(&mut self, token: Token, through: Seq) {
        self.pending.push_back(Pending { token, through, done: false });
    }

    /// A journal write is done. I8: the durable prefix moves over what is done without a gap.
    pub(crate) fn journaled(&mut self, token: Token) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.token == token) {
            pending.done = true;
        }
        while self.pending.front().is_some_and(|pending| pending.done) {
            let pending = self.pending.pop_front().expect("there is a front");
            self.durable = self.durable.max(pending.through);
        }
    }

    /// True if nothing is on its way into the journal.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Moves the commit forward. True if it moved.
    pub(crate) fn commit(&mut self, through: Seq) -> bool {
        assert!(through <= self.last().seq, "a commit names entries that are there");
        let moved = through > self.committed;
        self.committed = self.committed.max(through);
        moved
    }

    /// Drops the entries beyond `after`, none of which is committed.
    pub(crate) fn truncate(&mut self, after: Seq, budget: &mut RetainedBudget) {
        assert!(after >= self.committed, "a committed entry is never taken back");
        while self.last().seq > after {
            let Some(entry) = self.entries.pop_back() else { break };
            self.bytes -= entry.payload_bytes();
            budget.used -= entry.payload_bytes();
        }
        self.history.retain(|start| start.first <= after);
        self.durable = self.durable.min(after);
        for pending in &mut self.pending {
            pending.through = pending.through.min(after);
        }
    }

    /// Everything goes; the order continues after `base`.
    pub(crate) fn restart(&mut self, base: Version, history: Vec<TermStart>, budget: &mut RetainedBudget) {
        self.close(budget);
        let mut pending = std::mem::take(&mut self.pending);
        // What is still on its way belongs to what was; only its place in the queue counts.
        pending.iter_mut().for_each(|pending| pending.through = Seq(0));
        *self = Self { pending, durable: Seq(0), ..Self::at(base, history) };
    }

    /// Lets go of committed entries that are beyond the bounds. `needed` is the last entry that a member being fed has.
    pub(crate) fn trim(&mut self, needed: Seq, budget: &mut RetainedBudget) {
        while let Some(front) = self.entries.front() {
            if front.version.seq > self.committed {
                break;
            }
            let fed = front.version.seq > needed;
            let over = if fed {
                self.entries.len() > LEARNER_LAG_ENTRIES_MAX || self.bytes > LEARNER_LAG_BYTES_MAX
            } else {
                self.entries.len() > RETAINED_ENTRIES_MAX
                    || self.bytes > RETAINED_BYTES_MAX
                    || (self.bytes > 0 && budget.used > budget.limit)
            };
            if !over {
                break;
            }
            self.base = front.version;
            self.bytes -= front.payload_bytes();
            budget.used -= front.payload_bytes();
            self.entries.pop_front();
        }
    }

    /// Gives back what it holds of the budget.
    pub(crate) fn close(&mut self, budget: &mut RetainedBudget) {
        budget.used -= self.bytes;
        self.bytes = 0;
        self.entries.clear();
    }

    /// The last entry that this order and a member's have in common. Equal `(term, seq)` means equal entries and equal
    /// predecessors (I6), so it is the newest point of the newest term that both know.
    pub(crate) fn common_with(&self, last: Seq, history: &[TermStart]) -> Seq {
        let mine = spans(&self.history, self.last().seq);
        let theirs = spans(history, last);
        for (term, first, end) in mine.iter().rev() {
            let matched = theirs.iter().rev().find(|(other, ..)| other == term);
            if let Some((_, other_first, other_end)) = matched {
                let common = (*end).min(*other_end);
                if common >= *first && common >= *other_first {
                    return common;
                }
            }
        }
        Seq(0)
    }
}

/// Each term with its first and last entry.
fn spans(history: &[TermStart], last: Seq) -> Vec<(Term, Seq, Seq)> {
    let ends = history.iter().skip(1).map(|next| Seq(next.first.0.saturating_sub(1))).chain([last]);
    history.iter().zip(ends).map(|(start, end)| (start.term, start.first, end)).collect()
}

#[cfg(test)]
mod tests {
    use mdm_api::epoch::Epoch;
    use mdm_api::ids::PgId;

    use super::*;

    fn entry(term: u64, seq: u64) -> Entry {
        let version = Version { term: Term(term), seq: Seq(seq) };
        Entry { pg: PgId::default(), version, identity: None, body: EntryBody::EpochStart { epoch: Epoch(1) } }
    }

    fn log(terms: &[u64]) -> (Log, RetainedBudget) {
        let mut budget = RetainedBudget { limit: 1 << 20, used: 0 };
        let mut log = Log::default();
        for (index, term) in terms.iter().enumerate() {
            log.push(entry(*term, index as u64 + 1), &mut budget);
        }
        (log, budget)
    }

    #[test]
    fn the_common_point_is_the_end_of_the_newest_common_term() {
        let common = |mine: &[u64], theirs: &[u64]| {
            let theirs = log(theirs).0;
            log(mine).0.common_with(theirs.last().seq, theirs.history()).0
        };
        assert_eq!(common(&[1, 1, 1], &[1, 1]), 2);
        assert_eq!(common(&[1, 1, 3], &[1, 1, 2, 2]), 2);
        assert_eq!(common(&[1, 2, 2, 5], &[1, 2, 2, 2, 4]), 3);
        assert_eq!(common(&[], &[1, 1]), 0);
        assert_eq!(common(&[3, 3], &[2, 2]), 0);
        assert_eq!(common(&[1, 1], &[1, 1]), 2);
    }

    #[test]
    fn the_durable_prefix_has_no_gap() {
        let (mut log, _) = log(&[1, 1, 1]);
        log.journal(Token(1), Seq(1));
        log.journal(Token(2), Seq(2));
        log.journal(Token(3), Seq(3));
        log.journaled(Token(3));
        assert_eq!(log.durable(), Seq(0));
        log.journaled(Token(1));
        assert_eq!(log.durable(), Seq(1));
        log.journaled(Token(2));
        assert_eq!((log.durable(), log.is_settled()), (Seq(3), true));
    }

    #[test]
    fn a_late_completion_of_a_voided_entry_makes_nothing_durable() {
        let (mut log, mut budget) = log(&[1, 1, 1]);
        log.journal(Token(1), Seq(3));
        log.truncate(Seq(1), &mut budget);
        log.push(entry(2, 2), &mut budget);
        log.journaled(Token(1));
        assert_eq!(log.durable(), Seq(1));
        assert_eq!(log.history_through(Seq(2)).len(), 2);
    }

    #[test]
    fn trimming_keeps_what_is_uncommitted_and_what_a_member_needs() {
        let (mut log, mut budget) = log(&vec![1; RETAINED_ENTRIES_MAX + 10]);
        log.trim(Seq(u64::MAX), &mut budget);
        assert!(log.reaches_back_to(Seq(0)));
        log.commit(Seq(8));
        log.trim(Seq(3), &mut budget);
        assert!(log.reaches_back_to(Seq(3)) && !log.reaches_back_to(Seq(2)));
        log.trim(Seq(u64::MAX), &mut budget);
        assert!(log.reaches_back_to(Seq(8)) && !log.reaches_back_to(Seq(7)));
    }
}
