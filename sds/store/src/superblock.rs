//! The super block: whose device this is, how it is laid out, and where its last checkpoint is.
//!
//! Four copies lie far apart. A new one is written to copies 0 and 1, and only when both are durable to 2 and 3; nothing
//! that the old one needs is given up before all four are. So at every moment either the newest or the one before has two
//! good copies. A lone copy proves nothing and is never trusted: it may be the first step of a change that never happened.

use mdm_api::ids::{DeviceId, DeviceIncarnation, SystemId};
use sds_api::buf::AlignedBuf;
use sds_api::checksum::crc32c;

use crate::layout::{Geometry, SUPER_COPIES};
use crate::limits::PAGE_BYTES;

/// Version of the format of the whole store.
pub const FORMAT_VERSION: u16 = 1;
/// The first bytes of a super block.
pub const SUPER_MAGIC: [u8; 8] = *b"ASHLARSB";

const CRC_AT: usize = PAGE_BYTES - 4;

/// What the last checkpoint left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CheckpointRoot {
    /// Its number; 0 before the first.
    pub generation: u64,
    /// The home of the directory's root that is the newest.
    pub root_home: u8,
    /// CRC32C of that home.
    pub root_crc: u32,
    /// Position of the first frame that is still needed.
    pub tail: u64,
    /// CRC of the frame before it: what it must chain to.
    pub tail_chain: u32,
    /// Open count under which the frame before it was written.
    pub tail_incarnation: u64,
    /// The journal was durable up to here.
    pub durable: u64,
}

/// What a super block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperBlock {
    /// Layout.
    pub geometry: Geometry,
    /// Whose.
    pub system: SystemId,
    /// Which device.
    pub device: DeviceId,
    /// Which life of the device.
    pub incarnation: DeviceIncarnation,
    /// Random, made at format: frames and pages carry it, so that leftovers of another life are not taken for this one's.
    pub salt: u64,
    /// Grows with every write of the super block.
    pub sequence: u64,
    /// How often the device was opened.
    pub open_count: u64,
    /// An open found the journal's tail uncertain and nobody has settled it since.
    pub tail_uncertain: bool,
    /// An open found the device suspect and nobody has settled it since.
    pub suspect: bool,
    /// The page that a scrub had come to; a hint.
    pub scrub_page: u32,
    /// Where the journal went on at the last opening: from here on it holds nothing that was written under an older open
    /// count. 0: not known.
    pub resumed_at: u64,
    /// The last checkpoint.
    pub checkpoint: CheckpointRoot,
}

/// What four kilobytes at the place of a super block turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// A good one.
    Good(SuperBlock),
    /// A good one of a version not known here.
    Newer(u16),
    /// Not a super block, or a damaged one.
    Bad,
}

fn put(page: &mut [u8], at: &mut usize, bytes: &[u8]) {
    page[*at..*at + bytes.len()].copy_from_slice(bytes);
    *at += bytes.len();
}

fn take<const N: usize>(page: &[u8], at: &mut usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&page[*at..*at + N]);
    *at += N;
    out
}

impl SuperBlock {
    /// The 4 KiB of every copy.
    pub fn encode(&self) -> AlignedBuf {
        let mut page = AlignedBuf::zeroed(PAGE_BYTES);
        let at = &mut 0;
        put(&mut page, at, &SUPER_MAGIC);
        put(&mut page, at, &FORMAT_VERSION.to_le_bytes());
        let flags = u16::from(self.tail_uncertain) | u16::from(self.suspect) << 1;
        put(&mut page, at, &flags.to_le_bytes());
        put(&mut page, at, &[0; 4]);
        let g = &self.geometry;
        let c = &self.checkpoint;
        let words = [
            self.sequence,
            self.system.0,
            self.device.0,
            self.incarnation.0,
            self.salt,
            self.open_count,
            g.size_bytes,
            g.journal_offset,
            g.journal_bytes,
            g.root_offset,
            g.root_bytes,
            g.directory_offset,
            g.directory_count,
            g.page_offset,
            g.page_count,
            g.data_offset,
            g.au_count,
            g.super_offsets[0],
            g.super_offsets[1],
            g.super_offsets[2],
            g.super_offsets[3],
            c.generation,
            c.tail,
            c.durable,
            c.tail_incarnation,
        ];
        words.iter().for_each(|word| put(&mut page, at, &word.to_le_bytes()));
        put(&mut page, at, &c.tail_chain.to_le_bytes());
        put(&mut page, at, &c.root_crc.to_le_bytes());
        put(&mut page, at, &[c.root_home]);
        put(&mut page, at, &[0; 3]);
        put(&mut page, at, &self.scrub_page.to_le_bytes());
        put(&mut page, at, &self.resumed_at.to_le_bytes());
        let crc = crc32c(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads one copy.
    pub fn decode(page: &[u8]) -> Copy {
        if page.len() != PAGE_BYTES || page[..8] != SUPER_MAGIC {
            return Copy::Bad;
        }
        if crc32c(&page[..CRC_AT]).to_le_bytes() != page[CRC_AT..] {
            return Copy::Bad;
        }
        let at = &mut 8;
        let version = u16::from_le_bytes(take(page, at));
        if version != FORMAT_VERSION {
            return if version > FORMAT_VERSION { Copy::Newer(version) } else { Copy::Bad };
        }
        let flags = u16::from_le_bytes(take(page, at));
        let _: [u8; 4] = take(page, at);
        let mut word = || u64::from_le_bytes(take(page, at));
        let (sequence, system, device, incarnation) =
            (word(), SystemId(word()), DeviceId(word()), DeviceIncarnation(word()));
        let (salt, open_count) = (word(), word());
        let geometry = Geometry {
            size_bytes: word(),
            journal_offset: word(),
            journal_bytes: word(),
            root_offset: word(),
            root_bytes: word(),
            directory_offset: word(),
            directory_count: word(),
            page_offset: word(),
            page_count: word(),
            data_offset: word(),
            au_count: word(),
            super_offsets: [word(), word(), word(), word()],
        };
        let (generation, tail, durable, tail_incarnation) = (word(), word(), word(), word());
        let tail_chain = u32::from_le_bytes(take(page, at));
        let root_crc = u32::from_le_bytes(take(page, at));
        let [root_home, ..]: [u8; 4] = take(page, at);
        let scrub_page = u32::from_le_bytes(take(page, at));
        let resumed_at = u64::from_le_bytes(take(page, at));
        let sound = geometry.is_sound() && root_home <= 1 && tail <= durable && tail.is_multiple_of(PAGE_BYTES as u64);
        if !sound {
            return Copy::Bad;
        }
        Copy::Good(Self {
            geometry,
            system,
            device,
            incarnation,
            salt,
            sequence,
            open_count,
            tail_uncertain: flags & 1 != 0,
            suspect: flags & 2 != 0,
            scrub_page,
            resumed_at,
            checkpoint: CheckpointRoot { generation, root_home, root_crc, tail, tail_chain, tail_incarnation, durable },
        })
    }
}

/// The quorum of the copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// The newest super block of which two copies agree, if any.
    pub chosen: Option<SuperBlock>,
    /// Good copies.
    pub valid: usize,
    /// The highest sequence seen in any copy: the next one written must be above it.
    pub newest: u64,
}

/// Weighs the copies.
pub fn quorum(copies: &[Copy; SUPER_COPIES]) -> Quorum {
    let good = || copies.iter().filter_map(|copy| if let Copy::Good(block) = copy { Some(block) } else { None });
    let chosen = good()
        .filter(|block| good().filter(|other| other == block).count() >= 2)
        .max_by_key(|block| block.sequence)
        .copied();
    Quorum { chosen, valid: good().count(), newest: good().map(|block| block.sequence).max().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(sequence: u64) -> SuperBlock {
        SuperBlock {
            geometry: Geometry::new(64 << 20, 1 << 20).unwrap(),
            system: SystemId(1),
            device: DeviceId(2),
            incarnation: DeviceIncarnation(3),
            salt: 4,
            sequence,
            open_count: 5,
            tail_uncertain: false,
            suspect: true,
            scrub_page: 77,
            resumed_at: 8192,
            checkpoint: CheckpointRoot {
                generation: 6,
                root_home: 1,
                root_crc: 7,
                tail: 8192,
                tail_chain: 9,
                tail_incarnation: 5,
                durable: 16384,
            },
        }
    }

    #[test]
    fn a_super_block_survives_its_encoding_and_no_flipped_byte_does() {
        let page = block(10).encode();
        assert_eq!(SuperBlock::decode(&page), Copy::Good(block(10)));
        for at in (0..PAGE_BYTES).step_by(7) {
            let mut bad = page.to_vec();
            bad[at] ^= 0x40;
            assert_eq!(SuperBlock::decode(&bad), Copy::Bad);
        }
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        let mut page = block(1).encode().to_vec();
        page[8] = 9;
        let crc = crc32c(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SuperBlock::decode(&page), Copy::Newer(9));
    }

    #[test]
    fn a_lone_newest_super_block_is_not_trusted() {
        let good = |sequence| Copy::Good(block(sequence));
        let chosen = |copies: [Copy; 4]| quorum(&copies).chosen.map(|block| block.sequence);
        assert_eq!(chosen([good(8), good(7), good(7), good(7)]), Some(7));
        assert_eq!(chosen([good(8), good(8), good(7), good(7)]), Some(8));
        assert_eq!(chosen([good(8), good(9), good(7), good(7)]), Some(7));
        assert_eq!(chosen([good(8), Copy::Bad, Copy::Bad, Copy::Bad]), None);
        assert_eq!(chosen([good(8), Copy::Bad, good(7), Copy::Bad]), None);
        assert_eq!(chosen([Copy::Bad, Copy::Bad, good(7), good(7)]), Some(7));
        let differing = SuperBlock { salt: 99, ..block(8) };
        assert_eq!(chosen([good(8), Copy::Good(differing), good(7), good(7)]), Some(7));
        assert_eq!(quorum(&[good(8), good(9), good(7), good(7)]).newest, 9);
    }
}
