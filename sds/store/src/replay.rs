//! The journal is read back into memory, in order; nothing is written.
//!
//! Entries collect in their groups' logs; controls do to memory what they did when they were carried out. What the pages
//! already know is recognised: an entry by its layer's version, a copy or a removal by the position in the journal at which the
//! layer's record was made.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mdm_api::epoch::{Nanos, Seq, Version};
use mdm_api::ids::PgId;
use sds_api::block::{BlockRange, CHUNK_AUS, LayerKey};
use sds_api::buf::AlignedBuf;
use sds_api::entry::Entry;

use crate::alloc::Allocator;
use crate::append::effect;
use crate::journal::record::{InstallRecord, NO_AU, Record};
use crate::journal::scan::ScannedFrame;
use crate::journal::{Journal, Mark};
use crate::layer::{Layer, Pending};
use crate::layers::Layers;
use crate::meta::Meta;
use crate::meta::page::ChunkRecord;
use crate::pg::{Kept, LogEntry, Pg, Staged};
use crate::planted::Bug;
use crate::request::{Counters, RecoveredEntry, RecoveredPg};
use crate::scrub::Scrub;
use crate::store::{Options, Store};
use crate::sums::Sums;
use crate::superblock::SuperBlock;

/// What is noted while the journal is replayed and needed only then.
#[derive(Default)]
pub(crate) struct Replay {
    /// Units that copies in the journal claimed.
    claimed: BTreeSet<u32>,
    /// Units claimed by two records.
    pub(crate) twice: u64,
    /// Blocks to rewrite.
    mends: Vec<(u64, LayerKey, u16, u32, Bytes)>,
}

impl Store {
    /// A store that knows its super block and nothing else.
    pub(crate) fn blank(super_block: SuperBlock, options: Options) -> Self {
        let root = super_block.checkpoint;
        let tail = Mark { lsn: root.tail, chain: root.tail_chain, incarnation: root.tail_incarnation };
        let geometry = super_block.geometry;
        let mut units = Allocator::new(geometry.au_count);
        units.frees_at_once = options.has(Bug::FreeAtOnce);
        Self {
            super_block,
            options,
            journal: Journal::new(geometry.journal_bytes, super_block.salt, super_block.open_count, tail),
            pgs: BTreeMap::new(),
            layers: Layers::new(geometry.record_count()),
            sums: Sums::new(options.checksum_cache_bytes),
            fetching: BTreeMap::new(),
            jobs_fetching: 0,
            pages_wanted: 0,
            units,
            meta: Meta::new(&geometry, root.generation, root.root_home),
            counters: Counters::default(),
            failed: None,
            now: Nanos(0),
            next_op: 0,
            ops: BTreeMap::new(),
            rereads: BTreeMap::new(),
            next_id: 0,
            resident: 0,
            sweeps: false,
            aged: 0,
            aged_when: Nanos(0),
            job_operations: 0,
            log_bytes: 0,
            state_bytes: 0,
            commit_dirty: BTreeSet::new(),
            ripe: VecDeque::new(),
            jobs: BTreeMap::new(),
            reads: BTreeMap::new(),
            installs: BTreeMap::new(),
            batches: BTreeMap::new(),
            controls: VecDeque::new(),
            unsettled: 0,
            checkpoint: None,
            scrub: Scrub::from(super_block.scrub_page),
            last_checkpoint: Nanos(0),
            last_append: Nanos(0),
            parked: 0,
            staged_units: 0,
            squeezed_to: 0,
            squeezed_when: Nanos(0),
            rests_at: 0,
            rested_after: u64::MAX,
            carries_from: None,
            relocated_at: 0,
            relocated_when: Nanos(0),
            drains: Vec::new(),
            settles: Vec::new(),
        }
    }

    /// Takes a record from a page. False if it contradicts what is known: its layer is there twice.
    pub(crate) fn load_record(&mut self, slot: u32, record: ChunkRecord, replay: &mut Replay) -> bool {
        let key = record.layer;
        if self.layers.get(&key).is_some() {
            return false;
        }
        let layer = Layer::of_record(&record);
        replay.twice += layer.units().filter(|au| !self.units.claim(*au)).count() as u64;
        self.layers.load(slot, layer);
        self.join_group(record.pg, slot);
        self.sums.set_if_room(slot, record.checksums, record.lost);
        true
    }

    /// Takes a frame. False if it contradicts what is known.
    pub(crate) fn replay_frame(&mut self, frame: ScannedFrame, replay: &mut Replay) -> bool {
        let lsn = frame.head.lsn;
        self.journal.replay(&frame.head);
        let mut payload_lsn = lsn + u64::from(frame.head.header_bytes);
        let mut sound = true;
        for (record, payload) in frame.records {
            let length = payload.len() as u64;
            sound &= match record {
                Record::Entry(entry) => self.replay_entry(entry, payload, lsn, payload_lsn, None),
                Record::Link { entry, aus } => {
                    replay.claimed.extend(aus.iter().copied().filter(|au| *au != NO_AU));
                    let staged = Box::new(Staged { aus, owned: 0 });
                    self.replay_entry(entry, payload, lsn, payload_lsn, Some(staged))
                }
                Record::Install(install) => self.replay_install(install, lsn, replay),
                Record::Repair { layer, block, checksum } => {
                    let data = AlignedBuf::copy_of(&payload).freeze();
                    self.journal.need(lsn);
                    replay.mends.push((lsn, layer, block, checksum, data));
                    true
                }
                other => self.replay_control(other, lsn),
            };
            payload_lsn += length;
        }
        sound
    }

    fn replay_entry(
        &mut self,
        mut entry: Entry,
        payload: Bytes,
        lsn: u64,
        payload_lsn: u64,
        staged: Option<Box<Staged>>,
    ) -> bool {
        let keep = self.resident + payload.len() <= self.options.payload_cache_bytes && !payload.is_empty();
        if keep {
            // Out of the large buffer it was read with, which would stay in memory as a whole.
            entry.attach(AlignedBuf::copy_of(&payload).freeze());
        }
        let resident = if keep { payload.len() } else { 0 };
        let pg = self.pgs.entry(entry.pg).or_default();
        self.journal.need(lsn);
        if let Some(known) = pg.log.get_mut(&entry.version.seq) {
            let same = known.entry.version == entry.version;
            if let Some(old) = known.lsn.replace(lsn) {
                self.journal.release(old);
            }
            known.payload_lsn = payload_lsn;
            return same;
        }
        let seq = entry.version.seq;
        let log = LogEntry { entry, lsn: Some(lsn), payload_lsn, staged, applied: false, resident };
        self.resident += resident;
        self.log_bytes += log.index_bytes();
        pg.log.insert(seq, log);
        true
    }

    fn replay_control(&mut self, record: Record, lsn: u64) -> bool {
        match record {
            Record::Promise { pg, term } => {
                let kept = &mut self.pgs.entry(pg).or_default().promise;
                if kept.as_ref().is_none_or(|old| old.value <= term) {
                    self.journal.need(lsn);
                    if let Some(old) = kept.replace(Kept { value: term, lsn }) {
                        self.journal.release(old.lsn);
                    }
                }
            }
            Record::State { pg, through, state } => {
                let kept = &mut self.pgs.entry(pg).or_default().state;
                if kept.as_ref().is_none_or(|old| old.value.0 <= through) {
                    self.journal.need(lsn);
                    self.state_bytes += state.len() as u64;
                    if let Some(old) = kept.replace(Kept { value: (through, state), lsn }) {
                        self.state_bytes -= old.value.1.len() as u64;
                        self.journal.release(old.lsn);
                    }
                }
            }
            Record::Commit { pg, through } => {
                let kept = &mut self.pgs.entry(pg).or_default().commit_durable;
                if kept.as_ref().is_none_or(|old| old.value <= through) {
                    self.journal.need(lsn);
                    if let Some(old) = kept.replace(Kept { value: through, lsn }) {
                        self.journal.release(old.lsn);
                    }
                }
            }
            Record::Void { pg, after } => self.void_in_memory(pg, after),
            Record::RemoveLayers { pg, through, layers } => {
                // It was said of committed entries: kept in mind, since the mark of that commit may not have been durable.
                let known = &mut self.pgs.entry(pg).or_default().committed;
                *known = through.max(*known);
                for key in layers {
                    self.neutralise(pg, key, through);
                    self.replay_removal(pg, key, lsn);
                }
            }
            Record::ForgetPg { pg } => {
                for key in self.keys_of(pg) {
                    self.replay_removal(pg, key, lsn);
                }
                let kept = self.pgs.get(&pg).map(|pg| pg.layers.clone()).unwrap_or_default();
                self.forget_log(pg);
                // Layers made after this position belong to the group's next life.
                if !kept.is_empty() {
                    self.pgs.entry(pg).or_default().layers = kept;
                }
            }
            Record::Entry(_) | Record::Link { .. } | Record::Install(_) | Record::Repair { .. } => {
                unreachable!("handled by the caller")
            }
        }
        true
    }

    /// Entries up to `through` have no effect on the layer any more.
    fn neutralise(&mut self, pg_id: PgId, key: LayerKey, through: Seq) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let log = pg.log.range_mut(..=through);
        for (_, log) in log.filter(|(_, log)| effect(&log.entry).is_some_and(|(layer, ..)| layer == key)) {
            log.applied = true;
        }
    }

    /// Removes a record, unless it was made after this position in the journal.
    fn replay_removal(&mut self, pg_id: PgId, key: LayerKey, lsn: u64) {
        let older = |layer: &&Layer| layer.pg() == pg_id && layer.recorded && layer.base <= lsn;
        if self.layers.get(&key).filter(older).is_some() {
            self.remove_layer(pg_id, key, Seq(0), lsn);
        }
    }

    fn replay_install(&mut self, install: InstallRecord, lsn: u64, replay: &mut Replay) -> bool {
        let units = install.aus.iter().copied().filter(|au| *au != NO_AU);
        if self.layers.get(&install.layer).is_some_and(|layer| layer.recorded && layer.base > lsn) {
            replay.claimed.extend(units);
            return true;
        }
        // A unit that a copy in the journal claims can be in the hands of a page's record only by corruption, or in
        // quarantine, when both copies are in the journal and the first was replaced.
        for au in units {
            replay.claimed.insert(au);
            if !self.units.claim(au) {
                replay.twice += 1;
            }
        }
        if self.layer_or_new(install.pg, install.layer).is_none() {
            return false;
        }
        self.replace_record(&install, lsn);
        true
    }

    /// Everything has been read: what is pending, reserved, committed follows from it.
    pub(crate) fn finish_replay(&mut self, replay: &mut Replay) -> bool {
        let mut sound = true;
        let ids: Vec<PgId> = self.pgs.keys().copied().collect();
        ids.iter().for_each(|id| self.drop_again(*id));
        for id in &ids {
            sound &= self.finish_pg(*id, replay);
        }
        let head = self.journal.head();
        for au in std::mem::take(&mut replay.claimed) {
            // Claimed by a copy that the journal still tells of, and by nobody now: a replay would claim it again.
            if self.units.claim(au) {
                self.units.quarantine(au, head);
            }
        }
        for (lsn, layer, block, checksum, data) in std::mem::take(&mut replay.mends) {
            // What has changed since needs no mending.
            let _changed_since = self.mend(lsn, layer, block, checksum, data).is_err();
            self.journal.release(lsn);
        }
        let unused: Vec<LayerKey> =
            self.layers.iter().filter(|layer| layer.is_unused()).map(|layer| layer.key).collect();
        unused.into_iter().for_each(|key| self.drop_if_unused(key));
        for id in ids {
            self.ripen(id);
            if self.pgs.get(&id).is_some_and(Pg::is_empty) {
                self.pgs.remove(&id);
            }
        }
        self.relocated_at = head;
        sound
    }

    /// What was certain to be dropped was gone, and its records had new owners perhaps, whose entries come next: there may
    /// be no records for both.
    fn drop_again(&mut self, id: PgId) {
        let Some(pg) = self.pgs.get(&id) else { return };
        let drops = pg.logged_drops(pg.committed_durably());
        let lsn = self.journal.head();
        for (seq, vtree) in drops {
            let Some(pg) = self.pgs.get_mut(&id) else { return };
            let of_tree = |log: &LogEntry| effect(&log.entry).is_some_and(|(key, ..)| key.chunk.vtree == vtree);
            pg.log.range_mut(..seq).filter(|(_, log)| of_tree(log)).for_each(|(_, log)| log.applied = true);
            let is_older = |layer: &Layer| layer.key.chunk.vtree == vtree && layer.version.seq <= seq;
            let keys = self.keys_where(id, is_older);
            keys.into_iter().for_each(|key| self.remove_layer(id, key, Seq(0), lsn));
        }
    }

    fn finish_pg(&mut self, id: PgId, replay: &mut Replay) -> bool {
        let mut sound = true;
        let applied = self.highest_applied(id);
        let Some(pg) = self.pgs.get_mut(&id) else { return true };
        pg.state_asked = pg.through();
        pg.commit_logged = pg.committed_durably();
        pg.committed = pg.committed.max(pg.commit_logged).max(applied.seq);
        pg.last = pg.log.keys().next_back().copied().unwrap_or_default().max(pg.through());
        pg.durable = pg.last;
        if pg.committed > pg.commit_logged {
            self.commit_dirty.insert(id);
        }
        pg.drops = pg.logged_drops(Seq(u64::MAX));
        let entries: Vec<(Seq, LayerKey, BlockRange, bool, bool)> = pg
            .log
            .iter()
            .filter_map(|(seq, log)| {
                let (key, blocks, writes) = effect(&log.entry)?;
                Some((*seq, key, blocks, !writes, log.applied))
            })
            .collect();
        for (seq, key, blocks, is_zero, void) in entries {
            let at_home = self.layers.get(&key).map_or(Version::default(), |layer| layer.version);
            if void || seq <= at_home.seq {
                self.find_pins(id, seq, key);
                self.mark_applied(id, seq);
                continue;
            }
            match self.layer_or_new(id, key) {
                Some(layer) if layer.pg() == id => {
                    layer.active_mut().pending.push_back(Pending { seq, blocks, is_zero });
                }
                _ => sound = false,
            }
            self.claim_staged(id, seq, replay);
            self.refresh_reservation(key);
        }
        self.shed(id);
        sound
    }

    /// The units of a large write that is not applied are its own.
    fn claim_staged(&mut self, id: PgId, seq: Seq, replay: &mut Replay) {
        let log = self.pgs.get_mut(&id).and_then(|pg| pg.log.get_mut(&seq));
        let Some(staged) = log.and_then(|log| log.staged.as_mut()) else { return };
        for (au, unit) in staged.aus.iter().enumerate().filter(|(_, unit)| **unit != NO_AU) {
            if self.units.claim(*unit) {
                staged.owned |= 1 << au;
                self.staged_units += 1;
            } else {
                replay.twice += 1;
            }
        }
    }

    /// The units of a large write that is applied and still kept must not be overwritten where they are a layer's.
    fn find_pins(&mut self, id: PgId, seq: Seq, key: LayerKey) {
        let log = self.pgs.get(&id).and_then(|pg| pg.log.get(&seq));
        let Some(staged) = log.and_then(|log| log.staged.as_ref()) else { return };
        let Some(layer) = self.layers.get_mut(&key) else { return };
        let same = (0..CHUNK_AUS).filter(|au| staged.aus[*au] != NO_AU && staged.aus[*au] == layer.aus[*au]);
        let mask = same.fold(0_u16, |mask, au| mask | 1 << au);
        if mask != 0 {
            layer.active_mut().pinned.push((seq, mask));
        }
    }

    fn highest_applied(&self, id: PgId) -> Version {
        let Some(pg) = self.pgs.get(&id) else { return Version::default() };
        let versions = pg.layers.iter().filter_map(|slot| self.layers.at(*slot)).map(|layer| layer.version);
        versions.max_by_key(|version| version.seq).unwrap_or_default()
    }

    /// What the opener reports of the groups.
    pub(crate) fn recovered_pgs(&self) -> Vec<RecoveredPg> {
        self.pgs
            .iter()
            .map(|(id, pg)| RecoveredPg {
                pg: *id,
                promise: pg.promise.as_ref().map(|kept| kept.value),
                state: pg.state.as_ref().map(|kept| kept.value.clone()),
                committed: pg.committed,
                highest_applied: self.highest_applied(*id),
                entries: pg
                    .log
                    .range(pg.through().next()..)
                    .map(|(_, log)| RecoveredEntry {
                        entry: log.entry.clone(),
                        resident: log.entry.payload().len() == log.entry.payload_bytes(),
                    })
                    .collect(),
                layer_count: pg.layers.iter().filter(|slot| self.layers.at(**slot).is_some_and(|l| l.recorded)).count()
                    as u64,
            })
            .collect()
    }
}
