//! Entries: the writes of a placement group in their order, as they travel to replicas and lie in journals.
//!
//! An entry is logical: it names chunk, layer and blocks, never a place on a disk. The primary decides everything that
//! is to be decided (layer, zeroing, merging of partial blocks) and replicas carry it out, so the fold of the entries up to
//! a version is the content of a chunk at that version (I23). `(term, seq)` names at most one entry for ever (I6).
//!
//! The header is encoded apart from the payload, so that data is never copied to be framed. The encoding is little-endian,
//! fixed by [`ENTRY_VERSION`], the same on the wire and on disk.

use bytes::{Buf, BufMut, Bytes};
use mdm_api::epoch::{AttachGeneration, Epoch, RequestNumber, Seq, SnapSeq, Term, Version};
use mdm_api::ids::{PgId, SdcId, StoragePoolId, VolumeId, VtreeId};

use crate::block::{BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, ChunkId, LayerKey};

/// Version of the encoding.
pub const ENTRY_VERSION: u8 = 1;
/// The longest encoded header: that of a write of a whole chunk.
pub const ENTRY_HEADER_BYTES_MAX: usize = 160 + 4 * CHUNK_BLOCKS as usize;

/// Whose write it is: what makes a retried one take effect once (I16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteIdentity {
    /// The volume it was opened as.
    pub volume: VolumeId,
    /// The client.
    pub sdc: SdcId,
    /// The mapping's generation, which is the client's session (I17).
    pub session: AttachGeneration,
    /// Its number within (session, placement group).
    pub request: RequestNumber,
    /// The client has had answers to all requests below this one.
    pub oldest_unacked: RequestNumber,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The group whose order it stands in.
    pub pg: PgId,
    /// Its place in the order.
    pub version: Version,
    /// Whose it is; none for the primary's own entries.
    pub identity: Option<WriteIdentity>,
    /// What it does.
    pub body: EntryBody,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryBody {
    /// Blocks get new content.
    Write {
        /// Where.
        layer: LayerKey,
        /// Which blocks.
        blocks: BlockRange,
        /// One CRC32C for each block.
        checksums: Vec<u32>,
        /// The content, `blocks.bytes()` long.
        data: Bytes,
    },
    /// Blocks read as zeros from here on, and give their space back where they can.
    Zero {
        /// Where.
        layer: LayerKey,
        /// Which blocks.
        blocks: BlockRange,
    },
    /// The first entry of a term: with it everything before is committed (I11).
    EpochStart {
        /// The configuration under which the term began.
        epoch: Epoch,
    },
    /// All chunks of a tree are gone.
    DropVtree {
        /// The tree.
        vtree: VtreeId,
    },
    /// A write to a chunk that this learner does not have yet: keeps the order dense and the table of requests complete.
    Elsewhere {
        /// The chunk layer that the real entry changes.
        layer: LayerKey,
    },
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryDecodeError {
    /// They end early.
    #[error("entry ends early")]
    Short,
    /// A version that this software does not know.
    #[error("entry of version {0}; this software knows up to {ENTRY_VERSION}: upgrade it")]
    UnknownVersion(u8),
    /// A kind that this software does not know.
    #[error("entry of unknown kind {0}")]
    UnknownKind(u8),
    /// Blocks past a chunk, or none.
    #[error("entry names impossible blocks")]
    BadRange,
    /// A field that must be 0 or 1 is neither.
    #[error("entry has a flag that is neither set nor clear")]
    BadFlag,
}

mod kind {
    pub(super) const WRITE: u8 = 1;
    pub(super) const ZERO: u8 = 2;
    pub(super) const EPOCH_START: u8 = 3;
    pub(super) const DROP_VTREE: u8 = 4;
    pub(super) const ELSEWHERE: u8 = 5;
}

impl Entry {
    /// The chunk layer it changes, if it is about one.
    pub fn layer(&self) -> Option<LayerKey> {
        match &self.body {
            EntryBody::Write { layer, .. } | EntryBody::Zero { layer, .. } | EntryBody::Elsewhere { layer } => {
                Some(*layer)
            }
            EntryBody::EpochStart { .. } | EntryBody::DropVtree { .. } => None,
        }
    }

    /// The payload that goes with the header; empty for all but writes.
    pub fn payload(&self) -> &Bytes {
        static NOTHING: Bytes = Bytes::new();
        match &self.body {
            EntryBody::Write { data, .. } => data,
            _ => &NOTHING,
        }
    }

    /// Appends the header. The data of a write is there, or kept elsewhere and empty here.
    pub fn encode_header(&self, out: &mut Vec<u8>) {
        out.put_u8(ENTRY_VERSION);
        out.put_u8(match self.body {
            EntryBody::Write { .. } => kind::WRITE,
            EntryBody::Zero { .. } => kind::ZERO,
            EntryBody::EpochStart { .. } => kind::EPOCH_START,
            EntryBody::DropVtree { .. } => kind::DROP_VTREE,
            EntryBody::Elsewhere { .. } => kind::ELSEWHERE,
        });
        put_pg(out, self.pg);
        put_version(out, self.version);
        out.put_u8(u8::from(self.identity.is_some()));
        if let Some(identity) = &self.identity {
            put_identity(out, identity);
        }
        match &self.body {
            EntryBody::Write { layer, blocks, checksums, data } => {
                assert!(
                    checksums.len() == usize::from(blocks.count()) && (data.is_empty() || data.len() == blocks.bytes()),
                    "a write has one checksum and {BLOCK_BYTES} bytes for each block"
                );
                put_layer(out, *layer);
                put_range(out, *blocks);
                checksums.iter().for_each(|sum| out.put_u32_le(*sum));
            }
            EntryBody::Zero { layer, blocks } => {
                put_layer(out, *layer);
                put_range(out, *blocks);
            }
            EntryBody::EpochStart { epoch } => out.put_u64_le(epoch.0),
            EntryBody::DropVtree { vtree } => out.put_u64_le(vtree.0),
            EntryBody::Elsewhere { layer } => put_layer(out, *layer),
        }
    }

    /// Takes a header off the front of `input`. A write comes back with empty data; [`Entry::payload_bytes`] says how much
    /// belongs to it and [`Entry::attach`] puts it in.
    pub fn decode_header(input: &mut &[u8]) -> Result<Self, EntryDecodeError> {
        let version = get_u8(input)?;
        if version != ENTRY_VERSION {
            return Err(EntryDecodeError::UnknownVersion(version));
        }
        let kind = get_u8(input)?;
        let pg = get_pg(input)?;
        let version = get_version(input)?;
        let identity = match get_u8(input)? {
            0 => None,
            1 => Some(get_identity(input)?),
            _ => return Err(EntryDecodeError::BadFlag),
        };
        let body = match kind {
            kind::WRITE => {
                let layer = get_layer(input)?;
                let blocks = get_range(input)?;
                let count = usize::from(blocks.count());
                if input.len() < 4 * count {
                    return Err(EntryDecodeError::Short);
                }
                let checksums = (0..count).map(|_| input.get_u32_le()).collect();
                EntryBody::Write { layer, blocks, checksums, data: Bytes::new() }
            }
            kind::ZERO => EntryBody::Zero { layer: get_layer(input)?, blocks: get_range(input)? },
            kind::EPOCH_START => EntryBody::EpochStart { epoch: Epoch(get_u64(input)?) },
            kind::DROP_VTREE => EntryBody::DropVtree { vtree: VtreeId(get_u64(input)?) },
            kind::ELSEWHERE => EntryBody::Elsewhere { layer: get_layer(input)? },
            other => return Err(EntryDecodeError::UnknownKind(other)),
        };
        Ok(Self { pg, version, identity, body })
    }

    /// Bytes of payload that belong to the decoded header.
    pub fn payload_bytes(&self) -> usize {
        match &self.body {
            EntryBody::Write { blocks, .. } => blocks.bytes(),
            _ => 0,
        }
    }

    /// Puts the payload in. Whoever decoded verifies the checksums before use (I21).
    ///
    /// # Panics
    /// If its length is not `payload_bytes()`.
    pub fn attach(&mut self, payload: Bytes) {
        assert_eq!(payload.len(), self.payload_bytes(), "the payload belongs to another entry");
        if let EntryBody::Write { data, .. } = &mut self.body {
            *data = payload;
        }
    }
}

/// Appends a placement group id.
pub fn put_pg(out: &mut Vec<u8>, pg: PgId) {
    out.put_u64_le(pg.pool.0);
    out.put_u32_le(pg.index);
}

/// Appends a version.
pub fn put_version(out: &mut Vec<u8>, version: Version) {
    out.put_u64_le(version.term.0);
    out.put_u64_le(version.seq.0);
}

/// Appends a layer key.
pub fn put_layer(out: &mut Vec<u8>, layer: LayerKey) {
    out.put_u64_le(layer.chunk.vtree.0);
    out.put_u64_le(layer.chunk.index);
    out.put_u64_le(layer.snap_seq.0);
}

/// Appends a block range.
pub fn put_range(out: &mut Vec<u8>, range: BlockRange) {
    out.put_u16_le(range.first());
    out.put_u16_le(range.count());
}

/// Appends an identity.
pub fn put_identity(out: &mut Vec<u8>, identity: &WriteIdentity) {
    out.put_u64_le(identity.volume.0);
    out.put_u64_le(identity.sdc.0);
    out.put_u64_le(identity.session.0);
    out.put_u64_le(identity.request.0);
    out.put_u64_le(identity.oldest_unacked.0);
}

/// Takes a byte.
pub fn get_u8(input: &mut &[u8]) -> Result<u8, EntryDecodeError> {
    input.try_get_u8().map_err(|_| EntryDecodeError::Short)
}

/// Takes 16 bits.
pub fn get_u16(input: &mut &[u8]) -> Result<u16, EntryDecodeError> {
    input.try_get_u16_le().map_err(|_| EntryDecodeError::Short)
}

/// Takes 32 bits.
pub fn get_u32(input: &mut &[u8]) -> Result<u32, EntryDecodeError> {
    input.try_get_u32_le().map_err(|_| EntryDecodeError::Short)
}

/// Takes 64 bits.
pub fn get_u64(input: &mut &[u8]) -> Result<u64, EntryDecodeError> {
    input.try_get_u64_le().map_err(|_| EntryDecodeError::Short)
}

/// Takes a placement group id.
pub fn get_pg(input: &mut &[u8]) -> Result<PgId, EntryDecodeError> {
    Ok(PgId { pool: StoragePoolId(get_u64(input)?), index: get_u32(input)? })
}

/// Takes a version.
pub fn get_version(input: &mut &[u8]) -> Result<Version, EntryDecodeError> {
    Ok(Version { term: Term(get_u64(input)?), seq: Seq(get_u64(input)?) })
}

/// Takes a layer key.
pub fn get_layer(input: &mut &[u8]) -> Result<LayerKey, EntryDecodeError> {
    let chunk = ChunkId { vtree: VtreeId(get_u64(input)?), index: get_u64(input)? };
    Ok(LayerKey { chunk, snap_seq: SnapSeq(get_u64(input)?) })
}

/// Takes a block range.
pub fn get_range(input: &mut &[u8]) -> Result<BlockRange, EntryDecodeError> {
    BlockRange::new(get_u16(input)?, get_u16(input)?).ok_or(EntryDecodeError::BadRange)
}

/// Takes an identity.
pub fn get_identity(input: &mut &[u8]) -> Result<WriteIdentity, EntryDecodeError> {
    Ok(WriteIdentity {
        volume: VolumeId(get_u64(input)?),
        sdc: SdcId(get_u64(input)?),
        session: AttachGeneration(get_u64(input)?),
        request: RequestNumber(get_u64(input)?),
        oldest_unacked: RequestNumber(get_u64(input)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Entry> {
        let layer = LayerKey { chunk: ChunkId { vtree: VtreeId(7), index: 9 }, snap_seq: SnapSeq(2) };
        let blocks = BlockRange::new(3, 2).unwrap();
        let identity = WriteIdentity {
            volume: VolumeId(1),
            sdc: SdcId(2),
            session: AttachGeneration(3),
            request: RequestNumber(4),
            oldest_unacked: RequestNumber(5),
        };
        let data = Bytes::from(vec![5; 2 * BLOCK_BYTES]);
        let checksums = crate::checksum::block_checksums(&data);
        [
            (Some(identity), EntryBody::Write { layer, blocks, checksums, data }),
            (None, EntryBody::Zero { layer, blocks }),
            (None, EntryBody::EpochStart { epoch: Epoch(8) }),
            (None, EntryBody::DropVtree { vtree: VtreeId(7) }),
            (Some(identity), EntryBody::Elsewhere { layer }),
        ]
        .into_iter()
        .map(|(identity, body)| Entry {
            pg: PgId { pool: StoragePoolId(6), index: 11 },
            version: Version { term: Term(12), seq: Seq(13) },
            identity,
            body,
        })
        .collect()
    }

    #[test]
    fn every_kind_survives_its_encoding_and_no_prefix_decodes() {
        for entry in samples() {
            let mut bytes = Vec::new();
            entry.encode_header(&mut bytes);
            assert!(bytes.len() <= ENTRY_HEADER_BYTES_MAX);
            let mut input = bytes.as_slice();
            let mut decoded = Entry::decode_header(&mut input).unwrap();
            assert!(input.is_empty());
            decoded.attach(entry.payload().clone());
            assert_eq!(decoded, entry);
            for cut in 0..bytes.len() {
                assert_eq!(Entry::decode_header(&mut &bytes[..cut]), Err(EntryDecodeError::Short));
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = Vec::new();
        samples()[1].encode_header(&mut bytes);
        bytes[0] = 2;
        assert_eq!(Entry::decode_header(&mut bytes.as_slice()), Err(EntryDecodeError::UnknownVersion(2)));
    }
}
