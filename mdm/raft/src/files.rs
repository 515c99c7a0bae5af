//! Stable storage as a description: which files there are, what is to be done to them, and how to read them back.
//!
//! This crate opens no file. It says what must be written ([`FileOp`]); a shell (the daemon, a simulator) carries it out
//! and, at start, hands the contents of the directory to [`recover`].
//!
//! | file | content | written by |
//! |---|---|---|
//! | `stable` | store id, term, vote, commit, marks, what peers showed (see [`crate::stable`]) | replace |
//! | `snapshot` | the newest snapshot: state, members, index, term (see [`crate::snapshot`]) | replace |
//! | `log-<16 hex digits>` | a segment of the log (see [`crate::log`]) | replace (its header), then append |
//!
//! What the shell must keep:
//!
//! * the operations of one `Persist` are done in order, each complete before the next begins, and those of one `Persist`
//!   before those of the next;
//! * `Replace` is atomic and durable when it is done: write beside, flush, rename, flush the directory;
//! * `Append` may stay in memory until `Sync` of that file is done. At a power cut any subset of the bytes appended since
//!   the last `Sync` may be there, torn anywhere;
//! * `Remove` is idempotent;
//! * an error of any of them ends the process: what is on the disk is then known only by reading it back.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::codec::DecodeError;
use crate::identity::StoreId;
use crate::log::{self, LogWriter};
use crate::recovery::{self, Tail};
use crate::snapshot::Snapshot;
use crate::stable::Stable;

/// A name in the directory of the member's log. Never contains a separator.
pub type FileName = String;

/// The stable file.
pub const STABLE: &str = "stable";
/// The snapshot file.
pub const SNAPSHOT: &str = "snapshot";
/// How names of segments begin.
pub const SEGMENT_PREFIX: &str = "log-";

/// One operation on stable storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileOp {
    /// Adds bytes to the end of a file that exists.
    Append {
        /// The file.
        file: FileName,
        /// What is added.
        bytes: Bytes,
    },
    /// Makes what was appended to a file durable.
    Sync {
        /// The file.
        file: FileName,
    },
    /// Gives a file, which need not exist, a new content: atomic, and durable when it is done.
    Replace {
        /// The file.
        file: FileName,
        /// All of its content.
        bytes: Bytes,
    },
    /// Removes a file. No error if it is not there.
    Remove {
        /// The file.
        file: FileName,
    },
}

/// Why a log cannot be used.
///
/// All of these mean that the member may have forgotten something that it promised: a vote, or an entry that it had
/// acknowledged. It must not take part as if its log were merely short. The way out is the same for all: remove the
/// member from the group, and add it again under a new id with an empty directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A file is not what was written.
    #[error(
        "{file} is damaged: {cause}. Remove this member from the group and add it again under a new id with an empty directory"
    )]
    Damaged {
        /// The file.
        file: FileName,
        /// What is wrong with it.
        cause: Damage,
    },
    /// A file was written by a newer release.
    #[error(
        "{file} was written by a newer release (format {version}): start the release that wrote it, or a newer one"
    )]
    Newer {
        /// The file.
        file: FileName,
        /// Its format version.
        version: u8,
    },
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is needed and not there.
    #[error("it is missing")]
    Missing,
    /// It cannot be understood.
    #[error("{0}")]
    Unreadable(#[from] DecodeError),
    /// It belongs to another log.
    #[error("it belongs to another log ({found} instead of {expected})")]
    OtherStore {
        /// The store id in the stable file.
        expected: StoreId,
        /// The one in this file.
        found: StoreId,
    },
    /// A record is not valid, and later ones prove that it once was durable.
    #[error("the record at offset {offset} is not valid, and what follows shows that it had been written")]
    Middle {
        /// Where the record starts.
        offset: u64,
    },
    /// The log ends before what is known to have been durable.
    #[error("the log ends at position {found}, but was durable up to {expected}")]
    Short {
        /// Position of the last record that was durable.
        expected: u64,
        /// Position of the last record that is there.
        found: u64,
    },
    /// Entries are missing between the snapshot and the log.
    #[error("entries {from} to {to} are missing")]
    Gap {
        /// First missing index.
        from: u64,
        /// Last missing index.
        to: u64,
    },
    /// A record that the checksums accept makes no sense after the ones before it.
    #[error("the record at position {position} does not follow from those before it")]
    Order {
        /// Position of the record.
        position: u64,
    },
}

/// What the files of a member say. Made by [`recover`], used by [`crate::RaftNode::open`].
#[derive(Debug)]
pub struct Recovered {
    pub(crate) stable: Stable,
    pub(crate) snapshot: Option<Snapshot>,
    /// Index and term of the entry just before the first of `entries`.
    pub(crate) base: (u64, u64),
    pub(crate) entries: Vec<Entry>,
    pub(crate) log: LogWriter,
    /// The last segment ends with bytes of a write that was under way when the power went; nobody was told of it.
    pub(crate) torn: bool,
    /// The snapshot is not on the log's line: the log restarts after it.
    pub(crate) restart_after_snapshot: bool,
}

impl Recovered {
    /// The identity of the log.
    pub fn store(&self) -> StoreId {
        self.stable.store
    }
}

/// Whether a file of this name is read back by [`recover`].
pub fn is_ours(name: &str) -> bool {
    name == STABLE || name == SNAPSHOT || log::segment_number(name).is_some()
}

/// Reads the files back. `None`: there is no log here (or its creation was never completed, so that it took part in
/// nothing); one may be created. Files of other names are ignored.
pub fn recover(files: &BTreeMap<FileName, Bytes>) -> Result<Option<Recovered>, RecoverError> {
    let segments: BTreeMap<u64, &Bytes> =
        files.iter().filter_map(|(name, bytes)| Some((log::segment_number(name)?, bytes))).collect();
    let Some(bytes) = files.get(STABLE) else {
        // The stable file is the last that creation writes, and records come only after it.
        return if segments.values().any(|bytes| bytes.len() > log::HEADER_BYTES) {
            Err(damaged(STABLE, Damage::Missing))
        } else {
            Ok(None)
        };
    };
    let stable = Stable::decode(bytes).map_err(|e| unreadable(STABLE, e))?;
    let snapshot = match files.get(SNAPSHOT) {
        None if stable.has_snapshot => return Err(damaged(SNAPSHOT, Damage::Missing)),
        None => None,
        Some(bytes) => {
            let (store, snapshot) = Snapshot::decode_file(bytes).map_err(|e| unreadable(SNAPSHOT, e))?;
            if store != stable.store {
                let cause = Damage::OtherStore { expected: stable.store, found: store };
                return Err(damaged(SNAPSHOT, cause));
            }
            Some(snapshot)
        }
    };
    let replayed = recovery::replay(stable.store, &segments)?;
    let expected = stable.position.max(snapshot.as_ref().map_or(0, |s| s.position));
    if replayed.log.last_position() < expected {
        let cause = Damage::Short { expected, found: replayed.log.last_position() };
        return Err(damaged(&replayed.log.current_file(), cause));
    }
    join(stable, snapshot, replayed)
}

/// Puts snapshot and log together.
fn join(
    stable: Stable,
    snapshot: Option<Snapshot>,
    replayed: recovery::Replayed,
) -> Result<Option<Recovered>, RecoverError> {
    let recovery::Replayed { base, mut entries, log, tail } = replayed;
    let torn = tail == Tail::Torn;
    let (index, term) = snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
    // Index of the first entry that the log can give, and of the last.
    let first = base.map_or_else(|| entries.first().map(|e| e.index), |(index, _)| Some(index + 1));
    let last = first.map(|first| first + entries.len() as u64 - 1);
    let (base, restart_after_snapshot) = match (first, last) {
        (Some(first), _) if first > index + 1 => {
            return Err(damaged(&log.current_file(), Damage::Gap { from: index + 1, to: first - 1 }));
        }
        // The log holds the snapshot's last entry, or begins right after it: what follows it is kept.
        (Some(first), Some(last)) if first == index + 1 && last >= index => ((index, term), false),
        (Some(first), Some(last)) if last >= index && entries[(index - first) as usize].term == term => {
            let base = base.unwrap_or_else(|| {
                let oldest = entries.remove(0);
                (oldest.index, oldest.term)
            });
            (base, false)
        }
        // The log has nothing of this line: the snapshot came from a leader, and the power went before the log said so.
        (first, _) => {
            entries.clear();
            ((index, term), first.is_some() || index > 0)
        }
    };
    let end = base.0 + entries.len() as u64;
    if stable.commit > end {
        let cause = Damage::Gap { from: end + 1, to: stable.commit };
        return Err(damaged(&log.current_file(), cause));
    }
    Ok(Some(Recovered { stable, snapshot, base, entries, log, torn, restart_after_snapshot }))
}

pub(crate) fn damaged(file: &str, cause: Damage) -> RecoverError {
    RecoverError::Damaged { file: file.to_owned(), cause }
}

pub(crate) fn unreadable(file: &str, error: DecodeError) -> RecoverError {
    match error {
        DecodeError::Version(version) => RecoverError::Newer { file: file.to_owned(), version },
        error => damaged(file, Damage::Unreadable(error)),
    }
}
