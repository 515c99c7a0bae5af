//! What is carried forward: written again at the head of the journal, so that nothing old holds up the tail for ever.
//!
//! Promises, states and commit marks are small and always carried. Entries are carried only while they are not committed; of
//! those that are applied, states are asked for that let them go.

use std::collections::BTreeSet;

use bytes::Bytes;
use mdm_api::epoch::Seq;
use mdm_api::ids::PgId;
use sds_api::entry::Entry;

use crate::append::{effect, record_bytes_max};
use crate::journal::record::{encode_entry, encode_link};
use crate::journal::{Journal, Purpose};
use crate::limits::{CHECKPOINT_IDLE_MS, LOG_BYTES_MAX, QUARANTINE_AGE_MS};
use crate::pg::LogEntry;
use crate::read::ReadJob;
use crate::request::Output;
use crate::stage::link_bytes_max;
use crate::store::{Item, Store};

/// Entries that are read at once to be written again at the head: their data is in memory meanwhile.
const CARRIES_MAX: usize = 256;
/// Milliseconds after which a full journal is looked through again for what holds its tail.
const RETRY_MS: u64 = 100;

impl Store {
    /// Writes again at the head what would hold up the tail for ever: promises, states, commit marks, uncommitted entries; and
    /// asks for states where applied entries do.
    pub(crate) fn relocate(&mut self, out: &mut Vec<Output>) {
        let (head, ring) = (self.journal.head(), self.journal.ring_bytes());
        // Before what is left is no more than the servers keep back from writers (a quarter): they would wait for each other.
        let stuck = self.journal.used() > ring / 8 * 5 && self.now.ms_since(self.relocated_when) >= RETRY_MS;
        // Everything before what frees units is carried past it, once for each time that half of them would come free.
        self.look_whether_to_rest();
        let goal = self.units.quarantined_before().max(self.scrub.rotten_before).max(self.rests_at);
        let waiting = self.units.quarantined() - self.units.releasable(self.squeezed_to);
        let squeezed = self.units_are_short() && self.checkpoint.is_none() && 2 * waiting >= self.units.quarantined();
        // Once for each place of the head: else a state that is refused for want of room would be asked for again at once.
        let squeezes = squeezed && self.journal.tail() < goal && self.squeezed_to < goal.min(head);
        // Whoever was asked the first time may have had nothing to say, and on a busy device nobody else asks.
        let age_ms = if self.is_idle() { CHECKPOINT_IDLE_MS } else { QUARANTINE_AGE_MS };
        let aged = self.journal.tail() < goal && self.now.ms_since(self.squeezed_when) >= age_ms;
        let regular = stuck || aged || head - self.relocated_at >= ring / 16;
        let squeezes = squeezes || aged;
        if !regular && !squeezes {
            // More was to be carried than could be read at once.
            if self.carries_from.is_some() && self.carries().is_empty() {
                self.carry_entries(head.saturating_sub(ring / 2), out);
            }
            return;
        }
        if squeezes {
            // A goal beyond the head is come to in steps: what is carried moves the head.
            (self.squeezed_to, self.squeezed_when) = (goal.min(head), self.now);
        }
        let half = head.saturating_sub(ring / 2);
        let quarter = head.saturating_sub(ring / 4);
        let squeeze = if squeezes { goal } else { 0 };
        // Where memory for the log is short, states are wanted that let go of what is applied, wherever it lies.
        let crowded = if self.log_bytes > LOG_BYTES_MAX * 3 / 4 { head } else { 0 };
        self.carry_forward(half.max(squeeze), quarter.max(squeeze).max(crowded), regular, out);
        self.carries_from = None;
        self.carry_entries(half.max(self.scrub.rotten_before), out);
        (self.relocated_at, self.relocated_when) = (self.journal.head(), self.now);
    }

    /// Before a device falls idle it empties its journal: else what is used there stays so, and a writer whose share of the rest
    /// is too small for one request would wait until somebody else writes.
    fn look_whether_to_rest(&mut self) {
        let is_full = self.journal.used() > self.journal.ring_bytes() / 4;
        if is_full && self.is_idle() && self.rested_after != self.counters.entries {
            (self.rests_at, self.rested_after) = (self.journal.head(), self.counters.entries);
        }
    }

    /// Promises, states and commit marks; and what is asked of the servers. A state that was asked for before is asked for
    /// again where `asks_again`: whoever was asked may not have been there yet, or not have been allowed to speak for the
    /// group then.
    fn carry_forward(&mut self, kept_before: u64, wanted_before: u64, asks_again: bool, out: &mut Vec<Output>) {
        let (mut promises, mut states) = (Vec::new(), Vec::new());
        for (id, pg) in self.pgs.iter_mut().filter(|(_, pg)| !pg.forgetting) {
            if let Some(kept) = pg.promise.as_ref().filter(|kept| kept.lsn < kept_before) {
                promises.push((*id, kept.value));
            }
            if let Some(kept) = pg.state.as_ref().filter(|kept| kept.lsn < kept_before && pg.states_on_their_way == 0) {
                states.push((*id, kept.value.clone()));
            }
            if pg.commit_durable.as_ref().is_some_and(|kept| kept.lsn < kept_before) {
                self.commit_dirty.insert(*id);
            }
            // Only what is committed is applied.
            let committed = pg.through().next()..=pg.committed.max(pg.through().next());
            let holds = |log: &LogRef<'_>| log.1.lsn.is_some_and(|lsn| lsn < wanted_before) && log.1.applied;
            let may_ask = !pg.state_wanted || (asks_again && pg.states_on_their_way == 0);
            if may_ask && pg.log.range(committed).any(|log| holds(&log)) {
                pg.state_wanted = true;
                out.push(Output::WantState { pg: *id });
            }
        }
        for (pg, term) in promises {
            if self.has_own_room(32, 0) {
                self.counters.reappended += 1;
                self.add_promise(pg, term);
            }
        }
        for (pg, (through, state)) in states {
            if self.has_own_room(32 + state.len(), 0) {
                self.counters.reappended += 1;
                self.add_state(pg, through, state);
            }
        }
    }

    /// Writes uncommitted entries again that lie before a position, as many as there is room for, from where the last look
    /// stopped. Those whose data is not in memory are read first, a few at a time.
    fn carry_entries(&mut self, before: u64, out: &mut Vec<Output>) {
        let from = self.carries_from.take().unwrap_or_default();
        let under_way = self.carries();
        let (mut found, mut reads, mut cost) = (Vec::new(), under_way.len(), 0);
        'groups: for (id, pg) in self.pgs.range(from.0..).filter(|(_, pg)| !pg.forgetting) {
            let first = if *id == from.0 { from.1.max(pg.committed.next()) } else { pg.committed.next() };
            let old = pg.log.range(first..).filter(|(_, log)| log.lsn.is_some_and(|lsn| lsn < before));
            for (seq, log) in old.filter(|(seq, _)| !under_way.contains(&(*id, **seq))) {
                let cost_of_this = carrying_cost(&log.entry, log.staged.is_some());
                // What is too long for the room there is does not hold up the others.
                if !self.has_room_to_carry(cost + cost_of_this) {
                    continue;
                }
                cost += cost_of_this;
                if is_away(log) {
                    if reads == CARRIES_MAX {
                        self.carries_from = Some((*id, *seq));
                        break 'groups;
                    }
                    reads += 1;
                }
                found.push((*id, *seq));
            }
        }
        found.into_iter().for_each(|(pg, seq)| self.carry_entry(pg, seq, out));
    }

    /// Entries that are being read to be written again at the head.
    fn carries(&self) -> BTreeSet<(PgId, Seq)> {
        self.reads.values().filter_map(ReadJob::carried).collect()
    }

    fn has_own_room(&self, record_bytes: usize, payload_bytes: usize) -> bool {
        Journal::<Item>::cost(record_bytes, payload_bytes) <= self.journal.room(Purpose::Carry)
    }

    /// A quarter of the ring stays free of carried entries: else they would only chase each other around.
    fn has_room_to_carry(&self, cost: u64) -> bool {
        cost + self.journal.ring_bytes() / 4 <= self.journal.room(Purpose::Carry)
    }

    fn carry_entry(&mut self, pg: PgId, seq: Seq, out: &mut Vec<Output>) {
        let Some(log) = self.pgs.get(&pg).and_then(|pg| pg.log.get(&seq)) else { return };
        if !is_away(log) {
            let entry = log.entry.clone();
            self.add_again(entry);
        } else {
            self.fetch_entry(pg, seq, None, out);
        }
    }

    /// Writes an uncommitted entry a second time, at the head, if there is room.
    pub(crate) fn add_again(&mut self, entry: Entry) {
        let Some(pg) = self.pgs.get(&entry.pg).filter(|pg| entry.version.seq > pg.committed) else { return };
        // A dropped tree leaves no record that tells of older entries being done. Its drop must stay behind them in the
        // journal: else the tail could pass the drop first, and a replay bring back what it had removed.
        let tree = effect(&entry).map(|(key, ..)| key.chunk.vtree);
        let drops = pg.drops.iter().filter(|(seq, vtree)| tree == Some(*vtree) && *seq > entry.version.seq);
        let drops: Vec<Entry> = drops.filter_map(|(seq, _)| pg.log.get(seq)).map(|log| log.entry.clone()).collect();
        let staged = pg.log.get(&entry.version.seq).and_then(|log| log.staged.as_ref()).map(|staged| staged.aus);
        let all: Vec<Entry> = std::iter::once(entry).chain(drops).collect();
        if !self.has_room_to_carry(
            carrying_cost(&all[0], staged.is_some())
                + all[1..].iter().map(|drop| carrying_cost(drop, false)).sum::<u64>(),
        ) {
            return;
        }
        // A drop that is still on its way the first time would land in front of what is carried.
        let placed = |entry: &Entry| self.pgs.get(&entry.pg)?.log.get(&entry.version.seq)?.lsn;
        if !all.iter().all(|entry| placed(entry).is_some()) {
            return;
        }
        for (index, entry) in all.into_iter().enumerate() {
            let (pg, version, payload) = (entry.pg, entry.version, entry.payload().clone());
            self.counters.reappended += 1;
            if let (0, Some(aus)) = (index, staged) {
                let item = Item::Entry { pg, version, payload_lsn: 0, payload_bytes: 0, again: true };
                let add = |out: &mut Vec<u8>| encode_link(&entry, &aus, out);
                self.journal.add(Bytes::new(), item, link_bytes_max(&entry), add);
                continue;
            }
            let item = Item::Entry { pg, version, payload_lsn: 0, payload_bytes: payload.len(), again: true };
            self.journal.add(payload, item, record_bytes_max(&entry), |out| encode_entry(&entry, out));
        }
    }
}

/// The room that an entry takes when it is written again.
fn carrying_cost(entry: &Entry, is_staged: bool) -> u64 {
    let payload_bytes = if is_staged { 0 } else { entry.payload_bytes() };
    Journal::<Item>::cost(link_bytes_max(entry), payload_bytes)
}

/// True if the data of an entry must be read before it can be written again.
fn is_away(log: &LogEntry) -> bool {
    log.staged.is_none() && log.entry.payload().len() < log.entry.payload_bytes()
}

type LogRef<'a> = (&'a Seq, &'a LogEntry);
