//! Serves one file as export `disk` on a unix socket: `serve_file FILE SOCKET`. What a program needs to use the server,
//! and what the attach tests kill and start again. The file's length is the size, asked for at each request.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use sdc_nbd::export::{Export, ExportError, Exports, Extent, Piece, Zeroing};
use sdc_nbd::limits::Limits;
use sdc_nbd::listen::{Access, Listener};
use sdc_nbd::serve::Server;
use sds_api::buf::AlignedBuf;

/// Survives the death of this process, as the page cache does; not that of the machine.
struct Image(File);

fn error(error: std::io::Error) -> ExportError {
    eprintln!("serve_file: {error}");
    ExportError::Io
}

impl Image {
    fn fill(&self, offset: u64, length: u64) -> std::io::Result<()> {
        let zeros = [0; 1 << 16];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let part = (end - at).min(zeros.len() as u64);
            self.0.write_all_at(&zeros[..part as usize], at)?;
            at += part;
        }
        Ok(())
    }
}

impl Export for Image {
    fn size_bytes(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
    fn read_only(&self) -> bool {
        false
    }
    async fn read(&self, offset: u64, length: u32, pieces: &mut Vec<Piece>) -> Result<(), ExportError> {
        let mut buffer = AlignedBuf::zeroed(length as usize);
        self.0.read_exact_at(&mut buffer, offset).map_err(error)?;
        pieces.push(Piece::Data(buffer.freeze()));
        Ok(())
    }
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.0.write_all_at(&data, offset).map_err(error)
    }
    async fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), ExportError> {
        let kind = if how.keep_allocated { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
        match fallocate(&self.0, kind | FallocateFlags::KEEP_SIZE, offset, length) {
            // Memory file systems cannot zero a range that stays allocated.
            Err(Errno::OPNOTSUPP) if how.fast_only => Err(ExportError::NotSupported),
            Err(Errno::OPNOTSUPP) => self.fill(offset, length).map_err(error),
            done => done.map_err(|errno| error(errno.into())),
        }
    }
    async fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.write_zeroes(offset, length, Zeroing::default()).await
    }
    async fn flush(&self) -> Result<(), ExportError> {
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

struct One(Arc<Image>);

impl Exports for One {
    type Export = Image;
    async fn list(&self) -> Vec<String> {
        vec!["disk".to_owned()]
    }
    async fn open(&self, name: &str) -> Option<Arc<Image>> {
        (name == "disk").then(|| Arc::clone(&self.0))
    }
}

#[allow(dead_code)] // The tests call `serve` instead.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, socket] = arguments.as_slice() else { return Err("usage: serve_file FILE SOCKET".into()) };
    serve(Path::new(image), Path::new(socket))
}

/// Serves until the process is killed.
pub fn serve(image: &Path, socket: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let file = File::options().read(true).write(true).open(image)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = Listener::bind(socket, &Access::default())?;
        listener.run(&Server::new(One(Arc::new(Image(file))), Limits::default())).await;
        Ok(())
    })
}
