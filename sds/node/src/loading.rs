//! What a store has kept of its groups, made ready for replicas: entries whose data lies only in the journal are read back
//! first, a few at a time.

use std::collections::{BTreeMap, VecDeque};

use mdm_api::epoch::{Nanos, Seq};
use mdm_api::ids::PgId;
use sds_api::entry::Entry;
use sds_replica as replica;
use sds_store::request::{Recovered, RecoveredEntry, RecoveredPg, Verdict};

use crate::limits::{LOAD_TRIES, LOADS_IN_FLIGHT};
use crate::stores::{OpenStore, Outcome};
use crate::translate;

/// Groups on their way from the journal into memory.
pub(crate) struct Loading {
    verdict: Verdict,
    groups: BTreeMap<PgId, RecoveredPg>,
    missing: VecDeque<(PgId, Seq)>,
    in_flight: usize,
    /// Entries that could not be read, and how often.
    failed: BTreeMap<(PgId, Seq), u32>,
}

impl Loading {
    pub(crate) fn new(recovered: Recovered) -> Self {
        let groups: BTreeMap<PgId, RecoveredPg> = recovered.pgs.into_iter().map(|group| (group.pg, group)).collect();
        let absent = |found: &&RecoveredEntry| !found.resident && found.entry.payload_bytes() > 0;
        let missing = groups
            .values()
            .flat_map(|group| group.entries.iter().filter(absent).map(|found| (group.pg, found.entry.version.seq)))
            .collect();
        Self { verdict: recovered.verdict, groups, missing, in_flight: 0, failed: BTreeMap::new() }
    }

    /// Asks for what is missing, as far as the bound allows.
    pub(crate) fn proceed(&mut self, now: Nanos, store: &mut OpenStore, out: &mut Vec<Outcome>) {
        while self.in_flight < LOADS_IN_FLIGHT
            && let Some((pg, seq)) = self.missing.pop_front()
        {
            self.in_flight += 1;
            store.read_entry(now, pg, seq, out);
        }
    }

    /// An entry is in memory.
    pub(crate) fn arrived(&mut self, pg: PgId, entry: Entry) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let entries = self.groups.get_mut(&pg).map(|group| &mut group.entries);
        let Some(entries) = entries else { return };
        if let Ok(place) = entries.binary_search_by_key(&entry.version.seq, |found| found.entry.version.seq) {
            entries[place] = RecoveredEntry { entry, resident: true };
        }
    }

    /// An entry could not be read. Once it was tried often enough, it and what follows it in its group is missing, and so the
    /// group's replica is suspect (I12). True if so.
    pub(crate) fn lost(&mut self, pg: PgId, seq: Seq) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        let tries = self.failed.entry((pg, seq)).or_default();
        *tries += 1;
        if *tries < LOAD_TRIES {
            self.missing.push_back((pg, seq));
            return false;
        }
        self.missing.retain(|(group, _)| *group != pg);
        if let Some(group) = self.groups.get_mut(&pg) {
            group.entries.retain(|found| found.entry.version.seq < seq);
            self.verdict = Verdict::Suspect { why: sds_store::request::Suspicion::JournalContradiction { lsn: 0 } };
        }
        true
    }

    pub(crate) fn is_done(&self) -> bool {
        self.in_flight == 0 && self.missing.is_empty()
    }

    /// The verdict, which may have become worse, and the groups.
    pub(crate) fn finish(self) -> (Verdict, BTreeMap<PgId, replica::Recovered>) {
        let verdict = self.verdict;
        (verdict, self.groups.into_iter().map(|(pg, group)| (pg, translate::recovered(group, verdict))).collect())
    }
}
