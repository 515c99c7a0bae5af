//! The running store: one owner of all state, `step` in, outputs out.
//!
//! Always true: nothing is answered as done before it is durable; nothing is answered at all after the first failed write or
//! flush but with that failure (I22); only committed entries are seen by reads and applied (I10).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mdm_api::epoch::{Nanos, Seq, Term, Version};
use mdm_api::ids::PgId;
use mdm_api::mutants::{self, Mutant};
use sds_api::block::LayerKey;
use sds_api::entry::Entry;

use crate::alloc::Allocator;
use crate::apply::Job;
use crate::checkpoint::Checkpoint;
use crate::control::Control;
use crate::error::StoreError;
use crate::fetch::Waiter;
use crate::install::Install;
use crate::io::{DiskDone, DiskError, DiskOp, DiskRequest, IoClass, OpId};
use crate::journal::{Journal, Purpose};
use crate::layer::Layer;
use crate::layers::Layers;
use crate::limits::{CHECKSUM_CACHE_BYTES, IDLE_MS, LARGE_BLOCKS_MIN, PAYLOAD_CACHE_BYTES, SCRUB_PERIOD_MS};
use crate::meta::Meta;
use crate::pg::Pg;
use crate::planted::Bug;
use crate::read::ReadJob;
use crate::request::{Answer, Counters, Event, Output, Request, Space, Token};
use crate::reread::{Place, Reread};
use crate::scrub::Scrub;
use crate::stage::Batch;
use crate::sums::Sums;
use crate::superblock::SuperBlock;

/// What a store may be told to do differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Payload of entries that wait to be applied that is kept in memory, in bytes; beyond it the journal is read again.
    pub payload_cache_bytes: usize,
    /// Checksums of blocks at home that are kept in memory, in bytes: a KiB for each MiB of data. Others are read again from
    /// the metadata pages when they are wanted. What a checkpoint is about to write comes on top.
    pub checksum_cache_bytes: usize,
    /// Writes of so many blocks and more, if they are whole units, go to fresh units instead of through the journal.
    pub large_blocks_min: u16,
    /// Milliseconds over which a scrub of the whole device is spread; 0: there is none.
    pub scrub_period_ms: u64,
    /// How it is broken.
    #[cfg(feature = "planted")]
    pub bug: Option<Bug>,
}

impl Options {
    /// True if it is broken in this way; never without the feature `planted`.
    #[cfg(feature = "planted")]
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// True if it is broken in this way; never without the feature `planted`.
    #[cfg(not(feature = "planted"))]
    pub(crate) const fn has(&self, _bug: Bug) -> bool {
        false
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            payload_cache_bytes: PAYLOAD_CACHE_BYTES,
            checksum_cache_bytes: CHECKSUM_CACHE_BYTES,
            large_blocks_min: LARGE_BLOCKS_MIN,
            scrub_period_ms: SCRUB_PERIOD_MS,
            #[cfg(feature = "planted")]
            bug: None,
        }
    }
}

/// Who an operation belongs to.
pub(crate) enum Owner {
    /// A frame of the journal.
    Frame(u64),
    /// A read for a request; which of its parts.
    Read(u64, usize),
    /// A read of journal payload for an apply job; which of its parts.
    JobRead(u64, usize),
    /// A home write of an apply job.
    JobWrite(u64),
    /// A data write of a copy.
    Install(u64),
    /// A data write of a large entry.
    Stage(PgId, Version),
    /// A metadata page, for its checksums.
    Sums(u32),
    /// A step of the checkpoint.
    Checkpoint,
    /// A read of the scrub; which of its pieces.
    Scrub(usize),
    /// A block of a read that failed; which of its blocks.
    Reread(u64, usize),
}

impl Owner {
    fn is_job(&self) -> bool {
        matches!(self, Self::JobRead(..) | Self::JobWrite(_))
    }
}

/// What a record in a frame was, for when the frame is durable.
pub(crate) enum Item {
    /// An entry; `again` if it was written before and lies too far back.
    Entry { pg: PgId, version: Version, payload_lsn: u64, payload_bytes: usize, again: bool },
    /// A promise.
    Promise { pg: PgId, term: Term },
    /// A state.
    State { pg: PgId, through: Seq, state: Bytes },
    /// A commit mark.
    Commit { pg: PgId, through: Seq },
    /// Something to carry out once durable, in order.
    Control(Box<Control>),
    /// A void: nothing is left to do, but checkpoints wait for it.
    Void,
}

impl Item {
    /// Of an entry that is journaled for the first time, with its payload.
    pub(crate) fn first(entry: &Entry) -> Self {
        let payload_bytes = entry.payload().len();
        Self::Entry { pg: entry.pg, version: entry.version, payload_lsn: 0, payload_bytes, again: false }
    }
}

/// The store of one device.
pub struct Store {
    pub(crate) super_block: SuperBlock,
    pub(crate) options: Options,
    pub(crate) journal: Journal<Item>,
    pub(crate) pgs: BTreeMap<PgId, Pg>,
    pub(crate) layers: Layers,
    pub(crate) sums: Sums,
    /// Pages that are being read for their checksums, and who waits for them.
    pub(crate) fetching: BTreeMap<u32, Vec<Waiter>>,
    /// Layers that are to be applied and wait for a page.
    pub(crate) jobs_fetching: usize,
    /// Pages that the next checkpoint waits for.
    pub(crate) pages_wanted: usize,
    pub(crate) units: Allocator,
    pub(crate) meta: Meta,
    pub(crate) counters: Counters,
    pub(crate) failed: Option<DiskError>,
    pub(crate) now: Nanos,

    pub(crate) next_op: u64,
    pub(crate) ops: BTreeMap<OpId, (Owner, Option<Place>)>,
    /// Reads that failed.
    pub(crate) rereads: BTreeMap<u64, Reread>,
    pub(crate) next_id: u64,

    /// Payload bytes of unapplied entries in memory.
    pub(crate) resident: usize,
    /// What waits is being sent home, many at a time.
    pub(crate) sweeps: bool,
    /// So many layers at the front of the queue have waited long enough, found at the time beside it.
    pub(crate) aged: usize,
    pub(crate) aged_when: Nanos,
    /// Reads and writes of jobs that are on their way.
    pub(crate) job_operations: usize,
    /// Bytes of memory that the entries in the log take, apart from their data.
    pub(crate) log_bytes: usize,
    /// Bytes of all durable states.
    pub(crate) state_bytes: u64,
    /// Groups whose commit mark is ahead of the journal's.
    pub(crate) commit_dirty: BTreeSet<PgId>,
    /// Layers with committed entries, in the order of commit.
    pub(crate) ripe: VecDeque<LayerKey>,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) reads: BTreeMap<u64, ReadJob>,
    pub(crate) installs: BTreeMap<u64, Install>,
    /// Requests some of whose records wait for large writes.
    pub(crate) batches: BTreeMap<u64, Batch>,
    /// Durable controls waiting for jobs on their layers.
    pub(crate) controls: VecDeque<(u64, Box<Control>)>,
    /// Voids and controls that are not durable or not carried out: no checkpoint begins meanwhile.
    pub(crate) unsettled: u32,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) scrub: Scrub,
    pub(crate) last_checkpoint: Nanos,
    pub(crate) last_append: Nanos,
    /// Layers that wait for states, in all groups.
    pub(crate) parked: usize,
    /// Units of large writes that are not applied.
    pub(crate) staged_units: u64,
    /// Up to here everything was carried forward to free units.
    pub(crate) squeezed_to: u64,
    pub(crate) squeezed_when: Nanos,
    /// On an idle device the tail is to come here, and after how many entries that was decided.
    pub(crate) rests_at: u64,
    pub(crate) rested_after: u64,
    /// More entries are to be carried forward than were read at once: from here on.
    pub(crate) carries_from: Option<(PgId, Seq)>,
    /// Where the head was when old things were last carried forward.
    pub(crate) relocated_at: u64,
    pub(crate) relocated_when: Nanos,
    /// Who waits for everything to be applied and checkpointed.
    pub(crate) drains: Vec<Token>,
    /// Who waits for the verdict to be settled.
    pub(crate) settles: Vec<Token>,
}

impl Store {
    /// Takes an event and does all that it leads to.
    pub fn step(&mut self, now: Nanos, event: Event, out: &mut Vec<Output>) {
        self.now = self.now.max(now);
        match event {
            Event::Request { token, request } => match self.failed {
                Some(_) if matches!(request, Request::Commit { .. }) => {}
                Some(cause) => out.push(Output::Done { token, result: Err(StoreError::Failed(cause)) }),
                None => self.request(token, request, out),
            },
            Event::Disk(done) => self.disk(done, out),
            Event::Tick => {}
        }
        if self.failed.is_none() {
            self.upkeep(out);
        }
    }

    fn request(&mut self, token: Token, request: Request, out: &mut Vec<Output>) {
        let result = match request {
            Request::Append { entries } => self.append(token, entries, out),
            Request::Promise { pg, term } => self.promise(token, pg, term),
            Request::SaveState { pg, through, state } => self.save_state(token, pg, through, state),
            Request::Void { pg, after } => self.void(token, pg, after),
            Request::Commit { pg, through } => {
                self.commit(pg, through);
                Ok(None)
            }
            Request::Read { layer, blocks } => {
                self.read(token, layer, blocks, out);
                Ok(None)
            }
            Request::Status { layer, blocks } => Ok(Some(Answer::Status(self.status(layer, blocks)))),
            Request::ListChunks { pg } => Ok(Some(Answer::Chunks(self.list_chunks(pg)))),
            Request::Capture { layer } => {
                self.capture(token, layer, out);
                Ok(None)
            }
            Request::Install { pg, layer, content } => self.install(token, pg, layer, content, out),
            Request::RemoveLayers { pg, layers } => self.remove_layers(token, pg, layers),
            Request::Repair { layer, block, checksum, data } => self.repair(token, layer, block, checksum, data),
            Request::ReadEntry { pg, seq } => self.read_entry(token, pg, seq, out),
            Request::ForgetPg { pg } => self.forget_pg(token, pg),
            Request::Settle => {
                self.settles.push(token);
                Ok(None)
            }
            Request::Checkpoint => {
                self.drains.push(token);
                Ok(None)
            }
        };
        match result {
            Ok(None) => {}
            Ok(Some(answer)) => out.push(Output::Done { token, result: Ok(answer) }),
            Err(error) => out.push(Output::Done { token, result: Err(error) }),
        }
    }

    fn disk(&mut self, done: DiskDone, out: &mut Vec<Output>) {
        let Some((owner, place)) = self.ops.remove(&done.id) else { return };
        self.job_operations -= usize::from(owner.is_job());
        if self.failed.is_some() {
            return;
        }
        match (place, done.result) {
            (Some(place), Err(DiskError::Io)) => self.read_again(owner, place, out),
            (_, result) => self.disk_done(owner, result, out),
        }
    }

    pub(crate) fn disk_done(&mut self, owner: Owner, result: Result<Bytes, DiskError>, out: &mut Vec<Output>) {
        match (owner, result) {
            (Owner::Reread(id, index), result) => self.block_reread(id, index, result, out),
            (Owner::Read(id, part), result) => self.read_done(id, part, result, out),
            (Owner::JobRead(id, part), result) => self.job_read_done(id, part, result, out),
            (Owner::Sums(page), result) => self.sums_read(page, result, out),
            (Owner::Scrub(piece), result) => self.scrub_read(piece, result, out),
            (Owner::Checkpoint, Err(_)) if mutants::is_on(Mutant::IgnoreFailedFlush) => self.checkpoint_step_done(out),
            // I22: the first write or flush error is the last thing that happens.
            (_, Err(cause)) => self.fail(cause, out),
            (Owner::Frame(lsn), Ok(_)) => self.frame_written(lsn, out),
            (Owner::JobWrite(id), Ok(_)) => self.job_write_done(id),
            (Owner::Install(id), Ok(_)) => self.install_written(id, out),
            (Owner::Stage(pg, version), Ok(_)) => self.stage_written(pg, version),
            (Owner::Checkpoint, Ok(_)) => self.checkpoint_step_done(out),
        }
    }

    fn fail(&mut self, cause: DiskError, out: &mut Vec<Output>) {
        self.failed = Some(cause);
        let mut tokens = self.journal.abandon();
        tokens.extend(self.batches.values().map(|batch| batch.token));
        tokens.extend(self.reads.values().filter_map(ReadJob::token));
        tokens.extend(self.installs.values().map(|install| install.token));
        tokens.extend(self.controls.drain(..).filter_map(|(_, control)| control.token()));
        tokens.append(&mut self.drains);
        tokens.append(&mut self.settles);
        if let Some(checkpoint) = self.checkpoint.take() {
            tokens.extend(checkpoint.tokens);
        }
        self.batches.clear();
        self.reads.clear();
        self.rereads.clear();
        self.installs.clear();
        let failed = |token| Output::Done { token, result: Err(StoreError::Failed(cause)) };
        out.extend(tokens.into_iter().map(failed));
        out.push(Output::Failed { cause });
    }

    /// Everything that follows from the state rather than from an event.
    fn upkeep(&mut self, out: &mut Vec<Output>) {
        self.run_controls(out);
        self.relocate(out);
        self.write_commit_marks();
        self.write_frames(out);
        self.start_jobs(out);
        self.start_checkpoint(out);
        self.scrub(out);
    }

    /// Hands an operation out.
    pub(crate) fn submit(&mut self, owner: Owner, class: IoClass, op: DiskOp, out: &mut Vec<Output>) {
        let id = OpId(self.next_op);
        self.next_op += 1;
        self.job_operations += usize::from(owner.is_job());
        let place = Place::of(&owner, class, &op);
        self.ops.insert(id, (owner, place));
        out.push(Output::Disk(DiskRequest { id, class, op }));
    }

    /// A number for a job, a read, a copy.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Nobody has appended for a while.
    pub(crate) fn is_idle(&self) -> bool {
        self.now.ms_since(self.last_append) >= IDLE_MS
    }

    /// True if somebody waits for everything to be applied.
    pub(crate) fn is_draining(&self) -> bool {
        !self.drains.is_empty()
    }

    /// Room, for credits (I24).
    pub fn space(&self) -> Space {
        Space {
            aus_total: self.units.total(),
            aus_free: self.units.available(),
            aus_quarantined: self.units.quarantined(),
            aus_reserved: self.units.reserved(),
            records_total: self.layers.slot_count(),
            records_free: self.layers.free_slots(),
            journal_total: self.journal.ring_bytes(),
            journal_free: self.journal.room(Purpose::Data),
        }
    }

    /// Counters since open.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The first cause of failure, if the device has failed.
    pub fn failure(&self) -> Option<DiskError> {
        self.failed
    }

    /// What is under way, in words, for a person who asks why nothing moves.
    pub fn describe(&self) -> String {
        format!(
            "ripe {}, jobs {}, controls {}, unsettled {}, journal busy {} head {} durable {} tail {} candidate {}, \
             commit marks {}, checkpoint {}, space {:?}",
            self.ripe.len(),
            self.jobs.len(),
            self.controls.len(),
            self.unsettled,
            self.journal.is_busy(),
            self.journal.head(),
            self.journal.durable(),
            self.journal.tail(),
            self.journal.tail_candidate().lsn,
            self.commit_dirty.len(),
            self.checkpoint.is_some(),
            self.space(),
        ) + &self.describe_tail()
    }

    /// What keeps the journal's tail where it is.
    fn describe_tail(&self) -> String {
        let tail = self.journal.tail_candidate().lsn;
        let mut held = Vec::new();
        for (id, pg) in &self.pgs {
            let kept = [
                ("promise", pg.promise.as_ref().map(|kept| kept.lsn)),
                ("state", pg.state.as_ref().map(|kept| kept.lsn)),
                ("commit mark", pg.commit_durable.as_ref().map(|kept| kept.lsn)),
            ];
            let kept = kept.into_iter().filter(|(_, lsn)| *lsn == Some(tail));
            held.extend(kept.map(|(what, _)| format!("{what} of {id}")));
            let entries = pg.log.iter().filter(|(_, log)| log.lsn == Some(tail));
            held.extend(entries.map(|(seq, log)| {
                let (committed, ripe, through) = (pg.committed, pg.ripe, pg.through());
                let wanted = pg.state_wanted;
                format!(
                    "entry {seq} of {id}, applied {}, committed {committed}, ripe {ripe}, state {through}, \
                     state wanted {wanted}",
                    log.applied
                )
            }));
        }
        format!("; the tail is held by: {}", held.join(", "))
    }

    /// The super block as last written or about to be.
    pub fn super_block(&self) -> &SuperBlock {
        &self.super_block
    }

    /// The layer in memory; made if it is not there. `None` if there is no slot for it.
    pub(crate) fn layer_or_new(&mut self, pg: PgId, key: LayerKey) -> Option<&mut Layer> {
        let slot = match self.layers.get(&key) {
            Some(layer) => layer.slot,
            None => {
                let slot = self.layers.insert(Layer::new(pg, key))?;
                self.join_group(pg, slot);
                slot
            }
        };
        self.layers.at_mut(slot)
    }

    /// Notes a layer in its group's list.
    pub(crate) fn join_group(&mut self, pg: PgId, slot: u32) {
        let members = &mut self.pgs.entry(pg).or_default().layers;
        if let Some(layer) = self.layers.at_mut(slot) {
            layer.member = members.len() as u32;
        }
        members.push(slot);
    }

    /// Lets a layer go that nothing holds any more.
    pub(crate) fn drop_if_unused(&mut self, key: LayerKey) {
        let Some(layer) = self.layers.get_mut(&key) else { return };
        if !layer.is_unused() {
            layer.tidy();
            return;
        }
        let (slot, pg, member) = (layer.slot, layer.pg(), layer.member as usize);
        let reserved = layer.active().map_or(0, |active| active.reserved);
        self.units.unreserve(u64::from(reserved.count_ones()));
        self.layers.remove(slot);
        self.sums.clear(slot);
        // Of a group that was forgotten meanwhile nothing is listed.
        let listed = |pg: &&mut Pg| pg.layers.get(member) == Some(&slot);
        let Some(pg) = self.pgs.get_mut(&pg).filter(listed) else { return };
        pg.layers.swap_remove(member);
        let moved = pg.layers.get(member).copied();
        if let Some(moved) = moved.and_then(|slot| self.layers.at_mut(slot)) {
            moved.member = member as u32;
        }
    }

    /// The keys of a group's layers, ascending.
    pub(crate) fn keys_of(&self, pg: PgId) -> Vec<LayerKey> {
        self.keys_where(pg, |_| true)
    }

    /// The keys of those of a group's layers for which it holds, ascending.
    pub(crate) fn keys_where(&self, pg: PgId, holds: impl Fn(&Layer) -> bool) -> Vec<LayerKey> {
        let slots = self.pgs.get(&pg).map(|pg| pg.layers.as_slice()).unwrap_or_default();
        let layers = slots.iter().filter_map(|slot| self.layers.at(*slot)).filter(|layer| holds(layer));
        let mut keys: Vec<LayerKey> = layers.map(|layer| layer.key).collect();
        keys.sort_unstable();
        keys
    }
}
