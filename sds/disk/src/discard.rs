//! Discards: one at a time, on a thread of their own.
//!
//! A discard is a hint. It may take long, the kernel offers it asynchronously for files only, and drives serve nothing
//! else meanwhile; so they queue up here and never occupy an engine. A medium that does not support them answers at once;
//! one that turns out to refuse them is not asked again.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::ioctl::{Setter, opcode};
use sds_store::io::{DiskDone, DiskError, OpId};

use crate::engine::DeathGuard;
use crate::geometry::MediaKind;
use crate::inflight::InFlight;
use crate::limits;
use crate::open::Media;
use crate::transfer::error_of;

/// Longest range of one system call in bytes, so that one call does not hold a drive for long.
const PIECE_BYTES: u64 = 256 << 20;

/// The way to the thread. The thread ends when all clones are dropped.
#[derive(Clone)]
pub(crate) struct Discards {
    /// `None` where discards do nothing.
    queue: Option<SyncSender<(OpId, u64, u64)>>,
}

/// Starts the thread, if the medium has a use for it.
pub(crate) fn start(media: Arc<Media>, inflight: Arc<InFlight>) -> io::Result<(Discards, Option<JoinHandle<()>>)> {
    if media.geometry.discard_granularity.is_none() {
        return Ok((Discards { queue: None }, None));
    }
    let (sender, receiver) = sync_channel(limits::IN_FLIGHT_MAX);
    let thread =
        std::thread::Builder::new().name("disk-discard".into()).spawn(move || run(media, inflight, receiver))?;
    Ok((Discards { queue: Some(sender) }, Some(thread)))
}

impl Discards {
    /// Queues a discard, or says that there is nothing to do.
    pub(crate) fn push(&self, id: OpId, offset: u64, length: u64) -> Option<DiskDone> {
        let Some(queue) = &self.queue else { return Some(DiskDone { id, result: Ok(Bytes::new()) }) };
        match queue.try_send((id, offset, length)) {
            Ok(()) => None,
            // Only if the thread died, as there is a place for every operation in flight.
            Err(_) => Some(DiskDone { id, result: Err(DiskError::Gone) }),
        }
    }
}

fn run(media: Arc<Media>, inflight: Arc<InFlight>, queue: Receiver<(OpId, u64, u64)>) {
    let _guard = DeathGuard(inflight.clone());
    let mut supported = true;
    while let Ok((id, offset, length)) = queue.recv() {
        let result = if supported { discard(&media, offset, length) } else { Ok(()) };
        let result = match result {
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => {
                tracing::info!(path = %media.path.display(), "discard is not supported here after all; ignored from now on");
                supported = false;
                Ok(Bytes::new())
            }
            Err(errno) => {
                tracing::error!(path = %media.path.display(), offset, length, error = %errno, "discard failed");
                Err(error_of(errno))
            }
            Ok(()) => Ok(Bytes::new()),
        };
        inflight.complete(vec![DiskDone { id, result }]);
    }
}

fn discard(media: &Media, offset: u64, length: u64) -> rustix::io::Result<()> {
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let piece = PIECE_BYTES.min(end - at);
        match discard_piece(media, at, piece) {
            Ok(()) => at += piece,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn discard_piece(media: &Media, offset: u64, length: u64) -> rustix::io::Result<()> {
    match media.geometry.kind {
        MediaKind::BlockDevice => {
            const BLKDISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);
            // SAFETY: BLKDISCARD reads two u64, offset and length, from the pointer that Setter passes.
            unsafe { rustix::ioctl::ioctl(media.fd.as_fd(), Setter::<BLKDISCARD, [u64; 2]>::new([offset, length])) }
        }
        MediaKind::SparseFile => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&media.fd, flags, offset, length)
        }
        // Reserved space stays reserved, so that a preallocated device never runs out of it.
        MediaKind::File => Ok(()),
    }
}
