//! The handle of an open volume.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mdm_api::ids::VolumeId;
use mdm_api::model::AccessMode;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::answer::Pool;
use super::engine::Command;
use crate::io::{IoError, IoOutput, IoRequest};
use crate::limits::{BYTES_MAX, IO_BYTES_MAX, OPERATIONS_MAX};
use crate::stats::Stats;

/// Bytes that one permit of the byte credits stands for.
const CREDIT_BYTES: usize = 1024;

/// What is known of an open volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeState {
    /// Its size in bytes. Only grows.
    pub size_bytes: u64,
    /// What the mapping allows.
    pub access: AccessMode,
    /// Why it is over, once it is: every I/O fails with this from then on. Open the volume anew, if it may be.
    pub failed: Option<IoError>,
}

/// An open volume. Cheap to clone; the last clone that is dropped closes it.
///
/// All I/O is cancel-safe: dropping the future of an I/O frees its room. A change that was sent already may still take
/// effect, and later overlapping ones are ordered after it. When the volume has as much under way as it may, further I/Os
/// wait for their turn.
#[derive(Clone, Debug)]
pub struct Volume {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub volume: VolumeId,
    pub lane: u16,
    pub commands: mpsc::Sender<Command>,
    pub state: watch::Receiver<VolumeState>,
    pub give_up: Option<Duration>,
    pub runtime: Handle,
    operations: Arc<Semaphore>,
    credits: Arc<Semaphore>,
    tokens: AtomicU64,
    answers: Pool,
}

/// The room that an I/O takes until nothing of it is under way.
#[derive(Debug)]
pub(super) struct Room {
    _operation: OwnedSemaphorePermit,
    _credits: OwnedSemaphorePermit,
}

/// Tells the engine when nobody waits for an I/O any more.
struct CancelOnDrop<'a> {
    inner: &'a Inner,
    token: u64,
    answered: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.inner.tell(Command::Cancel { lane: self.inner.lane, token: self.token });
        }
    }
}

impl Inner {
    /// Sends a command that must not be lost, from where nobody can wait.
    fn tell(&self, command: Command) {
        match self.commands.try_send(command) {
            // Closed: the engine is gone, and everything with it.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(command)) => {
                let commands = self.commands.clone();
                self.runtime.spawn(async move {
                    if commands.send(command).await.is_err() {
                        tracing::debug!("the client was closed");
                    }
                });
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tell(Command::Close { lane: self.lane });
    }
}

impl Volume {
    pub(super) fn new(
        volume: VolumeId,
        lane: u16,
        commands: mpsc::Sender<Command>,
        state: watch::Receiver<VolumeState>,
        give_up: Option<Duration>,
    ) -> Self {
        let inner = Inner {
            volume,
            lane,
            commands,
            state,
            give_up,
            runtime: Handle::current(),
            operations: Arc::new(Semaphore::new(OPERATIONS_MAX)),
            credits: Arc::new(Semaphore::new(BYTES_MAX / CREDIT_BYTES)),
            tokens: AtomicU64::new(0),
            answers: Pool::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Which volume.
    pub fn id(&self) -> VolumeId {
        self.inner.volume
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.inner.state.borrow().size_bytes
    }

    /// Its size, access and end, as they change.
    pub fn watch(&self) -> watch::Receiver<VolumeState> {
        self.inner.state.clone()
    }

    /// Reads `length` bytes at `offset`, at most [`IO_BYTES_MAX`]: pieces that follow each other.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Bytes>, IoError> {
        match self.submit(IoRequest::Read { offset, length }).await? {
            IoOutput::Data(pieces) => Ok(pieces),
            _ => Err(IoError::Protocol("a read gave no data")),
        }
    }

    /// Writes at `offset`, at most [`IO_BYTES_MAX`]. Durable on every in-sync copy when it returns.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), IoError> {
        self.submit(IoRequest::Write { offset, data }).await.map(drop)
    }

    /// Makes `length` bytes at `offset` read as zeros, and gives their space back where that is possible.
    pub async fn zero(&self, offset: u64, length: u64) -> Result<(), IoError> {
        self.submit(IoRequest::Zero { offset, length }).await.map(drop)
    }

    /// For each 4 KiB block that the range touches: does it hold data? At most [`crate::limits::STATUS_BYTES_MAX`].
    pub async fn status(&self, offset: u64, length: u64) -> Result<Vec<bool>, IoError> {
        match self.submit(IoRequest::Status { offset, length }).await? {
            IoOutput::Status(blocks) => Ok(blocks),
            _ => Err(IoError::Protocol("a status request gave no status")),
        }
    }

    /// Returns when every change that was submitted before has been answered.
    pub async fn flush(&self) -> Result<(), IoError> {
        self.submit(IoRequest::Flush).await.map(drop)
    }

    /// Counters since the volume was opened.
    pub async fn stats(&self) -> Result<Stats, IoError> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Stats { lane: self.inner.lane, answer };
        self.inner.commands.send(command).await.map_err(|_| IoError::Closed)?;
        answered.await.map_err(|_| IoError::Closed)
    }

    async fn submit(&self, request: IoRequest) -> Result<IoOutput, IoError> {
        let room = match self.inner.give_up {
            None => self.room(&request).await?,
            Some(patience) => {
                tokio::time::timeout(patience, self.room(&request)).await.map_err(|_| IoError::TimedOut)??
            }
        };
        let token = self.inner.tokens.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = self.inner.answers.pair();
        let command = Command::Submit { lane: self.inner.lane, token, request, room, answer };
        self.inner.commands.send(command).await.map_err(|_| IoError::Closed)?;
        let mut cancel = CancelOnDrop { inner: &self.inner, token, answered: false };
        let result = answered.wait().await;
        cancel.answered = true;
        result
    }

    async fn room(&self, request: &IoRequest) -> Result<Room, IoError> {
        // What is too long is refused by the session; it need not wait for more room than there is.
        let credits = request.payload_bytes().min(IO_BYTES_MAX).div_ceil(CREDIT_BYTES) as u32;
        let operation = Arc::clone(&self.inner.operations).acquire_owned().await.map_err(|_| IoError::Closed)?;
        let credits = Arc::clone(&self.inner.credits).acquire_many_owned(credits).await.map_err(|_| IoError::Closed)?;
        Ok(Room { _operation: operation, _credits: credits })
    }
}
