//! A device on a medium, with helpers that submit and wait.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sds_disk::fault::{self, Faults};
use sds_disk::{
    CompletionSink, Device, EngineChoice, EngineKind, OpenError, OpenOptions, create_file, create_sparse_file, open,
};
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest, IoClass, OpId};

use crate::loop_device::LoopDevice;

pub const SIZE: u64 = 16 << 20;

#[derive(Debug)]
pub struct Medium {
    pub path: PathBuf,
    _loop_device: Option<LoopDevice>,
    pub directory: tempfile::TempDir,
}

impl Medium {
    pub fn file() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device");
        create_file(&path, SIZE).unwrap();
        Self { path, _loop_device: None, directory }
    }

    pub fn sparse_file() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device");
        create_sparse_file(&path, SIZE).unwrap();
        Self { path, _loop_device: None, directory }
    }

    pub fn loop_device(sector: u32) -> Result<Self, String> {
        let Self { path, directory, .. } = Self::file();
        let device = LoopDevice::attach(&path, sector, false)?;
        Ok(Self { path: device.path.clone(), _loop_device: Some(device), directory })
    }
}

pub struct Bench {
    pub device: Arc<dyn Device>,
    pub faults: Option<Faults>,
    pub path: PathBuf,
    pub kind: EngineKind,
    answers: Mutex<(Receiver<Vec<DiskDone>>, BTreeMap<OpId, DiskDone>)>,
    next: AtomicU64,
}

pub fn options(engine: EngineChoice) -> OpenOptions {
    OpenOptions { engine, hang_limit: Duration::from_secs(60) }
}

pub fn open_as(kind: EngineKind, path: &Path, sink: CompletionSink) -> Result<Arc<dyn Device>, OpenError> {
    let engine = match kind {
        EngineKind::Uring => EngineChoice::Uring,
        EngineKind::Ring => EngineChoice::Ring,
        EngineKind::Blocking | EngineKind::Fault => EngineChoice::Blocking,
    };
    open(path, options(engine), sink)
}

impl Bench {
    pub fn new(kind: EngineKind, volatile_cache: bool, medium: &Medium) -> Self {
        Self::with_limit(kind, volatile_cache, &medium.path, Duration::from_secs(60))
    }

    /// At a path.
    pub fn new_at(kind: EngineKind, path: &Path) -> Self {
        Self::with_limit(kind, false, path, Duration::from_secs(60))
    }

    /// The limit is that of the fault wrapper.
    pub fn with_limit(kind: EngineKind, volatile_cache: bool, path: &Path, hang_limit: Duration) -> Self {
        let (sender, receiver) = channel();
        let sink: CompletionSink = Arc::new(move |done| {
            let _ = sender.send(done);
        });
        let (device, faults) = if kind == EngineKind::Fault {
            let inner = |sink| open_as(EngineKind::Uring, path, sink).map_err(io::Error::other);
            let (device, faults) = fault::wrap(volatile_cache, hang_limit, sink, inner).unwrap();
            (device, Some(faults))
        } else {
            (open_as(kind, path, sink).unwrap(), None)
        };
        assert_eq!(device.engine(), kind);
        let answers = Mutex::new((receiver, BTreeMap::new()));
        Self { device, faults, path: path.to_owned(), kind, answers, next: AtomicU64::new(1) }
    }

    pub fn request(&self, op: DiskOp) -> DiskRequest {
        let id = OpId(self.next.fetch_add(1, Ordering::Relaxed));
        DiskRequest { id, class: IoClass::Foreground, op }
    }

    /// Waits for one answer.
    pub fn wait(&self, id: OpId) -> Result<Bytes, DiskError> {
        let mut answers = self.answers.lock().unwrap();
        loop {
            if let Some(done) = answers.1.remove(&id) {
                return done.result;
            }
            let batch = answers.0.recv_timeout(Duration::from_secs(30)).expect("an answer within 30 s");
            assert!(!batch.is_empty(), "the sink is called with something");
            for done in batch {
                assert!(answers.1.insert(done.id, done).is_none(), "an operation is answered once");
            }
        }
    }

    /// Waits for any answer.
    pub fn wait_any(&self) -> DiskDone {
        let mut answers = self.answers.lock().unwrap();
        loop {
            if let Some((_, done)) = answers.1.pop_first() {
                return done;
            }
            let batch = answers.0.recv_timeout(Duration::from_secs(30)).expect("an answer within 30 s");
            answers.1.extend(batch.into_iter().map(|done| (done.id, done)));
        }
    }

    /// Answers that arrived and were not waited for.
    pub fn unclaimed(&self) -> Vec<DiskDone> {
        let answers = self.answers.lock().unwrap();
        answers.1.values().cloned().chain(answers.0.try_iter().flatten()).collect()
    }

    pub fn submit(&self, op: DiskOp) -> OpId {
        let request = self.request(op);
        let id = request.id;
        self.device.submit(vec![request]).unwrap();
        id
    }

    pub fn run(&self, op: DiskOp) -> Result<Bytes, DiskError> {
        self.wait(self.submit(op))
    }

    pub fn read(&self, offset: u64, length: u32) -> Result<Bytes, DiskError> {
        self.run(DiskOp::Read { offset, length })
    }

    pub fn write(&self, offset: u64, buffers: Vec<Bytes>, durable: bool) -> Result<(), DiskError> {
        self.run(DiskOp::Write { offset, buffers, durable }).map(|bytes| assert!(bytes.is_empty()))
    }
}

impl Drop for Bench {
    /// So that the medium is free when the next one opens it. A device that was failed on purpose says so here again.
    fn drop(&mut self) {
        let closed = self.device.close();
        assert!(closed.is_ok() || self.device.health().failed.is_some() || std::thread::panicking());
    }
}

/// Bytes that differ from place to place and from seed to seed. The length is a multiple of 8.
pub fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in bytes.chunks_exact_mut(8) {
        word = word.wrapping_add(0x2545_f491_4f6c_dd1d);
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A random sequence, the same in every run.
pub struct Random(pub u64);
impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
