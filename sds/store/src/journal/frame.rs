//! The bytes of a frame: a header area of whole 4 KiB blocks (fixed head, records, zeros), then the payload blocks.
//!
//! One CRC covers the header area; with it the checksums of the payload blocks, which stand in the records; with it the CRC
//! of the frame before. So an accepted frame proves itself, its payload and its predecessor. The places of magic, version
//! and CRC are the same in every version to come.

use bytes::Bytes;
use sds_api::block::BLOCK_BYTES;
use sds_api::buf::AlignedBuf;
use sds_api::checksum::{crc32c, crc32c_append};

use crate::limits::{FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_MAX, PAGE_BYTES};

/// The first bytes of a frame.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"ASJF");
/// Version of the frame format.
pub const FRAME_VERSION: u16 = 1;
/// Bytes of the fixed head.
pub const FRAME_HEAD_BYTES: usize = 72;

const CRC_AT: usize = 68;

/// The fixed head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Version of the format.
    pub version: u16,
    /// The device's salt.
    pub salt: u64,
    /// Open count under which it was written.
    pub incarnation: u64,
    /// Its position: bytes journaled before it since the device was formatted.
    pub lsn: u64,
    /// Up to where its writer knew the journal to be durable.
    pub durable_through: u64,
    /// CRC of the frame before it.
    pub previous_crc: u32,
    /// Records.
    pub record_count: u32,
    /// Bytes of the header area, a multiple of 4 KiB.
    pub header_bytes: u32,
    /// Bytes of records in it.
    pub record_bytes: u32,
    /// Bytes of payload, a multiple of 4 KiB.
    pub payload_bytes: u32,
    /// CRC of the header area.
    pub crc: u32,
}

/// Bytes of the header area for so many bytes of records.
pub const fn header_area(record_bytes: usize) -> usize {
    (FRAME_HEAD_BYTES + record_bytes).next_multiple_of(PAGE_BYTES)
}

impl FrameHead {
    /// Bytes of the whole frame.
    pub const fn total_bytes(&self) -> u64 {
        self.header_bytes as u64 + self.payload_bytes as u64
    }

    /// The header area around some records. Sets `header_bytes`, `record_bytes` and `crc`.
    pub fn encode(&mut self, records: &[u8]) -> Bytes {
        let mut area = AlignedBuf::zeroed(header_area(records.len()));
        self.header_bytes = area.len() as u32;
        self.record_bytes = records.len() as u32;
        area[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        area[4..6].copy_from_slice(&self.version.to_le_bytes());
        area[8..16].copy_from_slice(&self.salt.to_le_bytes());
        area[16..24].copy_from_slice(&self.incarnation.to_le_bytes());
        area[24..32].copy_from_slice(&self.lsn.to_le_bytes());
        area[32..40].copy_from_slice(&self.durable_through.to_le_bytes());
        area[40..44].copy_from_slice(&self.previous_crc.to_le_bytes());
        area[44..48].copy_from_slice(&self.record_count.to_le_bytes());
        area[48..52].copy_from_slice(&self.header_bytes.to_le_bytes());
        area[52..56].copy_from_slice(&self.record_bytes.to_le_bytes());
        area[56..60].copy_from_slice(&self.payload_bytes.to_le_bytes());
        area[FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + records.len()].copy_from_slice(records);
        self.crc = crc32c(&area);
        area[CRC_AT..CRC_AT + 4].copy_from_slice(&self.crc.to_le_bytes());
        area.freeze()
    }

    /// Reads the head at the start of a block, if it is one and its lengths are possible. Its CRC is not checked yet.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let field = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(*block.get(at..)?.first_chunk()?)) };
        let word = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(*block.get(at..)?.first_chunk()?)) };
        if field(0)? != FRAME_MAGIC {
            return None;
        }
        let head = Self {
            version: (field(4)? & 0xffff) as u16,
            salt: word(8)?,
            incarnation: word(16)?,
            lsn: word(24)?,
            durable_through: word(32)?,
            previous_crc: field(40)?,
            record_count: field(44)?,
            header_bytes: field(48)?,
            record_bytes: field(52)?,
            payload_bytes: field(56)?,
            crc: field(CRC_AT)?,
        };
        let (header, payload) = (head.header_bytes as usize, head.payload_bytes as usize);
        let possible = header.is_multiple_of(PAGE_BYTES)
            && (PAGE_BYTES..=FRAME_HEADER_BYTES_MAX).contains(&header)
            && payload.is_multiple_of(BLOCK_BYTES)
            && payload <= FRAME_PAYLOAD_MAX
            && FRAME_HEAD_BYTES + head.record_bytes as usize <= header;
        possible.then_some(head)
    }

    /// True if the header area is whole.
    pub fn is_whole(&self, area: &[u8]) -> bool {
        area.len() == self.header_bytes as usize && {
            let crc = crc32c(&area[..CRC_AT]);
            let crc = crc32c_append(crc, &[0; 4]);
            crc32c_append(crc, &area[CRC_AT + 4..]) == self.crc
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_its_encoding_and_damage_is_seen() {
        let mut head = FrameHead {
            version: FRAME_VERSION,
            salt: 1,
            incarnation: 2,
            lsn: 4096,
            durable_through: 0,
            previous_crc: 3,
            record_count: 4,
            header_bytes: 0,
            record_bytes: 0,
            payload_bytes: 8192,
            crc: 0,
        };
        let area = head.encode(&[7; 5000]);
        assert_eq!((area.len(), head.total_bytes()), (8192, 16384));
        let read = FrameHead::decode(&area).unwrap();
        assert_eq!(read, head);
        assert!(read.is_whole(&area));
        for at in (0..area.len()).step_by(97) {
            let mut bad = area.to_vec();
            bad[at] ^= 1;
            assert!(FrameHead::decode(&bad).is_none_or(|head| !head.is_whole(&bad)), "byte {at}");
        }
        assert!(FrameHead::decode(&area[..40]).is_none());
    }
}
