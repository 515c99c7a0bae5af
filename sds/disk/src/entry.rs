//! Ring entries for transfers, shared by the engines over io_uring.

use std::os::fd::AsRawFd;

use io_uring::{cqueue, opcode, squeue, types};
use rustix::io::{Errno, ReadWriteFlags};

use crate::open::Media;
use crate::transfer::{Transfer, Work, remaining};

/// A piece of memory as the kernel's iovec has it.
#[repr(C)]
pub(crate) struct Segment {
    base: *const u8,
    length: usize,
}

impl Segment {
    fn of(bytes: &[u8]) -> Self {
        Self { base: bytes.as_ptr(), length: bytes.len() }
    }
}

/// The entry of what is left of a transfer. It refers to memory of the transfer and of `segments`, all on the heap, so
/// moving either does not move it; the caller keeps both untouched until the completion is in hand.
pub(crate) fn of(media: &Media, transfer: &mut Transfer, segments: &mut Vec<Segment>) -> squeue::Entry {
    let fd = types::Fd(media.fd.as_raw_fd());
    segments.clear();
    match &mut transfer.work {
        Work::Read { offset, buffer, done } => {
            let rest = &mut buffer[*done..];
            opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32).offset(*offset + *done as u64).build()
        }
        Work::Write { offset, buffers, first, skip, durable } => {
            let flags = if *durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
            let flags = flags.bits() as types::RwFlags;
            segments.extend(remaining(buffers, *first, *skip).map(Segment::of));
            match &segments[..] {
                [one] => opcode::Write::new(fd, one.base, one.length as u32).offset(*offset).rw_flags(flags).build(),
                several => {
                    let vector = several.as_ptr().cast();
                    opcode::Writev::new(fd, vector, several.len() as u32).offset(*offset).rw_flags(flags).build()
                }
            }
        }
        Work::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

/// The kernel's answer.
pub(crate) fn result_of(completion: &cqueue::Entry) -> Result<usize, Errno> {
    let code = completion.result();
    usize::try_from(code).map_err(|_| Errno::from_raw_os_error(code.wrapping_neg()))
}
