//! Committed entries go home: folded per layer, so that a hot block is written once, and written in order of position.
//!
//! A job takes one layer, folds its committed entries to one content for each block, writes that to the layer's units, and
//! only when all writes are done changes the record in memory. Until then reads are served from the entries. Overwriting in
//! place is safe: the journal holds what is being written until a checkpoint made it durable, so a torn block is written
//! again after a crash (I20). One job at a time per layer keeps the order (I10).
//!
//! Large writes are at home already: their units become the layer's. For as long as such an entry is kept, its units are its
//! only copy, so what is written on top of them goes to a fresh unit, together with what stays of the old one.

use bytes::Bytes;
use mdm_api::epoch::{Seq, Version};
use mdm_api::ids::PgId;
use sds_api::block::{AU_BLOCKS, BLOCK_BYTES, CHUNK_AUS, LayerKey};
use sds_api::checksum::crc32c;
use sds_api::entry::EntryBody;

use crate::blockmap::BlockMap;
use crate::fetch::Waiter;
use crate::io::{DiskError, DiskOp, IoClass};
use crate::journal::record::NO_AU;
use crate::layout::RECORDS_PER_PAGE;
use crate::limits::{APPLY_AGE_MS, APPLY_JOBS_IDLE, APPLY_JOBS_MAX, APPLY_OPERATIONS_MAX, LOG_BYTES_MAX};
use crate::planted::Bug;
use crate::request::Output;
use crate::store::{Owner, Store};

/// Entries of a layer after which it is applied without waiting for pressure: reads walk through them.
const PENDING_MAX: usize = 128;

/// What becomes of one block.
enum Content {
    /// It reads as zeros.
    Zero,
    /// It is in a unit that becomes the layer's.
    There { checksum: u32 },
    /// It gets content: the checksum, and the bytes once they are known. Without bytes the copy is bad: the checksum is
    /// recorded all the same, so that the block reads as bad and is repaired, and nothing stale is served.
    Data { checksum: u32, bytes: Option<Bytes>, offset: u64 },
}

/// A block and what becomes of it.
struct Target {
    block: u16,
    content: Content,
}

/// Content to be read: from the journal, or from a unit that must not be overwritten.
struct Fetch {
    offset: u64,
    /// Which targets.
    targets: Vec<usize>,
}

/// One layer on its way home.
pub(crate) struct Job {
    key: LayerKey,
    slot: u32,
    pg: PgId,
    /// The entries that are folded.
    seqs: Vec<Seq>,
    version: Option<Version>,
    /// Ascending.
    targets: Vec<Target>,
    fetches: Vec<Fetch>,
    /// Units of the chunk and what takes their place: unused ones.
    fresh: Vec<(usize, u32)>,
    /// The same: units of large writes.
    taken: Vec<(usize, u32, Seq)>,
    /// Rewrites that the job carries out.
    mends: Vec<u64>,
    operations_left: usize,
}

impl Job {
    /// The layer.
    pub(crate) fn key(&self) -> LayerKey {
        self.key
    }

    /// Its group.
    pub(crate) fn pg(&self) -> PgId {
        self.pg
    }

    /// The units of the chunk that it writes to, one bit each.
    fn units_written(&self) -> u16 {
        let written = self.targets.iter().filter(|target| matches!(target.content, Content::Data { .. }));
        written.fold(0, |mask, target| mask | 1 << (target.block / AU_BLOCKS))
    }

    /// True if the job writes the block in place.
    fn writes(&self, block: u16) -> bool {
        let found = self.targets.binary_search_by_key(&block, |target| target.block);
        found.is_ok_and(|at| matches!(self.targets[at].content, Content::Data { .. }))
    }
}

impl Store {
    /// Bytes of data that wait in the journal and in memory before they are sent home. Up to here, a good quarter of the
    /// journal, a burst has the disk to itself.
    fn waiting_bytes_max(&self) -> usize {
        let of_journal = self.journal.ring_bytes() / 16 * 5;
        (of_journal as usize).min(self.options.payload_cache_bytes / 4 * 3)
    }

    /// The journal or the memory for what is in it is filling up.
    pub(crate) fn is_pressed(&self) -> bool {
        self.resident > self.waiting_bytes_max()
            || self.journal.used() > self.journal.ring_bytes() / 2
            || self.log_bytes > LOG_BYTES_MAX / 2
    }

    /// Under pressure nearly all that lies there goes home in one sweep, many at a time, and then nothing for long: that costs
    /// less for each block, and delays fewer requests, than a trickle between them.
    fn look_whether_to_sweep(&mut self) {
        if self.is_pressed() || self.is_passing_damage() {
            self.sweeps = true;
        } else if self.ripe.is_empty() || self.resident < self.waiting_bytes_max() / 4 {
            self.sweeps = false;
        }
    }

    /// What lies there since the last look of this kind has waited long enough.
    fn look_what_is_old(&mut self) {
        if self.now.ms_since(self.aged_when) >= APPLY_AGE_MS {
            (self.aged, self.aged_when) = (self.ripe.len(), self.now);
        }
    }

    fn jobs_allowed(&self) -> usize {
        if self.is_draining() || self.sweeps {
            APPLY_JOBS_MAX
        } else if self.is_idle() || self.staged_units > 0 || self.aged > 0 {
            // Large writes are applied at once: it costs nothing, and frees what they replace.
            APPLY_JOBS_IDLE
        } else {
            0
        }
    }

    pub(crate) fn start_jobs(&mut self, out: &mut Vec<Output>) {
        if self.parked > 0 && self.is_hurried() {
            self.unpark_all();
        }
        self.look_whether_to_sweep();
        self.look_what_is_old();
        if self.ripe.is_empty() || !self.controls.is_empty() {
            return;
        }
        let allowed = self.jobs_allowed();
        let busy = self.jobs.len() + self.jobs_fetching;
        if allowed == 0 {
            // A layer with a long list is applied whatever the pressure.
            let is_long = |key: &LayerKey| {
                let active = self.layers.get(key).and_then(|layer| layer.active());
                active.is_some_and(|active| active.pending.len() > PENDING_MAX)
            };
            if busy == 0 && self.ripe.front().is_some_and(is_long) {
                self.start_batch(1, out);
            }
        } else if busy < allowed && self.job_operations < APPLY_OPERATIONS_MAX {
            self.start_batch(allowed - busy, out);
        }
    }

    /// Takes the layers that have waited longest, and begins them in the order of their place.
    fn start_batch(&mut self, count: usize, out: &mut Vec<Output>) {
        let (mut batch, mut passed) = (Vec::new(), Vec::new());
        let mut looked_at = 0;
        while batch.len() < count && looked_at < 4 * APPLY_JOBS_MAX {
            let Some(key) = self.ripe.pop_front() else { break };
            looked_at += 1;
            self.aged = self.aged.saturating_sub(1);
            let Some(layer) = self.layers.get_mut(&key) else { continue };
            let place = layer.units().next().unwrap_or(NO_AU);
            let active = layer.active_mut();
            if active.busy || active.holds > 0 {
                passed.push(key);
                continue;
            }
            active.queued = false;
            batch.push((place, key));
        }
        self.ripe.extend(passed);
        batch.sort_unstable();
        for (_, key) in batch {
            if self.job_operations < APPLY_OPERATIONS_MAX {
                self.start_job(key, out);
            } else {
                self.queue_layer(key);
            }
        }
    }

    /// Puts a layer in the queue, unless it is there.
    pub(crate) fn queue_layer(&mut self, key: LayerKey) {
        let Some(layer) = self.layers.get_mut(&key) else { return };
        let active = layer.active_mut();
        if !active.queued {
            active.queued = true;
            self.ripe.push_back(key);
        }
    }

    /// The page of a layer that is to be applied has been read.
    pub(crate) fn job_page_here(&mut self, key: LayerKey, out: &mut Vec<Output>) {
        self.jobs_fetching -= 1;
        let Some(layer) = self.layers.get_mut(&key) else { return };
        let active = layer.active_mut();
        active.queued = false;
        if active.busy || active.holds > 0 || !self.controls.is_empty() {
            self.queue_layer(key);
        } else {
            self.start_job(key, out);
        }
    }

    fn start_job(&mut self, key: LayerKey, out: &mut Vec<Output>) {
        let Some(layer) = self.layers.get_mut(&key) else { return };
        let slot = layer.slot;
        let page = slot / RECORDS_PER_PAGE as u32;
        if !self.is_page_here(page) {
            let layer = self.layers.get_mut(&key).expect("it was just there");
            layer.active_mut().queued = true;
            self.jobs_fetching += 1;
            self.fetch_page(page, Waiter::Job(key), IoClass::Apply, out);
            return;
        }
        self.sums.pin(page);
        self.begin_sums(slot);
        let Some(mut job) = self.fold(key) else {
            self.sums.unpin(page);
            self.drop_if_unused(key);
            return;
        };
        if !self.is_hurried() && self.is_on_pins(&job) {
            self.sums.unpin(page);
            self.park(job.pg, key, out);
            return;
        }
        if !self.find_room(&mut job) {
            // No unit to be had before the next checkpoint: later.
            self.sums.unpin(page);
            self.queue_layer(key);
            return;
        }
        self.find_fetches(&mut job);
        self.layers.get_mut(&key).expect("it was just folded").active_mut().busy = true;
        let id = self.fresh_id();
        let reads = job.fetches.iter().map(|fetch| (fetch.offset, (fetch.targets.len() * BLOCK_BYTES) as u32));
        let reads: Vec<(u64, u32)> = reads.collect();
        job.operations_left = reads.len();
        self.jobs.insert(id, job);
        if reads.is_empty() {
            self.write_home(id, out);
        }
        for (part, (offset, length)) in reads.into_iter().enumerate() {
            self.submit(Owner::JobRead(id, part), IoClass::Apply, DiskOp::Read { offset, length }, out);
        }
    }

    /// There is no time to wait for states.
    fn is_hurried(&self) -> bool {
        self.is_draining() || self.is_idle() || self.journal.used() > self.journal.ring_bytes() / 2
    }

    /// True if the job writes to a unit that a large write in the log still needs.
    fn is_on_pins(&self, job: &Job) -> bool {
        let pins = self.layers.at(job.slot).and_then(|layer| layer.active()).map_or(0, |active| active.pins());
        pins & job.units_written() != 0 && !self.options.has(Bug::IgnorePins)
    }

    /// The layer waits for a state of its group that lets the large write go: cheaper than moving what it wrote.
    fn park(&mut self, pg_id: PgId, key: LayerKey, out: &mut Vec<Output>) {
        let Some(layer) = self.layers.get_mut(&key) else { return };
        layer.active_mut().queued = true;
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        pg.parked.push(key);
        self.parked += 1;
        if !pg.state_wanted {
            pg.state_wanted = true;
            out.push(Output::WantState { pg: pg_id });
        }
    }

    /// What the committed entries of a layer come to.
    fn fold(&mut self, key: LayerKey) -> Option<Job> {
        let layer = self.layers.get(&key)?;
        let (active, pg) = (layer.active()?, self.pgs.get(&layer.pg())?);
        let mut job = Job {
            key,
            slot: layer.slot,
            pg: layer.pg(),
            seqs: active.pending.iter().map(|pending| pending.seq).take_while(|seq| *seq <= pg.ripe).collect(),
            version: None,
            targets: Vec::new(),
            fetches: Vec::new(),
            fresh: Vec::new(),
            taken: Vec::new(),
            mends: active.mends.iter().map(|mend| mend.lsn).collect(),
            operations_left: 0,
        };
        if job.seqs.is_empty() && job.mends.is_empty() {
            return None;
        }
        let (mut decided, mut written) = (BlockMap::EMPTY, 0_u16);
        let geometry = &self.super_block.geometry;
        // From the newest on: what is decided is not looked at again.
        for seq in job.seqs.iter().rev() {
            let log = pg.log.get(seq).expect("a pending entry is in the log");
            job.version.get_or_insert(log.entry.version);
            let (blocks, written_data) = match &log.entry.body {
                EntryBody::Write { blocks, checksums, data, .. } => (*blocks, Some((checksums, data))),
                EntryBody::Zero { blocks, .. } => (*blocks, None),
                _ => unreachable!("only entries with an effect are pending"),
            };
            for (index, block) in blocks.iter().enumerate().filter(|(_, block)| !decided.contains(*block)) {
                let au = usize::from(block / AU_BLOCKS);
                let content = match (written_data, &log.staged) {
                    (None, _) => Content::Zero,
                    (Some((checksums, _)), Some(staged)) if written & 1 << au == 0 => {
                        if job.taken.last().is_none_or(|(last, ..)| *last != au) {
                            job.taken.push((au, staged.aus[au], *seq));
                        }
                        Content::There { checksum: checksums[index] }
                    }
                    (Some((checksums, _)), Some(staged)) => {
                        let offset = geometry.au_block(staged.aus[au], block % AU_BLOCKS);
                        Content::Data { checksum: checksums[index], bytes: None, offset }
                    }
                    (Some((checksums, data)), None) => {
                        let range = index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES;
                        let bytes = (!data.is_empty()).then(|| data.slice(range));
                        let lsn = log.payload_lsn + (index * BLOCK_BYTES) as u64;
                        let offset = geometry.ring_pieces(lsn, 0)[0].0;
                        Content::Data { checksum: checksums[index], bytes, offset }
                    }
                };
                job.targets.push(Target { block, content });
            }
            decided.insert_range(blocks);
            if written_data.is_some() {
                written |= crate::layer::units_of(blocks);
            }
        }
        for mend in &active.mends {
            if !decided.contains(mend.block) && self.is_mend_due(layer.slot, mend.block, mend.checksum) {
                let content = Content::Data { checksum: mend.checksum, bytes: Some(mend.data.clone()), offset: 0 };
                job.targets.push(Target { block: mend.block, content });
                decided.insert(mend.block);
            }
        }
        job.targets.sort_by_key(|target| target.block);
        Some(job)
    }

    /// True if the block at home is still the one that a mend brings back.
    pub(crate) fn is_mend_due(&self, slot: u32, block: u16, checksum: u32) -> bool {
        let is_present = self.layers.at(slot).is_some_and(|layer| layer.present.contains(block));
        let recorded = self.sums.get(slot).map(|sums| sums[usize::from(block)]);
        is_present && (recorded.is_none_or(|sum| sum == checksum) || self.sums.lost(slot).contains(block))
    }

    /// Gets a unit for every part of the chunk that needs a fresh one. False, and nothing taken, if there are too few.
    fn find_room(&mut self, job: &mut Job) -> bool {
        let layer = self.layers.get(&job.key).expect("it was just folded");
        let ignores = self.options.has(Bug::IgnorePins);
        let pins = layer.active().filter(|_| !ignores).map_or(0, |active| active.pins());
        let aus = layer.aus;
        let needed = job.units_written();
        debug_assert!(
            job.taken.iter().all(|(au, ..)| needed & 1 << au == 0),
            "nothing newer is written to what is taken"
        );
        for au in (0..CHUNK_AUS).filter(|au| needed & 1 << au != 0) {
            let is_pinned = aus[au] != NO_AU && pins & 1 << au != 0;
            if aus[au] != NO_AU && !is_pinned {
                continue;
            }
            let Some(unit) = self.units.allocate() else {
                job.fresh.iter().for_each(|(_, unit)| self.units.give_back(*unit));
                return false;
            };
            job.fresh.push((au, unit));
            if is_pinned {
                self.move_rest(job, au, aus[au]);
            }
        }
        job.targets.sort_by_key(|target| target.block);
        true
    }

    /// What stays of a unit that must not be overwritten moves with what is written.
    fn move_rest(&self, job: &mut Job, au: usize, unit: u32) {
        let present = self.layers.at(job.slot).map_or(BlockMap::EMPTY, |layer| layer.present);
        let (Some(sums), lost) = (self.sums.get(job.slot), self.sums.lost(job.slot)) else { return };
        let decided: BlockMap = job.targets.iter().map(|target| target.block).collect();
        let first = au as u16 * AU_BLOCKS;
        for block in (first..first + AU_BLOCKS).filter(|block| present.contains(*block) && !decided.contains(*block)) {
            if !lost.contains(block) {
                let offset = self.super_block.geometry.au_block(unit, block % AU_BLOCKS);
                let content = Content::Data { checksum: sums[usize::from(block)], bytes: None, offset };
                job.targets.push(Target { block, content });
            }
        }
    }

    /// What must be read: runs of blocks that lie together.
    fn find_fetches(&self, job: &mut Job) {
        let mut end = u64::MAX;
        for (index, target) in job.targets.iter().enumerate() {
            let Content::Data { bytes: None, offset, .. } = &target.content else { continue };
            match job.fetches.last_mut() {
                Some(last) if *offset == end => last.targets.push(index),
                _ => job.fetches.push(Fetch { offset: *offset, targets: vec![index] }),
            }
            end = offset + BLOCK_BYTES as u64;
        }
    }

    pub(crate) fn job_read_done(
        &mut self,
        id: u64,
        part: usize,
        result: Result<Bytes, DiskError>,
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        for (index, target) in job.fetches[part].targets.iter().enumerate() {
            let Content::Data { checksum, bytes, .. } = &mut job.targets[*target].content else { continue };
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
        let layer = self.layers.at(job.slot).expect("a busy layer stays");
        let mut aus = layer.aus;
        job.fresh.iter().for_each(|(au, unit)| aus[*au] = *unit);
        let geometry = self.super_block.geometry;
        let mut writes: Vec<(u64, Vec<Bytes>)> = Vec::new();
        let mut end = u64::MAX;
        for target in &job.targets {
            let Content::Data { bytes: Some(bytes), .. } = &target.content else { continue };
            let unit = aus[usize::from(target.block / AU_BLOCKS)];
            let offset = geometry.au_block(unit, target.block % AU_BLOCKS);
            match writes.last_mut() {
                Some((_, buffers)) if offset == end => buffers.push(bytes.clone()),
                _ => writes.push((offset, vec![bytes.clone()])),
            }
            end = offset + BLOCK_BYTES as u64;
        }
        self.jobs.get_mut(&id).expect("it is there").operations_left = writes.len();
        if writes.is_empty() {
            self.finish_job(id);
            return;
        }
        for (offset, buffers) in writes {
            self.counters.home_writes += 1;
            self.counters.home_bytes += buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
            let op = DiskOp::Write { offset, buffers, durable: false };
            self.submit(Owner::JobWrite(id), IoClass::Apply, op, out);
        }
    }

    pub(crate) fn job_write_done(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.operations_left -= 1;
        if job.operations_left == 0 {
            self.finish_job(id);
        }
    }

    /// All is written (without being durable): the record says so from now on, and the next checkpoint will.
    fn finish_job(&mut self, id: u64) {
        let job = self.jobs.remove(&id).expect("a job ends once");
        // Whoever replays meets nothing of these units once the tail is here, nor is it while the job's entries are needed.
        // Records that are on their way, second copies of the entries among them, lie before the bound.
        let (head, until) = (self.journal.head(), self.journal.bound());
        self.change_units(&job, until);
        self.change_blocks(&job, until);
        let layer = self.layers.at_mut(job.slot).expect("a busy layer stays");
        layer.changes = layer.changes.wrapping_add(1);
        if let Some(version) = job.version {
            layer.version = version;
            if !layer.recorded {
                // Removals that a replay meets before this position are older than the record.
                layer.base = head;
                layer.recorded = true;
            }
        }
        let active = layer.active_mut();
        active.busy = false;
        active.pending.drain(..job.seqs.len());
        let (done, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut active.mends).into_iter().partition(|mend| job.mends.contains(&mend.lsn));
        active.mends = left;
        let pg = self.pgs.get(&job.pg);
        let is_ripe = active.pending.front().is_some_and(|next| pg.is_some_and(|pg| next.seq <= pg.ripe));
        let more = is_ripe || !active.mends.is_empty();
        self.touch(job.slot);
        self.sums.unpin(job.slot / RECORDS_PER_PAGE as u32);
        if more {
            self.queue_layer(job.key);
        }
        done.iter().for_each(|mend| self.journal.release(mend.lsn));
        for seq in &job.seqs {
            self.mark_applied(job.pg, *seq);
        }
        self.refresh_reservation(job.key);
        self.drop_if_unused(job.key);
    }

    fn change_units(&mut self, job: &Job, until: u64) {
        let layer = self.layers.at_mut(job.slot).expect("a busy layer stays");
        let fresh = job.fresh.iter().map(|(au, unit)| (*au, *unit, None));
        let taken = job.taken.iter().map(|(au, unit, seq)| (*au, *unit, Some(*seq)));
        for (au, unit, seq) in fresh.chain(taken) {
            if layer.aus[au] != NO_AU {
                self.units.quarantine(layer.aus[au], until);
            }
            layer.aus[au] = unit;
            let active = layer.active_mut();
            active.unpin(au);
            if let Some(seq) = seq {
                active.pinned.push((seq, 1 << au));
                let log = self.pgs.get_mut(&job.pg).and_then(|pg| pg.log.get_mut(&seq));
                let staged =
                    log.and_then(|log| log.staged.as_mut()).expect("a large write is kept until it is applied");
                // Not its own only in a suspect store, where something else had claimed it before (I19).
                self.staged_units -= u64::from(staged.owned >> au & 1);
                staged.owned &= !(1 << au);
            }
        }
    }

    fn change_blocks(&mut self, job: &Job, until: u64) {
        let layer = self.layers.at_mut(job.slot).expect("a busy layer stays");
        let sums = self.sums.get_mut(job.slot).expect("the page is pinned");
        let mut zeroed = layer.zeroed();
        for Target { block, content } in &job.targets {
            match content {
                Content::Zero => {
                    layer.present.remove(*block);
                    zeroed.insert(*block);
                    sums[usize::from(*block)] = 0;
                }
                Content::There { checksum } | Content::Data { checksum, .. } => {
                    layer.present.insert(*block);
                    zeroed.remove(*block);
                    sums[usize::from(*block)] = *checksum;
                }
            }
        }
        layer.set_zeroed(zeroed);
        for au in 0..CHUNK_AUS {
            if layer.aus[au] != NO_AU && !layer.present.touches_au(au) {
                self.units.quarantine(layer.aus[au], until);
                layer.aus[au] = NO_AU;
                layer.active_mut().unpin(au);
            }
        }
        job.targets.iter().for_each(|target| self.sums.found(job.slot, target.block));
    }

    /// True if a job is writing any of the blocks of a layer at home.
    pub(crate) fn is_being_written(&self, key: LayerKey, blocks: &BlockMap) -> bool {
        let busy = self.layers.get(&key).is_some_and(|layer| layer.is_busy());
        busy && self.jobs.values().any(|job| job.key == key && blocks.iter().any(|block| job.writes(block)))
    }
}
