//! What a store holds of one placement group, besides its chunks: promise, state, and the entries of the journal.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mdm_api::epoch::{Seq, Term};
use mdm_api::ids::VtreeId;
use sds_api::block::{CHUNK_AUS, LayerKey};
use sds_api::entry::{Entry, EntryBody};

use crate::layer::PENDING_BYTES;
use crate::stage::Deferred;

/// Something whose newest durable version lies in the frame at `lsn`, which is needed for as long.
#[derive(Clone, Debug)]
pub(crate) struct Kept<T> {
    pub(crate) value: T,
    pub(crate) lsn: u64,
}

/// An entry that is still kept: it is not applied, or the replica's state does not cover it yet.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    /// The entry. The data of a write is emptied when it is applied, or when memory is short.
    pub(crate) entry: Entry,
    /// The frame it is in; none while it waits to be written.
    pub(crate) lsn: Option<u64>,
    /// Where its payload is in the journal, if it is there.
    pub(crate) payload_lsn: u64,
    /// Where it is otherwise: in units of its own.
    pub(crate) staged: Option<Box<Staged>>,
    /// It has had its effect on chunks (or has none). What is void of effect counts as applied.
    pub(crate) applied: bool,
    /// Bytes of data in `entry` that count as resident.
    pub(crate) resident: usize,
}

impl LogEntry {
    /// Bytes of memory that it takes, apart from its data; with what its layer keeps for as long as it is pending.
    pub(crate) fn index_bytes(&self) -> usize {
        let of_body = match &self.entry.body {
            EntryBody::Write { checksums, .. } => 4 * checksums.len() + PENDING_BYTES,
            EntryBody::Zero { .. } => PENDING_BYTES,
            EntryBody::EpochStart { .. } | EntryBody::DropVtree { .. } | EntryBody::Elsewhere { .. } => 0,
        };
        // With its share of the tree that it stands in.
        size_of::<Self>() + 32 + of_body + self.staged.as_ref().map_or(0, |_| size_of::<Staged>())
    }
}

/// The units that a large write was written to before it was journaled.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    /// For each unit of the chunk, where the write's data is; [`crate::journal::record::NO_AU`] where it has none.
    pub(crate) aus: [u32; CHUNK_AUS],
    /// Those that are the entry's alone: neither a layer's nor in quarantine. One bit each.
    pub(crate) owned: u16,
}

impl Staged {
    /// The units that are the entry's alone, with their places in the chunk.
    pub(crate) fn owned(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.aus.iter().copied().enumerate().filter(|(au, _)| self.owned & 1 << au != 0)
    }
}

/// One group.
#[derive(Default)]
pub(crate) struct Pg {
    /// The promise.
    pub(crate) promise: Option<Kept<Term>>,
    /// State and the last entry it covers.
    pub(crate) state: Option<Kept<(Seq, Bytes)>>,
    /// The highest `through` of a state asked for, durable or not.
    pub(crate) state_asked: Seq,
    /// States on their way into the journal. While there are any, the one in force is not carried forward: it would overtake.
    pub(crate) states_on_their_way: u32,
    /// Committed, as far as told.
    pub(crate) committed: Seq,
    /// A commit record up to here is in the journal, durable or not.
    pub(crate) commit_logged: Seq,
    /// The newest durable commit record. Only what it covers is applied, so that a recovery knows it as committed.
    pub(crate) commit_durable: Option<Kept<Seq>>,
    /// Entries kept, by number.
    pub(crate) log: BTreeMap<Seq, LogEntry>,
    /// The last entry appended, or covered by a state.
    pub(crate) last: Seq,
    /// Entries up to here are durable.
    pub(crate) durable: Seq,
    /// Entries up to here have been handed to the apply queue.
    pub(crate) ripe: Seq,
    /// Slots of the group's layers, in no order.
    pub(crate) layers: Vec<u32>,
    /// Entries that drop trees and have not been carried out, with the tree.
    pub(crate) drops: Vec<(Seq, VtreeId)>,
    /// A state is wanted and still to be given.
    pub(crate) state_wanted: bool,
    /// The group is being forgotten.
    pub(crate) forgetting: bool,
    /// Layers that are applied when a state has let large writes go: see `apply`.
    pub(crate) parked: Vec<LayerKey>,
    /// Records that wait for a large write before them to be on the medium.
    pub(crate) deferred: VecDeque<Deferred>,
}

impl Pg {
    /// The drops of trees among the entries that are kept, up to `through`.
    pub(crate) fn logged_drops(&self, through: Seq) -> Vec<(Seq, VtreeId)> {
        let entries = self.log.range(..=through);
        let drops = entries.filter_map(|(seq, log)| match log.entry.body {
            EntryBody::DropVtree { vtree } => Some((*seq, vtree)),
            _ => None,
        });
        drops.collect()
    }

    /// The last entry that the durable state covers.
    pub(crate) fn through(&self) -> Seq {
        self.state.as_ref().map_or(Seq(0), |state| state.value.0)
    }

    /// Entries that are committed for certain, also after a crash.
    pub(crate) fn committed_durably(&self) -> Seq {
        self.commit_durable.as_ref().map_or(Seq(0), |commit| commit.value).max(self.through())
    }

    /// True if reads see the entry.
    pub(crate) fn is_visible(&self, seq: Seq) -> bool {
        seq <= self.committed && seq <= self.durable
    }

    /// True if a committed entry dropped the tree.
    pub(crate) fn has_dropped(&self, vtree: VtreeId) -> bool {
        self.drops.iter().any(|(seq, dropped)| *dropped == vtree && *seq <= self.committed)
    }

    /// True if nothing is held for it.
    pub(crate) fn is_empty(&self) -> bool {
        self.promise.is_none()
            && self.state.is_none()
            && self.commit_durable.is_none()
            && self.log.is_empty()
            && self.layers.is_empty()
            && self.deferred.is_empty()
            && self.committed == Seq(0)
    }
}
