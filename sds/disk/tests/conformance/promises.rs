//! The promises, each run against every engine and medium.

use std::collections::BTreeMap;

use bytes::Bytes;
use sds_api::buf::{AlignedBuf, is_aligned};
use sds_disk::{SubmitError, limits};
use sds_store::io::{DiskError, DiskOp, OpId};

use crate::bench::{Bench, Random, SIZE, open_as, pattern};

pub const ALL: [(&str, fn(&Bench)); 10] = [
    ("data of every size comes back as written", data_of_every_size_comes_back_as_written),
    ("vectored writes land in order", vectored_writes_land_in_order),
    ("any memory can be written", any_memory_can_be_written),
    ("the ends of the device are reached and not passed", the_ends_are_reached_and_not_passed),
    ("discarded ranges stay readable", discarded_ranges_stay_readable),
    ("a second open is refused", a_second_open_is_refused),
    ("the bound holds and everything within it is answered", the_bound_holds),
    ("a batch of every kind is answered", a_batch_of_every_kind_is_answered),
    ("ten thousand random operations match a model", ten_thousand_random_operations_match_a_model),
    ("close drains and is final", close_drains_and_is_final),
];

fn aligned(bytes: &[u8]) -> Bytes {
    AlignedBuf::copy_of(bytes).freeze()
}

fn data_of_every_size_comes_back_as_written(bench: &Bench) {
    for (index, size) in [4096, 8192, 12288, 65536, 1 << 20, (4 << 20) + 4096].into_iter().enumerate() {
        for durable in [false, true] {
            let bytes = pattern(size, index as u64 * 2 + u64::from(durable));
            bench.write(4096, vec![aligned(&bytes)], durable).unwrap();
            let back = bench.read(4096, size as u32).unwrap();
            assert!(is_aligned(&back));
            assert!(back == bytes, "{size} bytes, durable {durable}");
        }
    }
    bench.run(DiskOp::Flush).unwrap();
}

fn vectored_writes_land_in_order(bench: &Bench) {
    let header = aligned(&pattern(4096, 1));
    let body = aligned(&pattern(65536, 2));
    let parts = vec![header.clone(), body.slice(8192..16384), Bytes::new(), body.slice(..4096), header];
    let expected = parts.concat();
    bench.write(1 << 20, parts, true).unwrap();
    assert!(bench.read(1 << 20, expected.len() as u32).unwrap() == expected);

    // More pieces than one system call takes.
    let many: Vec<Bytes> = (0..limits::SEGMENTS_MAX + 76).map(|index| aligned(&pattern(4096, index as u64))).collect();
    let expected = many.concat();
    bench.write(2 << 20, many, false).unwrap();
    assert!(bench.read(2 << 20, expected.len() as u32).unwrap() == expected);
}

fn any_memory_can_be_written(bench: &Bench) {
    let block = pattern(3 * 4096, 9);
    let odd = Bytes::from([&[0u8][..], &block].concat()).slice(1..);
    bench.write(0, vec![odd.clone()], true).unwrap();
    assert!(bench.read(0, odd.len() as u32).unwrap() == block);

    let torn = vec![odd.slice(..100), odd.slice(100..5000), odd.slice(5000..)];
    bench.write(65536, torn, false).unwrap();
    assert!(bench.read(65536, odd.len() as u32).unwrap() == block);
}

fn the_ends_are_reached_and_not_passed(bench: &Bench) {
    assert_eq!(bench.device.geometry().size, SIZE);
    let block = aligned(&pattern(4096, 5));
    bench.write(SIZE - 4096, vec![block.clone()], true).unwrap();
    assert!(bench.read(SIZE - 4096, 4096).unwrap() == block.clone());
    for offset in [SIZE - 4096, SIZE, u64::MAX - 4095] {
        assert_eq!(bench.read(offset, 8192), Err(DiskError::Io), "read of 8192 at {offset}");
        assert_eq!(bench.write(offset, vec![block.clone(), block.clone()], true), Err(DiskError::Io));
        assert_eq!(bench.run(DiskOp::Discard { offset, length: 8192 }), Err(DiskError::Io));
    }
    assert_eq!(bench.read(100, 4096), Err(DiskError::Io), "not on a block");
    assert_eq!(bench.read(0, 100), Err(DiskError::Io), "not a whole block");
    assert_eq!(bench.read(0, 0), Err(DiskError::Io), "nothing");
    assert_eq!(bench.read(0, u32::MAX - 4095), Err(DiskError::Io), "beyond any device here");
    assert_eq!(bench.write(0, vec![block.slice(..100)], true), Err(DiskError::Io));
    assert_eq!(bench.write(0, vec![], true), Err(DiskError::Io));
    assert!(bench.read(SIZE - 4096, 4096).unwrap() == block, "nothing was harmed");
}

fn discarded_ranges_stay_readable(bench: &Bench) {
    let before = aligned(&pattern(4096, 11));
    bench.write(1 << 20, vec![before.clone()], true).unwrap();
    bench.write((3 << 20) - 4096, vec![before.clone()], true).unwrap();
    let discard = DiskOp::Discard { offset: (1 << 20) + 4096, length: (2 << 20) - 8192 };
    assert_eq!(bench.run(discard), Ok(Bytes::new()));
    assert_eq!(bench.read(1 << 20, 2 << 20).unwrap().len(), 2 << 20);
    assert!(bench.read(1 << 20, 4096).unwrap() == before.clone(), "the block before is untouched");
    assert!(bench.read((3 << 20) - 4096, 4096).unwrap() == before.clone(), "the block after is untouched");
    bench.write(2 << 20, vec![before.clone()], true).unwrap();
    assert!(bench.read(2 << 20, 4096).unwrap() == before, "writable again");
}

fn a_second_open_is_refused(bench: &Bench) {
    let second = open_as(bench.kind, &bench.path, std::sync::Arc::new(|_| {})).err().expect("one opener at a time");
    let message = second.to_string();
    assert!(message.contains(&bench.path.display().to_string()), "{message}");
    assert!(message.contains("in use") || message.contains("is locked"), "{message}");
}

fn the_bound_holds(bench: &Bench) {
    let read = || bench.request(DiskOp::Read { offset: 0, length: 4096 });
    let batch: Vec<_> = (0..=limits::IN_FLIGHT_MAX).map(|_| read()).collect();
    assert_eq!(bench.device.submit(batch), Err(SubmitError::TooMany(limits::IN_FLIGHT_MAX + 1)));
    let batch: Vec<_> = (0..limits::IN_FLIGHT_MAX).map(|_| read()).collect();
    let ids: Vec<OpId> = batch.iter().map(|request| request.id).collect();
    bench.device.submit(batch).unwrap();
    for id in ids {
        assert_eq!(bench.wait(id).unwrap().len(), 4096);
    }
    assert_eq!(bench.device.health().in_flight, 0);
}

fn a_batch_of_every_kind_is_answered(bench: &Bench) {
    let block = aligned(&pattern(4096, 3));
    let ops = [
        DiskOp::Read { offset: 0, length: 4096 },
        DiskOp::Write { offset: 8192, buffers: vec![block.clone()], durable: false },
        DiskOp::Write { offset: 16384, buffers: vec![block.clone(), block], durable: true },
        DiskOp::Flush,
        DiskOp::Discard { offset: 1 << 20, length: 65536 },
        DiskOp::Read { offset: SIZE, length: 4096 },
    ];
    let batch: Vec<_> = ops.into_iter().map(|op| bench.request(op)).collect();
    let ids: Vec<OpId> = batch.iter().map(|request| request.id).collect();
    bench.device.submit(batch).unwrap();
    let failed = ids.iter().filter(|id| bench.wait(**id).is_err()).count();
    assert_eq!(failed, 1, "only the read past the end fails");
}

/// Blocks under way are not touched by another operation, as a store never overlaps its own.
fn ten_thousand_random_operations_match_a_model(bench: &Bench) {
    const BLOCKS: u64 = SIZE / 4096;
    const DEPTH: usize = 32;
    let mut random = Random(42);
    let mut model: Vec<Option<u64>> = vec![None; BLOCKS as usize];
    let mut busy: BTreeMap<OpId, (u64, u64, DiskOp, u64)> = BTreeMap::new();
    let mut started = 0u64;
    while started < 10_000 || !busy.is_empty() {
        let mut batch = Vec::new();
        while busy.len() < DEPTH && started < 10_000 {
            let length = 1 + random.below(8);
            let first = random.below(BLOCKS - length);
            if busy.values().any(|(other, count, ..)| first < other + count && *other < first + length) {
                continue;
            }
            started += 1;
            let offset = first * 4096;
            let op = match random.below(20) {
                0 => DiskOp::Flush,
                1 => DiskOp::Discard { offset, length: length * 4096 },
                2..=9 => DiskOp::Read { offset, length: length as u32 * 4096 },
                kind => {
                    let blocks = (0..length).map(|index| pattern(4096, started + index));
                    let buffers =
                        blocks.map(|bytes| if kind < 13 { Bytes::from(bytes) } else { aligned(&bytes) }).collect();
                    DiskOp::Write { offset, buffers, durable: kind % 2 == 0 }
                }
            };
            let request = bench.request(op.clone());
            busy.insert(request.id, (first, length, op, started));
            batch.push(request);
        }
        bench.device.submit(batch).unwrap();
        let done = bench.wait_any();
        let (first, length, op, stamp) = busy.remove(&done.id).expect("an operation under way");
        let bytes = done.result.unwrap();
        let blocks = (first..first + length).zip(0u64..);
        match op {
            DiskOp::Read { .. } => {
                for (block, index) in blocks {
                    let at = index as usize * 4096;
                    if let Some(seed) = model[block as usize] {
                        assert!(bytes[at..at + 4096] == pattern(4096, seed), "block {block}");
                    }
                }
            }
            DiskOp::Write { .. } => blocks.for_each(|(block, index)| model[block as usize] = Some(stamp + index)),
            DiskOp::Discard { .. } => blocks.for_each(|(block, _)| model[block as usize] = None),
            DiskOp::Flush => {}
        }
    }
    let statistics = bench.device.statistics();
    assert!(
        statistics.completed_batches <= statistics.reads + statistics.writes + statistics.flushes + statistics.discards
    );
}

fn close_drains_and_is_final(bench: &Bench) {
    let bytes = aligned(&pattern(65536, 77));
    let batch: Vec<_> = (0..100u64)
        .map(|index| DiskOp::Write { offset: index * 65536, buffers: vec![bytes.clone()], durable: index % 2 == 0 })
        .map(|op| bench.request(op))
        .collect();
    let ids: Vec<OpId> = batch.iter().map(|request| request.id).collect();
    bench.device.submit(batch).unwrap();
    assert_eq!(bench.device.close(), Ok(()));
    let answered = bench.unclaimed();
    assert_eq!(answered.len(), ids.len(), "everything was answered before close returned");
    assert!(answered.iter().all(|done| done.result.is_ok()));
    let late = bench.request(DiskOp::Flush);
    assert_eq!(bench.device.submit(vec![late]), Err(SubmitError::Closed));
    assert_eq!(bench.device.close(), Ok(()), "a second close is harmless");

    // The lock is free again, and the bytes are there.
    let next = Bench::with_limit(bench.kind, false, &bench.path, std::time::Duration::from_secs(60));
    assert!(next.read(99 * 65536, 65536).unwrap() == bytes);
    assert_eq!(next.device.close(), Ok(()));
}
