//! Stamped blocks on a device, past the page cache: each block says what it is and how often it was written, so that a lost,
//! torn, stale or misplaced write shows. Prints what it did and the longest time without a completion.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sds_api::buf::AlignedBuf;

use super::Random;

const BLOCK: u64 = 4096;
/// Blocks of one request, at most.
const RUN_MAX: u64 = 16;
/// Blocks of one request of the last look at everything.
const SWEEP: u64 = 64;

/// What all threads count.
struct Tally {
    started: Instant,
    requests: AtomicU64,
    /// Milliseconds since the start at the last completion, and the longest time between two.
    last_ms: AtomicU64,
    longest_pause_ms: AtomicU64,
    longest_request_ms: AtomicU64,
}

impl Tally {
    fn completed(&self, began: Instant) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let before = self.last_ms.fetch_max(now, Ordering::Relaxed);
        self.longest_pause_ms.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
        let request = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.longest_request_ms.fetch_max(request, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// The content of a block after `version` writes; none means zeros.
fn content(block: u64, version: u32, into: &mut [u8]) {
    if version == 0 {
        return into.fill(0);
    }
    into[..8].copy_from_slice(&block.to_le_bytes());
    into[8..16].copy_from_slice(&u64::from(version).to_le_bytes());
    Random::new(block << 32 | u64::from(version)).fill(&mut into[16..]);
}

/// One thread's part of the device and what it knows of it.
struct Part<'a> {
    device: &'a File,
    first: u64,
    versions: Vec<u32>,
    tally: &'a Tally,
}

impl Part<'_> {
    fn write(&mut self, from: u64, count: u64) -> anyhow::Result<()> {
        let mut bytes = AlignedBuf::zeroed((count * BLOCK) as usize);
        for (index, block) in bytes.chunks_exact_mut(BLOCK as usize).enumerate() {
            let at = from + index as u64;
            let version = &mut self.versions[at as usize];
            *version += 1;
            content(self.first + at, *version, block);
        }
        let offset = (self.first + from) * BLOCK;
        let began = Instant::now();
        self.device.write_all_at(&bytes, offset).with_context(|| format!("write of {count} blocks at {offset}"))?;
        self.tally.completed(began);
        Ok(())
    }

    fn read(&self, from: u64, count: u64) -> anyhow::Result<()> {
        let mut bytes = AlignedBuf::zeroed((count * BLOCK) as usize);
        let offset = (self.first + from) * BLOCK;
        let began = Instant::now();
        self.device.read_exact_at(&mut bytes, offset).with_context(|| format!("read of {count} blocks at {offset}"))?;
        self.tally.completed(began);
        let mut expected = vec![0; BLOCK as usize];
        for (index, block) in bytes.chunks_exact(BLOCK as usize).enumerate() {
            let at = from + index as u64;
            let version = self.versions[at as usize];
            content(self.first + at, version, &mut expected);
            if block != expected {
                bail!("block {} is not what write {version} left: {:02x?}...", self.first + at, &block[..24]);
            }
        }
        Ok(())
    }

    fn work(&mut self, seed: u64, until: &Path) -> anyhow::Result<()> {
        let mut random = Random::new(seed);
        let blocks = self.versions.len() as u64;
        while !until.exists() {
            let count = 1 + random.below(RUN_MAX.min(blocks));
            let from = random.below(blocks - count + 1);
            if random.below(3) == 0 { self.read(from, count)? } else { self.write(from, count)? }
        }
        for from in (0..blocks).step_by(SWEEP as usize) {
            self.read(from, SWEEP.min(blocks - from))?;
        }
        Ok(())
    }
}

/// Works until the file `until` exists, then reads everything once. The device must read as zeros at the start.
pub fn run(device: &Path, until: &Path, threads: u32) -> anyhow::Result<()> {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).context("a flag")?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device);
    let file = file.with_context(|| format!("cannot open {}", device.display()))?;
    let size = (&file).seek(SeekFrom::End(0)).context("cannot ask for the size")?;
    let blocks = size / BLOCK / u64::from(threads);
    if blocks == 0 {
        bail!("{} is too small", device.display());
    }
    let tally = Tally {
        started: Instant::now(),
        requests: AtomicU64::new(0),
        last_ms: AtomicU64::new(0),
        longest_pause_ms: AtomicU64::new(0),
        longest_request_ms: AtomicU64::new(0),
    };
    println!("begun");
    let outcomes: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let begin = |thread: u32| {
            let versions = vec![0; blocks as usize];
            let mut part = Part { device: &file, first: u64::from(thread) * blocks, versions, tally: &tally };
            scope.spawn(move || part.work(u64::from(thread) + 1, until))
        };
        let threads: Vec<_> = (0..threads).map(begin).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|outcome| outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))).collect()
    });
    let seconds = tally.started.elapsed().max(Duration::from_millis(1)).as_secs_f64();
    println!("requests {}", tally.requests.load(Ordering::Relaxed));
    println!("per-second {:.0}", tally.requests.load(Ordering::Relaxed) as f64 / seconds);
    println!("longest-pause-ms {}", tally.longest_pause_ms.load(Ordering::Relaxed));
    println!("longest-request-ms {}", tally.longest_request_ms.load(Ordering::Relaxed));
    outcomes.into_iter().collect()
}
