//! A device read by hand: byte positions from `docs/store-format.md`, CRC32C, and nothing of the store's own code.

use std::collections::BTreeMap;

use sds_api::checksum::crc32c;

use crate::support::Disk;

const PAGE: u64 = 4096;
const NO_AU: u32 = u32::MAX;

/// A chunk record and how many of its blocks are what their CRCs say.
pub struct Record {
    pub layer: [u64; 3],
    pub version: [u64; 2],
    pub present: Vec<u16>,
    pub zeroed: Vec<u16>,
}

/// What was found.
pub struct Found {
    pub records: Vec<Record>,
    /// Kinds of journal records in their order.
    pub kinds: Vec<u8>,
    /// Blocks in journal and units whose CRC was checked.
    pub checked: usize,
    /// The first position without an accepted frame.
    pub end: u64,
    pub tail: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn read(disk: &Disk, offset: u64, length: u64) -> Vec<u8> {
    let pages = offset / PAGE..(offset + length).div_ceil(PAGE);
    pages.flat_map(|number| disk.durable.get(&number).map_or(vec![0; 4096], |page| page.to_vec())).collect()
}

/// CRC of bytes of which four, at `at`, count as zeros.
fn crc_without(bytes: &[u8], at: usize) -> u32 {
    let mut copy = bytes.to_vec();
    copy[at..at + 4].fill(0);
    crc32c(&copy)
}

fn blocks_of(map: &[u8]) -> Vec<u16> {
    (0..256).filter(|block| map[usize::from(*block) / 8] & 1 << (block % 8) != 0).collect()
}

struct Places {
    salt: u64,
    journal: u64,
    ring: u64,
    data: u64,
}

impl Places {
    fn in_ring(&self, disk: &Disk, position: u64, length: u64) -> Vec<u8> {
        let pages = (position..position + length).step_by(PAGE as usize);
        pages.flat_map(|at| read(disk, self.journal + at % self.ring, PAGE)).collect()
    }

    fn block(&self, disk: &Disk, au: u32, block: u16) -> Vec<u8> {
        read(disk, self.data + u64::from(au) * 65_536 + u64::from(block % 16) * PAGE, PAGE)
    }

    /// A block of metadata that a reference of 16 bytes speaks of.
    fn meta(
        &self,
        disk: &Disk,
        reference: &[u8],
        kind: u8,
        index: u64,
        first_home: u64,
        length: u64,
    ) -> Option<Vec<u8>> {
        let (generation, crc, home) = (u64_at(reference, 0), u32_at(reference, 8), u64::from(reference[12]));
        if generation == 0 {
            return None;
        }
        let block = read(disk, first_home + home * length, length);
        assert_eq!((&block[..4], u16_at(&block, 4), block[6]), (&b"ASMP"[..], 1, kind));
        assert_eq!((u64_at(&block, 8), u64_at(&block, 16), u64_at(&block, 24)), (self.salt, index, generation));
        assert_eq!((u32_at(&block, 32), crc_without(&block, 32)), (crc, crc));
        Some(block)
    }
}

/// Reads everything.
pub fn decode(disk: &Disk) -> Found {
    let block = read(disk, 0, PAGE);
    assert_eq!((&block[..8], u16_at(&block, 8)), (&b"ASHLARSB"[..], 1));
    assert_eq!(u32_at(&block, 4092), crc32c(&block[..4092]));
    for copy in 0..4 {
        assert!(read(disk, u64_at(&block, 152 + 8 * copy), PAGE) == block, "four equal copies");
    }
    assert_eq!((u64_at(&block, 24), u64_at(&block, 32), u64_at(&block, 40)), (0x11, 0x22, 0x33));
    assert_eq!((u64_at(&block, 56), u64_at(&block, 64)), (1, 8 << 20), "open count, size");
    let places = Places {
        salt: u64_at(&block, 48),
        journal: u64_at(&block, 72),
        ring: u64_at(&block, 80),
        data: u64_at(&block, 136),
    };
    let mut found = Found { records: Vec::new(), kinds: Vec::new(), checked: 0, end: 0, tail: u64_at(&block, 192) };
    metadata(disk, &block, &places, &mut found);
    frames(disk, &block, &places, &mut found);
    found
}

fn metadata(disk: &Disk, block: &[u8], places: &Places, found: &mut Found) {
    let root_reference: Vec<u8> = [&block[184..192], &block[220..224], &block[224..225], &[0; 3]].concat();
    let root = places.meta(disk, &root_reference, 1, 0, u64_at(block, 88), u64_at(block, 96)).unwrap();
    for index in 0..u64_at(block, 112) {
        let home = u64_at(block, 104) + 2 * PAGE * index;
        let reference = &root[64 + 16 * index as usize..][..16];
        let Some(directory) = places.meta(disk, reference, 2, index, home, PAGE) else { continue };
        for page in (250 * index..250 * (index + 1)).take_while(|page| *page < u64_at(block, 128)) {
            let home = u64_at(block, 120) + 2 * PAGE * page;
            let reference = &directory[64 + 16 * (page % 250) as usize..][..16];
            let Some(bytes) = places.meta(disk, reference, 3, page, home, PAGE) else { continue };
            bytes[256..]
                .chunks_exact(1280)
                .filter(|slot| slot[0] == 1)
                .for_each(|slot| record(disk, slot, places, found));
        }
    }
}

fn record(disk: &Disk, slot: &[u8], places: &Places, found: &mut Found) {
    let present = blocks_of(&slot[61..93]);
    for block in &present {
        let au = u32_at(slot, 125 + 4 * usize::from(block / 16));
        assert_ne!(au, NO_AU);
        assert_eq!(u32_at(slot, 256 + 4 * usize::from(*block)), crc32c(&places.block(disk, au, *block)));
        found.checked += 1;
    }
    assert!(blocks_of(&slot[189..221]).is_empty(), "no checksum is lost");
    found.records.push(Record {
        layer: [u64_at(slot, 13), u64_at(slot, 21), u64_at(slot, 29)],
        version: [u64_at(slot, 37), u64_at(slot, 45)],
        present,
        zeroed: blocks_of(&slot[93..125]),
    });
}

fn frames(disk: &Disk, block: &[u8], places: &Places, found: &mut Found) {
    let (mut position, mut chain) = (u64_at(block, 192), u32_at(block, 216));
    loop {
        let head = places.in_ring(disk, position, PAGE);
        let is_frame = head[..4] == *b"ASJF" && u64_at(&head, 8) == places.salt && u64_at(&head, 24) == position;
        if !is_frame {
            break;
        }
        assert_eq!(u16_at(&head, 4), 1);
        let (header, records, payload) = (u32_at(&head, 48), u32_at(&head, 52), u32_at(&head, 56));
        let area = places.in_ring(disk, position, u64::from(header));
        assert_eq!((u32_at(&area, 68), u32_at(&area, 40)), (crc_without(&area, 68), chain), "whole, and chains");
        let body = places.in_ring(disk, position + u64::from(header), u64::from(payload));
        let (kinds, sums, links) = journal_records(&area[72..72 + records as usize], u32_at(&area, 44));
        let is_whole = sums.iter().zip(body.chunks_exact(4096)).all(|(sum, bytes)| crc32c(bytes) == *sum);
        assert_eq!(sums.len() * 4096, payload as usize);
        if !is_whole {
            break;
        }
        for (au, block, sum) in &links {
            assert_eq!(crc32c(&places.block(disk, *au, *block)), *sum, "what is linked is there");
        }
        found.checked += sums.len() + links.len();
        found.kinds.extend(kinds);
        chain = u32_at(&area, 68);
        position += u64::from(header + payload);
    }
    found.end = position;
}

type Kinds = (Vec<u8>, Vec<u32>, Vec<(u32, u16, u32)>);

/// Kinds, CRCs of payload blocks, and linked blocks with their units and CRCs.
fn journal_records(mut bytes: &[u8], count: u32) -> Kinds {
    let (mut kinds, mut sums, mut links) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let kind = bytes[0];
        let length = match kind {
            1 | 10 => {
                let (length, blocks) = entry(&bytes[1..]);
                if kind == 1 {
                    sums.extend(blocks.values().copied());
                    1 + length
                } else {
                    let aus = &bytes[1 + length..];
                    links.extend(blocks.iter().map(|(b, sum)| (u32_at(aus, 4 * usize::from(b / 16)), *b, *sum)));
                    1 + length + 64
                }
            }
            2 | 4 | 5 => 1 + 12 + 8,
            3 => 1 + 12 + 8 + 4 + u32_at(bytes, 21) as usize,
            6 => {
                let present = blocks_of(&bytes[53..85]);
                1 + 12 + 24 + 16 + 32 + 32 + 64 + 4 * present.len()
            }
            7 => 1 + 12 + 8 + 4 + 24 * u32_at(bytes, 21) as usize,
            8 => {
                sums.push(u32_at(bytes, 27));
                1 + 24 + 2 + 4
            }
            9 => 1 + 12,
            other => panic!("kind {other}"),
        };
        kinds.push(kind);
        bytes = &bytes[length..];
    }
    assert!(bytes.is_empty());
    (kinds, sums, links)
}

/// Length of an entry's header, and the blocks of a write with their CRCs.
fn entry(bytes: &[u8]) -> (usize, BTreeMap<u16, u32>) {
    assert_eq!(bytes[0], 1);
    let identity = if bytes[30] == 1 { 40 } else { 0 };
    let body = 31 + identity;
    let mut blocks = BTreeMap::new();
    let length = match bytes[1] {
        1 => {
            let (first, count) = (u16_at(bytes, body + 24), u16_at(bytes, body + 26));
            blocks.extend((0..count).map(|at| (first + at, u32_at(bytes, body + 28 + 4 * usize::from(at)))));
            28 + 4 * usize::from(count)
        }
        2 => 28,
        3 | 4 => 8,
        5 => 24,
        other => panic!("kind of entry {other}"),
    };
    (body + length, blocks)
}

pub fn expect_settled(found: &Found) {
    let records: Vec<_> =
        found.records.iter().map(|r| (r.layer, r.version, r.present.len(), r.zeroed.clone())).collect();
    let expected = [([1, 0, 0], [1, 2], 2, vec![2]), ([1, 1, 0], [1, 3], 16, vec![]), ([3, 0, 4], [2, 9], 2, vec![7])];
    let mut sorted = records;
    sorted.sort();
    assert_eq!(sorted, expected);
    assert!(found.checked >= 20 && found.end >= found.tail);
}

pub fn expect_crashed(found: &Found) {
    assert_eq!(found.records.len(), 3, "nothing was applied since");
    // States and commit marks come whenever there is a place for them.
    let kinds: Vec<u8> = found.kinds.iter().copied().filter(|kind| ![3, 5].contains(kind)).collect();
    let story = [1, 10, 2, 1, 1, 1, 1, 4, 8, 7, 1, 9];
    assert!(kinds.ends_with(&story), "{kinds:?}");
    assert!(found.kinds.contains(&5) && found.checked >= 20 + 4 + 32);
}
