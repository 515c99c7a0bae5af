//! The bytes of metadata: pages of chunk records, directory blocks, the directory's root.
//!
//! All begin with the same head of 64 bytes: magic, version, kind, salt, index, generation, CRC over everything with the CRC
//! itself as zeros. A page has three records of 1,280 bytes behind 256 bytes; directory blocks and the root have references of
//! 16 bytes behind 64.

use bytes::{Buf, BufMut};
use mdm_api::epoch::Version;
use mdm_api::ids::PgId;
use sds_api::block::{CHUNK_AUS, CHUNK_BLOCKS, LayerKey};
use sds_api::buf::AlignedBuf;
use sds_api::checksum::{crc32c, crc32c_append};
use sds_api::entry::{get_layer, get_pg, get_version, put_layer, put_pg, put_version};

use crate::blockmap::{BLOCK_MAP_BYTES, BlockMap};
use crate::journal::record::NO_AU;
use crate::layer::Layer;
use crate::layout::RECORDS_PER_PAGE;
use crate::limits::PAGE_BYTES;
use crate::sums::BlockSums;

/// The first bytes of every block of metadata.
pub const META_MAGIC: u32 = u32::from_le_bytes(*b"ASMP");
/// Version of their format.
pub const META_VERSION: u16 = 1;
/// Bytes of the head.
pub const META_HEAD_BYTES: usize = 64;
/// Where the first record of a page begins.
pub const RECORDS_AT: usize = 256;
/// Bytes of a record.
pub const RECORD_BYTES: usize = 1280;

const CRC_AT: usize = 32;
const SUMS_AT: usize = 256;

const _: () = assert!(RECORDS_AT + RECORDS_PER_PAGE as usize * RECORD_BYTES == PAGE_BYTES);
const _: () = assert!(SUMS_AT + 4 * CHUNK_BLOCKS as usize == RECORD_BYTES);

/// Kinds of metadata blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The directory's root.
    Root = 1,
    /// A block of the directory.
    Directory = 2,
    /// A page of chunk records.
    Page = 3,
}

/// Which home of a block is the newest, and what it must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HomeRef {
    /// The checkpoint that wrote it; 0: never written.
    pub generation: u64,
    /// CRC of it.
    pub crc: u32,
    /// 0 or 1.
    pub home: u8,
}

/// Bytes of an encoded reference.
pub const HOME_REF_BYTES: usize = 16;

/// What is known of the blocks of one layer of a chunk, without their content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    /// The group of the chunk.
    pub pg: PgId,
    /// Which layer.
    pub layer: LayerKey,
    /// The last write applied.
    pub version: Version,
    /// Journal position before which everything is older than this record: removals and copies at lower positions are done.
    pub base: u64,
    /// Blocks with data.
    pub present: BlockMap,
    /// Blocks that read as zeros and hide older layers.
    pub zeroed: BlockMap,
    /// Its units, [`NO_AU`] where there is none.
    pub aus: [u32; CHUNK_AUS],
    /// CRC32C of each block; 0 for those not present.
    pub checksums: Box<BlockSums>,
    /// Present blocks whose CRC is lost, since a page was: they are bad until they are written again.
    pub lost: BlockMap,
}

impl ChunkRecord {
    /// A layer without anything.
    pub fn new(pg: PgId, layer: LayerKey, base: u64) -> Self {
        Self {
            pg,
            layer,
            version: Version::default(),
            base,
            present: BlockMap::EMPTY,
            zeroed: BlockMap::EMPTY,
            aus: [NO_AU; CHUNK_AUS],
            checksums: Box::new([0; CHUNK_BLOCKS as usize]),
            lost: BlockMap::EMPTY,
        }
    }

    /// The units that it has.
    pub fn units(&self) -> impl Iterator<Item = u32> + '_ {
        self.aus.iter().copied().filter(|au| *au != NO_AU)
    }

    fn decode(slot: &[u8]) -> Option<Option<Self>> {
        let (mut head, sums) = slot.split_at_checked(SUMS_AT)?;
        let input = &mut head;
        match input.get_u8() {
            0 => return Some(None),
            1 => {}
            _ => return None,
        }
        let (pg, layer, version) = (get_pg(input).ok()?, get_layer(input).ok()?, get_version(input).ok()?);
        let mut record = Self::new(pg, layer, input.get_u64_le());
        record.version = version;
        record.present = BlockMap::from_bytes(input.copy_to_bytes(BLOCK_MAP_BYTES).as_ref().try_into().ok()?);
        record.zeroed = BlockMap::from_bytes(input.copy_to_bytes(BLOCK_MAP_BYTES).as_ref().try_into().ok()?);
        record.aus.iter_mut().for_each(|au| *au = input.get_u32_le());
        record.lost = BlockMap::from_bytes(input.copy_to_bytes(BLOCK_MAP_BYTES).as_ref().try_into().ok()?);
        for (sum, bytes) in record.checksums.iter_mut().zip(sums.chunks_exact(4)) {
            *sum = u32::from_le_bytes(bytes.try_into().ok()?);
        }
        let units_fit = (0..CHUNK_AUS).all(|au| record.present.touches_au(au) == (record.aus[au] != NO_AU));
        let maps_fit = !record.present.intersects(&record.zeroed) && record.lost.is_within(&record.present);
        (units_fit && maps_fit).then_some(Some(record))
    }
}

/// What goes into one record of a page.
pub(crate) struct RecordParts<'a> {
    pub(crate) layer: &'a Layer,
    pub(crate) sums: &'a BlockSums,
    pub(crate) lost: BlockMap,
}

impl RecordParts<'_> {
    fn encode(&self, slot: &mut [u8]) {
        let layer = self.layer;
        let mut head = Vec::with_capacity(SUMS_AT);
        head.put_u8(1);
        put_pg(&mut head, layer.pg());
        put_layer(&mut head, layer.key);
        put_version(&mut head, layer.version);
        head.put_u64_le(layer.base);
        head.put_slice(&layer.present.to_bytes());
        head.put_slice(&layer.zeroed().to_bytes());
        layer.aus.iter().for_each(|au| head.put_u32_le(*au));
        head.put_slice(&self.lost.to_bytes());
        slot[..head.len()].copy_from_slice(&head);
        for (at, sum) in slot[SUMS_AT..].chunks_exact_mut(4).zip(self.sums) {
            at.copy_from_slice(&sum.to_le_bytes());
        }
    }
}

fn seal(block: &mut [u8], kind: Kind, salt: u64, index: u64, generation: u64) -> u32 {
    block[0..4].copy_from_slice(&META_MAGIC.to_le_bytes());
    block[4..6].copy_from_slice(&META_VERSION.to_le_bytes());
    block[6] = kind as u8;
    block[8..16].copy_from_slice(&salt.to_le_bytes());
    block[16..24].copy_from_slice(&index.to_le_bytes());
    block[24..32].copy_from_slice(&generation.to_le_bytes());
    let crc = crc32c(block);
    block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// True if the block is exactly the one that the reference speaks of: a stale home, whole as it is, does not pass.
pub fn is_current(block: &[u8], kind: Kind, salt: u64, index: u64, reference: &HomeRef) -> bool {
    if block.len() < META_HEAD_BYTES {
        return false;
    }
    let crc = crc32c_append(crc32c_append(crc32c(&block[..CRC_AT]), &[0; 4]), &block[CRC_AT + 4..]);
    block[0..4] == META_MAGIC.to_le_bytes()
        && block[4..6] == META_VERSION.to_le_bytes()
        && block[6] == kind as u8
        && block[8..16] == salt.to_le_bytes()
        && block[16..24] == index.to_le_bytes()
        && block[24..32] == reference.generation.to_le_bytes()
        && block[CRC_AT..CRC_AT + 4] == reference.crc.to_le_bytes()
        && crc == reference.crc
}

/// The checkpoint that wrote a block, by its own words: nothing else of it is looked at. `None` if it is no such block.
pub fn generation(block: &[u8]) -> Option<u64> {
    let mut number = block.strip_prefix(&META_MAGIC.to_le_bytes())?.get(20..28)?;
    Some(number.get_u64_le())
}

/// The bytes of a page and their CRC.
pub(crate) fn encode_page<'a>(
    salt: u64,
    index: u64,
    generation: u64,
    records: impl Iterator<Item = Option<RecordParts<'a>>>,
) -> (AlignedBuf, u32) {
    let mut page = AlignedBuf::zeroed(PAGE_BYTES);
    for (slot, record) in page[RECORDS_AT..].chunks_exact_mut(RECORD_BYTES).zip(records) {
        if let Some(record) = record {
            record.encode(slot);
        }
    }
    let crc = seal(&mut page, Kind::Page, salt, index, generation);
    (page, crc)
}

/// The records of a page that [`is_current`]. `None` if they make no sense.
pub fn decode_page(page: &[u8]) -> Option<[Option<ChunkRecord>; RECORDS_PER_PAGE as usize]> {
    let mut slots = page.get(RECORDS_AT..)?.chunks_exact(RECORD_BYTES);
    let mut next = || ChunkRecord::decode(slots.next()?);
    Some([next()?, next()?, next()?])
}

/// The bytes of a directory block or of the root, and their CRC.
pub fn encode_refs(
    kind: Kind,
    salt: u64,
    index: u64,
    generation: u64,
    length: usize,
    refs: &[HomeRef],
) -> (AlignedBuf, u32) {
    let mut block = AlignedBuf::zeroed(length);
    for (at, reference) in block[META_HEAD_BYTES..].chunks_exact_mut(HOME_REF_BYTES).zip(refs) {
        at[..8].copy_from_slice(&reference.generation.to_le_bytes());
        at[8..12].copy_from_slice(&reference.crc.to_le_bytes());
        at[12] = reference.home;
    }
    let crc = seal(&mut block, kind, salt, index, generation);
    (block, crc)
}

/// The references in a directory block or root that [`is_current`].
pub fn decode_refs(block: &[u8]) -> Vec<HomeRef> {
    let decode = |mut at: &[u8]| HomeRef { generation: at.get_u64_le(), crc: at.get_u32_le(), home: at.get_u8() & 1 };
    block[META_HEAD_BYTES..].chunks_exact(HOME_REF_BYTES).map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm_api::epoch::{Seq, SnapSeq, Term};
    use mdm_api::ids::{StoragePoolId, VtreeId};
    use sds_api::block::ChunkId;

    #[test]
    fn a_page_survives_its_encoding_and_a_stale_one_does_not_pass() {
        let pg = PgId { pool: StoragePoolId(1), index: 2 };
        let layer = LayerKey { chunk: ChunkId { vtree: VtreeId(3), index: 4 }, snap_seq: SnapSeq(5) };
        let mut record = ChunkRecord::new(pg, layer, 77);
        record.version = Version { term: Term(6), seq: Seq(7) };
        record.present.insert(17);
        record.zeroed.insert(3);
        record.aus[1] = 42;
        record.checksums[17] = 0xdead_beef;
        record.lost.insert(17);
        let known = Layer::of_record(&record);
        let parts = RecordParts { layer: &known, sums: &record.checksums, lost: record.lost };
        let (page, crc) = encode_page(9, 10, 11, [None, Some(parts), None].into_iter());
        let current = HomeRef { generation: 11, crc, home: 1 };
        assert!(is_current(&page, Kind::Page, 9, 10, &current));
        assert!(!is_current(&page, Kind::Page, 9, 10, &HomeRef { generation: 12, ..current }));
        assert!(
            !is_current(&page, Kind::Page, 8, 10, &current) && !is_current(&page, Kind::Directory, 9, 10, &current)
        );
        assert_eq!(decode_page(&page), Some([None, Some(record), None]));
        assert_eq!((generation(&page), generation(&page[1..])), (Some(11), None));
        let mut bad = page.to_vec();
        bad[2000] ^= 1;
        assert!(!is_current(&bad, Kind::Page, 9, 10, &current));

        let (block, crc) = encode_refs(Kind::Directory, 9, 1, 12, PAGE_BYTES, &[current, HomeRef::default()]);
        assert!(is_current(&block, Kind::Directory, 9, 1, &HomeRef { generation: 12, crc, home: 0 }));
        assert_eq!(decode_refs(&block)[..2], [current, HomeRef::default()]);
    }
}
