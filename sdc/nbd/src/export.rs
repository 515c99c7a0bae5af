//! What the server serves: the border between NBD and the volumes of the SDC.
//!
//! The contract that makes the rest simple:
//!
//! - A write, zeroing or trim that has completed **is durable** on every in-sync copy (P1). FUA is therefore a plain
//!   write, and `flush` is asked only to wait for what it must wait for, normally nothing.
//! - Overlapping changes take effect **in the order in which they were called**, whichever connection they came by. A
//!   client that lost its connection sends its requests again; the first copies may still be running and must not land
//!   after the second ones and after what follows them (trap 24).
//! - A future may be dropped half-way: the client has gone. What was sent on of its change may still take effect, **before**
//!   any overlapping change that is called later; the rest must not.
//! - Offsets and lengths have been checked against `size_bytes` and are not zero, except that a volume may have changed meanwhile.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

/// Smallest unit a client may address, bytes.
pub const MINIMUM_BLOCK: u32 = 1;
/// Unit that needs no read-modify-write, bytes.
pub const PREFERRED_BLOCK: u32 = 4096;

/// Why a request failed, in the words of NBD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The export is read-only, or the right to write was withdrawn.
    #[error("not permitted")]
    NotPermitted,
    /// No good copy, or the data could not be kept.
    #[error("input/output error")]
    Io,
    /// The pool is full, or a write runs past the end.
    #[error("no space")]
    NoSpace,
    /// The request makes no sense here.
    #[error("invalid request")]
    Invalid,
    /// The export is going away.
    #[error("shutting down")]
    ShuttingDown,
    /// Not offered, or not fast.
    #[error("not supported")]
    NotSupported,
    /// Longer than allowed.
    #[error("too long")]
    Overflow,
}

/// A part of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes as stored, shared with whoever read them.
    Data(Bytes),
    /// This many zero bytes that nobody stored (never written, or trimmed).
    Zero(u32),
}

impl Piece {
    /// Bytes of the export that it covers.
    pub fn length(&self) -> usize {
        match self {
            Piece::Data(bytes) => bytes.len(),
            Piece::Zero(length) => *length as usize,
        }
    }
}

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub length: u64,
    /// Nothing is allocated for it.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// How to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Zeroing {
    /// Keep the space allocated, so that later writes cannot run out of it.
    pub keep_allocated: bool,
    /// Fail with [`ExportError::NotSupported`] at once if it is not faster than writing.
    pub fast_only: bool,
}

/// One block device. See the module for what its operations promise.
pub trait Export: Send + Sync + 'static {
    /// Bytes; may grow while it is open.
    fn size_bytes(&self) -> u64;
    /// True if changes are refused.
    fn read_only(&self) -> bool;
    /// Appends pieces of `length` bytes in all, in order.
    fn read(
        &self,
        offset: u64,
        length: u32,
        pieces: &mut Vec<Piece>,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;
    /// Writes all of `data`, any alignment.
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = Result<(), ExportError>> + Send;
    /// Makes a range read as zeroes.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        how: Zeroing,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;
    /// Gives space back where it can; what the range reads as afterwards is open.
    fn trim(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), ExportError>> + Send;
    /// Returns when every change that was answered before the call is durable.
    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + Send;
    /// A hint that the range will be read soon.
    fn cache(&self, offset: u64, length: u64) -> impl Future<Output = Result<(), ExportError>> + Send;
    /// Appends extents from `offset` on; at least one, at most up to the end of the export. They may end before
    /// `offset + length`.
    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Vec<Extent>,
    ) -> impl Future<Output = Result<(), ExportError>> + Send;
}

/// The exports of a server, by name.
pub trait Exports: Send + Sync + 'static {
    /// What is served.
    type Export: Export;
    /// Names to show to whoever asks.
    fn list(&self) -> impl Future<Output = Vec<String>> + Send;
    /// The export of that name. The empty name is the default export, if there is one.
    fn open(&self, name: &str) -> impl Future<Output = Option<Arc<Self::Export>>> + Send;
}
