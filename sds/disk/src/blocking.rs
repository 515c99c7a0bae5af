//! The engine for where io_uring is refused (containers, hardened kernels): preadv2 and pwritev2 on threads.
//!
//! Always true: an operation that waits here has no thread, one that a thread took is in the kernel. Answers that arrive
//! while another thread is at the sink travel with its next call, so wake-ups are shared under load.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::{Errno, ReadWriteFlags};
use sds_store::io::{DiskDone, DiskRequest};

use crate::discard::{self, Discards};
use crate::engine::{DeathGuard, EngineDevice, Intake, Started};
use crate::inflight::InFlight;
use crate::open::Media;
use crate::transfer::{Checked, Step, Transfer, Work, check, remaining};
use crate::{CompletionSink, EngineKind, limits};

pub(crate) fn start(media: Arc<Media>, hang_limit: Duration, sink: CompletionSink) -> io::Result<EngineDevice> {
    EngineDevice::start(media, EngineKind::Blocking, hang_limit, sink, |media, inflight| {
        let shared = Arc::new(Shared::default());
        let (discards, discarder) = discard::start(media.clone(), inflight.clone())?;
        let mut threads: Vec<_> = discarder.into_iter().collect();
        for _ in 0..limits::BLOCKING_THREADS {
            let worker = Worker {
                media: media.clone(),
                inflight: inflight.clone(),
                shared: shared.clone(),
                discards: discards.clone(),
            };
            match std::thread::Builder::new().name("disk-blocking".into()).spawn(move || worker.run()) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Those that started end; the caller gets no device.
                    inflight.stop();
                    shared.nudge();
                    return Err(error);
                }
            }
        }
        Ok(Started { intake: shared, threads })
    })
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Queue {
    /// Bounded by the table: at most [`limits::IN_FLIGHT_MAX`].
    waiting: VecDeque<DiskRequest>,
    idle_threads: usize,
}

#[derive(Default)]
struct Answers {
    ready: Vec<DiskDone>,
    /// A thread is calling the sink and will come back for more.
    delivering: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Intake for Shared {
    fn push(&self, batch: Vec<DiskRequest>) {
        let mut queue = lock(&self.queue);
        let wake = batch.len().min(queue.idle_threads);
        queue.waiting.extend(batch);
        drop(queue);
        for _ in 0..wake {
            self.arrived.notify_one();
        }
    }

    fn nudge(&self) {
        // Under the lock, so that no thread is between looking and waiting.
        let _queue = lock(&self.queue);
        self.arrived.notify_all();
    }
}

struct Worker {
    media: Arc<Media>,
    inflight: Arc<InFlight>,
    shared: Arc<Shared>,
    discards: Discards,
}

impl Worker {
    fn run(self) {
        let _guard = DeathGuard(self.inflight.clone());
        while let Some(request) = self.next() {
            if let Some(done) = self.carry_out(request) {
                self.answer(done);
            }
        }
    }

    /// The next request; `None` when the device was stopped and nothing waits.
    fn next(&self) -> Option<DiskRequest> {
        let mut queue = lock(&self.shared.queue);
        loop {
            if let Some(request) = queue.waiting.pop_front() {
                return Some(request);
            }
            if self.inflight.is_stopped() {
                return None;
            }
            queue.idle_threads += 1;
            queue = self.shared.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle_threads -= 1;
        }
    }

    fn carry_out(&self, request: DiskRequest) -> Option<DiskDone> {
        let mut transfer = match check(&self.media, request) {
            Checked::Transfer(transfer) => transfer,
            Checked::Discard(id, offset, length) => return self.discards.push(id, offset, length),
            Checked::Done(done) => return Some(done),
        };
        loop {
            let result = system_call(&self.media, &mut transfer);
            match transfer.advance(&self.media, result) {
                Step::Again(rest) => transfer = rest,
                Step::Done(done) => return Some(done),
            }
        }
    }

    fn answer(&self, done: DiskDone) {
        let mut answers = lock(&self.shared.answers);
        answers.ready.push(done);
        if answers.delivering {
            return;
        }
        answers.delivering = true;
        while !answers.ready.is_empty() {
            let batch = std::mem::take(&mut answers.ready);
            drop(answers);
            self.inflight.complete(batch);
            answers = lock(&self.shared.answers);
        }
        answers.delivering = false;
    }
}

fn system_call(media: &Media, transfer: &mut Transfer) -> Result<usize, Errno> {
    match &mut transfer.work {
        Work::Read { offset, buffer, done } => {
            let at = *offset + *done as u64;
            let mut rest = [IoSliceMut::new(&mut buffer[*done..])];
            rustix::io::preadv2(&media.fd, &mut rest, at, ReadWriteFlags::empty())
        }
        Work::Write { offset, buffers, first, skip, durable } => {
            let slices: Vec<IoSlice<'_>> = remaining(buffers, *first, *skip).map(IoSlice::new).collect();
            let flags = if *durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
            rustix::io::pwritev2(&media.fd, &slices, *offset, flags)
        }
        Work::Flush => rustix::fs::fdatasync(&media.fd).map(|()| 0),
    }
}
