//! Into the journal: entries, promises, states, commit marks; frames on their way out and back.

use bytes::Bytes;
use mdm_api::epoch::{Seq, Term, Version};
use mdm_api::ids::PgId;
use sds_api::block::{BlockRange, CHUNK_BLOCKS, LayerKey};
use sds_api::buf::aligned;
use sds_api::entry::{ENTRY_HEADER_BYTES_MAX, Entry, EntryBody};

use crate::error::StoreError;
use crate::io::{DiskOp, IoClass};
use crate::journal::record::{COMMIT_BYTES, Record, encode_entry};
use crate::journal::{Journal, Purpose};
use crate::layer::{Pending, units_of};
use crate::limits::{STATE_BYTES_MAX, STATES_SHARE};
use crate::pg::{Kept, LogEntry, Pg};
use crate::planted::Bug;
use crate::request::{Answer, Output, Token};
use crate::store::{Item, Owner, Store};

pub(crate) type Accepted = Result<Option<Answer>, StoreError>;

/// At most so many bytes does the record of an entry take, besides its payload.
pub(crate) fn record_bytes_max(entry: &Entry) -> usize {
    let sums = match &entry.body {
        EntryBody::Write { checksums, .. } => checksums.len(),
        _ => 0,
    };
    1 + ENTRY_HEADER_BYTES_MAX - 4 * usize::from(CHUNK_BLOCKS) + 4 * sums
}

/// The layer and blocks that an entry changes, and whether it needs room for them.
pub(crate) fn effect(entry: &Entry) -> Option<(LayerKey, BlockRange, bool)> {
    match &entry.body {
        EntryBody::Write { layer, blocks, .. } => Some((*layer, *blocks, true)),
        EntryBody::Zero { layer, blocks } => Some((*layer, *blocks, false)),
        EntryBody::EpochStart { .. } | EntryBody::DropVtree { .. } | EntryBody::Elsewhere { .. } => None,
    }
}

fn is_well_formed(entry: &Entry) -> bool {
    match &entry.body {
        EntryBody::Write { blocks, checksums, data, .. } => {
            checksums.len() == usize::from(blocks.count()) && data.len() == blocks.bytes()
        }
        _ => true,
    }
}

impl Store {
    pub(crate) fn append(&mut self, token: Token, entries: Vec<Entry>, out: &mut Vec<Output>) -> Accepted {
        // Where fresh units are short, large writes go the way of small ones, into units that are there.
        let mut staging = entries.iter().any(|entry| self.is_large(entry));
        if staging && self.admit(&entries, true).is_err() {
            staging = false;
        }
        if !staging {
            self.admit(&entries, false)?;
        }
        self.last_append = self.now;
        let mut batch = None;
        for mut entry in entries {
            let (pg_id, version) = (entry.pg, entry.version);
            if let EntryBody::Write { data, .. } = &mut entry.body {
                *data = aligned(std::mem::take(data));
            }
            self.counters.entries += 1;
            self.counters.payload_bytes += entry.payload().len() as u64;
            let is_staged = staging && self.is_large(&entry);
            self.note_pending(&entry, is_staged);
            let (staged, writes) = if is_staged {
                let (staged, writes) = self.stage(&entry, out);
                (Some(Box::new(staged)), writes)
            } else {
                (None, 0)
            };
            let is_deferred = is_staged || self.is_deferring(pg_id);
            if is_deferred {
                let batch = *batch.get_or_insert_with(|| self.open_batch(token));
                self.defer_entry(pg_id, version, batch, self.journal_cost(&entry, is_staged), writes);
            } else {
                let (payload, item) = (entry.payload().clone(), Item::first(&entry));
                self.journal.add(payload, item, record_bytes_max(&entry), |out| encode_entry(&entry, out));
            }
            let resident = entry.payload().len();
            let log = LogEntry { entry, lsn: None, payload_lsn: 0, staged, applied: false, resident };
            self.note_entry(pg_id, version.seq, log);
        }
        if batch.is_none() {
            self.journal.wait(token);
        }
        Ok(None)
    }

    /// The layer learns what is coming.
    fn note_pending(&mut self, entry: &Entry, is_staged: bool) {
        let Some((key, blocks, needs_room)) = effect(entry) else { return };
        let layer = self.layer_or_new(entry.pg, key).expect("the slot was counted on admission");
        let wanted = if needs_room && !is_staged { layer.units_wanted(blocks) } else { 0 };
        let active = layer.active_mut();
        active.pending.push_back(Pending { seq: entry.version.seq, blocks, is_zero: !needs_room });
        active.reserved |= wanted;
        self.units.reserve(u64::from(wanted.count_ones()));
    }

    /// The group keeps it.
    fn note_entry(&mut self, pg_id: PgId, seq: Seq, log: LogEntry) {
        self.resident += log.resident;
        self.log_bytes += log.index_bytes();
        let pg = self.pgs.entry(pg_id).or_default();
        if let EntryBody::DropVtree { vtree } = log.entry.body {
            pg.drops.push((seq, vtree));
        }
        pg.last = seq;
        pg.log.insert(seq, log);
    }

    /// All or nothing: order, form, journal, slots, units.
    fn admit(&mut self, entries: &[Entry], staging: bool) -> Result<(), StoreError> {
        if entries.is_empty() || !entries.iter().all(is_well_formed) {
            return Err(StoreError::Malformed);
        }
        let mut last: Vec<(PgId, Seq)> = Vec::new();
        let (mut cost, mut control) = (0, true);
        let (mut units, mut new_layers): (u64, Vec<(LayerKey, u16)>) = (0, Vec::new());
        for entry in entries {
            let known = last.iter().position(|(pg, _)| *pg == entry.pg);
            let before = match known {
                Some(index) => last[index].1,
                None => {
                    let pg = self.pgs.get(&entry.pg);
                    if pg.is_some_and(|pg| pg.forgetting) {
                        return Err(StoreError::OutOfOrder);
                    }
                    pg.map_or(Seq(0), |pg| pg.last)
                }
            };
            if entry.version.seq <= before {
                return Err(StoreError::OutOfOrder);
            }
            match known {
                Some(index) => last[index].1 = entry.version.seq,
                None => last.push((entry.pg, entry.version.seq)),
            }
            let is_staged = staging && self.is_large(entry);
            cost += self.journal_cost(entry, is_staged);
            control &= matches!(entry.body, EntryBody::EpochStart { .. } | EntryBody::DropVtree { .. });
            if let Some((key, blocks, writes)) = effect(entry) {
                let needs_room = writes && !is_staged;
                units += if is_staged { u64::from(units_of(blocks).count_ones()) } else { 0 };
                match self.layers.get(&key) {
                    Some(layer) if layer.pg() != entry.pg => return Err(StoreError::Malformed),
                    Some(layer) if needs_room => units += u64::from(layer.units_wanted(blocks).count_ones()),
                    Some(_) => {}
                    None => {
                        let wanted = if needs_room { units_of(blocks) } else { 0 };
                        match new_layers.iter_mut().find(|(known, _)| *known == key) {
                            Some((_, mask)) => *mask |= wanted,
                            None => new_layers.push((key, wanted)),
                        }
                    }
                }
            }
        }
        units += new_layers.iter().map(|(_, mask)| u64::from(mask.count_ones())).sum::<u64>();
        let purpose = if control { Purpose::Control } else { Purpose::Data };
        if cost > self.journal.room(purpose) {
            return Err(StoreError::NoJournalSpace);
        }
        if new_layers.len() as u64 > self.layers.free_slots() || (units > 0 && units > self.units.available()) {
            return Err(StoreError::NoSpace);
        }
        Ok(())
    }

    /// Refuses what changes a group that is on its way out, and what the journal has no room for.
    pub(crate) fn admit_control(&self, pg: PgId, record_bytes: usize, purpose: Purpose) -> Result<(), StoreError> {
        if self.pgs.get(&pg).is_some_and(|pg| pg.forgetting) {
            return Err(StoreError::OutOfOrder);
        }
        if Journal::<Item>::cost(record_bytes, 0) > self.journal.room(purpose) {
            return Err(StoreError::NoJournalSpace);
        }
        Ok(())
    }

    pub(crate) fn promise(&mut self, token: Token, pg: PgId, term: Term) -> Accepted {
        self.admit_control(pg, 32, Purpose::Control)?;
        self.add_promise(pg, term);
        self.journal.wait(token);
        Ok(None)
    }

    pub(crate) fn add_promise(&mut self, pg: PgId, term: Term) {
        let record = Record::Promise { pg, term };
        self.journal.add(Bytes::new(), Item::Promise { pg, term }, 32, |out| record.encode(out));
    }

    pub(crate) fn save_state(&mut self, token: Token, pg_id: PgId, through: Seq, state: Bytes) -> Accepted {
        let limit = STATE_BYTES_MAX.min((self.journal.ring_bytes() / 32) as usize);
        if state.len() > limit {
            return Err(StoreError::Malformed);
        }
        let room = self.admit_control(pg_id, state.len() + 32, Purpose::State);
        let pg = self.pgs.entry(pg_id).or_default();
        // Refused or not, it has been heard; if it is still wanted it is asked for again.
        pg.state_wanted = false;
        room?;
        if through < pg.state_asked {
            return Err(StoreError::OutOfOrder);
        }
        let old = pg.state.as_ref().map_or(0, |state| state.value.1.len() as u64);
        if self.state_bytes - old + state.len() as u64 > self.journal.ring_bytes() / STATES_SHARE {
            return Err(StoreError::NoJournalSpace);
        }
        pg.state_asked = through;
        pg.last = pg.last.max(through);
        pg.durable = pg.durable.max(through);
        self.add_state(pg_id, through, state);
        self.journal.wait(token);
        Ok(None)
    }

    pub(crate) fn add_state(&mut self, pg: PgId, through: Seq, state: Bytes) {
        self.pgs.entry(pg).or_default().states_on_their_way += 1;
        let length = state.len() + 32;
        let record = Record::State { pg, through, state: state.clone() };
        self.journal.add(Bytes::new(), Item::State { pg, through, state }, length, |out| record.encode(out));
    }

    pub(crate) fn commit(&mut self, pg_id: PgId, through: Seq) {
        let pg = self.pgs.entry(pg_id).or_default();
        if pg.forgetting || through <= pg.committed {
            return;
        }
        pg.committed = through;
        if through > pg.commit_logged {
            self.commit_dirty.insert(pg_id);
        }
    }

    /// A durable state says by itself that its entries are committed.
    fn commit_by_state(&mut self, pg_id: PgId, through: Seq) {
        let pg = self.pgs.entry(pg_id).or_default();
        pg.committed = pg.committed.max(through);
        pg.commit_logged = pg.commit_logged.max(through);
    }

    /// True if a frame for commit marks alone may be written. When the ring is nearly full, only if that lets go of what holds
    /// the tail: the last pages are not spent on anything else.
    pub(crate) fn can_mark(&self) -> bool {
        let cost = Journal::<Item>::cost(COMMIT_BYTES, 0);
        if cost <= self.journal.room(Purpose::Carry) {
            return true;
        }
        let held_at = self.journal.tail_candidate().lsn;
        let holds_tail = |pg: &Pg| {
            let waiting = pg.committed_durably().next()..=pg.committed;
            pg.committed > pg.committed_durably() && pg.log.range(waiting).any(|(_, log)| log.lsn == Some(held_at))
        };
        cost <= self.journal.room(Purpose::Mark)
            && self.commit_dirty.iter().filter_map(|id| self.pgs.get(id)).any(holds_tail)
    }

    /// Commit marks ride in the slack of other frames; when there are none, and somebody needs them, they get one.
    pub(crate) fn write_commit_marks(&mut self) {
        if self.commit_dirty.is_empty() || self.journal.is_busy() {
            return;
        }
        let wanted = self.is_idle() || self.is_draining() || self.is_pressed();
        if !wanted || !self.can_mark() {
            return;
        }
        // The first gets the frame, the others ride along.
        let Some(pg_id) = self.commit_dirty.pop_first() else { return };
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let through = pg.committed;
        pg.commit_logged = through;
        let record = Record::Commit { pg: pg_id, through };
        self.journal.add(Bytes::new(), Item::Commit { pg: pg_id, through }, COMMIT_BYTES, |out| record.encode(out));
    }

    /// Cuts frames for as long as there are some and not too many are in flight.
    pub(crate) fn write_frames(&mut self, out: &mut Vec<Output>) {
        loop {
            let (dirty, pgs) = (&mut self.commit_dirty, &mut self.pgs);
            let cut = self.journal.cut(|mut left, records, items| {
                let mut added = 0;
                while left >= COMMIT_BYTES {
                    let Some(pg_id) = dirty.pop_first() else { break };
                    let Some(pg) = pgs.get_mut(&pg_id) else { continue };
                    pg.commit_logged = pg.committed;
                    Record::Commit { pg: pg_id, through: pg.committed }.encode(records);
                    items.push(Item::Commit { pg: pg_id, through: pg.committed });
                    left -= COMMIT_BYTES;
                    added += 1;
                }
                added
            });
            let Some(mut cut) = cut else { break };
            self.place(cut.lsn, cut.payload_lsn, &mut cut.items);
            self.counters.frames += 1;
            self.counters.journal_bytes += cut.bytes;
            let pieces = self.super_block.geometry.ring_pieces(cut.lsn, cut.bytes);
            let writes = if pieces[1].1 == 0 { 1 } else { 2 };
            let (first, second) = split_buffers(cut.buffers, pieces[0].1);
            self.journal.launched(cut.lsn, cut.bytes, writes, cut.items, cut.tokens);
            for ((offset, length), buffers) in pieces.into_iter().zip([first, second]) {
                if length > 0 {
                    let op = DiskOp::Write { offset, buffers, durable: !self.options.has(Bug::EarlyAnswer) };
                    self.submit(Owner::Frame(cut.lsn), IoClass::Foreground, op, out);
                }
            }
        }
    }

    /// A frame has its position: what is in it learns where it lies, and holds the frame.
    fn place(&mut self, lsn: u64, payload_lsn: u64, items: &mut [Item]) {
        let mut payload_at = payload_lsn;
        for item in items {
            match item {
                Item::Entry { pg, version, payload_lsn, payload_bytes, again } => {
                    *payload_lsn = payload_at;
                    payload_at += *payload_bytes as u64;
                    let log = self.pgs.get_mut(pg).and_then(|pg| pg.log.get_mut(&version.seq));
                    let log = log.filter(|log| log.entry.version == *version);
                    match log {
                        // Written again at the head: the old place is given up when the new one is durable.
                        _ if *again => self.journal.need(lsn),
                        Some(log) => {
                            (log.lsn, log.payload_lsn) = (Some(lsn), *payload_lsn);
                            self.journal.need(lsn);
                        }
                        // Voided before it was written: it goes in front of its void all the same, and nobody holds it.
                        None => {}
                    }
                }
                Item::Control(control) => {
                    payload_at += control.payload_bytes();
                    self.journal.need(lsn);
                }
                Item::Promise { .. } | Item::State { .. } | Item::Commit { .. } => self.journal.need(lsn),
                Item::Void => {}
            }
        }
    }

    pub(crate) fn frame_written(&mut self, lsn: u64, out: &mut Vec<Output>) {
        let mut durable = self.journal.written(Some(lsn));
        while let Some(frame) = durable {
            for item in frame.items {
                self.item_durable(frame.lsn, item);
            }
            let done = |token| Output::Done { token, result: Ok(Answer::Done) };
            out.extend(frame.tokens.into_iter().map(done));
            durable = self.journal.written(None);
        }
    }

    fn item_durable(&mut self, lsn: u64, item: Item) {
        match item {
            Item::Entry { pg, version, payload_lsn, again, .. } => {
                self.entry_durable(lsn, pg, version, payload_lsn, again);
            }
            Item::Promise { pg, term } => {
                let kept = &mut self.pgs.entry(pg).or_default().promise;
                if kept.as_ref().is_some_and(|old| old.value > term) {
                    self.journal.release(lsn);
                } else if let Some(old) = kept.replace(Kept { value: term, lsn }) {
                    self.journal.release(old.lsn);
                }
            }
            Item::State { pg, through, state } => {
                let length = state.len() as u64;
                let known = self.pgs.entry(pg).or_default();
                known.states_on_their_way -= 1;
                let place = &mut known.state;
                if place.as_ref().is_some_and(|old| old.value.0 > through) {
                    self.journal.release(lsn);
                    return;
                }
                if let Some(old) = place.replace(Kept { value: (through, state), lsn }) {
                    self.state_bytes -= old.value.1.len() as u64;
                    self.journal.release(old.lsn);
                }
                self.state_bytes += length;
                self.commit_by_state(pg, through);
                self.ripen(pg);
                self.shed(pg);
            }
            Item::Commit { pg, through } => {
                let place = &mut self.pgs.entry(pg).or_default().commit_durable;
                if let Some(old) = place.replace(Kept { value: through, lsn }) {
                    self.journal.release(old.lsn);
                }
                self.ripen(pg);
            }
            Item::Control(control) => self.controls.push_back((lsn, control)),
            Item::Void => self.unsettled -= 1,
        }
    }

    fn entry_durable(&mut self, lsn: u64, pg_id: PgId, version: Version, payload_lsn: u64, again: bool) {
        let log = self.pgs.get_mut(&pg_id).and_then(|pg| pg.log.get_mut(&version.seq));
        let Some(log) = log.filter(|log| log.entry.version == version) else {
            // Voided, or no longer kept, while it was on its way.
            if again {
                self.journal.release(lsn);
            }
            return;
        };
        let is_staged = log.staged.is_some();
        if again {
            self.journal.release(log.lsn.expect("what is written again was written"));
            (log.lsn, log.payload_lsn) = (Some(lsn), payload_lsn);
        }
        // What is long is better read from its units than kept.
        if (is_staged || self.resident > self.options.payload_cache_bytes) && log.resident > 0 {
            self.resident -= log.resident;
            log.resident = 0;
            if let EntryBody::Write { data, .. } = &mut log.entry.body {
                *data = Bytes::new();
            }
        }
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        if !again {
            pg.durable = pg.durable.max(version.seq);
        }
        if version.seq <= pg.committed_durably() {
            self.ripen(pg_id);
        }
    }
}

/// Cuts a list of buffers after so many bytes, without copying.
pub(crate) fn split_buffers(buffers: Vec<Bytes>, at: u64) -> (Vec<Bytes>, Vec<Bytes>) {
    let total: usize = buffers.iter().map(Bytes::len).sum();
    if total as u64 <= at {
        return (buffers, Vec::new());
    }
    let (mut first, mut second, mut left) = (Vec::new(), Vec::new(), at as usize);
    for mut buffer in buffers {
        if left == 0 {
            second.push(buffer);
        } else if buffer.len() <= left {
            left -= buffer.len();
            first.push(buffer);
        } else {
            first.push(buffer.split_to(left));
            second.push(buffer);
            left = 0;
        }
    }
    (first, second)
}
