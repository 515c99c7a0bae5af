//! Images of devices that version 1 wrote. They open for ever, with what was acknowledged on them; and they are read here by
//! hand, from `docs/store-format.md` alone.
//!
//! An image is a list of pages that are not zeros: number (8), length (2) of what follows without its trailing zeros, bytes; a
//! page of one repeated word has length `ffff` and the word. The images are never made again for version 1: a version 2 gets
//! images of its own beside them. `GOLDEN_MAKE=folder` writes what today's code makes of the same story there, to look at.

#![allow(clippy::unwrap_used)]

mod by_hand;
mod support;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use mdm_api::epoch::{AttachGeneration, Epoch, RequestNumber, Seq, Term, Version};
use mdm_api::ids::{SdcId, VolumeId, VtreeId};
use sds_api::block::{BlockRange, LayerKey};
use sds_api::checksum::block_checksums;
use sds_api::entry::{Entry, EntryBody, WriteIdentity};
use sds_store::request::{Answer, LayerContent, PieceContent, Recovered, Request, Verdict};
use sds_store::store::Options;
use support::model::{data, layer, pg, value_of, write, zero};
use support::{Disk, Machine, open};

const SIZE: u64 = 8 << 20;
const JOURNAL: u64 = 256 << 10;

fn options() -> Options {
    Options { large_blocks_min: 16, ..Options::default() }
}

fn entry(index: u32, seq: u64, body: EntryBody) -> Entry {
    Entry { pg: pg(index), version: Version { term: Term(5), seq: Seq(seq) }, identity: None, body }
}

fn append(machine: &mut Machine, entries: Vec<Entry>) {
    assert_eq!(machine.call(Request::Append { entries }), Ok(Answer::Done));
}

fn commit(machine: &mut Machine, index: u32, through: u64) {
    machine.request(Request::Commit { pg: pg(index), through: Seq(through) });
}

/// At rest: everything is applied.
fn settled() -> Machine {
    let mut machine = Machine::fresh_with(SIZE, JOURNAL, options());
    append(&mut machine, vec![write(pg(0), 1, 1, layer(1, 0, 0), 1, &[11, 12, 13])]);
    append(&mut machine, vec![zero(pg(0), 1, 2, layer(1, 0, 0), 2, 1)]);
    append(&mut machine, vec![write(pg(0), 1, 3, layer(1, 1, 0), 16, &[33; 16])]);
    commit(&mut machine, 0, 3);
    let copy = LayerContent {
        version: Version { term: Term(2), seq: Seq(9) },
        present: [0, 200].into_iter().collect(),
        zeroed: [7].into_iter().collect(),
        checksums: block_checksums(&data(&[21, 22])),
        data: vec![data(&[21, 22])],
    };
    let install = Request::Install { pg: pg(2), layer: layer(3, 0, 4), content: copy };
    assert_eq!(machine.call(install), Ok(Answer::Done));
    let state = Request::SaveState { pg: pg(0), through: Seq(3), state: Bytes::from_static(b"state of group 0") };
    assert_eq!(machine.call(state), Ok(Answer::Done));
    assert_eq!(machine.call(Request::Checkpoint), Ok(Answer::Done));
    machine
}

/// Then more of everything, and the power goes.
fn crashed() -> Machine {
    let mut machine = settled();
    let identity = WriteIdentity {
        volume: VolumeId(1),
        sdc: SdcId(2),
        session: AttachGeneration(3),
        request: RequestNumber(4),
        oldest_unacked: RequestNumber(4),
    };
    let identified = Entry { identity: Some(identity), ..write(pg(0), 2, 4, layer(1, 0, 3), 2, &[44]) };
    append(&mut machine, vec![identified]);
    append(&mut machine, vec![write(pg(0), 2, 5, layer(1, 2, 0), 0, &[55; 32])]);
    commit(&mut machine, 0, 5);
    assert_eq!(machine.call(Request::Promise { pg: pg(1), term: Term(5) }), Ok(Answer::Done));
    append(&mut machine, vec![entry(1, 1, EntryBody::EpochStart { epoch: Epoch(6) })]);
    append(&mut machine, vec![entry(1, 2, EntryBody::Elsewhere { layer: layer(1, 9, 0) })]);
    append(&mut machine, vec![entry(1, 3, EntryBody::DropVtree { vtree: VtreeId(8) })]);
    append(&mut machine, vec![write(pg(1), 5, 4, layer(1, 10, 0), 5, &[66])]);
    assert_eq!(machine.call(Request::Void { pg: pg(1), after: Seq(3) }), Ok(Answer::Done));
    let good = data(&[21]);
    let checksum = block_checksums(&good)[0];
    let repair = Request::Repair { layer: layer(3, 0, 4), block: 0, checksum, data: good };
    assert_eq!(machine.call(repair), Ok(Answer::Done));
    assert_eq!(machine.call(Request::RemoveLayers { pg: pg(0), layers: vec![layer(1, 1, 0)] }), Ok(Answer::Done));
    append(&mut machine, vec![write(pg(3), 1, 1, layer(4, 0, 0), 0, &[77])]);
    assert_eq!(machine.call(Request::ForgetPg { pg: pg(3) }), Ok(Answer::Done));
    // One more that only began to be written.
    let torn = write(pg(1), 6, 4, layer(1, 10, 0), 6, &[88]);
    machine.request(Request::Append { entries: vec![torn] });
    machine
}

fn encode(disk: &Disk) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, page) in &disk.durable {
        let length = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if length == 0 {
            continue;
        }
        out.extend(number.to_le_bytes());
        if page[..4088] == page[8..] {
            out.extend(u16::MAX.to_le_bytes());
            out.extend(&page[..8]);
        } else {
            out.extend((length as u16).to_le_bytes());
            out.extend(&page[..length]);
        }
    }
    out
}

fn decode(mut bytes: &[u8]) -> Disk {
    let mut disk = Disk::new(SIZE);
    let take = |bytes: &mut &[u8], count: usize| -> Vec<u8> {
        let (now, rest) = bytes.split_at(count);
        *bytes = rest;
        now.to_vec()
    };
    while !bytes.is_empty() {
        let number = u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap());
        let length = u16::from_le_bytes(take(&mut bytes, 2).try_into().unwrap());
        let mut page = [0; 4096];
        if length == u16::MAX {
            page.copy_from_slice(&take(&mut bytes, 8).repeat(512));
        } else {
            page[..usize::from(length)].copy_from_slice(&take(&mut bytes, usize::from(length)));
        }
        disk.durable.insert(number, Arc::new(page));
    }
    disk
}

/// The two images as today's code makes them.
fn made_today() -> [(&'static str, Disk); 2] {
    let mut crashed = crashed().disk;
    assert_eq!(crashed.in_flight.len(), 1, "the last frame is on its way");
    // Its header is on the medium, its payload is not.
    crashed.tear_first_write();
    let (settled, crashed) = (settled().disk.without_cache(), crashed.without_cache());
    [("settled", settled), ("crashed", crashed)]
}

fn golden() -> [(&'static str, Disk); 2] {
    [
        ("settled", decode(include_bytes!("golden/version-1-settled.image"))),
        ("crashed", decode(include_bytes!("golden/version-1-crashed.image"))),
    ]
}

#[test]
fn today_s_code_still_tells_the_same_story() {
    let images = made_today();
    if let Ok(folder) = std::env::var("GOLDEN_MAKE") {
        for (name, disk) in &images {
            std::fs::write(Path::new(&folder).join(format!("version-1-{name}.image")), encode(disk)).unwrap();
        }
    }
    for (name, disk) in images {
        assert_eq!(decode(&encode(&disk)).durable.len(), disk.durable.values().filter(|p| ***p != [0; 4096]).count());
        check(name, disk);
    }
}

#[test]
fn images_of_version_1_open_for_ever() {
    for (name, disk) in golden() {
        check(name, disk);
    }
}

#[test]
fn images_decode_by_hand_from_the_document() {
    for (name, disk) in golden().into_iter().chain(made_today()) {
        let found = by_hand::decode(&disk);
        match name {
            "settled" => by_hand::expect_settled(&found),
            _ => by_hand::expect_crashed(&found),
        }
    }
}

fn read(machine: &mut Machine, key: LayerKey, first: u16, count: u16) -> Vec<Option<u64>> {
    let blocks = BlockRange::new(first, count).unwrap();
    let Ok(Answer::Read(pieces)) = machine.call(Request::Read { layer: key, blocks }) else { panic!("no answer") };
    let mut values = Vec::new();
    for piece in pieces {
        match piece.content {
            PieceContent::Zeros => values.extend(piece.blocks.iter().map(|_| None)),
            PieceContent::Data { bytes, .. } => values.extend(bytes.chunks_exact(4096).map(|b| Some(value_of(b)))),
            PieceContent::Bad { .. } => panic!("a bad block"),
        }
    }
    values
}

fn check(name: &str, mut disk: Disk) {
    let (store, recovered) = open(&mut disk, options()).unwrap();
    let mut machine = Machine::new(disk, store);
    assert_eq!(recovered.open_count, 2, "{name}");
    let of = |recovered: &Recovered, index| recovered.pgs.iter().find(|found| found.pg == pg(index)).cloned();
    let group = of(&recovered, 0).unwrap();
    assert_eq!(group.state, Some((Seq(3), Bytes::from_static(b"state of group 0"))));
    assert_eq!(read(&mut machine, layer(1, 0, 0), 0, 5), [None, Some(11), None, Some(13), None]);
    assert_eq!(read(&mut machine, layer(3, 0, 4), 0, 1), [Some(21)]);
    assert_eq!(read(&mut machine, layer(3, 0, 9), 200, 1), [Some(22)], "through to the older layer");
    if name == "settled" {
        assert_eq!(recovered.verdict, Verdict::Clean);
        assert_eq!(read(&mut machine, layer(1, 1, 0), 15, 3), [None, Some(33), Some(33)]);
        return;
    }
    assert_eq!(recovered.verdict, Verdict::TailUncertain, "the last frame is torn");
    let seqs: Vec<u64> = group.entries.iter().map(|found| found.entry.version.seq.0).collect();
    assert_eq!(seqs, [4, 5]);
    commit(&mut machine, 0, 5);
    assert_eq!(read(&mut machine, layer(1, 0, 3), 1, 3), [Some(11), Some(44), Some(13)]);
    assert_eq!(read(&mut machine, layer(1, 2, 0), 31, 2), [Some(55), None]);
    assert_eq!(read(&mut machine, layer(1, 1, 0), 16, 1), [None], "removed");
    let group = of(&recovered, 1).unwrap();
    assert_eq!((group.promise, group.entries.len()), (Some(Term(5)), 3), "what was void and what is torn is gone");
    assert!(of(&recovered, 3).is_none(), "forgotten");
}
