//! The scrub finds every kind of damage, once each pass, says nothing of what is whole, and puts right what it can.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_api::epoch::Seq;
use sds_api::block::{BlockRange, LayerKey};
use sds_api::checksum::crc32c;
use sds_store::layout::Geometry;
use sds_store::request::{Answer, Damage, Output, Piece, PieceContent, Request, Verdict};
use sds_store::store::Options;
use sds_store::superblock::{Copy, SuperBlock};
use support::model::{data, layer, pg, write};
use support::{Disk, Machine, open};

const SIZE: u64 = 32 << 20;
const JOURNAL: u64 = 2 << 20;
const PERIOD_MS: u64 = 10_000;
const CHUNKS: u64 = 6;
const BLOCKS: u64 = 5;

fn options() -> Options {
    Options { scrub_period_ms: PERIOD_MS, checksum_cache_bytes: 0, ..Options::default() }
}

fn geometry() -> Geometry {
    Geometry::new(SIZE, JOURNAL).unwrap()
}

/// Some chunks with data at home, in two checkpoints, so that both homes of everything were written.
fn filled() -> Machine {
    let mut machine = Machine::fresh_with(SIZE, JOURNAL, options());
    let mut seq = 0;
    for round in 0..2 {
        for chunk in 0..CHUNKS {
            for block in 0..BLOCKS {
                seq += 1;
                let entries = vec![write(pg(0), 1, seq, layer(1, chunk, 0), 3 * block as u16, &[100 * round + chunk])];
                machine.call(Request::Append { entries }).unwrap();
            }
        }
        machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
        machine.call(Request::SaveState { pg: pg(0), through: Seq(seq), state: Bytes::new() }).unwrap();
        machine.call(Request::Checkpoint).unwrap();
    }
    machine.run_disk();
    machine.outputs.clear();
    machine
}

/// Lets a whole pass go by, and a little more.
fn pass(machine: &mut Machine) {
    let before = machine.store.counters().scrubs;
    for _ in 0..4 * PERIOD_MS / 20 {
        machine.tick(20);
        machine.run_disk();
        if machine.store.counters().scrubs == before + 2 {
            return;
        }
    }
    panic!("no pass ends: {:?}", machine.store.counters());
}

/// How often each block was named.
fn named(machine: &Machine) -> BTreeMap<(LayerKey, u16), u32> {
    let mut all = BTreeMap::new();
    for output in &machine.outputs {
        if let Output::BadBlock { layer, block, pg: group } = output {
            assert_eq!(*group, pg(0));
            *all.entry((*layer, *block)).or_default() += 1;
        }
    }
    all
}

fn damages(machine: &Machine) -> Vec<Damage> {
    let damage = |output: &Output| if let Output::Damaged { damage } = output { Some(*damage) } else { None };
    machine.outputs.iter().filter_map(damage).collect()
}

fn homes(machine: &Machine) -> Vec<u64> {
    let first = geometry().data_offset / 4096;
    (first..first + 4096).filter(|block| machine.disk.is_written(*block)).collect()
}

fn is_whole(machine: &mut Machine) {
    for chunk in 0..CHUNKS {
        let blocks = BlockRange::new(0, 16).unwrap();
        let Ok(Answer::Read(pieces)) = machine.call(Request::Read { layer: layer(1, chunk, 0), blocks }) else {
            panic!("no answer to a read")
        };
        let is_right = |piece: &Piece| match &piece.content {
            PieceContent::Data { bytes, .. } => bytes.chunks(4096).all(|block| block == data(&[100 + chunk])),
            PieceContent::Zeros => piece.blocks.iter().all(|block| block % 3 != 0 || u64::from(block) >= 3 * BLOCKS),
            PieceContent::Bad { .. } => false,
        };
        assert!(pieces.iter().all(is_right), "chunk {chunk}: {pieces:?}");
    }
}

#[test]
fn nothing_is_said_of_what_is_whole() {
    let mut machine = filled();
    pass(&mut machine);
    assert!(machine.outputs.is_empty(), "{:?}", machine.outputs);
    let counters = machine.store.counters();
    assert!(counters.scrubbed_bytes > CHUNKS * BLOCKS * 4096, "{counters:?}");
}

#[test]
fn rotten_and_unreadable_blocks_are_named_alone_until_they_are_repaired() {
    let mut machine = filled();
    let homes = homes(&machine);
    machine.disk.rot(homes[0]);
    machine.disk.rot(homes[7]);
    machine.disk.unreadable.push(homes[12]);
    pass(&mut machine);
    let found = named(&machine);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(machine.store.failure(), None);
    machine.disk.unreadable.clear();
    for (key, block) in found.into_keys() {
        let good = data(&[100 + key.chunk.index]);
        let repair = Request::Repair { layer: key, block, checksum: crc32c(&good), data: good };
        assert_eq!(machine.call(repair), Ok(Answer::Done));
    }
    machine.call(Request::Checkpoint).unwrap();
    machine.outputs.clear();
    pass(&mut machine);
    assert!(named(&machine).is_empty(), "{:?}", machine.outputs);
    is_whole(&mut machine);
}

/// Damages one block, lets a scrub find it, and opens what a crash would leave.
fn heals(block: u64, expected: Damage) {
    let mut machine = filled();
    machine.disk.rot(block);
    pass(&mut machine);
    assert!(damages(&machine).contains(&expected), "block {block}: {:?}", machine.outputs);
    assert!(named(&machine).is_empty(), "block {block}: {:?}", machine.outputs);
    machine.outputs.clear();
    pass(&mut machine);
    assert_eq!(damages(&machine), [], "block {block}: it is whole again");
    let (store, recovered) = open(&mut machine.disk.without_cache(), options()).unwrap();
    assert_eq!(recovered.verdict, Verdict::Clean, "block {block}");
    machine.store = store;
    is_whole(&mut machine);
}

#[test]
fn super_blocks_are_written_again() {
    for offset in geometry().super_offsets {
        heals(offset / 4096, Damage::SuperBlock);
        let mut machine = filled();
        machine.disk.rot(offset / 4096);
        pass(&mut machine);
        let page: Vec<u8> = read(&machine.disk, offset);
        assert!(matches!(SuperBlock::decode(&page), Copy::Good(_)));
    }
}

fn read(disk: &Disk, offset: u64) -> Vec<u8> {
    disk.durable[&(offset / 4096)].to_vec()
}

/// Every home of metadata, two of each kind, all of which were written.
fn homes_of_metadata() -> Vec<u64> {
    let (geometry, whole) = (geometry(), filled());
    let of = |home| [geometry.root_home(home), geometry.directory_home(0, home), geometry.page_home(0, home)];
    let all: Vec<u64> = (0..2).flat_map(of).map(|offset| offset / 4096).collect();
    assert!(all.iter().all(|block| whole.disk.is_written(*block)));
    all
}

#[test]
fn a_home_of_metadata_that_cannot_be_read_is_written_again_the_newest_or_the_other() {
    for block in homes_of_metadata() {
        let mut machine = filled();
        machine.disk.unreadable.push(block);
        pass(&mut machine);
        assert!(damages(&machine).contains(&Damage::Metadata), "{block}: {:?}", machine.outputs);
        // Sectors that are written again can be read again.
        machine.disk.unreadable.clear();
        is_whole_again(machine);
    }
}

#[test]
fn the_newest_home_of_metadata_is_written_again_when_it_rots() {
    let mut found = 0;
    for block in homes_of_metadata() {
        let mut machine = filled();
        machine.disk.rot(block);
        pass(&mut machine);
        found += usize::from(damages(&machine).contains(&Damage::Metadata));
        is_whole_again(machine);
    }
    assert_eq!(found, 3, "of the other homes nobody can tell, and nobody uses them");
}

/// The newest home of a page is the only place of its checksums where they are not in memory: its blocks are named.
fn is_whole_again(mut machine: Machine) {
    for (key, block) in named(&machine).into_keys() {
        let good = data(&[100 + key.chunk.index]);
        let repair = Request::Repair { layer: key, block, checksum: crc32c(&good), data: good };
        assert_eq!(machine.call(repair), Ok(Answer::Done));
    }
    machine.outputs.clear();
    pass(&mut machine);
    assert_eq!((damages(&machine), named(&machine)), (vec![], BTreeMap::new()), "it is whole again");
    machine.call(Request::Checkpoint).unwrap();
    let (store, recovered) = open(&mut machine.disk.without_cache(), options()).unwrap();
    assert_eq!(recovered.verdict, Verdict::Clean);
    machine.store = store;
    is_whole(&mut machine);
}

#[test]
fn the_tail_passes_a_damaged_frame_and_a_crash_after_it_loses_nothing() {
    let mut machine = filled();
    let mut seq = 2 * CHUNKS * BLOCKS;
    let begin = machine.store.super_block().checkpoint.tail;
    for chunk in 0..CHUNKS {
        seq += 1;
        let entries = vec![write(pg(0), 1, seq, layer(1, chunk, 0), 0, &[100 + chunk])];
        machine.call(Request::Append { entries }).unwrap();
    }
    // The first is applied, the others are not committed: they are carried to the head.
    let committed = seq + 1 - CHUNKS;
    machine.request(Request::Commit { pg: pg(0), through: Seq(committed) });
    let rotten = (geometry().journal_offset + (begin + 4 * 8192) % JOURNAL) / 4096;
    machine.disk.rot(rotten);
    for _ in 0..4 * PERIOD_MS / 20 {
        machine.tick(20);
        machine.run_disk();
        if machine.outputs.iter().any(|output| matches!(output, Output::WantState { .. })) {
            machine.outputs.retain(|output| !matches!(output, Output::WantState { .. }));
            machine.call(Request::SaveState { pg: pg(0), through: Seq(committed), state: Bytes::new() }).unwrap();
        }
    }
    assert!(damages(&machine).contains(&Damage::Journal), "{:?}", machine.outputs);
    assert_eq!(machine.store.counters().damages, 1, "it is found once");
    assert!(machine.store.super_block().checkpoint.tail > begin + 4 * 8192, "{}", machine.store.describe());
    let (store, recovered) = open(&mut machine.disk.without_cache(), options()).unwrap();
    assert_eq!(recovered.verdict, Verdict::Clean);
    machine.store = store;
    machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
    is_whole(&mut machine);
}

#[test]
fn a_pass_goes_on_after_a_restart_where_it_was() {
    let mut machine = Machine::fresh_with(64 << 20, JOURNAL, options());
    for seq in 1..=60 {
        let entries = vec![write(pg(0), 1, seq, layer(1, seq, 0), 0, &[seq])];
        machine.call(Request::Append { entries }).unwrap();
    }
    machine.request(Request::Commit { pg: pg(0), through: Seq(60) });
    machine.call(Request::SaveState { pg: pg(0), through: Seq(60), state: Bytes::new() }).unwrap();
    machine.call(Request::Checkpoint).unwrap();
    let passes = machine.store.counters().scrubs;
    for _ in 0..PERIOD_MS / 20 {
        machine.tick(20);
        machine.run_disk();
        if machine.store.counters().scrubs > passes && machine.store.counters().scrubbed_bytes > 0 {
            break;
        }
    }
    for _ in 0..PERIOD_MS / 2 / 20 {
        machine.tick(20);
        machine.run_disk();
    }
    machine.call(Request::Checkpoint).unwrap();
    let page = machine.store.super_block().scrub_page;
    assert!((3..18).contains(&page), "in the middle: page {page}");
    let (store, _) = open(&mut machine.disk, options()).unwrap();
    machine.store = store;
    while machine.store.counters().scrubs == 0 {
        machine.tick(20);
        machine.run_disk();
    }
    let first = machine.store.counters().scrubbed_bytes;
    while machine.store.counters().scrubs == 1 {
        machine.tick(20);
        machine.run_disk();
    }
    let second = machine.store.counters().scrubbed_bytes - first;
    assert!(first < second * 9 / 10, "the rest of a pass read {first} bytes, a whole one {second}");
}
