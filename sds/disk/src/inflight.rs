//! The table of operations in flight: the one place where an operation is accepted and where it is answered.
//!
//! Always true: an id enters the table at `admit` and leaves it exactly once, together with its answer to the sink; an
//! answer for an id that is not in the table (late, after a hang) is dropped. The lock is taken once per batch.
//!
//! A disk hangs by the time in which somebody looked. A process that is stopped (a debugger, a paused virtual machine) finds
//! answers that came long ago when it goes on, and nobody has looked at them yet: that time is not the disk's.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest, OpId};

use crate::{CompletionSink, SubmitError, limits};

/// State of a device at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Operations accepted and not answered.
    pub in_flight: usize,
    /// Age of the oldest of them.
    pub oldest: Option<Duration>,
    /// Why the device takes nothing more, if it failed for good.
    pub failed: Option<DiskError>,
}

/// Counters since opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Reads accepted.
    pub reads: u64,
    /// Bytes asked for by reads.
    pub read_bytes: u64,
    /// Writes accepted.
    pub writes: u64,
    /// Bytes handed over by writes.
    pub written_bytes: u64,
    /// Flushes accepted.
    pub flushes: u64,
    /// Discards accepted.
    pub discards: u64,
    /// Operations answered with an error.
    pub errors: u64,
    /// Batches accepted.
    pub submitted_batches: u64,
    /// Calls of the sink. Operations divided by these tell how well wake-ups are shared.
    pub completed_batches: u64,
}

pub(crate) struct InFlight {
    state: Mutex<State>,
    /// Told when the table empties while closing, when the device fails, and when it stops.
    changed: Condvar,
    sink: CompletionSink,
    hang_limit: Duration,
}

struct State {
    operations: BTreeMap<OpId, Pending>,
    statistics: Statistics,
    failed: Option<DiskError>,
    /// Nothing more is admitted.
    closing: bool,
    /// Engines end when they are idle.
    stopped: bool,
    looked_at: Instant,
    /// For how long somebody has looked, since opening.
    watched: Duration,
}

struct Pending {
    since: Instant,
    /// [`State::watched`] at that time.
    watched_since: Duration,
    patience: Duration,
}

/// What the watchdog found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing to worry about.
    Fine,
    /// An operation is older than a watchdog's tick: make sure that it was submitted.
    Slow,
    /// An operation of this age is beyond its limit.
    Hung(OpId, Duration),
    /// No need to watch any longer.
    Over,
}

impl InFlight {
    pub(crate) fn new(sink: CompletionSink, hang_limit: Duration) -> Self {
        let state = State {
            operations: BTreeMap::new(),
            statistics: Statistics::default(),
            failed: None,
            closing: false,
            stopped: false,
            looked_at: Instant::now(),
            watched: Duration::ZERO,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), sink, hang_limit }
    }

    /// The state is consistent between any two statements that could panic, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes responsibility for a whole batch, or for nothing.
    pub(crate) fn admit(&self, batch: &[DiskRequest]) -> Result<(), SubmitError> {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(error) = state.failed {
            return Err(SubmitError::Failed(error));
        }
        if state.closing || state.stopped {
            return Err(SubmitError::Closed);
        }
        let total = state.operations.len() + batch.len();
        if total > limits::IN_FLIGHT_MAX {
            return Err(SubmitError::TooMany(total));
        }
        for (index, request) in batch.iter().enumerate() {
            let patience = match request.op {
                DiskOp::Discard { .. } => self.hang_limit.saturating_mul(limits::DISCARD_PATIENCE),
                _ => self.hang_limit,
            };
            if state.operations.contains_key(&request.id) {
                for admitted in batch.iter().take(index) {
                    state.operations.remove(&admitted.id);
                }
                return Err(SubmitError::Duplicate(request.id));
            }
            let pending = Pending { since: now, watched_since: state.watched, patience };
            state.operations.insert(request.id, pending);
        }
        count(&mut state.statistics, batch);
        Ok(())
    }

    /// Answers what is still in the table; drops what is not.
    pub(crate) fn complete(&self, mut done: Vec<DiskDone>) {
        {
            let mut state = self.lock();
            done.retain(|done| state.operations.remove(&done.id).is_some());
            if done.is_empty() {
                return;
            }
            state.statistics.completed_batches += 1;
            state.statistics.errors += done.iter().filter(|done| done.result.is_err()).count() as u64;
            if state.closing && state.operations.is_empty() {
                self.changed.notify_all();
            }
        }
        (self.sink)(done);
    }

    /// Fails the device for good: everything in flight is answered with `error`, nothing more is admitted (F19). The
    /// kernel may still be at work on the buffers; whoever handed them to it keeps them alive.
    pub(crate) fn fail(&self, error: DiskError) {
        let done: Vec<DiskDone> = {
            let mut state = self.lock();
            state.failed.get_or_insert(error);
            let operations = std::mem::take(&mut state.operations);
            state.statistics.errors += operations.len() as u64;
            state.statistics.completed_batches += u64::from(!operations.is_empty());
            self.changed.notify_all();
            operations.into_keys().map(|id| DiskDone { id, result: Err(error) }).collect()
        };
        if !done.is_empty() {
            (self.sink)(done);
        }
    }

    /// Admits nothing more and waits until everything is answered, or the device failed.
    pub(crate) fn drain(&self) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.closing = true;
        loop {
            match state.failed {
                Some(error) => return Err(error),
                None if state.operations.is_empty() => return Ok(()),
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Engines and watchdog may end.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// True once nothing more will be admitted and the engine may end as soon as it is idle.
    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits one tick of the watchdog (less if something happened) and judges.
    pub(crate) fn watch(&self, tick: Duration) -> Verdict {
        let state = self.lock();
        if over(&state) {
            return Verdict::Over;
        }
        let (mut state, _) = self.changed.wait_timeout(state, tick).unwrap_or_else(PoisonError::into_inner);
        if over(&state) {
            return Verdict::Over;
        }
        state.judge(Instant::now(), tick)
    }

    pub(crate) fn hang_limit(&self) -> Duration {
        self.hang_limit
    }

    pub(crate) fn health(&self) -> Health {
        let now = Instant::now();
        let state = self.lock();
        let since = state.operations.values().map(|pending| pending.since).min();
        Health {
            in_flight: state.operations.len(),
            oldest: since.map(|since| now.saturating_duration_since(since)),
            failed: state.failed,
        }
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.lock().statistics
    }
}

impl State {
    /// `tick`: how often this is asked. Of a longer time between two looks, no more than two ticks count.
    fn judge(&mut self, now: Instant, tick: Duration) -> Verdict {
        self.watched += now.saturating_duration_since(self.looked_at).min(tick.saturating_mul(2));
        self.looked_at = now;
        let watched = self.watched;
        let aged = |pending: &Pending| {
            now.saturating_duration_since(pending.since).min(watched.saturating_sub(pending.watched_since))
        };
        if let Some((id, pending)) = self.operations.iter().find(|(_, pending)| aged(pending) > pending.patience) {
            return Verdict::Hung(*id, aged(pending));
        }
        match self.operations.values().map(aged).max() {
            Some(oldest) if oldest >= tick => Verdict::Slow,
            _ => Verdict::Fine,
        }
    }
}

/// Nothing is left to watch: the device failed, or it was stopped and the last operation was answered. A device dropped
/// without close stays watched while it finishes.
fn over(state: &State) -> bool {
    state.failed.is_some() || (state.stopped && state.operations.is_empty())
}

fn count(statistics: &mut Statistics, batch: &[DiskRequest]) {
    statistics.submitted_batches += 1;
    for request in batch {
        match &request.op {
            DiskOp::Read { length, .. } => {
                statistics.reads += 1;
                statistics.read_bytes += u64::from(*length);
            }
            DiskOp::Write { buffers, .. } => {
                statistics.writes += 1;
                statistics.written_bytes += buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
            }
            DiskOp::Flush => statistics.flushes += 1,
            DiskOp::Discard { .. } => statistics.discards += 1,
        }
    }
}

#[cfg(test)]
mod tests;
