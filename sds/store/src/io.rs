//! The disk operations that a store asks for.
//!
//! The store plans; somebody else (an engine of `sds-disk`, or the simulator) carries out. These types are the whole
//! conversation between the two. An operation, once handed out, is never cancelled: its buffers belong to it until its
//! result comes back.
//!
//! Media rules that every engine obeys and every test may exploit: writes without `durable` may reach the medium in any
//! order, in any subset, torn at 512 bytes, until a later `Flush` that was *submitted after they completed* succeeds. A
//! `durable` write that completed is on the medium, whole.

use bytes::Bytes;

/// Names one operation of one device, unique for as long as the store is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Which queue an operation belongs to; engines and throttles may treat classes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IoClass {
    /// A client waits for it: journal frames, reads.
    Foreground,
    /// Applying the journal home, checkpoints.
    Apply,
    /// Resync, scrub, merge.
    Background,
}

/// One operation. Offsets and lengths are multiples of the device's logical block size (the store always uses 4 KiB).
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Read `length` bytes at `offset`.
    Read {
        /// Byte offset on the device.
        offset: u64,
        /// Bytes to read.
        length: u32,
    },
    /// Write the buffers one after another, starting at `offset`. Buffers made by `sds_api::buf` are aligned and are
    /// written without a copy; others are copied by the engine.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// What to write; the sum of the lengths is a multiple of 4 KiB.
        buffers: Vec<Bytes>,
        /// True: completion means durable (RWF_DSYNC or write and flush).
        durable: bool,
    },
    /// Make every write that completed before this operation was submitted durable.
    Flush,
    /// Tell the device that the range is unused. A hint: contents are undefined afterwards.
    Discard {
        /// Byte offset on the device.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// An operation on its way to the engine.
#[derive(Clone, Debug)]
pub struct DiskRequest {
    /// Names it; comes back with the result.
    pub id: OpId,
    /// Its class.
    pub class: IoClass,
    /// What to do.
    pub op: DiskOp,
}

/// Why an operation failed, as far as a store must tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The medium could not deliver or take the data (EIO and kin).
    #[error("input/output error")]
    Io,
    /// The file system under a file-backed device is full.
    #[error("no space left on the backing file system")]
    NoSpace,
    /// Longer than the watchdog allows; the operation may still land.
    #[error("operation hung")]
    Hung,
    /// The device went away.
    #[error("device is gone")]
    Gone,
}

/// What came of an operation. For reads the bytes, as long as was asked, in an aligned buffer; else empty.
#[derive(Clone, Debug)]
pub struct DiskDone {
    /// The operation.
    pub id: OpId,
    /// Its result.
    pub result: Result<Bytes, DiskError>,
}
