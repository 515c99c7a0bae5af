//! Snapshots: the state after an entry, and the members at that moment, so that the log before it is not needed.
//!
//! The same body is kept in a file and sent to a follower that is behind the compacted log. The state is opaque here.

use bytes::Bytes;

use crate::codec::{DecodeError, Put, Reader, seal, unseal};
use crate::identity::StoreId;
use crate::limits::MAX_STATE_BYTES;
use crate::members::Members;

const MAGIC: u32 = 0x534e_5341;
/// Version 1: the first.
const VERSION: u8 = 1;

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The last entry in it.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// Position of the last durable record of this log when it was written. Not sent.
    pub position: u64,
    /// The members after that entry.
    pub members: Members,
    /// The state after that entry.
    pub state: Bytes,
}

impl Snapshot {
    /// As the content of the snapshot file of the log `store`.
    pub fn encode_file(&self, store: StoreId) -> Bytes {
        let mut out = Vec::with_capacity(self.state.len() + 256);
        out.put_u32(MAGIC);
        out.put_u8(VERSION);
        for field in [store.0, self.index, self.term, self.position] {
            out.put_u64(field);
        }
        self.encode_body(&mut out);
        seal(out)
    }

    /// Reads a snapshot file: the log that it belongs to, and the snapshot.
    pub fn decode_file(bytes: &[u8]) -> Result<(StoreId, Self), DecodeError> {
        let mut reader = Reader::new(unseal(bytes)?);
        if reader.u32()? != MAGIC {
            return Err(DecodeError::Magic);
        }
        match reader.u8()? {
            VERSION => {}
            version => return Err(DecodeError::Version(version)),
        }
        let store = StoreId(reader.u64()?);
        let (index, term) = (reader.number("index")?, reader.number("term")?);
        let position = reader.number("position")?;
        let (members, state) = Self::decode_body(&mut reader)?;
        Ok((store, Self { index, term, position, members, state }))
    }

    /// Members and state, as they travel to a follower.
    pub fn encode_body(&self, out: &mut Vec<u8>) {
        self.members.encode(out);
        out.put_bytes(&self.state);
    }

    /// Reads what [`Snapshot::encode_body`] wrote; nothing may follow it.
    pub fn decode_body(reader: &mut Reader<'_>) -> Result<(Members, Bytes), DecodeError> {
        let members = Members::decode(reader)?;
        let state = Bytes::copy_from_slice(reader.bytes("state", MAX_STATE_BYTES)?);
        reader.end()?;
        Ok((members, state))
    }
}
