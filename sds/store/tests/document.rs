//! `docs/store-format.md` says where everything is: its tables against what the code writes, row by row.
//!
//! A row that the test does not know, or a gap between rows, fails it: whoever changes the format changes the document.

#![allow(clippy::unwrap_used)]

use mdm_api::ids::{DeviceId, DeviceIncarnation, SystemId};
use sds_store::journal::frame::{FRAME_HEAD_BYTES, FRAME_VERSION, FrameHead};
use sds_store::layout::{Geometry, PAGES_PER_DIRECTORY, RECORDS_PER_CHUNK, RECORDS_PER_PAGE, default_journal_bytes};
use sds_store::limits::{FRAMES_IN_FLIGHT, JOURNAL_BYTES_MAX};
use sds_store::meta::page::{HOME_REF_BYTES, META_HEAD_BYTES, META_VERSION, RECORD_BYTES, RECORDS_AT};
use sds_store::superblock::{CheckpointRoot, FORMAT_VERSION, SUPER_MAGIC, SuperBlock};

const DOCUMENT: &str = include_str!("../../../docs/store-format.md");

/// A row: where, how many bytes (for several of a kind, of all), and what.
struct Row {
    at: usize,
    bytes: usize,
    what: String,
}

/// The rows of the first table of a section.
fn table(section: &str) -> Vec<Row> {
    let (_, text) = DOCUMENT.split_once(section).unwrap();
    let rows =
        text.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let product =
            |text: &str| -> usize { text.split('x').map(|part| part.trim().parse::<usize>().unwrap()).product() };
        let bytes = if cells[1].is_empty() { 0 } else { product(cells[1]) };
        Row { at: cells[0].parse().unwrap(), bytes, what: cells[2].to_owned() }
    };
    rows.map(row).collect()
}

/// Rows follow each other without gaps, up to this one.
fn assert_dense(rows: &[Row], end: usize) {
    let mut at = 0;
    for row in rows.iter().take_while(|row| row.at < end) {
        assert_eq!(row.at, at, "a gap before {}", row.what);
        at += row.bytes;
    }
    assert_eq!(at, end);
}

fn says(text: &str) {
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat(DOCUMENT).contains(&flat(text)), "the document does not say: {text}");
}

fn little_endian(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn the_super_block_is_where_the_document_says() {
    let geometry = Geometry::new(64 << 20, 1 << 20).unwrap();
    let checkpoint = CheckpointRoot {
        generation: 0xa1,
        root_home: 1,
        root_crc: 0xa2,
        tail: 0xa3,
        tail_chain: 0xa4,
        tail_incarnation: 0xa5,
        durable: 0xa6,
    };
    let block = SuperBlock {
        geometry,
        system: SystemId(0xb1),
        device: DeviceId(0xb2),
        incarnation: DeviceIncarnation(0xb3),
        salt: 0xb4,
        sequence: 0xb5,
        open_count: 0xb6,
        tail_uncertain: true,
        suspect: true,
        scrub_page: 0xc1,
        resumed_at: 0xc2,
        checkpoint,
    };
    let page = block.encode();
    let rows = table("## 2. Super block");
    assert_dense(&rows, 240);
    for Row { at, bytes, what } in &rows {
        let expected = match what.as_str() {
            "`ASHLARSB`" => SUPER_MAGIC.to_vec(),
            "version: 1" => FORMAT_VERSION.to_le_bytes().to_vec(),
            what if what.starts_with("flags: 1 tail uncertain, 2 suspect") => vec![3, 0],
            "0" => vec![0; *bytes],
            what if what.starts_with("sequence") => little_endian(&[0xb5]),
            "system, device, device incarnation" => little_endian(&[0xb1, 0xb2, 0xb3]),
            "salt" => little_endian(&[0xb4]),
            "open count" => little_endian(&[0xb6]),
            "size of the device" => little_endian(&[geometry.size_bytes]),
            "journal: offset, bytes" => little_endian(&[geometry.journal_offset, geometry.journal_bytes]),
            "root: offset of home A, bytes of one home" => little_endian(&[geometry.root_offset, geometry.root_bytes]),
            "directory: offset, blocks" => little_endian(&[geometry.directory_offset, geometry.directory_count]),
            "pages: offset, count" => little_endian(&[geometry.page_offset, geometry.page_count]),
            "data: offset, AUs" => little_endian(&[geometry.data_offset, geometry.au_count]),
            "offsets of the four copies" => little_endian(&geometry.super_offsets),
            "checkpoint generation; 0: none yet" => little_endian(&[0xa1]),
            "tail: position of the first frame that is needed" => little_endian(&[0xa3]),
            "position up to which the journal was durable at the checkpoint" => little_endian(&[0xa6]),
            "open count of the frame before the tail" => little_endian(&[0xa5]),
            "CRC of the frame before the tail" => 0xa4_u32.to_le_bytes().to_vec(),
            "CRC of the root's newest home" => 0xa2_u32.to_le_bytes().to_vec(),
            "the root's newest home: 0 A, 1 B" => vec![1],
            "page that a scrub had come to; a hint" => vec![0xc1, 0, 0, 0],
            "position at which the journal went on at the last opening; 0: not known" => little_endian(&[0xc2]),
            "CRC of bytes 0..4092" => sds_api::checksum::crc32c(&page[..4092]).to_le_bytes().to_vec(),
            unknown => panic!("a row that is not known here: {unknown}"),
        };
        assert_eq!((&page[*at..at + bytes], *bytes), (&expected[..], expected.len()), "{what}");
    }
}

#[test]
fn the_head_of_a_frame_is_where_the_document_says() {
    let mut head = FrameHead {
        version: FRAME_VERSION,
        salt: 0xc1,
        incarnation: 0xc2,
        lsn: 0xc3,
        durable_through: 0xc4,
        previous_crc: 0xc5,
        record_count: 0xc6,
        header_bytes: 0,
        record_bytes: 0,
        payload_bytes: 0xc7,
        crc: 0,
    };
    let area = head.encode(&[7; 5]);
    let rows = table("## 3. Journal");
    assert_dense(&rows, FRAME_HEAD_BYTES);
    let number = |value: u32| value.to_le_bytes().to_vec();
    for Row { at, bytes, what } in &rows {
        let expected = match what.as_str() {
            "`ASJF`" => b"ASJF".to_vec(),
            "version: 1" => FRAME_VERSION.to_le_bytes().to_vec(),
            "0" => vec![0; *bytes],
            "salt" => little_endian(&[0xc1]),
            "open count under which it was written" => little_endian(&[0xc2]),
            "its position" => little_endian(&[0xc3]),
            "position up to which the writer knew the journal durable" => little_endian(&[0xc4]),
            "CRC of the frame before (0 at position 0)" => number(0xc5),
            "records" if *bytes == 4 => number(0xc6),
            "bytes of the header area" => number(4096),
            "bytes of records" => number(5),
            "bytes of payload" => number(0xc7),
            "CRC of the header area, these four bytes taken as zeros" => number(head.crc),
            "records" => Vec::new(),
            unknown => panic!("a row that is not known here: {unknown}"),
        };
        assert_eq!((&area[*at..at + bytes], *bytes), (&expected[..], expected.len()), "{what}");
    }
    assert_eq!(rows.last().unwrap().at, FRAME_HEAD_BYTES);
}

#[test]
fn a_chunk_record_is_as_long_as_the_document_says() {
    let rows = table("*Root* (index 0)");
    // The checksums begin at a round place behind the rest.
    let (sums, rest) = rows.split_last().unwrap();
    assert_dense(rest, rest.last().unwrap().at + rest.last().unwrap().bytes);
    assert!(sums.at >= rest.last().unwrap().at + rest.last().unwrap().bytes);
    assert_eq!(sums.at + sums.bytes, RECORD_BYTES);
}

#[test]
fn numbers_in_the_text_are_those_of_the_code() {
    assert_eq!((META_HEAD_BYTES, META_VERSION, HOME_REF_BYTES), (64, 1, 16));
    says("All blocks begin with 64 bytes: `ASMP`, version 2 (1)");
    says("from byte 64 references of 16 bytes");
    assert_eq!((RECORDS_PER_PAGE, RECORD_BYTES, RECORDS_AT), (3, 1280, 256));
    says("*Pages*: three records of 1280 bytes from byte 256");
    assert_eq!(PAGES_PER_DIRECTORY, 250);
    says("directory block i to pages 250 i to 250 i + 249");
    assert_eq!(FRAMES_IN_FLIGHT, 4);
    says("K = 4");
    assert_eq!(RECORDS_PER_CHUNK, 2);
    says("There are two chunk records for each MiB of data area");
    assert_eq!((default_journal_bytes(0), default_journal_bytes(64 << 30)), (64 << 20, 2 << 30));
    assert_eq!((default_journal_bytes(u64::MAX), JOURNAL_BYTES_MAX), (4 << 30, 4 << 30));
    says("By default the journal is size/32, at least 64 MiB, at most 4 GiB");
}
