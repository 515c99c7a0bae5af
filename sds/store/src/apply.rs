//! Committed entries go home: folded per layer, so that a hot block is written once, and written in order of position.
//!
//! A job takes one layer, folds its committed entries to one content for each block, writes that to the layer's units, and
//! only when all writes are done changes the record in memory. Until then reads are served from the entries. Overwriting in
//! place is safe: the journal holds what is being written until a checkpoint made it durable, so a torn block is written
//! again after a crash (I20). One job at a time per layer keeps the order (I10).

use bytes::Bytes;
use mdm_api::epoch::{Seq, Version};
use mdm_api::ids::PgId;
use sds_api::block::{AU_BLOCKS, BLOCK_BYTES, CHUNK_AUS, CHUNK_BLOCKS, LayerKey};
use sds_api::checksum::crc32c;
use sds_api::entry::EntryBody;

use crate::blockmap::BlockMap;
use crate::io::{DiskError, DiskOp, IoClass};
use crate::journal::record::NO_AU;
use crate::limits::{APPLY_JOBS_IDLE, APPLY_JOBS_MAX};
use crate::request::Output;
use crate::store::{Owner, Store};

/// Entries of a layer after which it is applied without waiting for pressure: reads walk through them.
const PENDING_MAX: usize = 128;

/// What becomes of one block.
#[derive(Clone, Debug)]
enum Fold {
    /// It stays.
    Keep,
    /// It reads as zeros.
    Zero,
    /// It gets content: the checksum, and the bytes once they are known. Without bytes the journal's copy is bad: the
    /// checksum is recorded all the same, so that the block reads as bad and is repaired, and nothing stale is served.
    Data { checksum: u32, bytes: Option<Bytes> },
}

/// Payload to be read from the journal again.
struct Fetch {
    lsn: u64,
    blocks: Vec<u16>,
}

/// One layer on its way home.
pub(crate) struct Job {
    key: LayerKey,
    pg: PgId,
    /// The entries that are folded.
    seqs: Vec<Seq>,
    version: Option<Version>,
    folds: Vec<Fold>,
    fetches: Vec<Fetch>,
    fresh: Vec<(usize, u32)>,
    /// Rewrites that the job carries out.
    mends: Vec<u64>,
    operations_left: usize,
}

impl Job {
    /// True if the job writes any of the blocks in place.
    fn writes(&self, block: u16) -> bool {
        matches!(self.folds[usize::from(block)], Fold::Data { .. })
    }
}

impl Store {
    /// The journal or the memory for payload is filling up.
    pub(crate) fn is_pressed(&self) -> bool {
        self.journal.used() > self.journal.ring_bytes() / 8 || self.resident > self.options.payload_cache_bytes / 2
    }

    fn jobs_allowed(&self) -> usize {
        let (used, ring) = (self.journal.used(), self.journal.ring_bytes());
        if self.is_draining() || used > ring / 2 {
            APPLY_JOBS_MAX
        } else if used > ring / 4 {
            APPLY_JOBS_MAX / 2
        } else if self.is_pressed() || self.is_idle() {
            APPLY_JOBS_IDLE
        } else {
            0
        }
    }

    pub(crate) fn start_jobs(&mut self, out: &mut Vec<Output>) {
        if self.ripe.is_empty() || !self.controls.is_empty() {
            return;
        }
        let allowed = self.jobs_allowed();
        if allowed == 0 {
            // A layer with a long list is applied whatever the pressure.
            let long = |key: &LayerKey| self.layers.get(key).is_some_and(|layer| layer.pending.len() > PENDING_MAX);
            if self.jobs.is_empty() && self.ripe.front().is_some_and(long) {
                self.start_batch(1, out);
            }
        } else if self.jobs.len() < allowed {
            self.start_batch(allowed - self.jobs.len(), out);
        }
    }

    /// Takes the layers that have waited longest, and begins them in the order of their place.
    fn start_batch(&mut self, count: usize, out: &mut Vec<Output>) {
        let (mut batch, mut passed) = (Vec::new(), Vec::new());
        let mut looked_at = 0;
        while batch.len() < count && looked_at < 4 * APPLY_JOBS_MAX {
            let Some(key) = self.ripe.pop_front() else { break };
            looked_at += 1;
            let Some(layer) = self.layers.get_mut(&key) else { continue };
            if layer.busy || layer.holds > 0 {
                passed.push(key);
                continue;
            }
            layer.queued = false;
            batch.push((layer.record.units().next().unwrap_or(NO_AU), key));
        }
        self.ripe.extend(passed);
        batch.sort_unstable();
        for (_, key) in batch {
            self.start_job(key, out);
        }
    }

    fn start_job(&mut self, key: LayerKey, out: &mut Vec<Output>) {
        let Some(mut job) = self.fold(key) else { return };
        if !self.find_room(&mut job) {
            // No unit to be had before the next checkpoint: later.
            let layer = self.layers.get_mut(&key).expect("it was just folded");
            layer.queued = true;
            self.ripe.push_back(key);
            return;
        }
        self.layers.get_mut(&key).expect("it was just folded").busy = true;
        let id = self.fresh_id();
        let geometry = self.super_block.geometry;
        let mut reads = Vec::new();
        for (index, fetch) in job.fetches.iter().enumerate() {
            let length = (fetch.blocks.len() * BLOCK_BYTES) as u64;
            let [(offset, first), (_, second)] = geometry.ring_pieces(fetch.lsn, length);
            assert!(second == 0, "fetches are cut at the end of the ring");
            reads.push((index, offset, first as u32));
        }
        job.operations_left = reads.len();
        let ready = reads.is_empty();
        self.jobs.insert(id, job);
        for (index, offset, length) in reads {
            self.submit(Owner::JobRead(id, index), IoClass::Apply, DiskOp::Read { offset, length }, out);
        }
        if ready {
            self.write_home(id, out);
        }
    }

    /// What the committed entries of a layer come to.
    fn fold(&mut self, key: LayerKey) -> Option<Job> {
        let layer = self.layers.get(&key)?;
        let pg = self.pgs.get(&layer.record.pg)?;
        let mut job = Job {
            key,
            pg: layer.record.pg,
            seqs: layer.pending.iter().copied().take_while(|seq| *seq <= pg.ripe).collect(),
            version: None,
            folds: vec![Fold::Keep; usize::from(CHUNK_BLOCKS)],
            fetches: Vec::new(),
            fresh: Vec::new(),
            mends: layer.mends.iter().map(|mend| mend.lsn).collect(),
            operations_left: 0,
        };
        if job.seqs.is_empty() && job.mends.is_empty() {
            return None;
        }
        for mend in &layer.mends {
            let at = usize::from(mend.block);
            if layer.record.present.contains(mend.block) && layer.record.checksums[at] == mend.checksum {
                job.folds[at] = Fold::Data { checksum: mend.checksum, bytes: Some(mend.data.clone()) };
            }
        }
        let mut places = vec![0_u64; usize::from(CHUNK_BLOCKS)];
        for seq in &job.seqs {
            let log = pg.log.get(seq).expect("a pending entry is in the log");
            job.version = Some(log.entry.version);
            match &log.entry.body {
                EntryBody::Write { blocks, checksums, data, .. } => {
                    for (index, block) in blocks.iter().enumerate() {
                        let range = index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES;
                        let bytes = (!data.is_empty()).then(|| data.slice(range));
                        places[usize::from(block)] = log.payload_lsn + (index * BLOCK_BYTES) as u64;
                        job.folds[usize::from(block)] = Fold::Data { checksum: checksums[index], bytes };
                    }
                }
                EntryBody::Zero { blocks, .. } => {
                    blocks.iter().for_each(|block| job.folds[usize::from(block)] = Fold::Zero);
                }
                _ => unreachable!("only entries with an effect are pending"),
            }
        }
        job.fetches = fetches(&job.folds, &places, self.super_block.geometry.journal_bytes);
        Some(job)
    }

    /// Gets a unit for every part of the chunk that has none and needs one. False, and nothing taken, if there are too few.
    fn find_room(&mut self, job: &mut Job) -> bool {
        let layer = self.layers.get(&job.key).expect("it was just folded");
        for au in 0..CHUNK_AUS {
            let blocks = au * usize::from(AU_BLOCKS)..(au + 1) * usize::from(AU_BLOCKS);
            let needed = job.folds[blocks].iter().any(|fold| matches!(fold, Fold::Data { .. }));
            if !needed || layer.record.aus[au] != NO_AU {
                continue;
            }
            let Some(unit) = self.units.allocate() else {
                job.fresh.iter().for_each(|(_, unit)| self.units.give_back(*unit));
                return false;
            };
            job.fresh.push((au, unit));
        }
        true
    }

    pub(crate) fn job_read_done(
        &mut self,
        id: u64,
        part: usize,
        result: Result<Bytes, DiskError>,
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let fetch = &job.fetches[part];
        for (index, block) in fetch.blocks.iter().enumerate() {
            let Fold::Data { checksum, bytes } = &mut job.folds[usize::from(*block)] else { continue };
            let found = result.as_ref().ok().and_then(|all| {
                let range = index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES;
                (all.len() >= range.end).then(|| all.slice(range)).filter(|found| crc32c(found) == *checksum)
            });
            if found.is_none() {
                self.counters.bad_blocks += 1;
            }
            *bytes = found;
        }
        job.operations_left -= 1;
        if job.operations_left == 0 {
            self.write_home(id, out);
        }
    }

    /// Writes runs of blocks that lie together in one unit.
    fn write_home(&mut self, id: u64, out: &mut Vec<Output>) {
        let job = self.jobs.get(&id).expect("the job has just become ready");
        let layer = self.layers.get(&job.key).expect("a busy layer stays");
        let mut aus = layer.record.aus;
        job.fresh.iter().for_each(|(au, unit)| aus[*au] = *unit);
        let geometry = self.super_block.geometry;
        let mut writes: Vec<(u64, Vec<Bytes>)> = Vec::new();
        let mut end = u64::MAX;
        for (block, fold) in (0..CHUNK_BLOCKS).zip(&job.folds) {
            let Fold::Data { bytes: Some(bytes), .. } = fold else { continue };
            let offset = geometry.au_block(aus[usize::from(block / AU_BLOCKS)], block % AU_BLOCKS);
            match writes.last_mut() {
                Some((_, buffers)) if offset == end => buffers.push(bytes.clone()),
                _ => writes.push((offset, vec![bytes.clone()])),
            }
            end = offset + BLOCK_BYTES as u64;
        }
        self.jobs.get_mut(&id).expect("it is there").operations_left = writes.len();
        if writes.is_empty() {
            self.finish_job(id, out);
            return;
        }
        for (offset, buffers) in writes {
            self.counters.home_writes += 1;
            self.counters.home_bytes += buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
            let op = DiskOp::Write { offset, buffers, durable: false };
            self.submit(Owner::JobWrite(id), IoClass::Apply, op, out);
        }
    }

    pub(crate) fn job_write_done(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.operations_left -= 1;
        if job.operations_left == 0 {
            self.finish_job(id, out);
        }
    }

    /// All is written (without being durable): the record says so from now on, and the next checkpoint will.
    fn finish_job(&mut self, id: u64, _out: &mut Vec<Output>) {
        let job = self.jobs.remove(&id).expect("a job ends once");
        // Whoever replays meets nothing of these units after the tail has passed this moment.
        let lsn = self.journal.head();
        let layer = self.layers.get_mut(&job.key).expect("a busy layer stays");
        let record = &mut layer.record;
        job.fresh.iter().for_each(|(au, unit)| record.aus[*au] = *unit);
        for (block, fold) in (0..CHUNK_BLOCKS).zip(&job.folds) {
            match fold {
                Fold::Keep => {}
                Fold::Zero => {
                    record.present.remove(block);
                    record.zeroed.insert(block);
                    record.checksums[usize::from(block)] = 0;
                }
                Fold::Data { checksum, .. } => {
                    record.present.insert(block);
                    record.zeroed.remove(block);
                    record.checksums[usize::from(block)] = *checksum;
                }
            }
        }
        for au in 0..CHUNK_AUS {
            if record.aus[au] != NO_AU && !record.present.touches_au(au) {
                self.units.quarantine(record.aus[au], lsn);
                record.aus[au] = NO_AU;
            }
        }
        if let Some(version) = job.version {
            record.version = version;
            if !layer.recorded {
                // Removals that a replay meets before this position are older than the record.
                record.base = lsn;
                layer.recorded = true;
            }
        }
        layer.changes += 1;
        layer.busy = false;
        self.meta.touch(layer.slot);
        layer.pending.drain(..job.seqs.len());
        let (done, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut layer.mends).into_iter().partition(|mend| job.mends.contains(&mend.lsn));
        layer.mends = left;
        let pg = self.pgs.get(&job.pg);
        let more =
            layer.pending.front().is_some_and(|seq| pg.is_some_and(|pg| *seq <= pg.ripe)) || !layer.mends.is_empty();
        if more && !layer.queued {
            layer.queued = true;
            self.ripe.push_back(job.key);
        }
        done.iter().for_each(|mend| self.journal.release(mend.lsn));
        for seq in &job.seqs {
            self.mark_applied(job.pg, *seq);
        }
        self.refresh_reservation(job.key);
        self.drop_if_unused(job.key);
    }

    /// True if a job is writing any of the blocks of a layer at home.
    pub(crate) fn is_being_written(&self, key: LayerKey, blocks: &BlockMap) -> bool {
        let busy = self.layers.get(&key).is_some_and(|layer| layer.busy);
        busy && self.jobs.values().any(|job| job.key == key && blocks.iter().any(|block| job.writes(block)))
    }
}

/// What must be read from the journal: runs of blocks that lie together there, cut at the end of the ring.
fn fetches(folds: &[Fold], places: &[u64], ring_bytes: u64) -> Vec<Fetch> {
    let mut fetches: Vec<Fetch> = Vec::new();
    for (block, fold) in (0..CHUNK_BLOCKS).zip(folds) {
        if !matches!(fold, Fold::Data { bytes: None, .. }) {
            continue;
        }
        let lsn = places[usize::from(block)];
        match fetches.last_mut() {
            Some(last)
                if last.lsn + (last.blocks.len() * BLOCK_BYTES) as u64 == lsn && !lsn.is_multiple_of(ring_bytes) =>
            {
                last.blocks.push(block);
            }
            _ => fetches.push(Fetch { lsn, blocks: vec![block] }),
        }
    }
    fetches
}
