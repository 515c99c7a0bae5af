//! The bare side: the same requests straight to the device.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sds_api::buf::AlignedBuf;
use sds_store::io::{DiskOp, OpId};

use super::cell::{Cell, Kind, Latencies, Place, Random, Round, Stop};
use super::{Disk, RAW_BYTES};
use crate::usage;

/// The longest burst, in bytes: as for a store whose journal is a gibibyte.
const BURST_BYTES: u64 = 256 << 20;

/// Runs a cell on the bytes from `base` on.
pub fn run(disk: &mut Disk, base: u64, cell: &Cell) -> anyhow::Result<Round> {
    let data: Bytes = AlignedBuf::copy_of(&vec![0xa5; cell.bytes]).freeze();
    let bytes = cell.bytes as u64;
    let places = RAW_BYTES / bytes;
    let (mut random, mut next) = (Random(7), 0_u64);
    let (mut round, mut latencies) = (Round::default(), Latencies::default());
    let mut open: BTreeMap<OpId, Instant> = BTreeMap::new();
    let cpu = usage::cpu_ns();
    let begin = Instant::now();
    loop {
        let goes_on = match cell.stop {
            Stop::After(time) => begin.elapsed() < time,
            Stop::PartOfJournal(_) => round.written_bytes < BURST_BYTES,
        };
        let mut batch = Vec::new();
        while goes_on && open.len() < cell.depth {
            let place = match cell.place {
                _ if cell.raw_appends => next % places,
                Place::Sequential | Place::FreshSequential => next % places,
                Place::Hot(count) => random.below(count.min(places)),
                Place::Random | Place::Fresh => random.below(places),
            };
            next += 1;
            let offset = base + place * bytes;
            let is_read = match cell.kind {
                Kind::Read => true,
                Kind::Write => false,
                Kind::Mixed(reads) => random.below(100) < reads,
            };
            let op = if is_read {
                DiskOp::Read { offset, length: cell.bytes as u32 }
            } else {
                round.written_bytes += bytes;
                DiskOp::Write { offset, buffers: vec![data.clone()], durable: true }
            };
            let request = disk.request(op);
            open.insert(request.id, Instant::now());
            batch.push(request);
        }
        disk.submit(batch)?;
        if open.is_empty() {
            break;
        }
        for done in disk.wait(Duration::from_secs(10)) {
            done.result?;
            if let Some(since) = open.remove(&done.id) {
                latencies.add(since.elapsed().as_nanos() as u64);
                round.operations += 1;
            }
        }
    }
    round.seconds = begin.elapsed().as_secs_f64();
    round.cpu_ns = usage::cpu_ns().saturating_sub(cpu);
    (round.p50_us, round.p99_us) = (latencies.at(500), latencies.at(990));
    (round.device_bytes, round.device_bytes_applied) = (1.0, 1.0);
    round.resident_bytes = usage::resident_bytes();
    Ok(round)
}
