//! The io_uring engine with a ring of its own: one system call per turn submits and waits.
//!
//! The same thread shape as the `uring` engine, without a runtime between it and the kernel: no epoll, no tasks. The intake
//! wakes the thread through an eventfd that the ring itself reads, and only if nobody did since the thread last looked.
//!
//! Always true:
//! - at most [`limits::IN_FLIGHT_MAX`] entries and the eventfd's are between submission and completion, so neither queue
//!   can overflow;
//! - what the kernel may still touch is freed only with its completion in hand: if the thread dies, it leaks.

#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use sds_store::io::{DiskDone, DiskRequest};

use crate::discard::{self, Discards};
use crate::engine::{DeathGuard, EngineDevice, Intake, Started};
use crate::entry::{self, Segment};
use crate::inflight::InFlight;
use crate::open::Media;
use crate::transfer::{Checked, Step, Transfer, check};
use crate::{CompletionSink, EngineKind, limits};

/// Marks the completion of the eventfd's read; slots are numbered from 0.
const WAKE_UP: u64 = u64::MAX;

pub(crate) fn start(media: Arc<Media>, hang_limit: Duration, sink: CompletionSink) -> io::Result<EngineDevice> {
    EngineDevice::start(media, EngineKind::Ring, hang_limit, sink, |media, inflight| {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let intake = Arc::new(RingIntake { arrived: Mutex::default(), event });
        let (discards, discarder) = discard::start(media.clone(), inflight.clone())?;
        let (report, reported) = std::sync::mpsc::sync_channel(1);
        let shared = intake.clone();
        let thread = std::thread::Builder::new().name("disk-ring".into()).spawn(move || {
            let _guard = DeathGuard(inflight.clone());
            // Made here, as a ring with one issuer belongs to the thread that makes it.
            let ring = match ring() {
                Ok(ring) => ring,
                Err(error) => return drop(report.send(Err(error))),
            };
            if report.send(Ok(())).is_err() {
                return;
            }
            Engine::new(ring, media, inflight, discards, shared).run();
        })?;
        reported.recv().unwrap_or_else(|_| Err(io::Error::other("the ring's thread died at start")))?;
        Ok(Started { intake, threads: discarder.into_iter().chain([thread]).collect() })
    })
}

/// A ring whose completions run when the thread asks for them, where the kernel knows how (6.1), else a plain one.
fn ring() -> io::Result<IoUring> {
    let mut modern = IoUring::builder();
    modern.setup_cqsize(limits::RING_ENTRIES * 2).setup_submit_all().setup_single_issuer().setup_defer_taskrun();
    match modern.build(limits::RING_ENTRIES) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            IoUring::builder().setup_cqsize(limits::RING_ENTRIES * 2).build(limits::RING_ENTRIES)
        }
        built => built,
    }
}

struct RingIntake {
    arrived: Mutex<Arrived>,
    event: OwnedFd,
}

#[derive(Default)]
struct Arrived {
    /// Bounded by the table: at most [`limits::IN_FLIGHT_MAX`].
    waiting: Vec<DiskRequest>,
    /// The thread looked since the last wake-up, so the next arrival must wake it.
    looked: bool,
}

impl RingIntake {
    /// Moves out what waits; from now on an arrival wakes the thread.
    fn look(&self, taken: &mut Vec<DiskRequest>) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        taken.append(&mut arrived.waiting);
        arrived.looked = true;
    }

    #[allow(clippy::host_endian_bytes)] // the kernel of this host reads it
    fn wake(&self) {
        // It cannot fail or block: the counter would have to reach 2^64.
        let written = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        debug_assert_eq!(written, Ok(8));
    }
}

impl Intake for RingIntake {
    fn push(&self, mut batch: Vec<DiskRequest>) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.waiting.append(&mut batch);
        let wake = std::mem::take(&mut arrived.looked);
        drop(arrived);
        if wake {
            self.wake();
        }
    }

    fn nudge(&self) {
        self.wake();
    }
}

struct Engine {
    ring: ManuallyDrop<IoUring>,
    media: Arc<Media>,
    inflight: Arc<InFlight>,
    discards: Discards,
    intake: Arc<RingIntake>,
    taken: Vec<DiskRequest>,
    /// Never dropped with an operation inside.
    slots: ManuallyDrop<Vec<Slot>>,
    free: Vec<usize>,
    /// Completions of this turn.
    completed: Vec<(usize, Result<usize, Errno>)>,
    finished: Vec<DiskDone>,
    /// Where the eventfd's counter is read to.
    counter: ManuallyDrop<Box<[u8; 8]>>,
    counter_armed: bool,
}

#[derive(Default)]
struct Slot {
    transfer: Option<Box<Transfer>>,
    segments: Vec<Segment>,
}

impl Engine {
    fn new(
        ring: IoUring,
        media: Arc<Media>,
        inflight: Arc<InFlight>,
        discards: Discards,
        intake: Arc<RingIntake>,
    ) -> Self {
        Self {
            ring: ManuallyDrop::new(ring),
            media,
            inflight,
            discards,
            intake,
            taken: Vec::new(),
            slots: ManuallyDrop::default(),
            free: Vec::new(),
            completed: Vec::new(),
            finished: Vec::new(),
            counter: ManuallyDrop::default(),
            counter_armed: false,
        }
    }

    fn run(mut self) {
        loop {
            self.intake.look(&mut self.taken);
            for request in std::mem::take(&mut self.taken) {
                self.begin(request);
            }
            if !self.finished.is_empty() {
                self.inflight.complete(std::mem::take(&mut self.finished));
            }
            let idle = self.free.len() == self.slots.len();
            if idle && self.inflight.is_stopped() {
                break;
            }
            self.submit_and_wait();
            self.reap();
        }
        // Nothing of ours is in the kernel but the read of the eventfd, into a counter that stays allocated: eight bytes.
        drop(ManuallyDrop::into_inner(self.slots));
        drop(ManuallyDrop::into_inner(self.ring));
    }

    fn begin(&mut self, request: DiskRequest) {
        match check(&self.media, request) {
            Checked::Transfer(transfer) => {
                let index = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(Slot::default());
                    self.slots.len() - 1
                });
                assert!(index < limits::IN_FLIGHT_MAX, "the table admits no more than the ring has room for");
                self.launch(index, transfer);
            }
            Checked::Discard(id, offset, length) => self.finished.extend(self.discards.push(id, offset, length)),
            Checked::Done(done) => self.finished.push(done),
        }
    }

    fn launch(&mut self, index: usize, mut transfer: Box<Transfer>) {
        let slot = &mut self.slots[index];
        let entry = entry::of(&self.media, &mut transfer, &mut slot.segments).user_data(index as u64);
        slot.transfer = Some(transfer);
        self.queue(entry);
    }

    fn queue(&mut self, entry: squeue::Entry) {
        // SAFETY: the entry refers to the descriptor, which `media` or `intake` keeps open, and to memory of a slot or of
        // the counter, which stays in place until the completion is in hand, and leaks if it never is.
        let queued = unsafe { self.ring.submission().push(&entry) };
        assert!(queued.is_ok(), "the queue has more entries than operations are admitted");
    }

    fn submit_and_wait(&mut self) {
        if !self.counter_armed {
            let event = types::Fd(self.intake.event.as_raw_fd());
            let read = opcode::Read::new(event, self.counter.as_mut_ptr(), 8).offset(u64::MAX).build();
            self.queue(read.user_data(WAKE_UP));
            self.counter_armed = true;
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            // Interrupted, short of memory, or completions must be reaped first: the next turn tries again.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)) => {}
            Err(error) => panic!("io_uring_enter refuses a ring that it accepted before: {error}"),
        }
    }

    fn reap(&mut self) {
        for completion in self.ring.completion() {
            match completion.user_data() {
                WAKE_UP => self.counter_armed = false,
                slot => self.completed.push((slot as usize, entry::result_of(&completion))),
            }
        }
        for (index, result) in std::mem::take(&mut self.completed) {
            let transfer = self.slots[index].transfer.take().expect("a completion belongs to an operation in flight");
            match transfer.advance(&self.media, result) {
                Step::Again(rest) => self.launch(index, rest),
                Step::Done(done) => {
                    self.free.push(index);
                    self.finished.push(done);
                }
            }
        }
    }
}
