//! What replicas of a placement group say to each other, and what servers say to each other about leases.
//!
//! ```text
//!  primary                                            member (secondary or learner)
//!    Activate{ask, epoch}        ──────────────────▶   persists its promise of the term (I7)
//!    ◀──────────────────  Tail{ask, last, history}     or Refused{promised, epoch}
//!    Follow{stream, after}       ──────────────────▶   drops what it has beyond `after`, or
//!    Reset{stream, through, ..}  ──────────────────▶   starts anew from the primary's state
//!    Replicate{stream, entries}  ──────────────────▶   journals them
//!    Copy, RemoveLayers, Complete in the same stream   (learners alone)
//!    ◀──────────────────  Durable{stream, through}
//! ```
//!
//! The messages from `Replicate` to `Complete` form one ordered stream; each carries the stream's id and its number in it,
//! dense from 1. The stream's id is the number of the question that the member has answered last. A receiver takes only the next one of the current stream: what was sent over an older connection, comes
//! twice or out of order is dropped, whatever the network does.
//!
//! Header and payload are encoded apart. Every payload but a `Reset`'s is a sequence of whole blocks, so that an aligned
//! receive buffer can be cut without a copy. Whoever decodes verifies block checksums before use (I21).

use bytes::Bytes;
use mdm_api::epoch::{Epoch, Nanos, Seq, Term, Version};
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation, SdsId};

use crate::block::{BLOCK_BYTES, BlockRange, CHUNK_BYTES, LayerKey};
use crate::entry::{ENTRY_HEADER_BYTES_MAX, Entry};

mod codec;

pub use codec::PeerDecodeError;

/// Version of the encoding. 1: the first.
pub const PEER_VERSION: u8 = 1;
/// Entries in one `Replicate`.
pub const REPLICATE_ENTRIES_MAX: usize = 256;
/// Payload of one message: two whole chunks, or the state in a `Reset`.
pub const PEER_PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// Terms in a history.
pub const HISTORY_TERMS_MAX: usize = 64;
/// Layers in one `ChunkVersions` or `RemoveLayers`.
pub const LAYERS_PER_MESSAGE_MAX: usize = 4096;
/// Groups in the lists of one lease message; what does not fit travels with the next.
pub const LEASE_GROUPS_MAX: usize = 4096;
/// The longest header: a `Replicate` full of chunk-sized writes.
pub const PEER_HEADER_BYTES_MAX: usize = 256 + REPLICATE_ENTRIES_MAX * ENTRY_HEADER_BYTES_MAX;

/// One frame between two data servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerFrame {
    /// Between two replicas of a placement group.
    Replica(PeerMessage),
    /// Between two servers, for all groups that they share.
    Lease(LeaseMessage),
}

/// From one replica to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage {
    /// The group.
    pub pg: PgId,
    /// The term of the primary that speaks or is answered.
    pub term: Term,
    /// The sending replica's device.
    pub from: DeviceId,
    /// The receiving replica's device.
    pub to: DeviceId,
    /// The sending process.
    pub incarnation: ProcessIncarnation,
    /// The process that it is meant for: a later one on the same device drops it, whichever way it came.
    pub to_incarnation: ProcessIncarnation,
    /// What is said.
    pub body: PeerBody,
}

/// Where a term begins in a replica's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermStart {
    /// The term.
    pub term: Term,
    /// Its first entry.
    pub first: Seq,
}

/// How much a device lets one primary's device have under way to it (I24). Both are limits on what is sent and still not
/// durable there, over all groups that the two devices share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CreditGrant {
    /// Allocation units.
    pub aus: u64,
    /// Bytes of journal.
    pub journal_bytes: u64,
}

/// What a member has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Its last entry, all before it durable as well (I8).
    pub last: Seq,
    /// The last entry that it knows to be committed.
    pub committed: Seq,
    /// Which terms its entries are from, oldest first, at most [`HISTORY_TERMS_MAX`].
    pub history: Vec<TermStart>,
    /// True if its content is complete as of `last`; false in the middle of a resync.
    pub complete: bool,
    /// True if its store found signs of lost entries (I12).
    pub suspect: bool,
    /// What the primary may send it.
    pub grant: CreditGrant,
}

/// The whole content of one chunk layer at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerCopy {
    /// The last write in it.
    pub version: Version,
    /// One bit for each block, lowest first: set where the layer holds data.
    pub presence: [u64; 4],
    /// One CRC32C for each block that is present, in order.
    pub checksums: Vec<u32>,
    /// The blocks that are present, in order, in pieces of whole blocks.
    pub data: Vec<Bytes>,
}

impl LayerCopy {
    /// How many blocks are present.
    pub fn block_count(&self) -> usize {
        self.presence.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// True if counts and checksums fit the content (I21).
    pub fn verify(&self) -> bool {
        blocks_match(&self.checksums, &self.data, self.block_count())
    }
}

/// Verified content of some blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlocksData {
    /// One CRC32C for each block.
    pub checksums: Vec<u32>,
    /// The blocks in order, in pieces of whole blocks.
    pub data: Vec<Bytes>,
}

impl BlocksData {
    /// True if these are `count` blocks that match their checksums (I21).
    pub fn verify(&self, count: usize) -> bool {
        blocks_match(&self.checksums, &self.data, count)
    }
}

fn blocks_match(checksums: &[u32], data: &[Bytes], count: usize) -> bool {
    let whole = data.iter().all(|piece| piece.len().is_multiple_of(BLOCK_BYTES));
    let bytes: usize = data.iter().map(Bytes::len).sum();
    whole
        && checksums.len() == count
        && bytes == count * BLOCK_BYTES
        && data
            .iter()
            .flat_map(|piece| piece.chunks_exact(BLOCK_BYTES))
            .zip(checksums)
            .all(|(block, sum)| crate::checksum::crc32c(block) == *sum)
}

/// What replicas say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerBody {
    /// "I am the primary of this term: promise it and tell me what you have."
    Activate {
        /// Number of the question; the answer repeats it.
        ask: u64,
        /// The primary's configuration.
        epoch: Epoch,
    },
    /// The promise is durable; this is what the member has.
    Tail {
        /// The question's number.
        ask: u64,
        /// The member's state.
        tail: Tail,
    },
    /// Not under this term: the member promised a newer one, or does not know this one from the map yet.
    Refused {
        /// What it promised.
        promised: Term,
        /// The configuration that it knows.
        epoch: Epoch,
    },
    /// The member follows no stream, or lost its place in this one: it wants to be asked anew.
    AskStream {
        /// The stream of the message that it could not take.
        stream: u64,
    },
    /// "Drop what you have beyond `after`; the stream goes on from there."
    Follow {
        /// The new stream: the number of the question that was answered.
        stream: u64,
        /// The last entry in common.
        after: Seq,
        /// Committed through here.
        commit: Seq,
    },
    /// "Forget your tail: the stream goes on after `through`, from this state." The content follows by copies.
    Reset {
        /// The new stream: the number of the question that was answered.
        stream: u64,
        /// The last entry that the state includes.
        through: Version,
        /// Term history and table of requests, as the replica's own crate encodes it.
        state: Bytes,
    },
    /// The next entries; none: a sign of life that carries `commit`.
    Replicate {
        /// The stream.
        stream: u64,
        /// Number in the stream.
        number: u64,
        /// Committed through here.
        commit: Seq,
        /// Dense entries.
        entries: Vec<Entry>,
    },
    /// The content of one layer; entries on its chunk come whole from here on.
    Copy {
        /// The stream.
        stream: u64,
        /// Number in the stream.
        number: u64,
        /// Which layer.
        layer: LayerKey,
        /// Its content.
        copy: LayerCopy,
    },
    /// Some blocks of one layer, on top of what the learner has of it; otherwise as [`PeerBody::Copy`].
    Patch {
        /// The stream.
        stream: u64,
        /// Number in the stream.
        number: u64,
        /// Which layer.
        layer: LayerKey,
        /// The version on which it goes. A learner that has another one, or cannot read it, asks for a new stream.
        base: Version,
        /// The blocks that are spoken of, one bit for each: those that are not in `copy` hold nothing.
        blocks: [u64; 4],
        /// Their content, and the version of the whole.
        copy: LayerCopy,
    },
    /// Layers that the primary does not have.
    RemoveLayers {
        /// The stream.
        stream: u64,
        /// Number in the stream.
        number: u64,
        /// Which.
        layers: Vec<LayerKey>,
    },
    /// With what was sent before, the learner's content is complete.
    Complete {
        /// The stream.
        stream: u64,
        /// Number in the stream.
        number: u64,
    },
    /// The member's answer to everything in the stream; cumulative.
    Durable {
        /// The stream.
        stream: u64,
        /// All entries up to here are durable (I8).
        through: Seq,
        /// How many of the stream's copies, removals and completions are done and durable.
        operations: u64,
        /// What the primary may send.
        grant: CreditGrant,
    },
    /// "Which layers do you have?", in order of key.
    ListChunks {
        /// The stream.
        stream: u64,
        /// Go on after this one; none: from the start.
        after: Option<LayerKey>,
    },
    /// A page of the answer.
    ChunkVersions {
        /// The stream.
        stream: u64,
        /// The question's `after`.
        after: Option<LayerKey>,
        /// At most [`LAYERS_PER_MESSAGE_MAX`], in order.
        layers: Vec<(LayerKey, Version)>,
        /// No more to come.
        last: bool,
    },
    /// "Give me these blocks as of `commit`" (F15).
    FetchBlocks {
        /// Number of the question.
        request: u64,
        /// Which layer.
        layer: LayerKey,
        /// Which blocks.
        blocks: BlockRange,
        /// The primary's committed entry; no later one touches the blocks.
        commit: Seq,
    },
    /// The blocks, or none if the member has no good copy either, or is not as far as `commit`.
    Blocks {
        /// The question's number.
        request: u64,
        /// The content.
        content: Option<BlocksData>,
    },
    /// "I serve no more under this term, and never will again": a planned move.
    Release,
}

/// Between servers: who may serve reads, and until when. I13 to I15.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseMessage {
    /// "Grant me a lease for all groups that I lead."
    Ask {
        /// Who asks.
        from: SdsId,
        /// Its process.
        incarnation: ProcessIncarnation,
        /// When, by the asker's own clock; the grant repeats it.
        sent_at: Nanos,
        /// Exclusions that the asker has taken in.
        confirmed: Vec<(PgId, Term)>,
    },
    /// "For `lease_ms` I help nobody else to lead, except in the excluded groups."
    Grant {
        /// Who grants.
        from: SdsId,
        /// Its process.
        incarnation: ProcessIncarnation,
        /// The process that asked.
        to_incarnation: ProcessIncarnation,
        /// When it asked, by its clock.
        sent_at: Nanos,
        /// The span, counted by the granter from the receipt of the question.
        lease_ms: u64,
        /// Groups in which the granter knows of this newer term: not covered for any older one (I15).
        exclude: Vec<(PgId, Term)>,
    },
}

/// A frame as bytes, header and payload apart.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EncodedPeer {
    /// The header.
    pub header: Vec<u8>,
    /// The payload, in pieces that follow each other.
    pub payload: Vec<Bytes>,
}

const _: () = assert!(2 * CHUNK_BYTES <= PEER_PAYLOAD_BYTES_MAX);

#[cfg(test)]
mod tests;
