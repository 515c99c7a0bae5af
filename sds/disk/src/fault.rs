//! A device that breaks on demand, for tests: errors, delays, hangs, and a write cache that a power cut loses.
//!
//! It wraps a real device and serves one operation at a time. It has its own table and watchdog, so that a hang injected
//! here is found by the same code as a real one.
//!
//! With a volatile cache, writes without `durable` stay in memory until a flush, and [`Faults::power_cut`] leaves any
//! subset of them on the medium, torn at 512 bytes. Of several unflushed writes to one sector only the last can survive.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sds_api::buf::AlignedBuf;
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest, IoClass, OpId};

use crate::engine::{DeathGuard, Intake};
use crate::inflight::InFlight;
use crate::{CompletionSink, Device, EngineKind, Geometry, Health, Statistics, SubmitError, watchdog};

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;

/// Wraps the device that `open_inner` opens with the sink it is given.
///
/// # Errors
/// What `open_inner` says, and threads that cannot be started.
pub fn wrap<E: From<io::Error>>(
    volatile_cache: bool,
    hang_limit: Duration,
    sink: CompletionSink,
    open_inner: impl FnOnce(CompletionSink) -> Result<Arc<dyn Device>, E>,
) -> Result<(Arc<dyn Device>, Faults), E> {
    let (sender, answers) = sync_channel::<DiskDone>(1);
    let device = open_inner(Arc::new(move |done| {
        for done in done {
            // One operation at a time is under way, so there is room; without a receiver nobody waits for it.
            let _ = sender.try_send(done);
        }
    }))?;
    let geometry = *device.geometry();
    let shared = Arc::new(Shared::default());
    let inflight = Arc::new(InFlight::new(sink, hang_limit));
    let worker = Worker {
        inner: Inner { device, answers, next: 0 },
        shared: shared.clone(),
        inflight: inflight.clone(),
        volatile_cache,
        cache: BTreeMap::new(),
        held: Vec::new(),
    };
    let mut device =
        FaultDevice { geometry, inflight: inflight.clone(), shared: shared.clone(), threads: Mutex::default() };
    let worker = std::thread::Builder::new().name("disk-fault".into()).spawn(move || worker.run())?;
    let watchdog = watchdog::start("fault", inflight, shared.clone())?;
    device.threads = Mutex::new(vec![worker, watchdog]);
    Ok((Arc::new(device), Faults { shared }))
}

/// The switches of a wrapped device.
#[derive(Clone)]
pub struct Faults {
    shared: Arc<Shared>,
}

impl Faults {
    /// The next `count` operations that `matches` fail with `error`, without being carried out.
    pub fn fail(&self, count: usize, error: DiskError, matches: impl Fn(&DiskOp) -> bool + Send + 'static) {
        self.add(count, Effect::Fail(error), Box::new(matches));
    }

    /// The next `count` operations that `matches` are held until [`Faults::release`].
    pub fn hang(&self, count: usize, matches: impl Fn(&DiskOp) -> bool + Send + 'static) {
        self.add(count, Effect::Hang, Box::new(matches));
    }

    /// Carries out what was held.
    pub fn release(&self) {
        self.shared.lock().release = true;
        self.shared.changed.notify_all();
    }

    /// Operations submitted from now on are carried out this much later.
    pub fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Cuts the power: any subset of what was unflushed or under way, chosen by `seed`, reaches the medium; the inner
    /// device is closed, so that its medium can be opened again; this one answers everything with `Gone`. Returns when all
    /// that is done.
    pub fn power_cut(&self, seed: u64) {
        let mut state = self.shared.lock();
        state.power = Power::CutWith(seed);
        self.shared.changed.notify_all();
        while !matches!(state.power, Power::Off) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn add(&self, left: usize, effect: Effect, matches: Box<dyn Fn(&DiskOp) -> bool + Send>) {
        self.shared.lock().rules.push(Rule { left, effect, matches });
    }
}

struct Rule {
    left: usize,
    effect: Effect,
    matches: Box<dyn Fn(&DiskOp) -> bool + Send>,
}

#[derive(Clone, Copy)]
enum Effect {
    Fail(DiskError),
    Hang,
}

#[derive(Default)]
enum Power {
    #[default]
    On,
    CutWith(u64),
    Off,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Instant, DiskRequest)>,
    rules: Vec<Rule>,
    delay: Duration,
    release: bool,
    power: Power,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intake for Shared {
    fn push(&self, batch: Vec<DiskRequest>) {
        let mut state = self.lock();
        let due = Instant::now() + state.delay;
        state.waiting.extend(batch.into_iter().map(|request| (due, request)));
        self.changed.notify_all();
    }

    fn nudge(&self) {
        let _state = self.lock();
        self.changed.notify_all();
    }
}

struct FaultDevice {
    geometry: Geometry,
    inflight: Arc<InFlight>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Device for FaultDevice {
    fn submit(&self, batch: Vec<DiskRequest>) -> Result<(), SubmitError> {
        self.inflight.admit(&batch)?;
        self.shared.push(batch);
        Ok(())
    }

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn engine(&self) -> EngineKind {
        EngineKind::Fault
    }

    fn health(&self) -> Health {
        self.inflight.health()
    }

    fn statistics(&self) -> Statistics {
        self.inflight.statistics()
    }

    fn close(&self) -> Result<(), DiskError> {
        let drained = self.inflight.drain();
        self.inflight.stop();
        self.shared.nudge();
        // Held operations are let go by the stop, so the threads end even after a hang.
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            if thread.join().is_err() {
                tracing::error!("a thread of the fault device panicked");
            }
        }
        drained
    }
}

impl Drop for FaultDevice {
    fn drop(&mut self) {
        self.inflight.stop();
        self.shared.nudge();
    }
}

/// The wrapped device, one operation at a time.
struct Inner {
    device: Arc<dyn Device>,
    answers: Receiver<DiskDone>,
    next: u64,
}

impl Inner {
    fn call(&mut self, op: DiskOp) -> Result<Bytes, DiskError> {
        let id = OpId(self.next);
        self.next += 1;
        let request = DiskRequest { id, class: IoClass::Foreground, op };
        self.device.submit(vec![request]).map_err(|_| DiskError::Gone)?;
        self.answers.recv().map_err(|_| DiskError::Gone)?.result
    }
}

struct Worker {
    inner: Inner,
    shared: Arc<Shared>,
    inflight: Arc<InFlight>,
    volatile_cache: bool,
    /// Unflushed sectors, by sector number.
    cache: BTreeMap<u64, Bytes>,
    held: Vec<DiskRequest>,
}

enum Turn {
    Serve(DiskRequest),
    Release,
    PowerCut(u64, Vec<DiskRequest>),
    Stop,
}

impl Worker {
    fn run(mut self) {
        let _guard = DeathGuard(self.inflight.clone());
        loop {
            match self.next() {
                Turn::Serve(request) => self.judge(request),
                Turn::Release => {
                    for request in std::mem::take(&mut self.held) {
                        self.serve(request);
                    }
                }
                Turn::PowerCut(seed, waiting) => {
                    self.lose_power(seed, waiting);
                    break;
                }
                Turn::Stop => {
                    // An orderly end loses nothing.
                    if let Err(error) = self.serve_cached(DiskOp::Flush) {
                        tracing::warn!(%error, "the volatile cache was not written back");
                    }
                    break;
                }
            }
        }
        if let Err(error) = self.inner.device.close() {
            tracing::warn!(%error, "the wrapped device did not close");
        }
        self.shared.lock().power = Power::Off;
        self.shared.changed.notify_all();
    }

    fn next(&self) -> Turn {
        let mut state = self.shared.lock();
        loop {
            if let Power::CutWith(seed) = state.power {
                return Turn::PowerCut(seed, state.waiting.drain(..).map(|(_, request)| request).collect());
            }
            if std::mem::take(&mut state.release) {
                return Turn::Release;
            }
            let now = Instant::now();
            let due = state.waiting.front().map(|(due, _)| *due);
            state = match due {
                Some(due) if due <= now => {
                    let (_, request) = state.waiting.pop_front().expect("it was just seen");
                    return Turn::Serve(request);
                }
                Some(due) => {
                    let waited = self.shared.changed.wait_timeout(state, due - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None if self.inflight.is_stopped() => return Turn::Stop,
                None => self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Applies the first rule that matches.
    fn judge(&mut self, request: DiskRequest) {
        let effect = {
            let mut state = self.shared.lock();
            let rule = state.rules.iter_mut().find(|rule| rule.left > 0 && (rule.matches)(&request.op));
            let effect = rule.map(|rule| {
                rule.left -= 1;
                rule.effect
            });
            state.rules.retain(|rule| rule.left > 0);
            effect
        };
        match effect {
            None => self.serve(request),
            Some(Effect::Hang) => self.held.push(request),
            Some(Effect::Fail(error)) => self.inflight.complete(vec![DiskDone { id: request.id, result: Err(error) }]),
        }
    }

    fn serve(&mut self, request: DiskRequest) {
        let result = match request.op {
            op if !self.volatile_cache => self.inner.call(op),
            op => self.serve_cached(op),
        };
        self.inflight.complete(vec![DiskDone { id: request.id, result }]);
    }

    fn serve_cached(&mut self, op: DiskOp) -> Result<Bytes, DiskError> {
        match op {
            DiskOp::Read { offset, .. } => {
                let mut bytes = AlignedBuf::copy_of(&self.inner.call(op)?);
                let sectors = offset / SECTOR..(offset + bytes.len() as u64) / SECTOR;
                for (sector, cached) in self.cache.range(sectors) {
                    let at = (sector * SECTOR - offset) as usize;
                    bytes[at..at + cached.len()].copy_from_slice(cached);
                }
                Ok(bytes.freeze())
            }
            DiskOp::Write { offset, buffers, durable: false } => {
                let bytes = joined(&buffers);
                let size = self.inner.device.geometry().size;
                let block = u64::from(self.inner.device.geometry().logical_block);
                let length = bytes.len() as u64;
                let whole = length > 0 && offset.is_multiple_of(block) && length.is_multiple_of(block);
                if !whole || offset.checked_add(length).is_none_or(|end| end > size) {
                    return Err(DiskError::Io);
                }
                self.cache.extend(sectors(offset, &bytes));
                Ok(Bytes::new())
            }
            DiskOp::Write { offset, ref buffers, durable: true } => {
                let length: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
                self.inner.call(op)?;
                self.forget(offset, length);
                Ok(Bytes::new())
            }
            DiskOp::Flush => {
                for (sector, bytes) in std::mem::take(&mut self.cache).into_iter().fold(Vec::new(), join_runs) {
                    let write =
                        DiskOp::Write { offset: sector * SECTOR, buffers: vec![bytes.freeze()], durable: false };
                    self.inner.call(write)?;
                }
                self.inner.call(DiskOp::Flush)
            }
            DiskOp::Discard { offset, length } => {
                self.inner.call(op)?;
                self.forget(offset, length);
                Ok(Bytes::new())
            }
        }
    }

    fn forget(&mut self, offset: u64, length: u64) {
        let sectors = offset / SECTOR..(offset + length) / SECTOR;
        self.cache.retain(|sector, _| !sectors.contains(sector));
    }

    /// Each sector that was unflushed or under way survives or not.
    fn lose_power(&mut self, seed: u64, waiting: Vec<DiskRequest>) {
        let mut candidates = std::mem::take(&mut self.cache);
        for request in std::mem::take(&mut self.held).into_iter().chain(waiting) {
            if let DiskOp::Write { offset, buffers, .. } = request.op {
                candidates.extend(sectors(offset, &joined(&buffers)));
            }
        }
        let mut coin = seed;
        let mut blocks: BTreeMap<u64, Vec<(usize, Bytes)>> = BTreeMap::new();
        for (sector, bytes) in candidates {
            if next_random(&mut coin) & 1 == 1 {
                let at = sector * SECTOR;
                blocks.entry(at / BLOCK).or_default().push(((at % BLOCK) as usize, bytes));
            }
        }
        for (block, survivors) in blocks {
            let landed = self.patch(block * BLOCK, &survivors);
            if let Err(error) = landed {
                tracing::warn!(%error, block, "a block of the power cut could not be written");
            }
        }
        self.inflight.fail(DiskError::Gone);
    }

    fn patch(&mut self, offset: u64, survivors: &[(usize, Bytes)]) -> Result<Bytes, DiskError> {
        let mut block = AlignedBuf::copy_of(&self.inner.call(DiskOp::Read { offset, length: BLOCK as u32 })?);
        for (at, bytes) in survivors {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        self.inner.call(DiskOp::Write { offset, buffers: vec![block.freeze()], durable: true })
    }
}

fn joined(buffers: &[Bytes]) -> Bytes {
    let mut bytes = BytesMut::new();
    for buffer in buffers {
        bytes.extend_from_slice(buffer);
    }
    bytes.freeze()
}

fn sectors(offset: u64, bytes: &Bytes) -> impl Iterator<Item = (u64, Bytes)> {
    let pieces = bytes.len() / SECTOR as usize;
    (0..pieces).map(move |index| {
        let at = index * SECTOR as usize;
        (offset / SECTOR + index as u64, bytes.slice(at..at + SECTOR as usize))
    })
}

/// Neighbouring sectors become one write, of at most 1 MiB.
fn join_runs(mut runs: Vec<(u64, BytesMut)>, (sector, bytes): (u64, Bytes)) -> Vec<(u64, BytesMut)> {
    match runs.last_mut() {
        Some((first, run)) if *first + run.len() as u64 / SECTOR == sector && run.len() < 1 << 20 => {
            run.extend_from_slice(&bytes);
        }
        _ => runs.push((sector, BytesMut::from(&bytes[..]))),
    }
    runs
}

/// SplitMix64: a full-period sequence from any seed.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
