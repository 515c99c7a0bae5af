//! The conversation with a store: requests and events in, answers and disk operations out.
//!
//! A request is answered exactly once, by [`Output::Done`] with its token, except [`Request::Commit`], which has no answer.
//! Requests take effect in the order in which they are handed in. Answers of different requests may come in any order,
//! except that appends of one placement group are answered in their order (I8).

use bytes::Bytes;
use mdm_api::epoch::{Seq, Term, Version};
use mdm_api::ids::PgId;
use sds_api::block::{BlockRange, LayerKey};
use sds_api::entry::Entry;

use crate::blockmap::BlockMap;
use crate::error::{BlockError, StoreError};
use crate::io::{DiskDone, DiskError, DiskRequest};

/// Names a request; chosen by the caller, returned with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What a store is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// Somebody wants something.
    Request {
        /// Comes back with the answer.
        token: Token,
        /// What.
        request: Request,
    },
    /// A disk operation ended.
    Disk(DiskDone),
    /// Time has passed. Wanted every 10 to 100 ms while the store is open: pacing and idle work hang on it.
    Tick,
}

/// What a store is asked to do.
#[derive(Clone, Debug)]
pub enum Request {
    /// Journal entries. Done when they, and all entries of these placement groups before them, are durable. Entries of one
    /// placement group come in ascending order. All of the request or nothing is accepted.
    Append {
        /// The entries; not empty.
        entries: Vec<Entry>,
    },
    /// Promise never to go below a term again (I7). Done when durable. Lower than the promise on record: stays as it was.
    Promise {
        /// The group.
        pg: PgId,
        /// The term.
        term: Term,
    },
    /// Keep the replica's own state (term history, table of requests...), which speaks for all entries up to `through`.
    /// It also says that they are committed. From then on they need not be kept for the replica. Done when durable.
    SaveState {
        /// The group.
        pg: PgId,
        /// The last entry that the state covers.
        through: Seq,
        /// The state, at most [`crate::limits::STATE_BYTES_MAX`].
        state: Bytes,
    },
    /// The uncommitted entries beyond `after` are gone for ever. Done when durable.
    Void {
        /// The group.
        pg: PgId,
        /// The last entry that stays.
        after: Seq,
    },
    /// Entries up to `through` are committed: they become visible to reads and may be applied (I10). No answer. May run
    /// ahead of what has been appended here.
    Commit {
        /// The group.
        pg: PgId,
        /// The last committed entry.
        through: Seq,
    },
    /// The newest committed content, read through older layers of the chunk; zeros where nothing was written.
    /// Every block is verified against its checksum before it is handed out (I21). Answer: [`Answer::Read`].
    Read {
        /// Chunk and the snapshot sequence to read at: layers with this one or an older one count.
        layer: LayerKey,
        /// Which blocks.
        blocks: BlockRange,
    },
    /// Which blocks hold data, seen as `Read` sees them. Answer: [`Answer::Status`].
    Status {
        /// Chunk and snapshot sequence.
        layer: LayerKey,
        /// Which blocks.
        blocks: BlockRange,
    },
    /// All layers of a placement group with the version of their committed content. Answer: [`Answer::Chunks`].
    ListChunks {
        /// The group.
        pg: PgId,
    },
    /// All of one layer (not read through) in its committed state, for a copy. Answer: [`Answer::Captured`].
    Capture {
        /// The layer.
        layer: LayerKey,
    },
    /// Replace a whole layer by a copy. The data goes to fresh allocation units, then one journal record claims them.
    /// Entries of the layer up to the copy's version lose their effect, later ones are applied on top. Done when durable
    /// and visible.
    Install {
        /// The group of the chunk.
        pg: PgId,
        /// The layer.
        layer: LayerKey,
        /// Its content.
        content: LayerContent,
    },
    /// Remove layers with what was written to them so far. Done when durable and no longer visible.
    RemoveLayers {
        /// The group of the chunks.
        pg: PgId,
        /// The layers; those that do not exist are passed over.
        layers: Vec<LayerKey>,
    },
    /// Rewrite one block whose copy on the medium is bad with good bytes from a peer. Refused as [`StoreError::Changed`]
    /// unless the block's recorded checksum is the given one. Done when durable.
    Repair {
        /// The layer that holds the block (not read through).
        layer: LayerKey,
        /// The block.
        block: u16,
        /// Its CRC32C.
        checksum: u32,
        /// Its 4 KiB.
        data: Bytes,
    },
    /// One entry that the store still keeps, with its payload. Answer: [`Answer::Entry`], or [`StoreError::NotFound`].
    ReadEntry {
        /// The group.
        pg: PgId,
        /// Its number.
        seq: Seq,
    },
    /// The replica is retired: promise, state, entries and layers of the group go. Done when durable and gone.
    ForgetPg {
        /// The group.
        pg: PgId,
    },
    /// The replicas of this device have been reconciled with their peers (or there are none): what the super block
    /// remembers of [`Verdict::TailUncertain`] and [`Verdict::Suspect`] is cleared. Done when durable.
    Settle,
    /// Apply everything that is committed and write a checkpoint, for an orderly stop. Done when the journal holds only
    /// what cannot be applied yet.
    Checkpoint,
}

/// The content of one layer, apart from older ones.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LayerContent {
    /// The last write in it.
    pub version: Version,
    /// Blocks with data.
    pub present: BlockMap,
    /// Blocks that were zeroed or trimmed in this layer: they hide older layers. Disjoint from `present`.
    pub zeroed: BlockMap,
    /// One CRC32C for each present block, ascending.
    pub checksums: Vec<u32>,
    /// The present blocks, ascending, cut into pieces of whole blocks anyhow.
    pub data: Vec<Bytes>,
}

/// A run of blocks of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which blocks of the chunk.
    pub blocks: BlockRange,
    /// What they hold.
    pub content: PieceContent,
}

/// What the blocks of a piece hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceContent {
    /// Zeros: never written, or zeroed.
    Zeros,
    /// Data, verified.
    Data {
        /// `blocks.bytes()` bytes.
        bytes: Bytes,
        /// One CRC32C for each block.
        checksums: Vec<u32>,
    },
    /// The blocks cannot be served from here. For [`Request::Repair`] the layer and the checksum to restore are given.
    Bad {
        /// Why.
        error: BlockError,
        /// The layer that holds the blocks.
        layer: LayerKey,
        /// One recorded CRC32C for each block.
        checksums: Vec<u32>,
    },
}

/// What a request was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// To `Read`: pieces in ascending order that cover exactly the blocks asked for.
    Read(Vec<Piece>),
    /// To `Status`: blocks of the range that hold data.
    Status(BlockMap),
    /// To `ListChunks`, in ascending order.
    Chunks(Vec<(LayerKey, Version)>),
    /// To `Capture`: the content; a layer without anything has the version (0, 0). If a block of it is bad the request
    /// fails as [`StoreError::BadBlock`]: a copy is whole or not made; `Read` tells which block.
    Captured(LayerContent),
    /// To `ReadEntry`.
    Entry(Entry),
}

/// What a store wants done or known.
#[derive(Clone, Debug)]
pub enum Output {
    /// Carry this out and report with [`Event::Disk`].
    Disk(DiskRequest),
    /// A request is answered.
    Done {
        /// Which.
        token: Token,
        /// With what.
        result: Result<Answer, StoreError>,
    },
    /// Entries of this group, committed and applied, hold up the journal: a [`Request::SaveState`] with a newer `through` is
    /// wanted. Not repeated until one arrives.
    WantState {
        /// The group.
        pg: PgId,
    },
    /// A scrub found a block of this layer bad: a [`Request::Repair`] is wanted. Said again by each pass.
    BadBlock {
        /// The group.
        pg: PgId,
        /// The layer that holds the block.
        layer: LayerKey,
        /// The block.
        block: u16,
    },
    /// A scrub found something else damaged, and it is being put right from what is in memory.
    Damaged {
        /// What.
        damage: Damage,
    },
    /// The device has failed, for good; said once (I22). All requests that are open have been answered with the failure.
    Failed {
        /// The first cause.
        cause: DiskError,
    },
}

/// What a scrub found damaged, apart from data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A copy of the super block: all are written again.
    #[error("a copy of the super block is damaged: all are being written again")]
    SuperBlock,
    /// A home of a metadata page or of what refers to it: it is written again.
    #[error("metadata is damaged: it is being written again")]
    Metadata,
    /// A frame of the journal that is still needed: what it holds goes home or is written again.
    #[error("the journal is damaged: what it holds is being written again")]
    Journal,
}

/// How far the journal can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that was ever acknowledged is here.
    Clean,
    /// The journal ends in a frame that is not whole: most likely one that was being written. After a total outage the
    /// replicas here should not be activated before all of their ISR has reported.
    TailUncertain,
    /// Acknowledged data may be missing (I12): the replicas here must leave their ISR.
    Suspect {
        /// What was found.
        why: Suspicion,
    },
}

/// Why a device is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Suspicion {
    /// A journal frame that had been acknowledged is bad.
    #[error("the journal is corrupt at position {lsn}, before its end")]
    JournalCorrupt {
        /// The position.
        lsn: u64,
    },
    /// The journal ends before a position that a checkpoint knew as durable.
    #[error("the journal ends at position {lsn}, {known} was durable")]
    JournalShort {
        /// Where it ends.
        lsn: u64,
        /// What was known to be durable.
        known: u64,
    },
    /// Frames are whole but what they say is impossible.
    #[error("the journal contradicts itself at position {lsn}")]
    JournalContradiction {
        /// The position.
        lsn: u64,
    },
    /// The page directory, or pages of it, cannot be read in their newest version: some chunks are unknown.
    #[error("{pages} metadata pages are lost: the chunks in them are unknown")]
    PagesLost {
        /// How many.
        pages: u64,
    },
    /// One allocation unit belongs to two chunk layers (I19).
    #[error("{units} allocation units are claimed twice")]
    ClaimedTwice {
        /// How many.
        units: u64,
    },
    /// Super blocks are blank that were written: part of the device was wiped, perhaps with the journal.
    #[error("{copies} super blocks are blank: the device was wiped in places")]
    Wiped {
        /// How many.
        copies: u64,
    },
    /// An earlier open found it suspect, and nobody has settled it since.
    #[error("found suspect at an earlier open and not settled since")]
    Remembered,
}

/// What an opened store knows.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// How far it can be believed.
    pub verdict: Verdict,
    /// How often the device has been opened, this time included. The metadata manager compares it (clones, roll-backs).
    pub open_count: u64,
    /// The groups that have anything here, ascending.
    pub pgs: Vec<RecoveredPg>,
}

/// What an opened store knows of one placement group.
#[derive(Clone, Debug)]
pub struct RecoveredPg {
    /// The group.
    pub pg: PgId,
    /// The highest term promised.
    pub promise: Option<Term>,
    /// The saved state and the last entry that it covers.
    pub state: Option<(Seq, Bytes)>,
    /// Entries up to here are known to be committed; at least the state's.
    pub committed: Seq,
    /// The highest version in any layer here; (0, 0) without layers.
    pub highest_applied: Version,
    /// The entries beyond the state, ascending.
    pub entries: Vec<RecoveredEntry>,
    /// Layers of chunks.
    pub layer_count: u64,
}

/// An entry found in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredEntry {
    /// The entry. Its data is here only if `resident`; else [`Request::ReadEntry`] fetches it.
    pub entry: Entry,
    /// True if the payload is in `entry`.
    pub resident: bool,
}

/// Room on a device. Credits are made of this (I24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Space {
    /// Allocation units of the data area.
    pub aus_total: u64,
    /// Units that can be given to new writes now: neither used, nor promised to entries in the journal, nor quarantined.
    pub aus_free: u64,
    /// Units freed but still unusable: they become free with a later checkpoint (I19).
    pub aus_quarantined: u64,
    /// Units promised to entries in the journal that are not applied yet.
    pub aus_reserved: u64,
    /// Chunk records (one for each layer of each chunk).
    pub records_total: u64,
    /// Records without a layer.
    pub records_free: u64,
    /// Bytes of the journal ring.
    pub journal_total: u64,
    /// Bytes of it that appends can use now; what is kept for promises, states and deletes is taken off.
    pub journal_free: u64,
}

/// Counters since open, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames written.
    pub frames: u64,
    /// Bytes of frames.
    pub journal_bytes: u64,
    /// Entries journaled for the first time.
    pub entries: u64,
    /// Bytes of payload in them.
    pub payload_bytes: u64,
    /// Entries, states and promises written again at the head.
    pub reappended: u64,
    /// Bytes of large writes that went to units of their own.
    pub staged_bytes: u64,
    /// Metadata pages read again for the checksums in them.
    pub pages_read: u64,
    /// Metadata pages that were bad when they were read again.
    pub pages_lost: u64,
    /// Writes of blocks to their home.
    pub home_writes: u64,
    /// Bytes of them.
    pub home_bytes: u64,
    /// Checkpoints finished.
    pub checkpoints: u64,
    /// Metadata pages written (of all levels).
    pub pages: u64,
    /// Reads answered.
    pub reads: u64,
    /// Blocks that were unreadable or had a wrong checksum.
    pub bad_blocks: u64,
    /// Blocks repaired.
    pub repairs: u64,
    /// Bytes that scrubs have read.
    pub scrubbed_bytes: u64,
    /// Scrubs of the whole device that have ended.
    pub scrubs: u64,
    /// Super blocks, homes of metadata and frames that a scrub found damaged.
    pub damages: u64,
}
