//! The io_uring engine: tokio-uring on a thread that does nothing else.
//!
//! tokio-uring submits when its thread parks, so the thread must run dry to make progress; therefore nothing else lives on
//! it. One turn takes in all waiting batches, all completions, answers them in one call of the sink, and parks, which
//! submits everything with one io_uring_enter.
//!
//! Operations are driven without tasks: a slot per operation with a waker of its own, and one list of slots that were
//! woken. That costs no allocation per wake-up and polls only what completed.
//!
//! Always true:
//! - at most [`limits::IN_FLIGHT_MAX`] entries are between submission and completion, below the ring's size;
//! - what the kernel may still touch is freed only with its completion in hand: dropped in any other way, it leaks.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue};
use rustix::io::Errno;
use sds_store::io::{DiskDone, DiskRequest};
use tokio::sync::mpsc;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, Runtime, UnsubmittedOneshot};

use crate::discard::{self, Discards};
use crate::engine::{DeathGuard, EngineDevice, Intake, Started};
use crate::entry::{self, Segment};
use crate::inflight::InFlight;
use crate::open::Media;
use crate::transfer::{Checked, Step, Transfer, check};
use crate::{CompletionSink, EngineKind, limits};

/// Batches on their way to the thread. Each holds at least one admitted operation, so pushes fit; nudges need few places.
const INTAKE_BATCHES: usize = limits::IN_FLIGHT_MAX + 8;

/// Whether this kernel lets this process use io_uring, with the operations that the engine needs.
pub(crate) fn probe() -> io::Result<()> {
    let ring = io_uring::IoUring::new(8)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring is too old"))
    }
}

pub(crate) fn start(media: Arc<Media>, hang_limit: Duration, sink: CompletionSink) -> io::Result<EngineDevice> {
    EngineDevice::start(media, EngineKind::Uring, hang_limit, sink, |media, inflight| {
        let (discards, discarder) = discard::start(media.clone(), inflight.clone())?;
        let (sender, receiver) = mpsc::channel(INTAKE_BATCHES);
        let (report, reported) = std::sync::mpsc::sync_channel(1);
        let intake = Arc::new(UringIntake { batches: sender, inflight: inflight.clone() });
        let thread = std::thread::Builder::new().name("disk-uring".into()).spawn(move || {
            let _guard = DeathGuard(inflight.clone());
            let runtime = match runtime() {
                Ok(runtime) => runtime,
                Err(error) => return drop(report.send(Err(error))),
            };
            if report.send(Ok(())).is_err() {
                return;
            }
            let mut engine = Engine::new(media, inflight, discards, receiver);
            runtime.block_on(poll_fn(|context| engine.turn(context)));
        })?;
        reported.recv().unwrap_or_else(|_| Err(io::Error::other("the io_uring thread died at start")))?;
        Ok(Started { intake, threads: discarder.into_iter().chain([thread]).collect() })
    })
}

/// A ring with completions run on our own terms where the kernel knows how (6.0), else a plain one.
fn runtime() -> io::Result<Runtime> {
    let mut modern = tokio_uring::uring_builder();
    modern.setup_cqsize(limits::RING_ENTRIES * 2).setup_submit_all().setup_coop_taskrun().setup_single_issuer();
    let mut plain = tokio_uring::uring_builder();
    plain.setup_cqsize(limits::RING_ENTRIES * 2);
    let build = |ring| Runtime::new(tokio_uring::builder().entries(limits::RING_ENTRIES).uring_builder(ring));
    match build(&modern) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => build(&plain),
        built => built,
    }
}

struct UringIntake {
    batches: mpsc::Sender<Vec<DiskRequest>>,
    inflight: Arc<InFlight>,
}

impl Intake for UringIntake {
    fn push(&self, batch: Vec<DiskRequest>) {
        if let Err(error) = self.batches.try_send(batch) {
            // There is a place for every operation in flight, so the thread is dead; its guard may have run before these
            // were admitted.
            tracing::error!(%error, "the io_uring thread takes nothing more");
            self.inflight.fail(sds_store::io::DiskError::Gone);
        }
    }

    fn nudge(&self) {
        // A full channel means that the thread has much to look at already; a closed one that it ended.
        let _ = self.batches.try_send(Vec::new());
    }
}

struct Engine {
    media: Arc<Media>,
    inflight: Arc<InFlight>,
    discards: Discards,
    intake: mpsc::Receiver<Vec<DiskRequest>>,
    /// Batches taken in during this turn.
    taken: Vec<Vec<DiskRequest>>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    woken: Arc<Woken>,
    /// Slots woken before this turn.
    ready: Vec<usize>,
    /// Answers of this turn.
    finished: Vec<DiskDone>,
}

struct Slot {
    waker: Waker,
    operation: Option<InFlightOneshot<Held, HandBack>>,
}

impl Engine {
    fn new(
        media: Arc<Media>,
        inflight: Arc<InFlight>,
        discards: Discards,
        intake: mpsc::Receiver<Vec<DiskRequest>>,
    ) -> Self {
        Self {
            media,
            inflight,
            discards,
            intake,
            taken: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            woken: Arc::default(),
            ready: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// One turn: completions, intake, answers. Ready when the device was stopped and nothing is in the kernel.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.woken.take(context.waker(), &mut self.ready);
        while let Some(index) = self.ready.pop() {
            self.poll_slot(index);
        }
        let open = self.take_in(context);
        if !self.finished.is_empty() {
            self.inflight.complete(std::mem::take(&mut self.finished));
        }
        let idle = self.free.len() == self.slots.len();
        if idle && (!open || self.inflight.is_stopped()) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Starts everything that waits. False once nothing more can come.
    fn take_in(&mut self, context: &mut Context<'_>) -> bool {
        loop {
            match self.intake.poll_recv_many(context, &mut self.taken, INTAKE_BATCHES) {
                Poll::Pending => return true,
                Poll::Ready(0) => return false,
                Poll::Ready(_) => {
                    for request in std::mem::take(&mut self.taken).into_iter().flatten() {
                        self.begin(request);
                    }
                }
            }
        }
    }

    fn begin(&mut self, request: DiskRequest) {
        match check(&self.media, request) {
            Checked::Transfer(transfer) => {
                let index = self.free_slot();
                self.launch(index, transfer);
            }
            Checked::Discard(id, offset, length) => self.finished.extend(self.discards.push(id, offset, length)),
            Checked::Done(done) => self.finished.push(done),
        }
    }

    fn free_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            let index = self.slots.len();
            assert!(index < limits::IN_FLIGHT_MAX, "the table admits no more than the ring has room for");
            let waker = Waker::from(Arc::new(SlotWaker { index, woken: self.woken.clone() }));
            self.slots.push(Slot { waker, operation: None });
            index
        })
    }

    /// Queues the transfer on the ring; the kernel sees it when the thread parks.
    fn launch(&mut self, index: usize, transfer: Box<Transfer>) {
        let (held, entry) = prepare(&self.media, transfer);
        self.slots[index].operation = Some(UnsubmittedOneshot::new(held, HandBack, entry).submit());
        // Polled once to leave the slot's waker.
        self.poll_slot(index);
    }

    fn poll_slot(&mut self, index: usize) {
        let Slot { waker, operation } = &mut self.slots[index];
        let Some(running) = operation else { return };
        let Poll::Ready((transfer, result)) = Pin::new(running).poll(&mut Context::from_waker(waker)) else { return };
        *operation = None;
        match transfer.advance(&self.media, result) {
            // At most RETRIES_MAX deep, and only if the kernel answers before the thread parks.
            Step::Again(rest) => self.launch(index, rest),
            Step::Done(done) => {
                self.free.push(index);
                self.finished.push(done);
            }
        }
    }
}

/// Which slots have completed since the last turn.
#[derive(Default)]
struct Woken {
    state: Mutex<WokenState>,
}

#[derive(Default)]
struct WokenState {
    slots: Vec<usize>,
    turn: Option<Waker>,
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, WokenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the woken slots out and asks for a turn when the next one wakes.
    fn take(&self, turn: &Waker, slots: &mut Vec<usize>) {
        let mut state = self.lock();
        slots.append(&mut state.slots);
        state.turn = Some(turn.clone());
    }
}

struct SlotWaker {
    index: usize,
    woken: Arc<Woken>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.woken.lock();
        state.slots.push(self.index);
        let turn = state.turn.take();
        drop(state);
        if let Some(turn) = turn {
            turn.wake();
        }
    }
}

/// What the kernel reads or writes while an operation is in flight. Never freed by dropping: tokio-uring drops it when a
/// ring is torn down, and the kernel may not be done with it. [`HandBack`] takes it out, with the completion in hand.
struct Held {
    transfer: ManuallyDrop<Box<Transfer>>,
    segments: ManuallyDrop<Vec<Segment>>,
}

struct HandBack;

impl OneshotOutputTransform for HandBack {
    type Output = (Box<Transfer>, Result<usize, Errno>);
    type StoredData = Held;

    fn transform_oneshot_output(self, held: Held, completion: cqueue::Entry) -> Self::Output {
        drop(ManuallyDrop::into_inner(held.segments));
        (ManuallyDrop::into_inner(held.transfer), entry::result_of(&completion))
    }
}

fn prepare(media: &Media, mut transfer: Box<Transfer>) -> (Held, squeue::Entry) {
    let mut segments = Vec::new();
    let entry = entry::of(media, &mut transfer, &mut segments);
    (Held { transfer: ManuallyDrop::new(transfer), segments: ManuallyDrop::new(segments) }, entry)
}
