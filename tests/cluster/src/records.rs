//! Records in files that `fsync` acknowledged: they must be there, whatever crashed afterwards.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, bail};

/// Bytes of a record: not a multiple of a block, so that records share blocks.
const RECORD_BYTES: usize = 5000;

/// Writers, each with a file of its own that it appends to and syncs.
pub struct Writers {
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

/// Records that were acknowledged, for each file.
pub struct Acknowledged {
    folder: PathBuf,
    counts: Vec<u64>,
}

fn record(writer: usize, number: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    let mut state = (writer as u64 + 1) << 40 | (number + 1);
    for byte in &mut bytes {
        // A generator of full period; only its repeatability counts.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    bytes
}

fn path(folder: &Path, writer: usize) -> PathBuf {
    folder.join(format!("records-{writer}"))
}

impl Writers {
    /// Starts so many in a folder. They end at the first error, or when told.
    pub fn start(folder: &Path, count: usize) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for writer in 0..count {
            let name = path(folder, writer);
            let mut file = File::create_new(&name).with_context(|| format!("cannot make {}", name.display()))?;
            // The file's name must be durable before its records count.
            file.sync_all().and_then(|()| File::open(folder)?.sync_all()).context("cannot sync")?;
            let flag = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || {
                let mut acknowledged = 0;
                while !flag.load(Ordering::Relaxed) {
                    let written = file.write_all(&record(writer, acknowledged)).and_then(|()| file.sync_data());
                    if written.is_err() {
                        break;
                    }
                    acknowledged += 1;
                }
                acknowledged
            }));
        }
        Ok(Self { folder: folder.to_owned(), stop, threads })
    }

    /// Waits for their end.
    pub fn finish(self) -> anyhow::Result<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = Vec::new();
        for thread in self.threads {
            counts.push(thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?);
        }
        Ok(Acknowledged { folder: self.folder, counts })
    }
}

impl Acknowledged {
    /// All records together.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Reads every file and compares every acknowledged record.
    pub fn check(&self) -> anyhow::Result<()> {
        for (writer, count) in self.counts.iter().enumerate() {
            let name = path(&self.folder, writer);
            let bytes = std::fs::read(&name).with_context(|| format!("cannot read {}", name.display()))?;
            for number in 0..*count {
                let from = usize::try_from(number)? * RECORD_BYTES;
                match bytes.get(from..from + RECORD_BYTES) {
                    Some(found) if *found == record(writer, number) => {}
                    Some(_) => bail!("{}: acknowledged record {number} of {count} is damaged", name.display()),
                    None => bail!("{}: acknowledged record {number} of {count} is lost", name.display()),
                }
            }
        }
        Ok(())
    }
}
