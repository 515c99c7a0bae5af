//! The open devices, as the shard thread sees them: batches out, completions in, and everything that blocks done elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use mdm_api::ids::DeviceId;
use sds_disk::limits::IN_FLIGHT_MAX;
use sds_disk::{Device, EngineChoice, OpenOptions, SubmitError};
use sds_node::Event;
use sds_store::io::{DiskDone, DiskError, DiskRequest};
use tokio::sync::mpsc;

use crate::inbox::{Completions, Inbox};

/// Openings and closings that wait; a server has a few dozen devices.
const ERRANDS_MAX: usize = 1024;

enum Errand {
    Open { device: DeviceId, opening: u64, path: PathBuf },
    Close { device: DeviceId, handle: Arc<dyn Device> },
}

/// What came of an opening.
pub(crate) struct Opened {
    device: DeviceId,
    opening: u64,
    result: Result<Arc<dyn Device>, String>,
}

struct Slot {
    opening: u64,
    handle: Option<Arc<dyn Device>>,
    in_flight: usize,
    /// What does not fit into the engine at the moment.
    backlog: VecDeque<DiskRequest>,
}

/// The devices of this process.
pub(crate) struct Disks {
    slots: BTreeMap<DeviceId, Slot>,
    next_opening: u64,
    errands: mpsc::Sender<Errand>,
}

impl Disks {
    /// Starts the task that opens and closes, one device after the other: a path that is closed and opened again is free
    /// by then. Needs a runtime.
    pub(crate) fn start(engine: EngineChoice, inbox: Inbox) -> (Self, mpsc::Receiver<Opened>) {
        let (errands, mut queue) = mpsc::channel(ERRANDS_MAX);
        let (results, opened) = mpsc::channel(ERRANDS_MAX);
        tokio::spawn(async move {
            while let Some(errand) = queue.recv().await {
                let inbox = inbox.clone();
                let done = tokio::task::spawn_blocking(move || run(errand, engine, &inbox)).await;
                if let Ok(Some(opened)) = done
                    && results.send(opened).await.is_err()
                {
                    return;
                }
            }
        });
        (Self { slots: BTreeMap::new(), next_opening: 0, errands }, opened)
    }

    pub(crate) fn open(&mut self, device: DeviceId, path: String) {
        self.next_opening += 1;
        let opening = self.next_opening;
        self.slots.insert(device, Slot { opening, handle: None, in_flight: 0, backlog: VecDeque::new() });
        self.errand(Errand::Open { device, opening, path: PathBuf::from(path) });
    }

    pub(crate) fn close(&mut self, device: DeviceId) {
        if let Some(handle) = self.slots.remove(&device).and_then(|slot| slot.handle) {
            self.errand(Errand::Close { device, handle });
        }
    }

    fn errand(&self, errand: Errand) {
        if self.errands.try_send(errand).is_err() {
            // More openings at once than a server has devices; the node tries absent devices again.
            tracing::error!("too many devices are being opened or closed at once");
        }
    }

    /// An opening has ended.
    pub(crate) fn opened(&mut self, opened: Opened) -> Option<Event> {
        let Opened { device, opening, result } = opened;
        let slot = self.slots.get_mut(&device).filter(|slot| slot.opening == opening);
        match (slot, result) {
            (Some(slot), Ok(handle)) => {
                let size_bytes = handle.geometry().size;
                slot.handle = Some(handle);
                Some(Event::DeviceOpened { device, result: Ok(size_bytes) })
            }
            (Some(_), Err(reason)) => {
                self.slots.remove(&device);
                Some(Event::DeviceOpened { device, result: Err(reason) })
            }
            (None, Ok(handle)) => {
                self.errand(Errand::Close { device, handle });
                None
            }
            (None, Err(_)) => None,
        }
    }

    /// Hands operations over. `Some`: the device does nothing more.
    pub(crate) fn submit(&mut self, device: DeviceId, requests: Vec<DiskRequest>) -> Option<Event> {
        let slot = self.slots.get_mut(&device)?;
        slot.backlog.extend(requests);
        slot.pump(device)
    }

    /// Completions have come. What else there is to tell the node, after them.
    pub(crate) fn completed(&mut self, completions: Completions) -> Option<(Event, Option<Event>)> {
        let Completions { device, opening, done } = completions;
        let slot = self.slots.get_mut(&device).filter(|slot| slot.opening == opening)?;
        slot.in_flight = slot.in_flight.saturating_sub(done.len());
        let gone = slot.pump(device);
        Some((Event::Disk { device, done }, gone))
    }

    /// Closes everything and waits for it.
    pub(crate) async fn close_all(self) {
        for (device, slot) in self.slots {
            if let Some(handle) = slot.handle {
                let closed = tokio::task::spawn_blocking(move || handle.close()).await;
                if let Ok(Err(error)) = closed {
                    tracing::warn!(%device, %error, "the device did not close in good order");
                }
            }
        }
    }
}

impl Slot {
    fn pump(&mut self, device: DeviceId) -> Option<Event> {
        let handle = self.handle.as_ref()?;
        let room = IN_FLIGHT_MAX - self.in_flight.min(IN_FLIGHT_MAX);
        let batch: Vec<DiskRequest> = self.backlog.drain(..room.min(self.backlog.len())).collect();
        if batch.is_empty() {
            return None;
        }
        let count = batch.len();
        match handle.submit(batch) {
            Ok(()) => {
                self.in_flight += count;
                None
            }
            Err(error) => {
                self.backlog.clear();
                let cause = match error {
                    SubmitError::Failed(cause) => cause,
                    SubmitError::Closed => DiskError::Gone,
                    // Broken invariants of this process: the device is not touched any more.
                    SubmitError::TooMany(_) | SubmitError::Duplicate(_) => {
                        tracing::error!(%device, %error, "operations were refused");
                        DiskError::Gone
                    }
                };
                Some(Event::DeviceGone { device, cause })
            }
        }
    }
}

/// On a thread that may block.
fn run(errand: Errand, engine: EngineChoice, inbox: &Inbox) -> Option<Opened> {
    match errand {
        Errand::Open { device, opening, path } => {
            let inbox = inbox.clone();
            let sink = Arc::new(move |done: Vec<DiskDone>| inbox.push(Completions { device, opening, done }));
            let options = OpenOptions { engine, ..OpenOptions::default() };
            let result = sds_disk::open(&path, options, sink).map_err(|error| error.to_string());
            Some(Opened { device, opening, result })
        }
        Errand::Close { device, handle } => {
            if let Err(error) = handle.close() {
                tracing::warn!(%device, %error, "the device did not close in good order");
            }
            None
        }
    }
}
