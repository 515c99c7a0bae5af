//! Executes the disk operations of a store on a real device.
//!
//! The store plans, in [`sds_store::io`]; this crate carries out: it owns the file descriptor and its exclusive lock, the
//! threads that talk to the kernel, the buffers of operations in flight, and the watchdog over them.
//!
//! ```text
//!  shard thread                          device threads
//!  submit(batch) ──► table of operations ──► engine: uring | ring | blocking ──► kernel
//!                       ▲        │ hung?                                          │
//!                    watchdog ◄──┘                    sink(batch) ◄── table ◄─────────┘
//! ```
//!
//! Always true:
//! - every operation that `submit` accepted is answered through the sink exactly once, also when the device hangs;
//! - never more than [`limits::IN_FLIGHT_MAX`] operations are held: nothing here grows without a bound;
//! - an operation is never cancelled; its buffers live until the kernel is done with them, however late;
//! - after a hang the device is failed for good: it takes nothing more (F19), as after an error the store asks for nothing
//!   more (F13);
//! - completions travel in batches: one call of the sink per turn of the engine, not per operation.

pub mod geometry;
pub mod limits;
pub mod open;

#[cfg(feature = "fault")]
pub mod fault;

mod blocking;
mod discard;
mod engine;
mod entry;
mod inflight;
mod ring;
mod transfer;
mod uring;
mod watchdog;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sds_store::io::{DiskDone, DiskError, DiskRequest, OpId};

pub use geometry::Geometry;
pub use inflight::{Health, Statistics};
pub use open::{InspectedDevice, OpenError, create_file, create_sparse_file, inspect};

/// Where completions go: called from the device's threads, at times from two at once, with at least one completion. It
/// must be short, must not block and must not call back into the device: push into the shard's queue and wake it.
pub type CompletionSink = Arc<dyn Fn(Vec<DiskDone>) + Send + Sync>;

/// An open device. Dropping it lets it finish what it holds, unobserved; [`Device::close`] waits.
pub trait Device: Send + Sync {
    /// Hands operations over, without blocking. All are accepted, or none (then no completion will come). The order
    /// within a batch is no order of execution.
    ///
    /// # Errors
    /// See [`SubmitError`].
    fn submit(&self, batch: Vec<DiskRequest>) -> Result<(), SubmitError>;

    /// What the device is like.
    fn geometry(&self) -> &Geometry;

    /// Which engine serves it.
    fn engine(&self) -> EngineKind;

    /// Operations in flight, the age of the oldest, and whether the device failed. For metrics, from any thread.
    fn health(&self) -> Health;

    /// Counters since opening, for metrics.
    fn statistics(&self) -> Statistics;

    /// Takes nothing more, waits until everything accepted is answered, ends the threads and releases the lock. Not to be
    /// called from the sink. A second call is harmless.
    ///
    /// # Errors
    /// The failure of a device that hung: its threads are left to the kernel, and the lock is released when the last
    /// operation is.
    fn close(&self) -> Result<(), DiskError>;
}

/// Why a batch was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The submitter does not bound its operations.
    #[error("{0} operations would be in flight; the limit is {max}", max = limits::IN_FLIGHT_MAX)]
    TooMany(usize),
    /// The submitter used an id that is in flight.
    #[error("operation {} is in flight already", .0.0)]
    Duplicate(OpId),
    /// `close` was called.
    #[error("the device is closed")]
    Closed,
    /// The device failed for good.
    #[error("the device has failed: {0}")]
    Failed(DiskError),
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring, through tokio-uring, on a thread of its own.
    Uring,
    /// io_uring, through a ring of our own, on a thread of its own.
    Ring,
    /// pwritev2 and preadv2 on threads.
    Blocking,
    /// The wrapper that injects faults.
    Fault,
}

impl EngineKind {
    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Uring => "uring",
            EngineKind::Ring => "ring",
            EngineKind::Blocking => "blocking",
            EngineKind::Fault => "fault",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which engine the opener wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring through tokio-uring where the kernel allows it, else threads.
    #[default]
    Automatic,
    /// io_uring through tokio-uring, or an error.
    Uring,
    /// io_uring through our own ring, or an error. Answers sooner than [`EngineChoice::Uring`] when little is in flight
    /// (the example `iops` compares them), and calls the sink more often.
    Ring,
    /// Threads.
    Blocking,
}

/// How to open a device.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Which engine.
    pub engine: EngineChoice,
    /// Age of the oldest operation at which the device fails as hung. Above zero.
    pub hang_limit: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { engine: EngineChoice::Automatic, hang_limit: limits::HANG_LIMIT }
    }
}

type StartEngine = fn(Arc<open::Media>, Duration, CompletionSink) -> std::io::Result<engine::EngineDevice>;

/// Opens and locks a block device, partition or file, and starts its engine.
///
/// # Errors
/// See [`OpenError`]; each names the path and what to do.
pub fn open(path: &Path, options: OpenOptions, sink: CompletionSink) -> Result<Arc<dyn Device>, OpenError> {
    let media = Arc::new(open::open_exclusively(path)?);
    let start_on_ring = match options.engine {
        EngineChoice::Blocking => None,
        EngineChoice::Automatic | EngineChoice::Uring => Some(uring::start as StartEngine),
        EngineChoice::Ring => Some(ring::start as StartEngine),
    };
    let started =
        start_on_ring.map(|start| uring::probe().and_then(|()| start(media.clone(), options.hang_limit, sink.clone())));
    let refusal = match started {
        Some(Ok(device)) => return Ok(opened(device)),
        Some(Err(error)) => Some(error),
        None => None,
    };
    if let Some(error) = refusal {
        if options.engine != EngineChoice::Automatic {
            return Err(OpenError::NoUring { path: path.to_owned(), source: error });
        }
        tracing::warn!(path = %path.display(), %error, "io_uring is not available here; using blocking threads");
    }
    let device = blocking::start(media, options.hang_limit, sink).map_err(|source| OpenError::Io {
        path: path.to_owned(),
        doing: "starting threads for",
        source,
    })?;
    Ok(opened(device))
}

fn opened(device: engine::EngineDevice) -> Arc<dyn Device> {
    tracing::info!(
        path = %device.path().display(),
        engine = device.engine().name(),
        geometry = %device.geometry(),
        "device opened"
    );
    Arc::new(device)
}
