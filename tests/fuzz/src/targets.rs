//! What is fed to which decoder.

use bytes::Bytes;
use mdm_api::epoch::{Epoch, Seq, SnapSeq, Term, Version};
use mdm_api::ids::{DeviceId, DeviceIncarnation, PgId, StoragePoolId, SystemId, VtreeId};
use sds_api::block::{BLOCK_BYTES, BlockRange, CHUNK_AUS, ChunkId, LayerKey};
use sds_api::checksum::{block_checksums, crc32c};
use sds_api::entry::{Entry, EntryBody};
use sds_store::journal::frame::{FRAME_VERSION, FrameHead};
use sds_store::journal::record::{InstallRecord, NO_AU, Record};
use sds_store::journal::scan::{Scanned, Scanner};
use sds_store::layout::Geometry;
use sds_store::meta::page::{HomeRef, Kind, decode_page, decode_refs, is_current};
use sds_store::superblock::{CheckpointRoot, Copy, SuperBlock};

use crate::device;
use crate::mutate::Random;
use crate::network;

/// One decoder.
pub struct Target {
    pub name: &'static str,
    /// Input that is right.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Makes checksums right again, mostly.
    pub mend: fn(&mut Vec<u8>, &mut Random),
    /// Panics if the decoder does what it must not.
    pub check: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "superblock",
        samples: super_blocks,
        mend: |bytes, random| mend_super_block(bytes, random),
        check: check_super_block,
    },
    Target { name: "entry", samples: entries, mend: |_, _| {}, check: check_entry },
    Target { name: "record", samples: records, mend: |_, _| {}, check: check_record },
    Target { name: "frame", samples: frames, mend: |bytes, random| mend_frame(bytes, random), check: check_frame },
    Target {
        name: "page",
        samples: device::metadata,
        mend: |bytes, random| mend_page(bytes, random),
        check: check_page,
    },
    Target { name: "device", samples: device::images, mend: device::mend, check: device::check },
    Target {
        name: "data-protocol",
        samples: network::frames,
        mend: |bytes, random| network::mend_frame(bytes, random),
        check: network::check_frame,
    },
    Target { name: "nbd", samples: network::sessions, mend: |_, _| {}, check: network::check_session },
];

const RING: u64 = 64 * 4096;
const SALT: u64 = 77;

fn super_blocks() -> Vec<Vec<u8>> {
    let geometry = Geometry::new(64 << 20, 1 << 20).expect("a device of this size is laid out");
    let block = SuperBlock {
        geometry,
        system: SystemId(1),
        device: DeviceId(2),
        incarnation: DeviceIncarnation(3),
        salt: 4,
        sequence: 5,
        open_count: 6,
        tail_uncertain: true,
        suspect: false,
        scrub_page: 8,
        resumed_at: 4096,
        checkpoint: CheckpointRoot { generation: 7, tail: 4096, durable: 8192, ..CheckpointRoot::default() },
    };
    vec![block.encode().to_vec()]
}

fn mend_super_block(page: &mut [u8], random: &mut Random) {
    if page.len() == 4096 && random.chance(95) {
        let crc = crc32c(&page[..4092]);
        page[4092..].copy_from_slice(&crc.to_le_bytes());
    }
}

fn check_super_block(page: &[u8]) {
    if let Copy::Good(block) = SuperBlock::decode(page) {
        assert!(block.geometry.is_sound());
        assert_eq!(SuperBlock::decode(&block.encode()), Copy::Good(block));
    }
}

/// One entry of each kind.
pub fn all_entries() -> Vec<Entry> {
    let layer = LayerKey { chunk: ChunkId { vtree: VtreeId(7), index: 9 }, snap_seq: SnapSeq(2) };
    let blocks = BlockRange::new(16, 16).expect("within a chunk");
    let data = Bytes::from(vec![5; 16 * BLOCK_BYTES]);
    let checksums = block_checksums(&data);
    let bodies = [
        EntryBody::Write { layer, blocks, checksums, data },
        EntryBody::Zero { layer, blocks },
        EntryBody::EpochStart { epoch: Epoch(8) },
        EntryBody::DropVtree { vtree: VtreeId(7) },
        EntryBody::Elsewhere { layer },
    ];
    let pg = PgId { pool: StoragePoolId(6), index: 11 };
    let version = Version { term: Term(12), seq: Seq(13) };
    bodies.into_iter().map(|body| Entry { pg, version, identity: None, body }).collect()
}

fn entries() -> Vec<Vec<u8>> {
    let encode = |entry: Entry| {
        let mut bytes = Vec::new();
        entry.encode_header(&mut bytes);
        bytes
    };
    all_entries().into_iter().map(encode).collect()
}

fn check_entry(bytes: &[u8]) {
    let input = &mut &bytes[..];
    if let Ok(entry) = Entry::decode_header(input) {
        let mut again = Vec::new();
        entry.encode_header(&mut again);
        assert_eq!(again, bytes[..bytes.len() - input.len()]);
    }
}

fn records() -> Vec<Vec<u8>> {
    let pg = PgId { pool: StoragePoolId(1), index: 2 };
    let layer = LayerKey { chunk: ChunkId { vtree: VtreeId(3), index: 4 }, snap_seq: SnapSeq(5) };
    let version = Version { term: Term(6), seq: Seq(7) };
    let mut aus = [NO_AU; CHUNK_AUS];
    aus[1] = 12;
    let mut records: Vec<Record> = all_entries().into_iter().map(Record::Entry).collect();
    records.extend([
        Record::Link { entry: all_entries().remove(0), aus },
        Record::Promise { pg, term: Term(8) },
        Record::State { pg, through: Seq(9), state: Bytes::from_static(b"some state") },
        Record::Void { pg, after: Seq(10) },
        Record::Commit { pg, through: Seq(11) },
        Record::Install(InstallRecord {
            pg,
            layer,
            version,
            present: [16, 19].into_iter().collect(),
            zeroed: [4].into_iter().collect(),
            aus,
            checksums: vec![1, 2],
        }),
        Record::RemoveLayers { pg, through: Seq(12), layers: vec![layer, layer] },
        Record::Repair { layer, block: 255, checksum: 13 },
        Record::ForgetPg { pg },
    ]);
    let encode = |record: Record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        bytes
    };
    records.into_iter().map(encode).collect()
}

fn check_record(bytes: &[u8]) {
    let input = &mut &bytes[..];
    while let Ok(record) = Record::decode(input) {
        let mut again = Vec::new();
        record.encode(&mut again);
        let mut decoded = &again[..];
        assert_eq!(Record::decode(&mut decoded), Ok(record));
        assert!(decoded.is_empty());
        if input.is_empty() {
            return;
        }
    }
}

/// Rings with two frames.
fn frames() -> Vec<Vec<u8>> {
    let frame = |lsn: u64, chain: u32, records: &[u8], payload: Bytes| {
        let mut head = FrameHead {
            version: FRAME_VERSION,
            salt: SALT,
            incarnation: 1,
            lsn,
            durable_through: 0,
            previous_crc: chain,
            record_count: 1,
            header_bytes: 0,
            record_bytes: 0,
            payload_bytes: payload.len() as u32,
            crc: 0,
        };
        let mut bytes = head.encode(records).to_vec();
        bytes.extend_from_slice(&payload);
        (bytes, head.crc)
    };
    let all: Vec<Vec<u8>> = records();
    let write = all_entries().remove(0).payload().clone();
    let ring = |record: &Vec<u8>, payload: Bytes| {
        let (mut bytes, crc) = frame(0, 0, record, payload);
        bytes.extend(frame(bytes.len() as u64, crc, &all[7], Bytes::new()).0);
        bytes
    };
    all.iter()
        .enumerate()
        .map(|(index, record)| ring(record, if index == 0 { write.clone() } else { Bytes::new() }))
        .collect()
}

fn mend_frame(bytes: &mut [u8], random: &mut Random) {
    let Some(head) = FrameHead::decode(bytes) else { return };
    let length = head.header_bytes as usize;
    if bytes.len() >= length && random.chance(95) {
        bytes[68..72].fill(0);
        let crc = crc32c(&bytes[..length]);
        bytes[68..72].copy_from_slice(&crc.to_le_bytes());
    }
}

fn check_frame(bytes: &[u8]) {
    let mut ring = bytes.to_vec();
    ring.resize(RING as usize, 0);
    let mut scanner = Scanner::new(RING, SALT, 0, 0, 0);
    let mut end = 0;
    for piece in ring.chunks(5 * 4096) {
        scanner.feed(Bytes::copy_from_slice(piece));
        while let Scanned::Frame(frame) = scanner.advance() {
            assert_eq!(frame.head.lsn, end, "frames come one behind the other");
            end += frame.head.total_bytes();
        }
    }
    assert!(scanner.is_fed() && end <= RING);
    assert!(scanner.end().lsn == end);
}

fn mend_page(bytes: &mut [u8], random: &mut Random) {
    if bytes.len() >= 64 && random.chance(95) {
        bytes[32..36].fill(0);
        let crc = crc32c(bytes);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
    }
}

fn check_page(bytes: &[u8]) {
    let word = |at: usize| bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
    let crc = bytes.get(32..36).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")));
    let reference = HomeRef { generation: word(24), crc, home: 0 };
    for kind in [Kind::Root, Kind::Directory, Kind::Page] {
        if !is_current(bytes, kind, word(8), word(16), &reference) {
            continue;
        }
        let refs = decode_refs(bytes);
        assert!(refs.len() <= bytes.len() / 16 && refs.iter().all(|reference| reference.home <= 1));
        for record in decode_page(bytes).into_iter().flatten().flatten() {
            assert!(record.lost.is_within(&record.present) && !record.present.intersects(&record.zeroed));
        }
    }
}
