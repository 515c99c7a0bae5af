//! The one order of flushes (I20, trap 34):
//!
//! ```text
//! pages read that are wanted -> home writes done -> flush -> pages, directory, root to homes nobody refers to -> flush -> super blocks 0, 1 -> 2, 3 -> tail
//! ```
//!
//! The image is taken at the start: it speaks of home writes that were complete then, and of nothing later. What is applied
//! meanwhile is in the journal behind the tail that the image carries. Only when all four super blocks are durable is anything
//! reused: journal, homes, quarantined units.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::fetch::Waiter;
use crate::io::{DiskOp, IoClass};
use crate::limits::{CHECKPOINT_IDLE_MS, DIRTY_PAGES_MAX, QUARANTINE_AGE_MS};
use crate::meta::page::RecordParts;
use crate::planted::Bug;
use crate::request::{Answer, Output, Token};
use crate::store::{Owner, Store};
use crate::superblock::{CheckpointRoot, SuperBlock};

/// Page writes in flight.
const WRITES_IN_FLIGHT: usize = 32;
/// Page reads in flight before an image is taken.
const PAGE_READS_IN_FLIGHT: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    FlushHomes,
    WritePages,
    FlushPages,
    SuperFirst,
    SuperSecond,
}

/// A checkpoint on its way.
pub(crate) struct Checkpoint {
    step: Step,
    left: usize,
    writes: VecDeque<(u64, Bytes)>,
    /// Pages that stay in memory until they are durable.
    pages: BTreeSet<u32>,
    super_block: SuperBlock,
    /// Who is answered when it is done.
    pub(crate) tokens: Vec<Token>,
}

impl Store {
    /// True if everything committed is applied and nothing is on its way.
    fn is_drained(&self) -> bool {
        let marked = self.commit_dirty.is_empty() || !self.can_mark();
        let applied = self.ripe.is_empty() && self.jobs.is_empty() && self.jobs_fetching == 0;
        marked && applied && self.batches.is_empty() && !self.journal.is_busy()
    }

    fn wants_checkpoint(&self) -> bool {
        let candidate = self.journal.tail_candidate().lsn;
        let (gain, ring) = (candidate - self.journal.tail(), self.journal.ring_bytes());
        let gained = gain >= ring / 8 || (gain > 0 && gain >= ring / 32 && self.journal.used() > ring / 2);
        let released = self.units_are_short() && 2 * self.units.releasable(candidate) >= self.units.quarantined();
        let since_ms = self.now.ms_since(self.last_checkpoint);
        let frees = self.units.releasable(candidate) > 0;
        let stale = self.is_idle()
            && since_ms >= CHECKPOINT_IDLE_MS
            && (gain >= ring / 32 || self.meta.dirty_pages() > 0 || frees);
        let aged = frees && since_ms >= QUARANTINE_AGE_MS;
        let passes = self.is_passing_damage() && candidate >= self.scrub.rotten_before;
        gained
            || released
            || stale
            || aged
            || passes
            || self.scrub.rewrites
            || self.meta.dirty_pages() >= DIRTY_PAGES_MAX
            || !self.settles.is_empty()
    }

    pub(crate) fn start_checkpoint(&mut self, out: &mut Vec<Output>) {
        // Voids and removals on their way: see `void`.
        if self.checkpoint.is_some() || self.unsettled > 0 || self.pages_wanted > 0 {
            return;
        }
        let drained = self.is_draining() && self.is_drained();
        if !(drained || self.wants_checkpoint()) || self.fetch_dirty_pages(out) {
            return;
        }
        let mut tokens = std::mem::take(&mut self.settles);
        let settled = !tokens.is_empty();
        if drained {
            tokens.append(&mut self.drains);
        }
        if settled {
            (self.super_block.tail_uncertain, self.super_block.suspect) = (false, false);
        }
        let mark = self.journal.tail_candidate();
        self.super_block.sequence += 1;
        self.super_block.scrub_page = self.scrub.page();
        self.scrub.rewrites = false;
        let root = &mut self.super_block.checkpoint;
        (root.tail, root.tail_chain, root.tail_incarnation) = (mark.lsn, mark.chain, mark.incarnation);
        root.durable = self.journal.durable();
        let (mut writes, mut pages) = (VecDeque::new(), BTreeSet::new());
        if self.meta.dirty_pages() > 0 {
            let (layers, sums) = (&self.layers, &self.sums);
            let record = |slot| {
                let layer = layers.at(slot).filter(|layer| layer.recorded)?;
                let known = sums.get(slot).expect("the pages were looked at before");
                Some(RecordParts { layer, sums: known, lost: sums.lost(slot) })
            };
            let image = self.meta.image(&self.super_block.geometry, self.super_block.salt, record);
            let root: &mut CheckpointRoot = &mut self.super_block.checkpoint;
            (root.generation, root.root_home, root.root_crc) = (image.generation, image.root_home, image.root_crc);
            self.counters.pages += image.writes.len() as u64;
            writes.extend(image.writes);
            pages = image.pages;
        }
        let swaps = self.options.has(Bug::SwapCheckpoint);
        let step = if writes.is_empty() || swaps { Step::SuperFirst } else { Step::FlushHomes };
        self.last_checkpoint = self.now;
        self.checkpoint = Some(Checkpoint { step, left: 0, writes, pages, super_block: self.super_block, tokens });
        self.begin_step(out);
    }

    /// Reads what dirty pages lack: their images need the checksums of every record in them. True if it must be waited for.
    fn fetch_dirty_pages(&mut self, out: &mut Vec<Output>) -> bool {
        let missing: Vec<u32> =
            self.meta.dirty().filter(|page| !self.is_page_here(*page)).take(PAGE_READS_IN_FLIGHT).collect();
        for page in &missing {
            self.pages_wanted += 1;
            self.fetch_page(*page, Waiter::Checkpoint, IoClass::Apply, out);
        }
        !missing.is_empty()
    }

    fn begin_step(&mut self, out: &mut Vec<Output>) {
        let checkpoint = self.checkpoint.as_mut().expect("a step belongs to a checkpoint");
        let mut ops = Vec::new();
        match checkpoint.step {
            Step::FlushHomes | Step::FlushPages => ops.push(DiskOp::Flush),
            Step::WritePages => {
                while checkpoint.left + ops.len() < WRITES_IN_FLIGHT
                    && let Some((offset, bytes)) = checkpoint.writes.pop_front()
                {
                    ops.push(DiskOp::Write { offset, buffers: vec![bytes], durable: false });
                }
            }
            Step::SuperFirst | Step::SuperSecond => {
                let bytes = checkpoint.super_block.encode().freeze();
                let first = if checkpoint.step == Step::SuperFirst { 0 } else { 2 };
                for offset in &checkpoint.super_block.geometry.super_offsets[first..first + 2] {
                    ops.push(DiskOp::Write { offset: *offset, buffers: vec![bytes.clone()], durable: true });
                }
            }
        }
        checkpoint.left += ops.len();
        for op in ops {
            self.submit(Owner::Checkpoint, IoClass::Apply, op, out);
        }
    }

    pub(crate) fn checkpoint_step_done(&mut self, out: &mut Vec<Output>) {
        let Some(checkpoint) = self.checkpoint.as_mut() else { return };
        checkpoint.left -= 1;
        if checkpoint.step == Step::WritePages && !checkpoint.writes.is_empty() {
            self.begin_step(out);
            return;
        }
        if checkpoint.left > 0 {
            return;
        }
        let (skips, swaps) = (self.options.has(Bug::SkipFlush), self.options.has(Bug::SwapCheckpoint));
        checkpoint.step = match checkpoint.step {
            Step::SuperSecond if swaps && !checkpoint.writes.is_empty() => Step::WritePages,
            Step::WritePages if skips => Step::SuperFirst,
            Step::FlushHomes => Step::WritePages,
            Step::WritePages if !swaps => Step::FlushPages,
            Step::FlushPages => Step::SuperFirst,
            Step::SuperFirst => Step::SuperSecond,
            Step::WritePages | Step::SuperSecond => {
                self.finish_checkpoint(out);
                return;
            }
        };
        self.begin_step(out);
    }

    fn finish_checkpoint(&mut self, out: &mut Vec<Output>) {
        let checkpoint = self.checkpoint.take().expect("it has just ended");
        self.counters.checkpoints += 1;
        let tail = checkpoint.super_block.checkpoint.tail;
        self.journal.advance_tail(tail);
        self.units.release_before(tail);
        checkpoint.pages.into_iter().for_each(|page| self.sums.unpin(page));
        let done = |token| Output::Done { token, result: Ok(Answer::Done) };
        out.extend(checkpoint.tokens.into_iter().map(done));
    }
}
