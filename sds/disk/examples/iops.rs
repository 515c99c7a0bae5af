//! How fast an engine is on a medium: 4 KiB durable writes and reads at random places, at several depths.
//!
//! `cargo run --release -p sds-disk --example iops -- FILE [SECONDS]` makes a file of 256 MiB at a path that does not
//! exist, writes it through once, measures, and removes it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use sds_api::buf::AlignedBuf;
use sds_disk::{EngineChoice, OpenOptions, create_file, open};
use sds_store::io::{DiskDone, DiskOp, DiskRequest, IoClass, OpId};

const SIZE: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("give the path of a file to make")?);
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse())?;
    create_file(&path, SIZE)?;
    let measured = measure_all(&path, Duration::from_secs(seconds));
    std::fs::remove_file(&path)?;
    measured
}

fn measure_all(path: &std::path::Path, time: Duration) -> Result<(), Box<dyn std::error::Error>> {
    println!("engine    operation      depth      IOPS   mean µs  operations per call of the sink");
    let block = AlignedBuf::zeroed(4096).freeze();
    let mega = AlignedBuf::copy_of(&[7; 1 << 20]).freeze();
    // So that no later write has to turn unwritten extents into written ones.
    let fill =
        (0..SIZE >> 20).map(|index| DiskOp::Write { offset: index << 20, buffers: vec![mega.clone()], durable: false });
    run(path, EngineChoice::Automatic, 4, fill)?;
    for (name, durable) in [("durable write", Some(true)), ("plain write", Some(false)), ("read", None)] {
        for depth in [1, 8, 32, 128] {
            // Side by side, as other load on the machine comes and goes.
            for engine in [EngineChoice::Uring, EngineChoice::Ring, EngineChoice::Blocking] {
                let mut random = 1u64;
                let begin = Instant::now();
                let ops = std::iter::from_fn(|| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let offset = (random >> 33) % (SIZE / 4096) * 4096;
                    (begin.elapsed() < time).then(|| match durable {
                        Some(durable) => DiskOp::Write { offset, buffers: vec![block.clone()], durable },
                        None => DiskOp::Read { offset, length: 4096 },
                    })
                });
                let (kind, count, batches) = run(path, engine, depth, ops)?;
                let elapsed = begin.elapsed().as_secs_f64();
                println!(
                    "{kind:<9} {name:<14} {depth:>5} {:>9.0} {:>9.1} {:>8.1}",
                    count as f64 / elapsed,
                    elapsed * 1e6 * depth as f64 / count as f64,
                    count as f64 / batches as f64,
                );
            }
        }
    }
    Ok(())
}

/// Keeps `depth` operations under way until `ops` ends; every completed batch is replaced by one batch.
fn run(
    path: &std::path::Path,
    engine: EngineChoice,
    depth: usize,
    mut ops: impl Iterator<Item = DiskOp>,
) -> Result<(&'static str, u64, u64), Box<dyn std::error::Error>> {
    let (sender, receiver) = channel::<Vec<DiskDone>>();
    let sink = Arc::new(move |done| {
        // Only after the receiver is gone, when nobody counts any more.
        let _ = sender.send(done);
    });
    let options = OpenOptions { engine, ..OpenOptions::default() };
    let device = open(path, options, sink)?;
    let (mut next, mut done) = (0u64, 0u64);
    let mut batch = |count: usize| -> Vec<DiskRequest> {
        let batch = ops.by_ref().take(count).map(|op| {
            next += 1;
            DiskRequest { id: OpId(next), class: IoClass::Foreground, op }
        });
        batch.collect()
    };
    let first = batch(depth);
    let mut busy = first.len();
    device.submit(first)?;
    while busy > 0 {
        let answers = receiver.recv()?;
        for answer in &answers {
            answer.result.as_ref().map_err(|error| *error)?;
        }
        done += answers.len() as u64;
        let more = batch(answers.len());
        busy = busy - answers.len() + more.len();
        device.submit(more)?;
    }
    let batches = device.statistics().completed_batches;
    let kind = device.engine().name();
    device.close()?;
    Ok((kind, done, batches))
}
