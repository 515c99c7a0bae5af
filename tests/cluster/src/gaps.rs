//! The longest time without a completion, seen by a writer of 4 KiB that visits every chunk in turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::nbd::{Address, Client};
use crate::worker::Worker;

const CHUNK_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: usize = 4096;

/// A writer in a thread of its own.
pub struct Writer {
    moments: Receiver<Instant>,
    worker: Worker<anyhow::Result<u64>>,
}

impl Writer {
    /// Starts writing.
    pub fn start(address: &Address) -> anyhow::Result<Self> {
        let mut client = Client::connect(address)?;
        let (sender, moments) = channel();
        Ok(Self { moments, worker: Worker::start(move |stop| write(&mut client, stop, &sender)) })
    }

    /// The longest gap between completions that ends or lies in the span from `since` until now. A gap that is still open
    /// counts.
    pub fn longest_since(&self, since: Instant) -> Duration {
        let now = Instant::now();
        let mut last = since;
        let mut longest = Duration::ZERO;
        for moment in self.moments.try_iter().filter(|moment| *moment >= since) {
            longest = longest.max(moment.duration_since(last));
            last = moment;
        }
        longest.max(now.saturating_duration_since(last))
    }

    /// Ends it and gives the number of writes. Any I/O error of its life is the error of this.
    pub fn finish(self) -> anyhow::Result<u64> {
        self.worker.finish()?
    }
}

fn write(client: &mut Client, stop: &AtomicBool, moments: &Sender<Instant>) -> anyhow::Result<u64> {
    let chunks = client.size_bytes() / CHUNK_BYTES;
    let mut writes = 0u64;
    let mut block = [0; BLOCK_BYTES];
    while !stop.load(Ordering::Relaxed) {
        block[..8].copy_from_slice(&writes.to_le_bytes());
        let (chunk, round) = (writes % chunks, writes / chunks);
        let within = round % (CHUNK_BYTES / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
        client.write(chunk * CHUNK_BYTES + within, &block)?;
        writes += 1;
        if moments.send(Instant::now()).is_err() {
            break;
        }
    }
    Ok(writes)
}

/// The middle of several values; the larger one of two in the middle.
pub fn median(values: &[Duration]) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The value that so many of a hundred do not exceed; of values in order.
pub fn percentile(sorted: &[Duration], of_hundred: usize) -> Duration {
    let place = (sorted.len() * of_hundred).div_ceil(100).max(1) - 1;
    sorted.get(place).copied().unwrap_or_default()
}
