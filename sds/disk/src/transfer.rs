//! One operation on its way through the kernel: checks, progress, errors. Shared by the engines, free of system calls.
//!
//! Always true: a transfer that exists lies within the device, in whole logical blocks, and its buffers are fit for direct
//! I/O. A short count continues where it stopped; EINTR and EAGAIN are tried again, a bounded number of times.

use bytes::Bytes;
use rustix::io::Errno;
use sds_api::buf::{AlignedBuf, aligned, is_aligned};
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest, OpId};

use crate::limits;
use crate::open::Media;

/// An operation that an engine carries out.
pub(crate) struct Transfer {
    pub(crate) id: OpId,
    pub(crate) work: Work,
    retries: u32,
}

/// What is left to do.
pub(crate) enum Work {
    /// Fill `buffer[done..]` from `offset + done`.
    Read { offset: u64, buffer: AlignedBuf, done: usize },
    /// Write from byte `skip` of `buffers[first]` on, to `offset`. Both move on with each short write.
    Write { offset: u64, buffers: Vec<Bytes>, first: usize, skip: usize, durable: bool },
    /// fdatasync.
    Flush,
}

/// What a check makes of a request.
pub(crate) enum Checked {
    /// To the kernel.
    Transfer(Box<Transfer>),
    /// To the discard thread: offset and length in bytes.
    Discard(OpId, u64, u64),
    /// Refused: outside the device, or not whole blocks.
    Done(DiskDone),
}

/// What a result of the kernel means.
pub(crate) enum Step {
    /// Submit the rest.
    Again(Box<Transfer>),
    /// Finished.
    Done(DiskDone),
}

/// Checks a request against the device before anything is allocated for it.
pub(crate) fn check(media: &Media, request: DiskRequest) -> Checked {
    let DiskRequest { id, op, .. } = request;
    let refuse = |what: &str, offset: u64, length: u64| {
        tracing::error!(path = %media.path.display(), offset, length, "{what} refused: not whole blocks of this device");
        Checked::Done(DiskDone { id, result: Err(DiskError::Io) })
    };
    let work = match op {
        DiskOp::Read { offset, length } => {
            if !fits(media, offset, u64::from(length), limits::OPERATION_BYTES_MAX) {
                return refuse("read", offset, u64::from(length));
            }
            Work::Read { offset, buffer: AlignedBuf::zeroed(length as usize), done: 0 }
        }
        DiskOp::Write { offset, buffers, durable } => {
            let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
            if !fits(media, offset, length, limits::OPERATION_BYTES_MAX) {
                return refuse("write", offset, length);
            }
            let buffers = fit_for_direct_io(buffers, media.geometry.logical_block as usize, length as usize);
            Work::Write { offset, buffers, first: 0, skip: 0, durable }
        }
        DiskOp::Flush => Work::Flush,
        DiskOp::Discard { offset, length } => {
            if !fits(media, offset, length, u64::MAX) {
                return refuse("discard", offset, length);
            }
            return Checked::Discard(id, offset, length);
        }
    };
    Checked::Transfer(Box::new(Transfer { id, work, retries: 0 }))
}

fn fits(media: &Media, offset: u64, length: u64, most: u64) -> bool {
    let block = u64::from(media.geometry.logical_block);
    let end = offset.checked_add(length);
    (1..=most).contains(&length)
        && offset.is_multiple_of(block)
        && length.is_multiple_of(block)
        && end.is_some_and(|end| end <= media.geometry.size)
}

/// Buffers that start on 4 KiB and have whole blocks go as they are. One that only starts elsewhere is copied alone; where
/// a length is odd, the pieces are joined. (Pieces at other addresses would be legal on most hardware, but each costs the
/// block layer a request of its own, which is dearer than the copy.)
fn fit_for_direct_io(mut buffers: Vec<Bytes>, block: usize, length: usize) -> Vec<Bytes> {
    buffers.retain(|buffer| !buffer.is_empty());
    if buffers.iter().all(|buffer| buffer.len().is_multiple_of(block)) {
        for buffer in &mut buffers {
            if !is_aligned(buffer) {
                *buffer = aligned(std::mem::take(buffer));
            }
        }
        return buffers;
    }
    let mut joined = AlignedBuf::zeroed(length);
    let mut at = 0;
    for buffer in &buffers {
        joined[at..at + buffer.len()].copy_from_slice(buffer);
        at += buffer.len();
    }
    vec![joined.freeze()]
}

/// The pieces still to be written, at most [`limits::SEGMENTS_MAX`] of them.
pub(crate) fn remaining(buffers: &[Bytes], first: usize, skip: usize) -> impl Iterator<Item = &[u8]> {
    let rest = buffers.get(first..).unwrap_or_default().iter().take(limits::SEGMENTS_MAX);
    rest.enumerate().map(move |(index, buffer)| if index == 0 { &buffer[skip..] } else { &buffer[..] })
}

impl Transfer {
    /// Takes the kernel's answer into account.
    pub(crate) fn advance(mut self: Box<Self>, media: &Media, result: Result<usize, Errno>) -> Step {
        let id = self.id;
        let count = match result {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) if self.retries < limits::RETRIES_MAX => {
                self.retries += 1;
                return Step::Again(self);
            }
            Err(errno) => return Step::Done(self.failed(media, errno)),
        };
        match &mut self.work {
            Work::Flush => return Step::Done(DiskDone { id, result: Ok(Bytes::new()) }),
            // Nothing was moved within the device: it shrank under us.
            Work::Read { .. } | Work::Write { .. } if count == 0 => {
                return Step::Done(self.failed(media, Errno::IO));
            }
            Work::Read { buffer, done, .. } => {
                *done += count;
                assert!(*done <= buffer.len(), "the kernel read more than it was asked for");
                if *done < buffer.len() {
                    return Step::Again(self);
                }
            }
            Work::Write { offset, buffers, first, skip, .. } => {
                *offset += count as u64;
                let mut left = count;
                while left > 0 {
                    let buffer = buffers.get(*first).expect("the kernel wrote no more than it was given");
                    let here = left.min(buffer.len() - *skip);
                    left -= here;
                    *skip += here;
                    if *skip == buffer.len() {
                        *first += 1;
                        *skip = 0;
                    }
                }
                if *first < buffers.len() {
                    return Step::Again(self);
                }
            }
        }
        let bytes = match self.work {
            Work::Read { buffer, .. } => buffer.freeze(),
            Work::Write { .. } | Work::Flush => Bytes::new(),
        };
        Step::Done(DiskDone { id, result: Ok(bytes) })
    }

    fn failed(&self, media: &Media, errno: Errno) -> DiskDone {
        let (what, offset) = match &self.work {
            Work::Read { offset, done, .. } => ("read", offset + *done as u64),
            Work::Write { offset, .. } => ("write", *offset),
            Work::Flush => ("flush", 0),
        };
        tracing::error!(path = %media.path.display(), offset, error = %errno, "{what} failed");
        DiskDone { id: self.id, result: Err(error_of(errno)) }
    }
}

/// What a store must tell apart.
pub(crate) fn error_of(errno: Errno) -> DiskError {
    match errno {
        Errno::NOSPC | Errno::DQUOT => DiskError::NoSpace,
        Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM => DiskError::Gone,
        _ => DiskError::Io,
    }
}
