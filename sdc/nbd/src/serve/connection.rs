//! One connection after its handshake.
//!
//! One task reads: header, admission, payload, hand-over. Workers carry out requests side by side and write their
//! replies, in whatever order they end. Workers are started when there is nobody idle and live as long as the
//! connection, so that a request in the steady state starts no task.
//!
//! Back-pressure: a request is admitted when the connection's budget and the common budget have room for it; until then
//! the socket is not read. What is admitted holds its share until its reply is written. A client that does not read
//! its replies therefore soon finds that its requests are not read either, and is dropped when it stalls.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sds_api::buf::AlignedBuf;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use super::check::{Context, check, payload_bytes};
use super::reply::Reply;
use super::{ConnectionError, Phase};
use crate::export::{Export, ExportError, Extent, Piece, Zeroing};
use crate::limits::{
    GUARANTEED_REQUEST, Limits, MAX_DISCARDED_PAYLOAD, MAX_EXTENTS, REQUEST_OVERHEAD, STALL_BYTES, VANISHED_GRACE,
};
use crate::negotiate::Agreed;
use crate::source::Source;
use crate::wire::option::BASE_ALLOCATION_ID;
use crate::wire::{
    Command, Headers, Request, block_status_reply, command_flags, errno, error_number, error_reply, success_reply,
};

pub(super) struct Connection<E, W> {
    export: Arc<E>,
    headers: Headers,
    allocation: bool,
    writer: Mutex<W>,
    budget: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    request_limit: u32,
    stall: Duration,
    /// A reply could not be written: the reader must stop.
    broken: Notify,
}

/// An admitted request.
struct Job {
    command: Command,
    request: Request,
    payload: Bytes,
    _admission: Admission,
}

/// What a request holds until its reply is written.
struct Admission {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
    _budget: Option<OwnedSemaphorePermit>,
}

/// What a worker uses again and again.
#[derive(Default)]
struct Scratch {
    reply: Reply,
    pieces: Vec<Piece>,
    extents: Vec<Extent>,
}

enum Step {
    Next,
    /// The client, or the server, ends in good order: whoever is left reads its answers.
    Last,
    /// Nobody is there any more.
    Vanished,
}

impl<E: Export, W: AsyncWrite + Unpin + Send + 'static> Connection<E, W> {
    pub(super) fn new(agreed: Agreed<E>, writer: W, budget: Arc<Semaphore>, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            export: agreed.export,
            headers: agreed.headers,
            allocation: agreed.allocation,
            writer: Mutex::new(writer),
            budget,
            bytes: Arc::new(Semaphore::new(limits.bytes_per_connection as usize)),
            requests: Arc::new(Semaphore::new(limits.requests_per_connection as usize)),
            request_limit: limits.requests_per_connection,
            stall: limits.stall,
            broken: Notify::new(),
        })
    }

    /// Reads requests to the end, then waits for those in flight.
    pub(super) async fn run<R: AsyncRead + Unpin>(
        self: Arc<Self>,
        mut source: Source<R>,
        phase: &mut watch::Receiver<Phase>,
    ) -> Result<(), ConnectionError> {
        // As many places as requests: handing over never waits.
        let (sender, receiver) = mpsc::channel(self.request_limit as usize);
        let mut pool = Pool { sender, receiver: Arc::new(Mutex::new(receiver)), workers: Vec::new() };
        let refusing = phase.clone();
        let outcome = loop {
            let step = tokio::select! {
                biased;
                () = self.broken.notified() => Err(ConnectionError::Broken),
                _ = phase.wait_for(|phase| *phase == Phase::Drain) => Ok(Step::Last),
                step = self.step(&mut source, &mut pool, &refusing) => step,
            };
            match step {
                Ok(Step::Next) => {}
                Ok(last) => break Ok(last),
                Err(error) => break Err(error),
            }
        };
        let workers = std::mem::take(&mut pool.workers);
        drop(pool);
        self.settle(workers, matches!(outcome, Ok(Step::Last))).await;
        if outcome.is_ok() {
            // Everything is answered; a failing good-bye harms nobody.
            let _ = self.writer.lock().await.shutdown().await;
        }
        outcome.map(drop)
    }

    /// Waits for the requests in flight. Where nobody reads the answers, what takes long is dropped: a client that was cut
    /// off sends it again over its next connection, and the copies of a volume that cannot answer must not pile up here.
    async fn settle(&self, workers: Vec<AbortHandle>, awaited: bool) {
        let all = self.requests.acquire_many(self.request_limit);
        if awaited {
            drop(all.await.expect("the semaphore is never closed"));
        } else if tokio::time::timeout(VANISHED_GRACE, all).await.is_err() {
            workers.iter().for_each(AbortHandle::abort);
            let all = self.requests.acquire_many(self.request_limit).await;
            drop(all.expect("the semaphore is never closed"));
        }
    }

    async fn step<R: AsyncRead + Unpin>(
        self: &Arc<Self>,
        source: &mut Source<R>,
        pool: &mut Pool,
        phase: &watch::Receiver<Phase>,
    ) -> Result<Step, ConnectionError> {
        let length = self.headers.request_bytes();
        let Some(header) = source.peek(length).await? else { return Ok(Step::Vanished) };
        let request = Request::decode(header, self.headers).map_err(|bad| ConnectionError::Garbage(bad.to_string()))?;
        source.consume(length);
        let context = Context {
            headers: self.headers,
            allocation: self.allocation,
            size_bytes: self.export.size_bytes(),
            read_only: self.export.read_only(),
        };
        let payload = payload_bytes(&request, self.headers);
        let verdict = match check(&request, context) {
            Ok(Command::Disconnect) => return Ok(Step::Last),
            Ok(_) if *phase.borrow() == Phase::Refuse => Err(errno::SHUTDOWN),
            verdict => verdict,
        };
        match verdict {
            Err(error) => self.refuse(source, &request, payload, error).await?,
            Ok(command) => {
                let carried = if command == Command::Read { request.length } else { payload };
                let carried = u32::try_from(carried).expect("checked against the payload limit");
                let admission = self.admit(carried).await;
                let payload = if payload > 0 { self.payload(source, carried as usize).await? } else { Bytes::new() };
                self.hand_over(pool, Job { command, request, payload, _admission: admission });
            }
        }
        Ok(Step::Next)
    }

    /// Answers a request that is not carried out. Done by the reader itself: it cannot pile up.
    async fn refuse<R: AsyncRead + Unpin>(
        &self,
        source: &mut Source<R>,
        request: &Request,
        payload: u64,
        error: u32,
    ) -> Result<(), ConnectionError> {
        if payload > MAX_DISCARDED_PAYLOAD {
            return Err(ConnectionError::Garbage(format!("a payload of {payload} bytes")));
        }
        tracing::debug!(?request, error, "refused");
        self.in_time(payload, source.discard(payload)).await?;
        let mut reply = Reply::default();
        reply.head(|out| error_reply(out, self.headers, request, error));
        self.send(&reply).await
    }

    async fn payload<R: AsyncRead + Unpin>(
        &self,
        source: &mut Source<R>,
        length: usize,
    ) -> Result<Bytes, ConnectionError> {
        let mut buffer = AlignedBuf::zeroed(length);
        self.in_time(length as u64, source.read_exact(&mut buffer)).await?;
        Ok(buffer.freeze())
    }

    /// Bounds the time in which so many bytes move: what is slow may be slow, what stands still ends.
    async fn in_time<T>(&self, bytes: u64, io: impl Future<Output = io::Result<T>>) -> Result<T, ConnectionError> {
        let spans = u32::try_from(bytes.div_ceil(STALL_BYTES).max(1)).unwrap_or(u32::MAX);
        let limit = self.stall.saturating_mul(spans);
        let done = tokio::time::timeout(limit, io).await;
        Ok(done.map_err(|_| ConnectionError::Stalled(limit))??)
    }

    async fn admit(&self, carried: u32) -> Admission {
        const OPEN: &str = "the semaphore is never closed";
        let cost = carried + REQUEST_OVERHEAD;
        let request = Arc::clone(&self.requests).acquire_owned().await.expect(OPEN);
        let alone = self.requests.available_permits() + 1 == self.request_limit as usize;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(cost).await.expect(OPEN);
        let budget = if alone && carried <= GUARANTEED_REQUEST {
            None
        } else {
            Some(Arc::clone(&self.budget).acquire_many_owned(cost).await.expect(OPEN))
        };
        Admission { _request: request, _bytes: bytes, _budget: budget }
    }

    fn hand_over(self: &Arc<Self>, pool: &mut Pool, job: Job) {
        let in_flight = self.request_limit as usize - self.requests.available_permits();
        if pool.workers.len() < in_flight {
            let worker = tokio::spawn(Arc::clone(self).work(Arc::clone(&pool.receiver)));
            pool.workers.push(worker.abort_handle());
        }
        assert!(pool.sender.try_send(job).is_ok(), "there is a place for each admitted request");
    }

    async fn work(self: Arc<Self>, jobs: Arc<Mutex<mpsc::Receiver<Job>>>) {
        let _alarm = Alarm(&self.broken);
        let mut scratch = Scratch::default();
        loop {
            let job = jobs.lock().await.recv().await;
            let Some(mut job) = job else { return };
            self.execute(&mut job, &mut scratch).await;
            if let Err(error) = self.send(&scratch.reply).await {
                tracing::debug!(%error, "a reply could not be sent");
                self.broken.notify_one();
            }
            // Payload and pieces go before the next request is awaited.
            scratch.reply.clear();
        }
    }

    /// Carries the request out and leaves its reply in `scratch`.
    async fn execute(&self, job: &mut Job, scratch: &mut Scratch) {
        let Job { command, request, payload, .. } = job;
        let (offset, length) = (request.offset, request.length);
        let Scratch { reply, pieces, extents } = scratch;
        let export = &*self.export;
        let done = match command {
            Command::Read => {
                pieces.clear();
                let length = u32::try_from(length).expect("checked against the payload limit");
                match export.read(offset, length, pieces).await {
                    Ok(()) if pieces.iter().map(Piece::length).sum::<usize>() == length as usize => {
                        return reply.read(self.headers, request, pieces);
                    }
                    Ok(()) => Err(ExportError::Io),
                    Err(error) => Err(error),
                }
            }
            Command::BlockStatus => {
                extents.clear();
                match export.block_status(offset, length, extents).await {
                    Ok(()) if tidy(extents, request) => {
                        return reply.head(|out| {
                            block_status_reply(out, self.headers, request, BASE_ALLOCATION_ID, extents);
                        });
                    }
                    Ok(()) => Err(ExportError::Io),
                    Err(error) => Err(error),
                }
            }
            Command::Write => export.write(offset, std::mem::take(payload)).await,
            Command::WriteZeroes => {
                let how = Zeroing {
                    keep_allocated: request.flags & command_flags::NO_HOLE != 0,
                    fast_only: request.flags & command_flags::FAST_ZERO != 0,
                };
                export.write_zeroes(offset, length, how).await
            }
            Command::Trim => export.trim(offset, length).await,
            Command::Cache => export.cache(offset, length).await,
            // FUA needs nothing: what is answered is durable.
            Command::Flush => export.flush().await,
            Command::Disconnect => unreachable!("the reader ends at a disconnect"),
        };
        pieces.clear();
        reply.head(|out| match done {
            Ok(()) => success_reply(out, self.headers, request),
            Err(error) => error_reply(out, self.headers, request, error_number(error)),
        });
    }

    async fn send(&self, reply: &Reply) -> Result<(), ConnectionError> {
        // The wait for earlier replies is not counted: each of them is bounded itself.
        let mut writer = self.writer.lock().await;
        self.in_time(reply.length(), reply.write_to(&mut *writer)).await
    }
}

/// Brings extents into the form the protocol wants: no empty ones, neighbours of one kind merged, within the request
/// (the last may not reach beyond it: what follows was not asked for), one if so asked. False if nothing is left.
fn tidy(extents: &mut Vec<Extent>, request: &Request) -> bool {
    extents.retain(|extent| extent.length > 0);
    extents.dedup_by(|later, earlier| {
        let same = (later.hole, later.zero) == (earlier.hole, earlier.zero);
        if same {
            earlier.length = earlier.length.saturating_add(later.length);
        }
        same
    });
    let one = request.flags & command_flags::REQ_ONE != 0;
    extents.truncate(if one { 1 } else { MAX_EXTENTS });
    let mut left = request.length;
    for extent in extents.iter_mut() {
        extent.length = extent.length.min(left);
        left -= extent.length;
    }
    extents.retain(|extent| extent.length > 0);
    !extents.is_empty()
}

struct Pool {
    sender: mpsc::Sender<Job>,
    receiver: Arc<Mutex<mpsc::Receiver<Job>>>,
    workers: Vec<AbortHandle>,
}

/// Ends the connection if a worker dies of a panic: its client would wait for ever.
struct Alarm<'a>(&'a Notify);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_merged_cut_to_the_request_and_limited_to_one() {
        let extent = |length, hole| Extent { length, hole, zero: hole };
        let mut request = Request { flags: 0, kind: 7, cookie: 0, offset: 0, length: 100 };
        let mut extents = vec![extent(10, true), extent(0, false), extent(20, true), extent(500, false)];
        assert!(tidy(&mut extents, &request));
        assert_eq!(extents, [extent(30, true), extent(70, false)]);
        request.flags = command_flags::REQ_ONE;
        assert!(tidy(&mut extents, &request));
        assert_eq!(extents, [extent(30, true)]);
        assert!(!tidy(&mut vec![extent(0, true)], &request));
    }
}
