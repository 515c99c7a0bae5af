//! What a request of the steady state allocates in the server, counted on the server's thread.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sdc_nbd::client::Client;
use sdc_nbd::export::{Export, ExportError, Exports, Extent, Piece, Zeroing};
use sdc_nbd::limits::Limits;
use sdc_nbd::listen::{Access, Listener};
use sdc_nbd::serve::Server;
use sdc_nbd::wire::{Command, Request};

/// The system's allocator, with a count for each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending counts no more.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the trait asks for it; the contract is passed on.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }
    // SAFETY: the trait asks for it; the contract is passed on.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    // SAFETY: the trait asks for it; the contract is passed on.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
    // SAFETY: the trait asks for it; the contract is passed on.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A disk that allocates nothing, and notes the count of its thread at each flush.
struct Blank {
    data: Bytes,
    noted: AtomicU64,
}

impl Export for Blank {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        false
    }
    async fn read(&self, _: u64, length: u32, pieces: &mut Vec<Piece>) -> Result<(), ExportError> {
        pieces.push(Piece::Data(self.data.slice(..length as usize)));
        Ok(())
    }
    async fn write(&self, _: u64, _: Bytes) -> Result<(), ExportError> {
        Ok(())
    }
    async fn write_zeroes(&self, _: u64, _: u64, _: Zeroing) -> Result<(), ExportError> {
        Ok(())
    }
    async fn trim(&self, _: u64, _: u64) -> Result<(), ExportError> {
        Ok(())
    }
    async fn flush(&self) -> Result<(), ExportError> {
        self.noted.store(COUNT.with(Cell::get), Ordering::SeqCst);
        Ok(())
    }
    async fn cache(&self, _: u64, _: u64) -> Result<(), ExportError> {
        Ok(())
    }
    async fn block_status(&self, _: u64, length: u64, extents: &mut Vec<Extent>) -> Result<(), ExportError> {
        extents.push(Extent { length, hole: false, zero: false });
        Ok(())
    }
}

struct Shelf(Arc<Blank>);

impl Exports for Shelf {
    type Export = Blank;
    async fn list(&self) -> Vec<String> {
        vec!["disk".to_owned()]
    }
    async fn open(&self, _: &str) -> Option<Arc<Blank>> {
        Some(Arc::clone(&self.0))
    }
}

/// Requests under way at a time.
const DEPTH: u64 = 16;
/// Bunches of a look.
const BUNCHES: u64 = 100;

/// Sends bunches of one command and awaits the answers; allocations of the server for each request.
fn look(stream: &mut (impl Read + Write), disk: &Blank, command: Command) -> f64 {
    let length = if command == Command::Flush { 0 } else { 4096 };
    let mut bunch = Vec::new();
    for cookie in 0..DEPTH {
        bunch.extend(Request { flags: 0, kind: command as u16, cookie, offset: 8192, length }.encode());
        if command == Command::Write {
            bunch.extend([7; 4096]);
        }
    }
    let answer = 16 + if command == Command::Read { 4096 } else { 0 };
    let mut answers = vec![0; answer * DEPTH as usize];
    let flush = Request { flags: 0, kind: Command::Flush as u16, cookie: 99, offset: 0, length: 0 }.encode();
    let mut noted = [0, 0];
    for note in &mut noted {
        // The first round warms up.
        for _ in 0..BUNCHES {
            stream.write_all(&bunch).unwrap();
            stream.read_exact(&mut answers).unwrap();
        }
        stream.write_all(&flush).unwrap();
        stream.read_exact(&mut [0; 16]).unwrap();
        *note = disk.noted.load(Ordering::SeqCst);
    }
    (noted[1] - noted[0]) as f64 / (BUNCHES * DEPTH) as f64
}

#[test]
fn requests_allocate_nothing_but_the_memory_of_what_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nbd.sock");
    let disk = Arc::new(Blank { data: Bytes::from(vec![5; 4096]), noted: AtomicU64::new(0) });
    let (shelf, path) = (Shelf(Arc::clone(&disk)), socket.clone());
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::new(shelf, Limits::default());
            let listener = Listener::bind(&path, &Access::default()).unwrap();
            ready.send(()).unwrap();
            listener.run(&server).await
        });
    });
    is_ready.recv().unwrap();
    let mut stream = Client::connect(&socket, "disk", Duration::from_secs(20)).unwrap().into_stream();
    for command in [Command::Read, Command::Write, Command::WriteZeroes, Command::Trim, Command::Flush] {
        let each = look(&mut stream, &disk, command);
        println!("{command:?}: {each:.3} allocations for each request");
        // The bytes themselves, and the handle by which they are shared.
        let most = if command == Command::Write { 2.0 } else { 0.0 };
        assert!(each <= most, "{command:?}: {each} allocations for each request");
    }
}
