//! The few messages of the kernel's FUSE protocol that one file needs. Pure; the kernel is trusted, lengths are
//! checked all the same.
//!
//! All numbers are in host order, the two sides share a machine. Version 7.31 is spoken: everything used here exists
//! in it, and later kernels keep to it.

#![allow(clippy::host_endian_bytes)] // The protocol never leaves the machine and is defined in host order.

/// Header of a request, bytes.
pub(super) const IN_HEADER: usize = 40;
/// Header of READ and WRITE arguments, bytes.
pub(super) const IO_ARGUMENTS: usize = 40;
/// Largest READ or WRITE, bytes: what the kernel allows at most by default.
pub(super) const MAX_IO: u32 = 1 << 20;
/// The only file.
const ROOT: u64 = 1;
/// Requests that the kernel may have queued in the background.
const MAX_BACKGROUND: u16 = 128;

const ASYNC_READ: u32 = 1;
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;
/// Open flag: the page cache stays out of it.
const OPEN_DIRECT_IO: u32 = 1;
/// Open flag: writes of one file may run side by side (ignored by kernels before 6.2).
const OPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// What the kernel asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask<'a> {
    Init {
        minor: u32,
        flags: u32,
    },
    GetAttributes,
    Open,
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
    },
    Sync,
    Punch {
        offset: u64,
        length: u64,
        keep_allocated: bool,
    },
    StatFs,
    /// Answered with success, nothing to do.
    Nothing,
    /// Must not be answered.
    NoReply,
    /// Not offered.
    Unknown,
}

/// Reads a request: its number for the reply, and what it asks. `None` if it is cut short.
pub(super) fn decode(bytes: &[u8]) -> Option<(u64, Ask<'_>)> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (opcode, unique) = (word(4)?, long(8)?);
    let arguments = IN_HEADER;
    let ask = match opcode {
        26 => Ask::Init { minor: word(arguments + 4)?, flags: word(arguments + 12)? },
        3 => Ask::GetAttributes,
        14 => Ask::Open,
        15 => Ask::Read { offset: long(arguments + 8)?, size: word(arguments + 16)? },
        16 => {
            let size = word(arguments + 16)? as usize;
            let data = bytes.get(arguments + IO_ARGUMENTS..)?.get(..size)?;
            Ask::Write { offset: long(arguments + 8)?, data }
        }
        20 => Ask::Sync,
        43 => {
            // ZERO_RANGE (0x10) keeps the space, PUNCH_HOLE (2) gives it back; both read as zeroes. Plain allocation
            // has no meaning for a volume.
            let mode = word(arguments + 24)?;
            let (offset, length) = (long(arguments + 8)?, long(arguments + 16)?);
            match mode & 0x12 {
                0 => Ask::Unknown,
                kind => Ask::Punch { offset, length, keep_allocated: kind & 2 == 0 },
            }
        }
        17 => Ask::StatFs,
        // RELEASE, FLUSH, ACCESS, DESTROY
        18 | 25 | 34 | 38 => Ask::Nothing,
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => Ask::NoReply,
        _ => Ask::Unknown,
    };
    Some((unique, ask))
}

/// Header of a reply with `length` bytes behind it; `error` is a positive errno or 0.
pub(super) fn reply_header(unique: u64, error: i32, length: usize) -> [u8; 16] {
    let mut out = [0; 16];
    let whole = u32::try_from(16 + length).expect("replies fit a buffer");
    out[0..4].copy_from_slice(&whole.to_ne_bytes());
    out[4..8].copy_from_slice(&(-error).to_ne_bytes());
    out[8..16].copy_from_slice(&unique.to_ne_bytes());
    out
}

/// Answer to INIT.
pub(super) fn init(minor: u32, flags: u32) -> [u8; 64] {
    let mut out = [0; 64];
    let wanted = flags & (ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES);
    out[0..4].copy_from_slice(&7u32.to_ne_bytes());
    out[4..8].copy_from_slice(&minor.min(31).to_ne_bytes());
    out[12..16].copy_from_slice(&wanted.to_ne_bytes());
    out[16..18].copy_from_slice(&MAX_BACKGROUND.to_ne_bytes());
    out[18..20].copy_from_slice(&(MAX_BACKGROUND / 4 * 3).to_ne_bytes());
    out[20..24].copy_from_slice(&MAX_IO.to_ne_bytes());
    out[24..28].copy_from_slice(&1u32.to_ne_bytes());
    out[28..30].copy_from_slice(&((MAX_IO / 4096) as u16).to_ne_bytes());
    out
}

/// Answer to GETATTR: a regular file of that size, never cached, so that growth is seen.
pub(super) fn attributes(size_bytes: u64) -> [u8; 104] {
    let mut out = [0; 104];
    out[16..24].copy_from_slice(&ROOT.to_ne_bytes());
    out[24..32].copy_from_slice(&size_bytes.to_ne_bytes());
    out[32..40].copy_from_slice(&(size_bytes / 512).to_ne_bytes());
    out[76..80].copy_from_slice(&0o100_600u32.to_ne_bytes());
    out[80..84].copy_from_slice(&1u32.to_ne_bytes());
    out[96..100].copy_from_slice(&4096u32.to_ne_bytes());
    out
}

/// Answer to OPEN.
pub(super) fn open() -> [u8; 16] {
    let mut out = [0; 16];
    out[8..12].copy_from_slice(&(OPEN_DIRECT_IO | OPEN_PARALLEL_DIRECT_WRITES).to_ne_bytes());
    out
}

/// Answer to WRITE.
pub(super) fn written(size: u32) -> [u8; 8] {
    let mut out = [0; 8];
    out[0..4].copy_from_slice(&size.to_ne_bytes());
    out
}

/// Answer to STATFS. The block size becomes the loop device's discard granularity.
pub(super) fn statfs(size_bytes: u64) -> [u8; 80] {
    let mut out = [0; 80];
    out[0..8].copy_from_slice(&(size_bytes / 4096).to_ne_bytes());
    out[40..44].copy_from_slice(&4096u32.to_ne_bytes());
    out[44..48].copy_from_slice(&255u32.to_ne_bytes());
    out[48..52].copy_from_slice(&4096u32.to_ne_bytes());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(opcode: u32, arguments: &[u8]) -> Vec<u8> {
        let mut out = vec![0; IN_HEADER];
        out[4..8].copy_from_slice(&opcode.to_ne_bytes());
        out[8..16].copy_from_slice(&77u64.to_ne_bytes());
        out.extend_from_slice(arguments);
        out
    }

    #[test]
    fn a_write_carries_its_data_and_a_short_one_is_refused() {
        let mut arguments = vec![0; IO_ARGUMENTS];
        arguments[8..16].copy_from_slice(&4096u64.to_ne_bytes());
        arguments[16..20].copy_from_slice(&3u32.to_ne_bytes());
        arguments.extend_from_slice(b"abc");
        let whole = request(16, &arguments);
        assert_eq!(decode(&whole), Some((77, Ask::Write { offset: 4096, data: b"abc" })));
        assert_eq!(decode(&whole[..whole.len() - 1]), None);
    }

    #[test]
    fn a_discard_gives_space_back_and_a_zeroing_may_keep_it() {
        let punch = |mode: u32| {
            let mut arguments = vec![0; 32];
            arguments[16..24].copy_from_slice(&8192u64.to_ne_bytes());
            arguments[24..28].copy_from_slice(&mode.to_ne_bytes());
            request(43, &arguments)
        };
        let expected = |keep_allocated| Some((77, Ask::Punch { offset: 0, length: 8192, keep_allocated }));
        assert_eq!(decode(&punch(3)), expected(false));
        assert_eq!(decode(&punch(0x11)), expected(true));
        assert_eq!(decode(&punch(0)), Some((77, Ask::Unknown)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = decode(&bytes);
        }
    }
}
