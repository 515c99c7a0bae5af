//! What the engines have in common: the face towards the shard, the table, the watchdog, and the end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sds_store::io::{DiskError, DiskRequest};

use crate::inflight::{Health, InFlight, Statistics};
use crate::open::Media;
use crate::{CompletionSink, Device, EngineKind, Geometry, SubmitError, watchdog};

/// The way into an engine's threads. Neither call blocks.
pub(crate) trait Intake: Send + Sync {
    /// Hands over an admitted batch. It fits, as every admitted operation does.
    fn push(&self, batch: Vec<DiskRequest>);

    /// Makes the threads look around: for a stop, or to submit again.
    fn nudge(&self);
}

/// What starting an engine yields.
pub(crate) struct Started {
    pub(crate) intake: Arc<dyn Intake>,
    pub(crate) threads: Vec<JoinHandle<()>>,
}

/// A device served by one of the engines. The medium itself, and with it the lock, belongs to the engine's threads alone.
pub(crate) struct EngineDevice {
    path: PathBuf,
    geometry: Geometry,
    kind: EngineKind,
    inflight: Arc<InFlight>,
    intake: Arc<dyn Intake>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl EngineDevice {
    /// Starts an engine by `start`, and the watchdog over it.
    pub(crate) fn start(
        media: Arc<Media>,
        kind: EngineKind,
        hang_limit: Duration,
        sink: CompletionSink,
        start: impl FnOnce(Arc<Media>, Arc<InFlight>) -> io::Result<Started>,
    ) -> io::Result<Self> {
        if hang_limit.is_zero() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a hang limit of zero"));
        }
        let inflight = Arc::new(InFlight::new(sink, hang_limit));
        let (path, geometry) = (media.path.clone(), media.geometry);
        let Started { intake, threads } = start(media, inflight.clone())?;
        let device =
            Self { path, geometry, kind, inflight: inflight.clone(), intake: intake.clone(), threads: threads.into() };
        // From here on dropping the device ends the engine's threads.
        let watchdog = watchdog::start(&device.path.display().to_string(), inflight, intake)?;
        device.threads.lock().unwrap_or_else(PoisonError::into_inner).push(watchdog);
        Ok(device)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn stop(&self) {
        self.inflight.stop();
        self.intake.nudge();
    }
}

impl Device for EngineDevice {
    fn submit(&self, batch: Vec<DiskRequest>) -> Result<(), SubmitError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.inflight.admit(&batch)?;
        self.intake.push(batch);
        Ok(())
    }

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn engine(&self) -> EngineKind {
        self.kind
    }

    fn health(&self) -> Health {
        self.inflight.health()
    }

    fn statistics(&self) -> Statistics {
        self.inflight.statistics()
    }

    fn close(&self) -> Result<(), DiskError> {
        let drained = self.inflight.drain();
        self.stop();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        match drained {
            Ok(()) => {
                for thread in threads {
                    if thread.join().is_err() {
                        tracing::error!(path = %self.path.display(), "a thread of the device panicked");
                    }
                }
                Ok(())
            }
            // The kernel may never give the threads back; they end by themselves when it does.
            Err(error) => Err(error),
        }
    }
}

impl Drop for EngineDevice {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Held by an engine's thread: if it panics, the device is gone and everything in flight is answered.
pub(crate) struct DeathGuard(pub(crate) Arc<InFlight>);

impl Drop for DeathGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(DiskError::Gone);
        }
    }
}
