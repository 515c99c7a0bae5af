//! The stable file: what a member must never forget and what proves how long its log was.
//!
//! It is small and replaced whole, so that a torn write cannot lose it: a `Replace` leaves the old content or the new.
//! It is written before any message that depends on its term, its vote or a peer's start, and from time to time when the
//! log has grown, so that a log that lost its end is recognised as damaged and not taken for a short one.
//!
//! Always true: the records up to `position` and the entries up to `commit` were durable before this was written.

use bytes::Bytes;

use crate::codec::{DecodeError, Put, Reader, seal, unseal};
use crate::identity::{SeenPeers, Start, StoreId};

const MAGIC: u32 = 0x5453_5341;
/// Version 1: the first.
const VERSION: u8 = 1;

/// The content of the stable file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stable {
    /// Which log this is.
    pub store: StoreId,
    /// The member that it belongs to, raw.
    pub id: u64,
    /// The system that it belongs to, raw.
    pub system: u64,
    /// The current start.
    pub start: Start,
    /// The newest term.
    pub term: u64,
    /// The member voted for in this term, raw; 0 for none.
    pub vote: u64,
    /// An index up to which entries are committed; the true one may be higher.
    pub commit: u64,
    /// Position of a record that is durable, and so are all before it.
    pub position: u64,
    /// A snapshot was written: its file must be there.
    pub has_snapshot: bool,
    /// What the peers have shown of their logs.
    pub peers: SeenPeers,
}

impl Stable {
    /// As the content of the file.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(128);
        out.put_u32(MAGIC);
        out.put_u8(VERSION);
        for field in [
            self.store.0,
            self.id,
            self.system,
            self.start.count,
            self.start.nonce,
            self.term,
            self.vote,
            self.commit,
            self.position,
        ] {
            out.put_u64(field);
        }
        out.put_u8(u8::from(self.has_snapshot));
        self.peers.encode(&mut out);
        seal(out)
    }

    /// Reads the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(unseal(bytes)?);
        if reader.u32()? != MAGIC {
            return Err(DecodeError::Magic);
        }
        match reader.u8()? {
            VERSION => {}
            version => return Err(DecodeError::Version(version)),
        }
        let stable = Self {
            store: StoreId(reader.u64()?),
            id: reader.u64()?,
            system: reader.u64()?,
            start: Start { count: reader.number("start count")?, nonce: reader.u64()? },
            term: reader.number("term")?,
            vote: reader.u64()?,
            commit: reader.number("commit")?,
            position: reader.number("position")?,
            has_snapshot: reader.bool("snapshot mark")?,
            peers: SeenPeers::decode(&mut reader)?,
        };
        reader.end()?;
        Ok(stable)
    }
}
