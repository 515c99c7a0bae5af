//! What a user of a volume asks for and gets.

use std::fmt;

use bytes::Bytes;

/// Names an I/O of a session. Whoever submits chooses them, each greater than the one before: they are the order of
/// submission too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct IoId(pub u64);

/// An I/O. Offsets and lengths are bytes of the volume, of any alignment.
#[derive(Clone, PartialEq, Eq)]
pub enum IoRequest {
    /// Read, at most [`crate::limits::IO_BYTES_MAX`].
    Read {
        /// First byte.
        offset: u64,
        /// How many, at least 1.
        length: u64,
    },
    /// Write, at most [`crate::limits::IO_BYTES_MAX`].
    Write {
        /// First byte.
        offset: u64,
        /// The bytes, at least 1.
        data: Bytes,
    },
    /// Make bytes read as zeros and give their space back where that is possible: discard and write-zeroes alike.
    Zero {
        /// First byte.
        offset: u64,
        /// How many, at least 1; up to the whole volume.
        length: u64,
    },
    /// Which blocks hold data? At most [`crate::limits::STATUS_BYTES_MAX`].
    Status {
        /// First byte.
        offset: u64,
        /// How many, at least 1.
        length: u64,
    },
    /// Completes when every change that was submitted before it has been answered. Answered is durable (P1), so this asks
    /// nobody anything.
    Flush,
}

impl IoRequest {
    /// First byte and number of bytes; (0, 0) for a flush.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { offset, length } | Self::Zero { offset, length } | Self::Status { offset, length } => {
                (*offset, *length)
            }
            Self::Write { offset, data } => (*offset, data.len() as u64),
            Self::Flush => (0, 0),
        }
    }

    /// True if it changes the volume.
    pub fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zero { .. })
    }

    /// Payload bytes that it holds while it is under way.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Read { length, .. } => *length as usize,
            Self::Write { data, .. } => data.len(),
            Self::Zero { .. } | Self::Status { .. } | Self::Flush => 0,
        }
    }
}

impl fmt::Debug for IoRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Read { .. } => "Read",
            Self::Write { .. } => "Write",
            Self::Zero { .. } => "Zero",
            Self::Status { .. } => "Status",
            Self::Flush => "Flush",
        };
        let (offset, length) = self.range();
        write!(f, "{name} {offset}+{length}")
    }
}

/// What came of an I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoOutput {
    /// The bytes, in pieces that follow each other; each was verified against its checksum (I21).
    Data(Vec<Bytes>),
    /// Done, durable on every in-sync copy.
    Done,
    /// For each block that the range touches, in order: true if it holds data, false if it reads as zeros.
    Status(Vec<bool>),
}

/// Why an I/O failed: definitive, all that can be waited for was waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// Beyond the volume's end, or empty.
    #[error("{length} bytes at {offset} are not within the volume of {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// How many.
        length: u64,
        /// The volume's size.
        size: u64,
    },
    /// Longer than one I/O may be.
    #[error("an I/O of {0} bytes is too long: split it")]
    TooLong(u64),
    /// The session is full: submit again when something has completed.
    #[error("too many I/Os under way")]
    Busy,
    /// The mapping is read-only.
    #[error("the volume is mapped read-only")]
    ReadOnly,
    /// The mapping was taken away, or opened anew by another client daemon (I17).
    #[error("the mapping of the volume was revoked")]
    Revoked,
    /// The volume was removed.
    #[error("the volume does not exist any more")]
    VolumeGone,
    /// No good copy is left of a block in the range: EIO.
    #[error("no good copy is left of a block in the range")]
    Medium,
    /// What arrives is damaged every time, or the bytes to write changed in this host's memory.
    #[error("the data is damaged between the disk and here, again and again: check the host's memory and network")]
    Damaged,
    /// No space in the pool, and the policy is not to wait for some.
    #[error("no space left in the storage pool")]
    NoSpace,
    /// Not answered within the time that the policy gives. A change may still take effect.
    #[error("not answered in time")]
    TimedOut,
    /// A server contradicts itself; the text says how.
    #[error("a data server broke the protocol: {0}")]
    Protocol(&'static str),
    /// The pool's placement is of a version that this software does not know.
    #[error("the pool places its chunks by version {0}, which this software does not know: upgrade it")]
    UnknownPlacement(u16),
    /// The client was closed.
    #[error("the volume was closed")]
    Closed,
}
