//! What other threads have for the shard thread: one queue, one wake-up however much is in it.
//!
//! Completions cannot be refused and are bounded by the operations that the shard has handed out; everything else comes
//! through bounded channels.

use std::sync::{Arc, Mutex, PoisonError};

use mdm_api::ids::DeviceId;
use sds_store::io::DiskDone;
use tokio::sync::Notify;

/// Completions of one opening of one device.
pub(crate) struct Completions {
    pub(crate) device: DeviceId,
    /// Which opening: what comes late from an earlier one is passed over.
    pub(crate) opening: u64,
    pub(crate) done: Vec<DiskDone>,
}

/// The queue; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Inbox {
    queue: Arc<Mutex<Vec<Completions>>>,
    wake: Arc<Notify>,
}

impl Inbox {
    /// From any thread; never blocks for long.
    pub(crate) fn push(&self, completions: Completions) {
        let was_empty = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let was_empty = queue.is_empty();
            queue.push(completions);
            was_empty
        };
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// Everything that is there.
    pub(crate) fn take(&self) -> Vec<Completions> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns when something was pushed since the last call.
    pub(crate) async fn filled(&self) {
        self.wake.notified().await;
    }
}
