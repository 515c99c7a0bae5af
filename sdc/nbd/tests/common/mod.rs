//! An export in memory, a server for it, and a way to run other people's tools against it.
#![allow(dead_code, clippy::unwrap_used)]

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sdc_nbd::export::{Export, ExportError, Exports, Extent, Piece, Zeroing};
use sdc_nbd::limits::Limits;
use sdc_nbd::listen::{Access, Listener};
use sdc_nbd::serve::Server;
use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};

pub const BLOCK: usize = 4096;

/// Bytes by block; a missing block is a hole. One lock: changes take effect in order of their calls.
pub struct Memory {
    pub size: AtomicU64,
    pub read_only: bool,
    pub blocks: Mutex<Vec<Option<Box<[u8]>>>>,
    /// Requests wait here while it has no permits.
    pub gate: Semaphore,
    /// Requests that reached the export.
    pub arrived: watch::Sender<u64>,
    pub finished: AtomicU64,
}

impl Memory {
    pub fn new(size: u64) -> Self {
        Self {
            size: AtomicU64::new(size),
            read_only: false,
            blocks: Mutex::new(vec![None; size.div_ceil(BLOCK as u64) as usize]),
            gate: Semaphore::new(1 << 20),
            arrived: watch::channel(0).0,
            finished: AtomicU64::new(0),
        }
    }

    async fn pass(&self) {
        self.arrived.send_modify(|count| *count += 1);
        drop(self.gate.acquire().await.unwrap());
        self.finished.fetch_add(1, Ordering::SeqCst);
    }

    pub async fn wait_arrived(&self, count: u64) {
        let mut arrived = self.arrived.subscribe();
        tokio::time::timeout(Duration::from_secs(20), arrived.wait_for(|now| *now >= count)).await.unwrap().unwrap();
    }

    fn parts(offset: u64, length: u64) -> impl Iterator<Item = (usize, usize, usize)> {
        let (mut at, end) = (offset, offset + length);
        std::iter::from_fn(move || {
            let within = (at % BLOCK as u64) as usize;
            let part = ((BLOCK - within) as u64).min(end - at) as usize;
            let item = (at < end).then_some(((at / BLOCK as u64) as usize, within, part));
            at += part as u64;
            item
        })
    }

    fn clear(&self, offset: u64, length: u64, keep: bool) {
        let mut blocks = self.blocks.lock().unwrap();
        for (index, within, part) in Self::parts(offset, length) {
            if part == BLOCK && !keep {
                blocks[index] = None;
            } else if keep || blocks[index].is_some() {
                blocks[index].get_or_insert_with(|| vec![0; BLOCK].into())[within..within + part].fill(0);
            }
        }
    }
}

impl Export for Memory {
    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    async fn read(&self, offset: u64, length: u32, pieces: &mut Vec<Piece>) -> Result<(), ExportError> {
        self.pass().await;
        let blocks = self.blocks.lock().unwrap();
        for (index, within, part) in Self::parts(offset, u64::from(length)) {
            match (&blocks[index], pieces.last_mut()) {
                (Some(block), _) => pieces.push(Piece::Data(Bytes::copy_from_slice(&block[within..within + part]))),
                (None, Some(Piece::Zero(run))) => *run += part as u32,
                (None, _) => pieces.push(Piece::Zero(part as u32)),
            }
        }
        Ok(())
    }
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.pass().await;
        let mut blocks = self.blocks.lock().unwrap();
        let mut rest = &data[..];
        for (index, within, part) in Self::parts(offset, data.len() as u64) {
            let block = blocks[index].get_or_insert_with(|| vec![0; BLOCK].into());
            block[within..within + part].copy_from_slice(&rest[..part]);
            rest = &rest[part..];
        }
        Ok(())
    }
    async fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), ExportError> {
        self.pass().await;
        if how.fast_only && how.keep_allocated {
            return Err(ExportError::NotSupported);
        }
        self.clear(offset, length, how.keep_allocated);
        Ok(())
    }
    async fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.pass().await;
        self.clear(offset, length, false);
        Ok(())
    }
    async fn flush(&self) -> Result<(), ExportError> {
        self.pass().await;
        Ok(())
    }
    async fn cache(&self, _: u64, _: u64) -> Result<(), ExportError> {
        self.pass().await;
        Ok(())
    }
    async fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<(), ExportError> {
        self.pass().await;
        let blocks = self.blocks.lock().unwrap();
        for (index, _, part) in Self::parts(offset, length) {
            let hole = blocks[index].is_none();
            extents.push(Extent { length: part as u64, hole, zero: hole });
        }
        Ok(())
    }
}

/// `disk`, `readonly` (64 KiB), and whatever a test adds.
pub struct Shelf(pub Mutex<Vec<(String, Arc<Memory>)>>);

impl Exports for Shelf {
    type Export = Memory;
    async fn list(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }
    async fn open(&self, name: &str) -> Option<Arc<Memory>> {
        self.0.lock().unwrap().iter().find(|(known, _)| known == name).map(|(_, export)| Arc::clone(export))
    }
}

pub struct Rig {
    pub directory: TempDir,
    pub server: Server<Shelf>,
    pub disk: Arc<Memory>,
    listener: tokio::task::JoinHandle<()>,
}

impl Rig {
    pub fn new(size: u64, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(Memory::new(size));
        let mut fixed = Memory::new(64 << 10);
        fixed.read_only = true;
        let shelf = vec![("disk".to_owned(), Arc::clone(&disk)), ("readonly".to_owned(), Arc::new(fixed))];
        let server = Server::new(Shelf(Mutex::new(shelf)), limits);
        let listener = Listener::bind(&directory.path().join("nbd.sock"), &Access::default()).unwrap();
        let serving = server.clone();
        let listener = tokio::spawn(async move { listener.run(&serving).await });
        Self { directory, server, disk, listener }
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("nbd.sock")
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// True if every tool is there; else says which is missing.
pub fn have(tools: &[&str]) -> bool {
    let missing = |tool: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = ["/usr/sbin", "/sbin"].into_iter().map(Into::into);
        !std::env::split_paths(&path).chain(places).any(|place| place.join(tool).exists())
    };
    match tools.iter().find(|tool| missing(tool)) {
        None => true,
        Some(tool) => {
            eprintln!("skipped: {tool} is not installed");
            false
        }
    }
}

/// Runs a program to its end, away from the runtime's threads.
pub async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    // Debian's tools want Debian's interpreters.
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).env("PATH", format!("/usr/bin:/bin:{path}"));
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
}

/// As `run`, must succeed; what it printed.
pub async fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}\n{said}", output.status);
    text
}

/// Memory of this process that is really there.
pub fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kib << 10
}
