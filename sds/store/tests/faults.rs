//! Errors and rot: never a wrong byte, the right verdict, one block at most.

#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use mdm_api::epoch::{Seq, Term, Version};
use mdm_api::ids::{DeviceId, SystemId};
use sds_api::block::BlockRange;
use sds_api::checksum::{block_checksums, crc32c};
use sds_api::entry::Entry;
use sds_store::error::{FormatError, OpenError, StoreError};
use sds_store::io::DiskError;
use sds_store::layout::Geometry;
use sds_store::request::{Answer, LayerContent, Output, Piece, PieceContent, Request, Suspicion, Verdict};
use sds_store::store::Options;
use support::model::{data, fill, layer, pg, write, zero};
use support::{Disk, Machine, Random, format, open, open_as, open_parameters, parameters};

const SIZE: u64 = 16 << 20;
const JOURNAL: u64 = 256 << 10;

fn geometry() -> Geometry {
    Geometry::new(SIZE, JOURNAL).unwrap()
}

fn filled(count: u64) -> Machine {
    let mut machine = Machine::fresh(SIZE, JOURNAL);
    for seq in 1..=count {
        let entries = vec![write(pg(0), 1, seq, layer(1, 0, 0), seq as u16, &[seq])];
        assert_eq!(machine.call(Request::Append { entries }), Ok(Answer::Done));
    }
    machine.request(Request::Commit { pg: pg(0), through: Seq(count) });
    machine
}

fn read(machine: &mut Machine) -> Vec<Piece> {
    let request = Request::Read { layer: layer(1, 0, 0), blocks: BlockRange::WHOLE };
    match machine.call(request) {
        Ok(Answer::Read(pieces)) => pieces,
        other => panic!("{other:?}"),
    }
}

fn home_block(machine: &Machine) -> u64 {
    let first = geometry().data_offset / 4096;
    (first..first + 4096).find(|block| machine.disk.is_written(*block)).unwrap()
}

#[test]
fn rot_at_rest_fails_that_block_alone_and_repair_brings_it_back() {
    let mut machine = filled(5);
    machine.call(Request::Checkpoint).unwrap();
    let rotten = home_block(&machine);
    machine.disk.rot(rotten);
    let pieces = read(&mut machine);
    let bad: Vec<&Piece> = pieces.iter().filter(|p| matches!(p.content, PieceContent::Bad { .. })).collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].blocks.count(), 1);
    let block = bad[0].blocks.first();
    let good = data(&[u64::from(block)]);
    let repair = |checksum, data| Request::Repair { layer: layer(1, 0, 0), block, checksum, data };
    let other = data(&[99]);
    assert_eq!(machine.call(repair(crc32c(&other), other)), Err(StoreError::Changed));
    assert_eq!(machine.call(Request::Capture { layer: layer(1, 0, 0) }), Err(StoreError::BadBlock));
    assert_eq!(machine.call(repair(crc32c(&good), good)), Ok(Answer::Done));
    machine.call(Request::Checkpoint).unwrap();
    let pieces = read(&mut machine);
    assert!(!pieces.iter().any(|piece| matches!(piece.content, PieceContent::Bad { .. })), "{pieces:?}");
}

#[test]
fn an_unreadable_block_is_no_failure_of_the_device() {
    let mut machine = filled(3);
    machine.call(Request::Checkpoint).unwrap();
    let block = home_block(&machine);
    machine.disk.unreadable.push(block);
    let pieces = read(&mut machine);
    assert!(pieces.iter().any(|piece| matches!(piece.content, PieceContent::Bad { .. })));
    assert_eq!(machine.store.failure(), None);
}

#[test]
fn an_unreadable_block_costs_none_of_its_neighbours() {
    let mut machine = filled(5);
    machine.call(Request::Checkpoint).unwrap();
    let block = home_block(&machine);
    machine.disk.unreadable.push(block);
    let pieces = read(&mut machine);
    let bad = pieces.iter().filter(|piece| matches!(piece.content, PieceContent::Bad { .. }));
    assert_eq!(bad.map(|piece| piece.blocks.count()).sum::<u16>(), 1, "{pieces:?}");
}

#[test]
fn read_errors_that_do_not_come_back_cost_nothing() {
    for every in [2, 3, 5] {
        // Nothing stays in memory: applying reads the journal, and every change the page that knows of the chunk.
        let options = Options { payload_cache_bytes: 0, checksum_cache_bytes: 0, ..Options::default() };
        let mut machine = Machine::fresh_with(SIZE, 8 * JOURNAL, options);
        machine.disk.stutters_every = Some(every);
        for seq in 1..=60 {
            let entries = vec![write(pg(0), 1, seq, layer(1, seq % 12, 0), (seq / 16) as u16, &[seq, seq, seq])];
            assert_eq!(machine.call(Request::Append { entries }), Ok(Answer::Done));
            machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
            if seq % 7 == 0 {
                machine.call(Request::Checkpoint).unwrap();
            }
        }
        machine.call(Request::Checkpoint).unwrap();
        machine.disk.stutters_every = None;
        for chunk in 0..12 {
            let whole = Request::Read { layer: layer(1, chunk, 0), blocks: BlockRange::WHOLE };
            let Ok(Answer::Read(pieces)) = machine.call(whole) else { panic!("{every}: it cannot be read") };
            let bad = pieces.iter().any(|piece| matches!(piece.content, PieceContent::Bad { .. }));
            assert!(!bad, "{every}: {pieces:?}");
        }
        let counters = machine.store.counters();
        assert_eq!((counters.pages_lost, counters.bad_blocks), (0, 0), "{every}");
        assert!(counters.pages_read > 0, "{every}: pages were read again");
    }
}

#[test]
fn the_first_write_error_is_the_last_thing_that_happens() {
    let mut machine = filled(2);
    machine.disk.fail_writes = true;
    let entries = vec![write(pg(0), 1, 3, layer(1, 0, 0), 9, &[3])];
    assert_eq!(machine.call(Request::Append { entries }), Err(StoreError::Failed(DiskError::Io)));
    assert!(machine.outputs.iter().any(|output| matches!(output, Output::Failed { cause: DiskError::Io })));
    machine.outputs.clear();
    machine.disk.fail_writes = false;
    let promise = Request::Promise { pg: pg(0), term: Term(9) };
    assert_eq!(machine.call(promise), Err(StoreError::Failed(DiskError::Io)));
    machine.tick(5000);
    assert!(machine.outputs.is_empty() && machine.disk.in_flight.is_empty(), "nothing moves any more");
}

#[test]
fn rot_in_the_journal_makes_the_device_suspect_and_stays_remembered_until_settled() {
    let mut machine = filled(8);
    machine.run_disk();
    let third = geometry().journal_offset / 4096 + 4;
    machine.disk.rot(third);
    let (store, recovered) = open(&mut machine.disk, Options::default()).unwrap();
    assert!(
        matches!(recovered.verdict, Verdict::Suspect { why: Suspicion::JournalCorrupt { lsn: 16384 } }),
        "{:?}",
        recovered.verdict
    );
    drop(store);
    let (mut store, recovered) = open(&mut machine.disk, Options::default()).unwrap();
    assert!(matches!(recovered.verdict, Verdict::Suspect { .. }));
    std::mem::swap(&mut machine.store, &mut store);
    let promise = Request::Promise { pg: pg(0), term: Term(3) };
    machine.call(promise).unwrap();
    let (store, recovered) = open(&mut machine.disk, Options::default()).unwrap();
    assert_eq!(recovered.verdict, Verdict::Suspect { why: Suspicion::Remembered });
    machine.store = store;
    machine.call(Request::Settle).unwrap();
    let (_, recovered) = open(&mut machine.disk, Options::default()).unwrap();
    assert_eq!(recovered.verdict, Verdict::Clean);
}

#[test]
fn a_lost_page_makes_the_device_suspect_and_the_stale_home_is_not_used() {
    let mut machine = filled(3);
    machine.call(Request::SaveState { pg: pg(0), through: Seq(3), state: Bytes::new() }).unwrap();
    machine.call(Request::Checkpoint).unwrap();
    let entries = vec![write(pg(0), 1, 4, layer(1, 0, 0), 1, &[44])];
    machine.call(Request::Append { entries }).unwrap();
    machine.request(Request::Commit { pg: pg(0), through: Seq(4) });
    machine.call(Request::SaveState { pg: pg(0), through: Seq(4), state: Bytes::new() }).unwrap();
    machine.call(Request::Checkpoint).unwrap();
    let geometry = geometry();
    let homes = [geometry.page_home(0, 0) / 4096, geometry.page_home(0, 1) / 4096];
    let mut verdicts = Vec::new();
    for home in homes {
        let mut disk = machine.disk.clone();
        disk.rot(home);
        let (store, recovered) = open(&mut disk, Options::default()).unwrap();
        let mut copy = Machine::new(disk, store);
        let served = read(&mut copy);
        match recovered.verdict {
            Verdict::Suspect { why: Suspicion::PagesLost { pages: 1 } } => {
                let stale = served.iter().any(|piece| match &piece.content {
                    PieceContent::Data { bytes, .. } => piece.blocks.first() == 1 && bytes[..8] != fill(44)[..8],
                    _ => false,
                });
                assert!(!stale, "a home that is not the newest was used");
                verdicts.push(true);
            }
            Verdict::Clean => verdicts.push(false),
            other => panic!("{other:?}"),
        }
    }
    verdicts.sort_unstable();
    assert_eq!(verdicts, [false, true], "the newest home matters, the other does not");
}

#[test]
fn super_blocks_are_believed_by_two_and_repaired_by_opening() {
    let machine = filled(1);
    let places = geometry().super_offsets.map(|offset| offset / 4096);
    // Where both ends are bad the others are searched for.
    for keep in [[0, 1], [0, 3], [2, 3], [1, 2]] {
        let mut disk = machine.disk.clone();
        places.iter().enumerate().filter(|(at, _)| !keep.contains(at)).for_each(|(_, block)| disk.rot(*block));
        assert!(open(&mut disk, Options::default()).is_ok(), "{keep:?}");
        places.iter().take(2).for_each(|block| disk.rot(*block));
        assert!(open(&mut disk, Options::default()).is_ok(), "opening wrote all four");
    }
    let mut disk = machine.disk.clone();
    places.iter().skip(1).for_each(|block| disk.rot(*block));
    let error = open(&mut disk, Options::default()).err();
    assert_eq!(error, Some(OpenError::TooFewSuperBlocks { valid: 1, newest: 2 }));
}

#[test]
fn devices_of_others_are_refused_by_name() {
    let mut machine = filled(1);
    let expect = |disk: &mut Disk, change: &dyn Fn(&mut sds_store::open::OpenParameters)| {
        let mut parameters = open_parameters(disk, Options::default());
        change(&mut parameters);
        open_as(disk, parameters).err()
    };
    let disk = &mut machine.disk;
    assert!(matches!(expect(disk, &|p| p.system = Some(SystemId(1))), Some(OpenError::OtherSystem { .. })));
    assert!(matches!(expect(disk, &|p| p.device = Some(DeviceId(1))), Some(OpenError::OtherDevice { .. })));
    assert!(matches!(expect(&mut Disk::new(SIZE), &|_| ()), Some(OpenError::NotFormatted)));
    disk.size -= 1 << 20;
    assert!(matches!(expect(disk, &|_| ()), Some(OpenError::Truncated { .. })));
    disk.size += 9 << 20;
    assert!(expect(disk, &|_| ()).is_none(), "a grown device opens");
}

#[test]
fn a_device_that_is_not_blank_is_formatted_only_by_force() {
    let mut machine = filled(1);
    let again = parameters(SIZE, JOURNAL);
    assert!(matches!(format(&mut machine.disk, again), Err(FormatError::AshlarDevice { .. })));
    let mut disk = Disk::new(SIZE);
    disk.overwrite(1080, &[0x53, 0xef]);
    assert!(matches!(format(&mut disk, again), Err(FormatError::NotBlank { .. })));
    format(&mut machine.disk, sds_store::format::FormatParameters { force: true, salt: 1, ..again }).unwrap();
    let (_, recovered) = open(&mut machine.disk, Options::default()).unwrap();
    assert_eq!((recovered.open_count, recovered.pgs.len()), (1, 0), "nothing of the old life is seen");
}

#[test]
fn a_format_that_was_cut_short_is_no_device() {
    let mut machine = filled(1);
    let mut random = Random(1);
    let forced = sds_store::format::FormatParameters { force: true, salt: 9, ..parameters(SIZE, JOURNAL) };
    let mut formatter = sds_store::format::Formatter::new(forced).unwrap();
    let mut out = Vec::new();
    formatter.start(&mut out);
    for _ in 0..4 {
        out.drain(..).for_each(|request| machine.disk.submit(request));
        let done = machine.disk.complete(0);
        assert!(formatter.step(done, &mut out).is_none());
    }
    let mut disk = machine.disk.crash(&mut random);
    match open(&mut disk, Options::default()) {
        Err(OpenError::NotFormatted | OpenError::TooFewSuperBlocks { .. }) => {}
        Ok((_, recovered)) => assert_eq!(recovered.pgs.len(), 1, "still the old one, whole"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn space_given_back_by_zeroing_is_used_again_for_ever() {
    let mut machine = Machine::fresh(SIZE, JOURNAL);
    let mut seq = 0;
    for round in 0..60 {
        for chunk in 0..4 {
            for unit in 0..4 {
                seq += 1;
                let entries = vec![write(pg(0), 1, seq, layer(1, chunk, 0), unit * 16, &[round + 1])];
                machine.call(Request::Append { entries }).unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
            seq += 1;
            let entries = vec![zero(pg(0), 1, seq, layer(1, chunk, 0), 0, 256)];
            machine.call(Request::Append { entries }).unwrap();
            machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
            machine.call(Request::SaveState { pg: pg(0), through: Seq(seq), state: Bytes::new() }).unwrap();
        }
        machine.call(Request::Checkpoint).unwrap();
    }
    for _ in 0..20 {
        machine.tick(1500);
        machine.run_disk();
    }
    let space = machine.store.space();
    assert_eq!((space.aus_free, space.aus_quarantined), (space.aus_total, 0), "{space:?}");
    assert_eq!(machine.store.space().records_free, space.records_total - 4);
}

#[test]
fn a_device_that_goes_dumb_while_it_is_opened_is_refused_in_words_or_suspect() {
    let mut machine = filled(5);
    machine.call(Request::Checkpoint).unwrap();
    for first_is_gone in [false, true] {
        let mut outcomes = Vec::new();
        for reads in 0..16 {
            let mut disk = machine.disk.without_cache();
            if first_is_gone {
                disk.unreadable.push(0);
            }
            disk.reads_left = Some(reads);
            let (store, _) = match open(&mut disk, Options::default()) {
                Ok(opened) => opened,
                Err(error) => {
                    outcomes.push(error.to_string());
                    continue;
                }
            };
            outcomes.push(format!("{:?}", store.space()));
        }
        outcomes.dedup();
        assert!(outcomes.len() > 1, "{outcomes:?}");
    }
}

#[test]
fn reads_that_fail_once_leave_a_device_beyond_suspicion() {
    let machine = filled(5);
    for every in [2, 3, 5] {
        let mut disk = machine.disk.without_cache();
        disk.stutters_every = Some(every);
        let (_, recovered) = open(&mut disk, Options::default()).unwrap();
        assert!(!matches!(recovered.verdict, Verdict::Suspect { .. }), "{every}: {:?}", recovered.verdict);
    }
}

#[test]
fn a_state_that_nobody_gave_is_asked_for_again() {
    let mut machine = Machine::fresh(SIZE, JOURNAL);
    let mut seq = 0;
    for _ in 0..200 {
        let entries = vec![write(pg(0), 1, seq + 1, layer(1, seq % 4, 0), 0, &[seq])];
        let Ok(Answer::Done) = machine.call(Request::Append { entries }) else { break };
        seq += 1;
        machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
    }
    assert!(seq > 10, "the journal took {seq} entries");
    for _ in 0..40 {
        machine.tick(1000);
        machine.run_disk();
    }
    let asked = machine.outputs.iter().filter(|output| matches!(output, Output::WantState { .. })).count();
    assert!(asked > 1, "asked {asked} times, while the journal is full: {}", machine.store.describe());
    machine.call(Request::SaveState { pg: pg(0), through: Seq(seq), state: Bytes::new() }).unwrap();
    for _ in 0..10 {
        machine.tick(1000);
        machine.run_disk();
    }
    let entries = vec![write(pg(0), 1, seq + 1, layer(2, 0, 0), 0, &[1])];
    assert_eq!(machine.call(Request::Append { entries }), Ok(Answer::Done));
}

#[test]
fn a_journal_full_of_what_nobody_commits_is_not_read_again_and_again() {
    let options = Options { payload_cache_bytes: 0, ..Options::default() };
    let mut machine = Machine::fresh_with(64 << 20, 8 << 20, options);
    let mut seq = 0;
    loop {
        let entries = (1..=8).map(|next| write(pg(0), 1, seq + next, layer(1, next, 0), 0, &[next])).collect();
        match machine.call(Request::Append { entries }) {
            Ok(Answer::Done) => seq += 8,
            refused => break assert_eq!(refused, Err(StoreError::NoJournalSpace)),
        }
    }
    // Bounded: it must come to an end.
    for _ in 0..10_000 {
        if !machine.disk.in_flight.is_empty() {
            machine.complete(0);
        }
    }
    assert!(machine.store.counters().reappended > 0, "what is older than half the ring was carried to the head");
    assert!(machine.disk.in_flight.is_empty(), "it reads for ever what there is no room for");
    let before = machine.store.counters().reads;
    for _ in 0..100 {
        machine.tick(20);
        machine.run_disk();
    }
    // There is no room to carry anything to.
    assert_eq!(machine.store.counters().reads - before, 0);
    machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
    machine.call(Request::SaveState { pg: pg(0), through: Seq(seq), state: Bytes::new() }).unwrap();
    machine.call(Request::Checkpoint).unwrap();
    let entries = vec![write(pg(0), 1, seq + 1, layer(2, 0, 0), 0, &[1])];
    assert_eq!(machine.call(Request::Append { entries }), Ok(Answer::Done));
}

#[test]
fn a_full_device_refuses_before_anything_happens_and_still_deletes() {
    let mut machine = Machine::fresh(8 << 20, JOURNAL);
    let (mut seq, mut refused) = (0, None);
    for at in 0..400_u64 {
        let key = layer(1, at / 16, 0);
        let entries = vec![write(pg(0), 1, seq + 1, key, (at % 16) as u16 * 16, &[at])];
        match machine.call(Request::Append { entries }) {
            Ok(_) => seq += 1,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
        machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
        if seq % 8 == 0 {
            machine.call(Request::SaveState { pg: pg(0), through: Seq(seq), state: Bytes::new() }).unwrap();
            machine.call(Request::Checkpoint).unwrap();
        }
    }
    assert_eq!(refused, Some(StoreError::NoSpace));
    let layers = (0..25).map(|chunk| layer(1, chunk, 0)).collect();
    machine.call(Request::RemoveLayers { pg: pg(0), layers }).unwrap();
    machine.call(Request::SaveState { pg: pg(0), through: Seq(seq), state: Bytes::new() }).unwrap();
    for _ in 0..10 {
        machine.tick(1500);
        machine.run_disk();
    }
    let entries = vec![write(pg(0), 1, seq + 1, layer(2, 0, 0), 0, &[1])];
    assert_eq!(machine.call(Request::Append { entries }), Ok(Answer::Done));
    assert_eq!(machine.store.space().aus_free, machine.store.space().aus_total - 1);
}

#[test]
fn a_copy_replaces_a_layer_and_later_entries_go_on_top() {
    let mut machine = filled(4);
    let content = LayerContent {
        version: Version { term: Term(1), seq: Seq(4) },
        present: [0, 7].into_iter().collect(),
        zeroed: [1].into_iter().collect(),
        checksums: block_checksums(&data(&[70, 77])),
        data: vec![data(&[70, 77])],
    };
    let key = layer(1, 0, 0);
    let token = machine.request(Request::Install { pg: pg(0), layer: key, content: content.clone() });
    let entries = vec![write(pg(0), 1, 5, key, 7, &[5])];
    machine.call(Request::Append { entries }).unwrap();
    machine.request(Request::Commit { pg: pg(0), through: Seq(5) });
    assert_eq!(machine.answer(token), Ok(Answer::Done));
    machine.call(Request::Checkpoint).unwrap();
    let Ok(Answer::Captured(captured)) = machine.call(Request::Capture { layer: key }) else { panic!() };
    assert_eq!((captured.version.seq, captured.present, captured.zeroed), (Seq(5), content.present, content.zeroed));
    assert_eq!(captured.data.concat()[4096..4104], fill(5)[..8]);
    let lower = LayerContent { version: Version { term: Term(1), seq: Seq(2) }, ..content.clone() };
    let request = Request::Install { pg: pg(0), layer: key, content: lower };
    assert_eq!(machine.call(request), Err(StoreError::Committed));
    let mut bad = content;
    bad.checksums[0] ^= 1;
    let request = Request::Install { pg: pg(0), layer: key, content: bad };
    assert_eq!(machine.call(request), Err(StoreError::Malformed));
}

#[test]
fn small_memory_changes_nothing_but_where_payload_is_read_from() {
    let mut disk = Disk::new(SIZE);
    format(&mut disk, parameters(SIZE, JOURNAL)).unwrap();
    let options = Options { payload_cache_bytes: 0, ..Options::default() };
    let (store, _) = open(&mut disk, options).unwrap();
    let mut machine = Machine::new(disk, store);
    for seq in 1..=6 {
        let entries = vec![write(pg(0), 1, seq, layer(1, 0, 0), seq as u16, &[seq, seq + 100])];
        machine.call(Request::Append { entries: entries.clone() }).unwrap();
        let read = machine.call(Request::ReadEntry { pg: pg(0), seq: Seq(seq) });
        assert_eq!(read, Ok(Answer::Entry(entries[0].clone())));
    }
    machine.request(Request::Commit { pg: pg(0), through: Seq(6) });
    let before = read(&mut machine);
    machine.call(Request::Checkpoint).unwrap();
    let after = read(&mut machine);
    let bytes = |pieces: Vec<Piece>| -> Vec<u8> {
        let one = |piece: Piece| match piece.content {
            PieceContent::Data { bytes, .. } => bytes.to_vec(),
            _ => vec![0; piece.blocks.bytes()],
        };
        pieces.into_iter().flat_map(one).collect()
    };
    let (before, after) = (bytes(before), bytes(after));
    assert!(before == after);
    assert_eq!(before[6 * 4096..6 * 4096 + 8], fill(6)[..8]);
    assert_eq!(before[7 * 4096..7 * 4096 + 8], fill(106)[..8]);
}

#[test]
fn a_lone_small_write_is_two_blocks_of_journal_in_one_operation() {
    let mut machine = Machine::fresh_with(SIZE, JOURNAL, Options { scrub_period_ms: 0, ..Options::default() });
    let before = machine.store.counters();
    let entries = vec![write(pg(0), 1, 1, layer(1, 0, 0), 0, &[1])];
    machine.request(Request::Append { entries });
    assert_eq!(machine.disk.in_flight.len(), 1);
    machine.run_disk();
    let after = machine.store.counters();
    assert_eq!((after.frames - before.frames, after.journal_bytes - before.journal_bytes), (1, 8192));
}

/// Milliseconds between writes of a device that never rests.
const TRICKLE_MS: u64 = 100;

#[test]
fn what_is_trimmed_comes_free_on_a_device_that_never_rests() {
    // A journal that is far from full at the end: nothing else hurries.
    let mut machine = Machine::fresh(128 << 20, 32 << 20);
    let mut seq = 0;
    let mut append = |machine: &mut Machine, entry: &dyn Fn(u64) -> Entry| {
        seq += 1;
        machine.call(Request::Append { entries: vec![entry(seq)] }).unwrap();
        machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
        seq
    };
    for chunk in 0..4 {
        for unit in 0..4 {
            append(&mut machine, &|seq| write(pg(0), 1, seq, layer(1, chunk, 0), unit * 16, &[seq]));
        }
    }
    machine.call(Request::Checkpoint).unwrap();
    let full = machine.store.space().aus_free;
    for chunk in 0..4 {
        append(&mut machine, &|seq| zero(pg(0), 1, seq, layer(1, chunk, 0), 0, 256));
    }
    for _ in 0..90_000 / TRICKLE_MS {
        machine.tick(TRICKLE_MS);
        let through = append(&mut machine, &|seq| write(pg(0), 1, seq, layer(1, 9, 0), 0, &[seq]));
        let asked = machine.outputs.iter().any(|output| matches!(output, Output::WantState { .. }));
        machine.outputs.clear();
        if asked {
            machine.call(Request::SaveState { pg: pg(0), through: Seq(through), state: Bytes::new() }).unwrap();
        }
    }
    let free = machine.store.space().aus_free;
    assert!(free >= full + 15, "{free} units are free, {full} were before the trim: {}", machine.store.describe());
}

#[test]
fn an_idle_device_gives_everything_back_though_nobody_answered_at_first() {
    let mut machine = Machine::fresh(SIZE, JOURNAL);
    let write = vec![write(pg(0), 1, 1, layer(1, 0, 0), 0, &[1])];
    machine.call(Request::Append { entries: write }).unwrap();
    machine.call(Request::Append { entries: vec![zero(pg(0), 1, 2, layer(1, 0, 0), 0, 256)] }).unwrap();
    machine.request(Request::Commit { pg: pg(0), through: Seq(1) });
    machine.call(Request::Checkpoint).unwrap();
    machine.request(Request::Commit { pg: pg(0), through: Seq(2) });
    let mut asked = 0;
    for _ in 0..60 {
        machine.tick(1000);
        machine.run_disk();
        let asks = machine.outputs.iter().filter(|output| matches!(output, Output::WantState { .. })).count();
        machine.outputs.clear();
        asked += asks;
        // Whoever is asked can say nothing the first three times.
        if asks > 0 && asked > 3 {
            machine.call(Request::SaveState { pg: pg(0), through: Seq(2), state: Bytes::new() }).unwrap();
        }
    }
    let space = machine.store.space();
    assert_eq!((space.aus_free, space.aus_quarantined), (space.aus_total, 0), "{}", machine.store.describe());
}

#[test]
fn an_idle_device_empties_its_journal_once() {
    let (ring, mut seq) = (4 << 20, 0);
    let mut machine = Machine::fresh_with(64 << 20, ring, Options { scrub_period_ms: 0, ..Options::default() });
    let idle = |machine: &mut Machine, seq: u64| {
        for _ in 0..20 {
            machine.tick(500);
            machine.run_disk();
            if machine.outputs.iter().any(|output| matches!(output, Output::WantState { .. })) {
                machine.outputs.clear();
                machine.call(Request::SaveState { pg: pg(0), through: Seq(seq), state: Bytes::new() }).unwrap();
            }
        }
    };
    while machine.store.space().journal_free > ring / 2 {
        seq += 1;
        machine.call(Request::Append { entries: vec![write(pg(0), 1, seq, layer(1, seq % 4, 0), 0, &[seq])] }).unwrap();
        machine.request(Request::Commit { pg: pg(0), through: Seq(seq) });
    }
    idle(&mut machine, seq);
    assert!(machine.store.space().journal_free > ring / 8 * 7, "{}", machine.store.describe());
    // What holds the tail and cannot be helped is not worth a second round.
    let entries = |from: u64| (from + 1..=from + 200).map(|seq| write(pg(0), 1, seq, layer(1, 9, 0), 0, &[seq]));
    for entry in entries(seq) {
        machine.call(Request::Append { entries: vec![entry] }).unwrap();
    }
    idle(&mut machine, seq);
    let before = machine.store.counters();
    idle(&mut machine, seq);
    assert_eq!(machine.store.counters().frames, before.frames, "{}", machine.store.describe());
}
