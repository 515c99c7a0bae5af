//! Large writes: the data goes straight to fresh units, and only then a small record that links them is journaled.
//!
//! The units are where the data stays: applying the entry makes them the layer's, and nothing is copied. Until the record is
//! durable nothing refers to them; a crash leaves them free. Records of one group are journaled in their order, so what comes
//! after a large write of the same group waits until its data is on the medium.

use bytes::Bytes;
use mdm_api::epoch::{Seq, Version};
use mdm_api::ids::PgId;
use mdm_api::mutants::{self, Mutant};
use sds_api::block::{AU_BLOCKS, AU_BYTES, CHUNK_AUS};
use sds_api::entry::{Entry, EntryBody};

use crate::append::{effect, record_bytes_max};
use crate::control::Control;
use crate::io::{DiskOp, IoClass};
use crate::journal::Journal;
use crate::journal::record::{LINK_BYTES, NO_AU, Record, encode_entry, encode_link};
use crate::layer::units_of;
use crate::pg::{LogEntry, Staged};
use crate::planted::Bug;
use crate::request::{Output, Token};
use crate::store::{Item, Owner, Store};

/// A record that waits for its place in the order of its group.
pub(crate) struct Deferred {
    what: Waiting,
    /// The request that it belongs to.
    batch: u64,
    /// Bytes kept for it in the journal.
    cost: u64,
}

enum Waiting {
    /// An entry, until its data is on the medium.
    Entry {
        version: Version,
        writes_left: usize,
        /// Units of an entry that was voided meanwhile: free once nothing is written to them any more.
        orphans: Vec<u32>,
    },
    /// Entries beyond are void.
    Void { after: Seq },
    /// The group goes.
    Forget { token: Token },
}

/// A request some of whose records wait.
pub(crate) struct Batch {
    pub(crate) token: Token,
    left: usize,
}

/// Bytes in the journal of an entry that links its data, at most.
pub(crate) fn link_bytes_max(entry: &Entry) -> usize {
    record_bytes_max(entry) + LINK_BYTES
}

impl Store {
    /// True if the entry's data is worth its own way: long, and whole units, so that nothing else is in them.
    pub(crate) fn is_large(&self, entry: &Entry) -> bool {
        match &entry.body {
            EntryBody::Write { blocks, .. } => {
                blocks.count() >= self.options.large_blocks_min
                    && blocks.first().is_multiple_of(AU_BLOCKS)
                    && blocks.count().is_multiple_of(AU_BLOCKS)
            }
            _ => false,
        }
    }

    /// Bytes that an entry takes in the journal at most.
    pub(crate) fn journal_cost(&self, entry: &Entry, is_staged: bool) -> u64 {
        if is_staged {
            Journal::<Item>::cost(link_bytes_max(entry), 0)
        } else {
            Journal::<Item>::cost(record_bytes_max(entry), entry.payload_bytes())
        }
    }

    /// Sends the data of a large write to fresh units. Their number was looked at on admission.
    pub(crate) fn stage(&mut self, entry: &Entry, out: &mut Vec<Output>) -> (Staged, usize) {
        let EntryBody::Write { blocks, data, .. } = &entry.body else { unreachable!("only writes are large") };
        let owned = units_of(*blocks);
        self.staged_units += u64::from(owned.count_ones());
        let mut aus = [NO_AU; CHUNK_AUS];
        for au in (0..CHUNK_AUS).filter(|au| owned & 1 << au != 0) {
            aus[au] = self.units.allocate().expect("the units were counted on admission");
        }
        let first = usize::from(blocks.first() / AU_BLOCKS);
        let mut runs: Vec<(u64, Bytes)> = Vec::new();
        let mut start = 0;
        for index in 0..data.len() / AU_BYTES {
            let goes_on = aus.get(first + index + 1).is_some_and(|next| *next == aus[first + index].wrapping_add(1));
            if !goes_on || index + 1 == data.len() / AU_BYTES {
                let offset = self.super_block.geometry.au_block(aus[first + start], 0);
                runs.push((offset, data.slice(start * AU_BYTES..(index + 1) * AU_BYTES)));
                start = index + 1;
            }
        }
        let writes = runs.len();
        for (offset, data) in runs {
            self.counters.staged_bytes += data.len() as u64;
            let durable = !self.options.has(Bug::EarlyLink) && !mutants::is_on(Mutant::LinkBeforeStaged);
            let op = DiskOp::Write { offset, buffers: vec![data], durable };
            self.submit(Owner::Stage(entry.pg, entry.version), IoClass::Foreground, op, out);
        }
        (Staged { aus, owned }, writes)
    }

    /// A number for a request whose records wait.
    pub(crate) fn open_batch(&mut self, token: Token) -> u64 {
        let id = self.fresh_id();
        self.batches.insert(id, Batch { token, left: 0 });
        id
    }

    fn defer(&mut self, pg: PgId, batch: u64, cost: u64, what: Waiting) {
        self.journal.keep(cost);
        self.pgs.entry(pg).or_default().deferred.push_back(Deferred { what, batch, cost });
        self.batches.get_mut(&batch).expect("it is open while something of it waits").left += 1;
    }

    /// An entry waits, for so many writes of its own and for those before it.
    pub(crate) fn defer_entry(&mut self, pg: PgId, version: Version, batch: u64, cost: u64, writes_left: usize) {
        self.defer(pg, batch, cost, Waiting::Entry { version, writes_left, orphans: Vec::new() });
    }

    /// True if records of this group wait.
    pub(crate) fn is_deferring(&self, pg: PgId) -> bool {
        self.pgs.get(&pg).is_some_and(|pg| !pg.deferred.is_empty())
    }

    /// A void waits behind entries.
    pub(crate) fn defer_void(&mut self, pg: PgId, after: Seq, token: Token, record_bytes: usize) {
        let batch = self.open_batch(token);
        self.defer(pg, batch, Journal::<Item>::cost(record_bytes, 0), Waiting::Void { after });
    }

    /// The end of the group waits behind entries.
    pub(crate) fn defer_forget(&mut self, pg: PgId, token: Token, record_bytes: usize) {
        let batch = self.open_batch(token);
        self.defer(pg, batch, Journal::<Item>::cost(record_bytes, 0), Waiting::Forget { token });
    }

    /// A part of a large write is on the medium.
    pub(crate) fn stage_written(&mut self, pg_id: PgId, written: Version) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let found = pg.deferred.iter_mut().find_map(|deferred| match &mut deferred.what {
            Waiting::Entry { version, writes_left, .. } if *version == written => Some(writes_left),
            _ => None,
        });
        *found.expect("an entry waits until its data is written") -= 1;
        while self.pgs.get(&pg_id).is_some_and(|pg| pg.deferred.front().is_some_and(Deferred::is_ready)) {
            self.journal_deferred(pg_id);
        }
    }

    /// Journals the first record that waits.
    fn journal_deferred(&mut self, pg_id: PgId) {
        let Some(deferred) = self.pgs.get_mut(&pg_id).and_then(|pg| pg.deferred.pop_front()) else { return };
        self.journal.unreserve(deferred.cost);
        let batch = self.batches.get_mut(&deferred.batch).expect("it is open while something of it waits");
        batch.left -= 1;
        let ended = batch.left == 0;
        let token = batch.token;
        match deferred.what {
            Waiting::Entry { version, orphans, .. } => {
                orphans.into_iter().for_each(|unit| self.units.give_back(unit));
                self.journal_entry(pg_id, version);
            }
            Waiting::Void { after } => {
                let record = Record::Void { pg: pg_id, after };
                self.journal.add(Bytes::new(), Item::Void, 32, |out| record.encode(out));
            }
            Waiting::Forget { token } => {
                self.batches.remove(&deferred.batch);
                let record = Record::ForgetPg { pg: pg_id };
                self.add_control(Bytes::new(), 32, &record, Control::Forget { token, pg: pg_id });
                return;
            }
        }
        if ended {
            self.batches.remove(&deferred.batch);
            self.journal.wait(token);
        }
    }

    /// Adds an entry's record, unless it was voided meanwhile: then a mark in its place, on which the request can wait.
    fn journal_entry(&mut self, pg_id: PgId, version: Version) {
        let log = self.pgs.get(&pg_id).and_then(|pg| pg.log.get(&version.seq));
        let Some(log) = log.filter(|log| log.entry.version == version) else {
            let through = self.pgs.get(&pg_id).map_or(Seq(0), |pg| pg.committed);
            let (record, item) = (Record::Commit { pg: pg_id, through }, Item::Commit { pg: pg_id, through });
            self.journal.add(Bytes::new(), item, 32, |out| record.encode(out));
            return;
        };
        let (entry, item_of) = (&log.entry, |payload_bytes| Item::Entry {
            pg: pg_id,
            version,
            payload_lsn: 0,
            payload_bytes,
            again: false,
        });
        match &log.staged {
            Some(staged) => {
                let add = |out: &mut Vec<u8>| encode_link(entry, &staged.aus, out);
                self.journal.add(Bytes::new(), item_of(0), link_bytes_max(entry), add);
            }
            None => {
                let payload = entry.payload().clone();
                let bytes = payload.len();
                self.journal.add(payload, item_of(bytes), record_bytes_max(entry), |out| encode_entry(entry, out));
            }
        }
    }

    /// An entry is no longer kept: what it held is let go.
    pub(crate) fn dispose(&mut self, pg_id: PgId, log: LogEntry) {
        if let Some(lsn) = log.lsn {
            self.journal.release(lsn);
        }
        self.resident -= log.resident;
        self.log_bytes -= log.index_bytes();
        let Some(staged) = &log.staged else { return };
        self.staged_units -= u64::from(staged.owned.count_ones());
        let seq = log.entry.version.seq;
        if let Some(layer) = effect(&log.entry).and_then(|(key, ..)| self.layers.get_mut(&key)) {
            layer.active_mut().pinned.retain(|(pinned, _)| *pinned != seq);
            layer.tidy();
        }
        let waiting = self.pgs.get_mut(&pg_id).and_then(|pg| {
            pg.deferred.iter_mut().find_map(|deferred| match &mut deferred.what {
                Waiting::Entry { version, orphans, .. } if *version == log.entry.version => Some(orphans),
                _ => None,
            })
        });
        match waiting {
            Some(orphans) => orphans.extend(staged.owned().map(|(_, unit)| unit)),
            None => {
                // Its record may still be on its way: it lies before the bound.
                let until = self.journal.bound();
                staged.owned().for_each(|(_, unit)| self.units.quarantine(unit, until));
            }
        }
    }

    /// The units that an entry still has to itself are given up: it has had its effect without them.
    pub(crate) fn give_up_staged(&mut self, pg_id: PgId, seq: Seq) {
        // A second copy of its record may still be on its way.
        let until = self.journal.bound();
        let log = self.pgs.get_mut(&pg_id).and_then(|pg| pg.log.get_mut(&seq));
        let Some(staged) = log.and_then(|log| log.staged.as_mut()) else { return };
        staged.owned().for_each(|(_, unit)| self.units.quarantine(unit, until));
        self.staged_units -= u64::from(staged.owned.count_ones());
        staged.owned = 0;
    }
}

impl Deferred {
    fn is_ready(&self) -> bool {
        match &self.what {
            Waiting::Entry { writes_left, .. } => *writes_left == 0,
            Waiting::Void { .. } | Waiting::Forget { .. } => true,
        }
    }
}
