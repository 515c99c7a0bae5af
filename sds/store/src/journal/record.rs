//! What frames contain: one record after another.

use bytes::{BufMut, Bytes};
use mdm_api::epoch::{Seq, Term, Version};
use mdm_api::ids::PgId;
use sds_api::block::{AU_BLOCKS, BLOCK_BYTES, CHUNK_AUS, CHUNK_BLOCKS, LayerKey};
use sds_api::entry::{
    Entry, EntryBody, EntryDecodeError, get_layer, get_pg, get_u8, get_u16, get_u32, get_u64, get_version, put_layer,
    put_pg, put_version,
};

use crate::blockmap::{BLOCK_MAP_BYTES, BlockMap};
use crate::limits::{REMOVE_LAYERS_MAX, STATE_BYTES_MAX};

/// Stands for "no allocation unit".
pub const NO_AU: u32 = u32::MAX;

/// One record of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry; the data of a write is in the frame's payload.
    Entry(Entry),
    /// An entry whose data was written to units of its own.
    Link {
        /// The entry, a write of whole units.
        entry: Entry,
        /// For each unit of the chunk, where its data is; [`NO_AU`] where it has none.
        aus: [u32; CHUNK_AUS],
    },
    /// Never below this term (I7).
    Promise {
        /// The group.
        pg: PgId,
        /// The term.
        term: Term,
    },
    /// The replica's state.
    State {
        /// The group.
        pg: PgId,
        /// The last entry it covers.
        through: Seq,
        /// Its bytes.
        state: Bytes,
    },
    /// Entries beyond are void.
    Void {
        /// The group.
        pg: PgId,
        /// The last that stays.
        after: Seq,
    },
    /// Entries up to here are committed.
    Commit {
        /// The group.
        pg: PgId,
        /// The last committed.
        through: Seq,
    },
    /// A layer was replaced by a copy.
    Install(InstallRecord),
    /// Layers were removed, with the entries up to `through`.
    RemoveLayers {
        /// The group.
        pg: PgId,
        /// What was committed at that time.
        through: Seq,
        /// The layers.
        layers: Vec<LayerKey>,
    },
    /// A block is to be rewritten; its 4 KiB are in the frame's payload.
    Repair {
        /// The layer.
        layer: LayerKey,
        /// The block.
        block: u16,
        /// Its CRC32C.
        checksum: u32,
    },
    /// All of a group is gone.
    ForgetPg {
        /// The group.
        pg: PgId,
    },
}

/// The claim of a copied layer on its allocation units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallRecord {
    /// The group.
    pub pg: PgId,
    /// The layer.
    pub layer: LayerKey,
    /// Its version.
    pub version: Version,
    /// Blocks with data.
    pub present: BlockMap,
    /// Blocks that read as zeros.
    pub zeroed: BlockMap,
    /// Its units, [`NO_AU`] where there is none.
    pub aus: [u32; CHUNK_AUS],
    /// A CRC32C for each present block, ascending.
    pub checksums: Vec<u32>,
}

mod tag {
    pub(super) const ENTRY: u8 = 1;
    pub(super) const PROMISE: u8 = 2;
    pub(super) const STATE: u8 = 3;
    pub(super) const VOID: u8 = 4;
    pub(super) const COMMIT: u8 = 5;
    pub(super) const INSTALL: u8 = 6;
    pub(super) const REMOVE: u8 = 7;
    pub(super) const REPAIR: u8 = 8;
    pub(super) const FORGET: u8 = 9;
    pub(super) const LINK: u8 = 10;
}

/// Appends an entry record without taking the entry.
pub fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    out.put_u8(tag::ENTRY);
    entry.encode_header(out);
}

/// Appends a link record without taking the entry.
pub fn encode_link(entry: &Entry, aus: &[u32; CHUNK_AUS], out: &mut Vec<u8>) {
    out.put_u8(tag::LINK);
    entry.encode_header(out);
    aus.iter().for_each(|au| out.put_u32_le(*au));
}

/// Bytes that a link has beyond its entry.
pub const LINK_BYTES: usize = 4 * CHUNK_AUS;

/// Bytes of an encoded commit record.
pub const COMMIT_BYTES: usize = 1 + 12 + 8;

impl Record {
    /// Appends the record, without payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Entry(entry) => encode_entry(entry, out),
            Self::Link { entry, aus } => encode_link(entry, aus, out),
            Self::Promise { pg, term } => {
                out.put_u8(tag::PROMISE);
                put_pg(out, *pg);
                out.put_u64_le(term.0);
            }
            Self::State { pg, through, state } => {
                assert!(state.len() <= STATE_BYTES_MAX, "states are bounded where they are accepted");
                out.put_u8(tag::STATE);
                put_pg(out, *pg);
                out.put_u64_le(through.0);
                out.put_u32_le(state.len() as u32);
                out.put_slice(state);
            }
            Self::Void { pg, after } => {
                out.put_u8(tag::VOID);
                put_pg(out, *pg);
                out.put_u64_le(after.0);
            }
            Self::Commit { pg, through } => {
                out.put_u8(tag::COMMIT);
                put_pg(out, *pg);
                out.put_u64_le(through.0);
            }
            Self::Install(install) => install.encode(out),
            Self::RemoveLayers { pg, through, layers } => {
                assert!(layers.len() <= REMOVE_LAYERS_MAX, "removals are bounded where they are accepted");
                out.put_u8(tag::REMOVE);
                put_pg(out, *pg);
                out.put_u64_le(through.0);
                out.put_u32_le(layers.len() as u32);
                layers.iter().for_each(|layer| put_layer(out, *layer));
            }
            Self::Repair { layer, block, checksum } => {
                out.put_u8(tag::REPAIR);
                put_layer(out, *layer);
                out.put_u16_le(*block);
                out.put_u32_le(*checksum);
            }
            Self::ForgetPg { pg } => {
                out.put_u8(tag::FORGET);
                put_pg(out, *pg);
            }
        }
    }

    /// Takes a record off the front of `input`. Lengths are checked before anything is allocated.
    pub fn decode(input: &mut &[u8]) -> Result<Self, EntryDecodeError> {
        Ok(match get_u8(input)? {
            tag::ENTRY => Self::Entry(Entry::decode_header(input)?),
            tag::LINK => Self::decode_link(input)?,
            tag::PROMISE => Self::Promise { pg: get_pg(input)?, term: Term(get_u64(input)?) },
            tag::STATE => {
                let (pg, through) = (get_pg(input)?, Seq(get_u64(input)?));
                let length = get_u32(input)? as usize;
                if length > STATE_BYTES_MAX || input.len() < length {
                    return Err(EntryDecodeError::Short);
                }
                let (state, rest) = input.split_at(length);
                *input = rest;
                Self::State { pg, through, state: Bytes::copy_from_slice(state) }
            }
            tag::VOID => Self::Void { pg: get_pg(input)?, after: Seq(get_u64(input)?) },
            tag::COMMIT => Self::Commit { pg: get_pg(input)?, through: Seq(get_u64(input)?) },
            tag::INSTALL => Self::Install(InstallRecord::decode(input)?),
            tag::REMOVE => {
                let (pg, through) = (get_pg(input)?, Seq(get_u64(input)?));
                let count = get_u32(input)? as usize;
                if count > REMOVE_LAYERS_MAX || input.len() < 24 * count {
                    return Err(EntryDecodeError::Short);
                }
                let layers = (0..count).map(|_| get_layer(input)).collect::<Result<_, _>>()?;
                Self::RemoveLayers { pg, through, layers }
            }
            tag::REPAIR => {
                let (layer, block, checksum) = (get_layer(input)?, get_u16(input)?, get_u32(input)?);
                if block >= CHUNK_BLOCKS {
                    return Err(EntryDecodeError::BadRange);
                }
                Self::Repair { layer, block, checksum }
            }
            tag::FORGET => Self::ForgetPg { pg: get_pg(input)? },
            other => return Err(EntryDecodeError::UnknownKind(other)),
        })
    }

    fn decode_link(input: &mut &[u8]) -> Result<Self, EntryDecodeError> {
        let entry = Entry::decode_header(input)?;
        let EntryBody::Write { blocks, .. } = &entry.body else { return Err(EntryDecodeError::BadRange) };
        let units: BlockMap = blocks.iter().collect();
        let mut aus = [NO_AU; CHUNK_AUS];
        for (index, au) in aus.iter_mut().enumerate() {
            *au = get_u32(input)?;
            if units.touches_au(index) != (*au != NO_AU) {
                return Err(EntryDecodeError::BadRange);
            }
        }
        if !blocks.first().is_multiple_of(AU_BLOCKS) || !blocks.count().is_multiple_of(AU_BLOCKS) {
            return Err(EntryDecodeError::BadRange);
        }
        Ok(Self::Link { entry, aus })
    }

    /// Bytes of payload that belong to it.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Entry(entry) => entry.payload_bytes(),
            Self::Repair { .. } => BLOCK_BYTES,
            _ => 0,
        }
    }

    /// The checksums of its payload, one for each block.
    pub fn payload_checksums(&self) -> &[u32] {
        match self {
            Self::Entry(Entry { body: EntryBody::Write { checksums, .. }, .. }) => checksums,
            Self::Repair { checksum, .. } => std::slice::from_ref(checksum),
            _ => &[],
        }
    }
}

impl InstallRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        assert_eq!(self.checksums.len(), usize::from(self.present.count()), "one checksum for each present block");
        out.put_u8(tag::INSTALL);
        put_pg(out, self.pg);
        put_layer(out, self.layer);
        put_version(out, self.version);
        out.put_slice(&self.present.to_bytes());
        out.put_slice(&self.zeroed.to_bytes());
        self.aus.iter().for_each(|au| out.put_u32_le(*au));
        self.checksums.iter().for_each(|sum| out.put_u32_le(*sum));
    }

    fn decode(input: &mut &[u8]) -> Result<Self, EntryDecodeError> {
        let (pg, layer, version) = (get_pg(input)?, get_layer(input)?, get_version(input)?);
        let (present, zeroed) = (get_map(input)?, get_map(input)?);
        let mut aus = [NO_AU; CHUNK_AUS];
        for (index, au) in aus.iter_mut().enumerate() {
            *au = get_u32(input)?;
            if present.touches_au(index) != (*au != NO_AU) {
                return Err(EntryDecodeError::BadRange);
            }
        }
        if present.intersects(&zeroed) {
            return Err(EntryDecodeError::BadRange);
        }
        let checksums = (0..present.count()).map(|_| get_u32(input)).collect::<Result<_, _>>()?;
        Ok(Self { pg, layer, version, present, zeroed, aus, checksums })
    }
}

fn get_map(input: &mut &[u8]) -> Result<BlockMap, EntryDecodeError> {
    let Some((bytes, rest)) = input.split_first_chunk::<BLOCK_MAP_BYTES>() else {
        return Err(EntryDecodeError::Short);
    };
    *input = rest;
    Ok(BlockMap::from_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm_api::epoch::SnapSeq;
    use mdm_api::ids::{StoragePoolId, VtreeId};
    use sds_api::block::{BlockRange, ChunkId};

    #[test]
    fn every_record_survives_its_encoding_and_no_prefix_decodes() {
        let pg = PgId { pool: StoragePoolId(1), index: 2 };
        let layer = LayerKey { chunk: ChunkId { vtree: VtreeId(3), index: 4 }, snap_seq: SnapSeq(5) };
        let version = Version { term: Term(6), seq: Seq(7) };
        let mut aus = [NO_AU; CHUNK_AUS];
        aus[0] = 12;
        let records = [
            Record::Entry(Entry {
                pg,
                version,
                identity: None,
                body: EntryBody::Zero { layer, blocks: BlockRange::WHOLE },
            }),
            Record::Link {
                entry: Entry {
                    pg,
                    version,
                    identity: None,
                    body: EntryBody::Write {
                        layer,
                        blocks: BlockRange::new(0, 16).unwrap(),
                        checksums: vec![9; 16],
                        data: Bytes::from(vec![0; 16 * BLOCK_BYTES]),
                    },
                },
                aus,
            },
            Record::Promise { pg, term: Term(8) },
            Record::State { pg, through: Seq(9), state: Bytes::from_static(b"state") },
            Record::Void { pg, after: Seq(10) },
            Record::Commit { pg, through: Seq(11) },
            Record::Install(InstallRecord {
                pg,
                layer,
                version,
                present: [0, 3].into_iter().collect(),
                zeroed: [4].into_iter().collect(),
                aus,
                checksums: vec![1, 2],
            }),
            Record::RemoveLayers { pg, through: Seq(12), layers: vec![layer, layer] },
            Record::Repair { layer, block: 255, checksum: 13 },
            Record::ForgetPg { pg },
        ];
        for record in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let input = &mut bytes.as_slice();
            let mut decoded = Record::decode(input).unwrap();
            if let Record::Link { entry, .. } = &mut decoded {
                entry.attach(Bytes::from(vec![0; 16 * BLOCK_BYTES]));
            }
            assert_eq!(decoded, record);
            assert!(input.is_empty());
            for cut in 0..bytes.len() {
                assert!(Record::decode(&mut &bytes[..cut]).is_err());
            }
        }
    }
}
