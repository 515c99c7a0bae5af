//! What a client says to the primary of a placement group, and what it hears.
//!
//! A connection opens volumes with tickets (see `open`) and gets a handle for each; requests name the handle. A request
//! lies within one chunk. Offsets and lengths are bytes, of any alignment: the primary merges what is smaller than a block.
//!
//! `tag` matches an answer to its question on one connection. `(session, pg, request)` is the identity of a write: the same
//! on every retry, over every connection (I16).

use bytes::Bytes;
use mdm_api::config::PgConfig;
use mdm_api::epoch::{Epoch, RequestNumber, SnapSeq};
use mdm_api::ids::PgId;
use smallvec::SmallVec;

use crate::block::ChunkId;

/// Checksums of the blocks of a request or an answer. Those of up to 32 KiB need no memory of their own.
pub type Checksums = SmallVec<[u32; 8]>;

/// A question to a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequest {
    /// Matches the answer to the question, unique among those in flight on the connection.
    pub tag: u64,
    /// The opened volume.
    pub handle: u32,
    /// The group that the client believes keeps the chunk; checked against the placement function.
    pub pg: PgId,
    /// The configuration that the client acts on: a hint. Newer than the server's makes the server wait for the map.
    pub epoch: Epoch,
    /// The chunk.
    pub chunk: ChunkId,
    /// The snapshot sequence that the client knows. I18.
    pub snap_seq: SnapSeq,
    /// What to do.
    pub operation: ClientOperation,
}

/// What a client wants done. Byte ranges are within the chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOperation {
    /// Read bytes.
    Read {
        /// First byte.
        offset: u32,
        /// How many, at least 1.
        length: u32,
    },
    /// Write bytes.
    Write {
        /// Identity and watermark.
        identity: RequestIdentity,
        /// First byte.
        offset: u32,
        /// One CRC32C for each block-sized piece of `data`, cut at the chunk's block boundaries: verified by the primary
        /// before anything else, so that in-flight damage is caught (P3).
        checksums: Checksums,
        /// The bytes, at least 1.
        data: Bytes,
    },
    /// Make bytes read as zeros.
    Zero {
        /// Identity and watermark.
        identity: RequestIdentity,
        /// First byte.
        offset: u32,
        /// How many, at least 1.
        length: u32,
    },
    /// Which blocks hold data?
    Status {
        /// First byte.
        offset: u32,
        /// How many, at least 1.
        length: u32,
    },
}

/// Number of a changing request within (session, group), and the low watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestIdentity {
    /// Its number.
    pub request: RequestNumber,
    /// All below were answered; the server forgets them.
    pub oldest_unacked: RequestNumber,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientReply {
    /// The question's tag.
    pub tag: u64,
    /// What came of it.
    pub result: Result<ClientAnswer, ClientError>,
}

/// A good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAnswer {
    /// The bytes asked for, and one CRC32C for each block-sized piece of them, as in [`ClientOperation::Write`].
    Data {
        /// Checksums.
        checksums: Checksums,
        /// The bytes, possibly in several pieces that follow each other.
        data: Vec<Bytes>,
    },
    /// Durable on every in-sync copy.
    Done,
    /// For each block that the range touches, in order: true if it holds data, false if it reads as zeros.
    Status(Vec<bool>),
}

/// Why not, by what the client can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Not the primary. The configuration, if this server has a newer one than the client.
    #[error("not the primary of this placement group")]
    WrongPrimary(Option<Box<PgConfig>>),
    /// Not now (activating, map behind, no credits, too many in flight): try again shortly with the same identity.
    #[error("not now, try again")]
    Retry,
    /// The client's snapshot sequence is old: drain, then go on with this one.
    #[error("the volume has a newer snapshot sequence, {0}")]
    StaleSnap(SnapSeq),
    /// The mapping's generation is fenced: reopen the volume under a new one, if there is one.
    #[error("the mapping was revoked")]
    Fenced,
    /// The mapping is read-only.
    #[error("the mapping is read-only")]
    ReadOnly,
    /// The handle is not open on this connection.
    #[error("no such handle on this connection")]
    UnknownHandle,
    /// Beyond the volume's end, or not one chunk, or not that chunk's group.
    #[error("outside of the volume")]
    OutOfRange,
    /// The payload does not match its checksums: damaged on the way.
    #[error("payload damaged in flight")]
    Damaged,
    /// No space on some in-sync copy.
    #[error("no space left in the pool")]
    NoSpace,
    /// No good copy is left of a block in the range.
    #[error("no good copy left of a block")]
    Medium,
    /// Below the watermark: a late copy of a request that was answered long ago. No client waits for this.
    #[error("answered long ago")]
    Forgotten,
}
