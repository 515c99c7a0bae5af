//! A crowd on one volume: connections that do nothing, and readers that ask for much and take it slowly. Others must not
//! notice.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::nbd::{Address, Client};
use crate::runs::memory::resident;
use crate::runs::{HEALING, show};
use crate::system::{Options, System, with_system};

/// How many.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Connections that do nothing.
    pub idle: usize,
    /// Connections that read slowly.
    pub slow: usize,
    /// Requests of each look at another volume.
    pub requests: usize,
}

/// A hundred and a dozen.
pub const SHORT: Extent = Extent { idle: 200, slow: 12, requests: 300 };
/// Ten thousand and a hundred.
pub const FULL: Extent = Extent { idle: 10_000, slow: 100, requests: 4000 };

/// What a slow reader asks for at once.
const ASKED: (usize, usize) = (32, 1 << 20);
/// What it takes at a time, and how long it rests in between.
const SIP: (usize, Duration) = (16 << 10, Duration::from_millis(2));

/// What another volume sees, and what the data client needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// The 99th percentile of 4 KiB writes and of reads, each the median of three looks.
    pub write: Duration,
    /// As `write`.
    pub read: Duration,
    /// Resident memory of the data client, bytes.
    pub resident_bytes: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Nobody else is there.
    pub alone: Look,
    /// Beside the idle connections.
    pub beside_idle: Look,
    /// Beside the slow readers too.
    pub beside_slow: Look,
    /// Bytes that the slow readers got meanwhile.
    pub sipped_bytes: u64,
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    allow_files()?;
    let options = Options { mdm: 1, devices: 1, volumes: vec!["crowd:64MiB", "other:64MiB"], ..Options::default() };
    with_system(&options, |system| {
        system.wait_healthy(HEALING)?;
        let (crowd, other) = (system.nbd("crowd")?, system.nbd("other")?);
        Client::connect(&crowd)?.fill()?;
        Client::connect(&other)?.fill()?;
        let look = |extent: &Extent| look(system, &other, extent.requests);
        let mut outcome = Outcome { alone: look(extent)?, ..Outcome::default() };
        let idle = (0..extent.idle).map(|_| Client::connect(&crowd)).collect::<anyhow::Result<Vec<_>>>()?;
        outcome.beside_idle = look(extent)?;
        let stop = AtomicBool::new(false);
        let slow = (0..extent.slow).map(|_| Client::connect(&crowd)).collect::<anyhow::Result<Vec<_>>>()?;
        let sipped = std::thread::scope(|scope| {
            let sipping = scope.spawn(|| sip(slow, &stop));
            let seen = look(extent);
            stop.store(true, Ordering::Relaxed);
            (seen, sipping.join())
        });
        outcome.beside_slow = sipped.0?;
        outcome.sipped_bytes = sipped.1.map_err(|_| anyhow::anyhow!("a slow reader panicked"))??;
        drop(idle);
        Ok(outcome)
    })
}

/// As many open files as this process may have.
fn allow_files() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")
}

/// Asks for much on each connection, takes a little of each in turn, asks for more when it has all; the bytes taken.
fn sip(mut slow: Vec<Client>, stop: &AtomicBool) -> anyhow::Result<u64> {
    let (count, length) = ASKED;
    for client in &mut slow {
        (0..count).try_for_each(|piece| client.ask((piece * length) as u64, length))?;
        client.stream().set_nonblocking(true)?;
    }
    let mut sink = vec![0; SIP.0];
    let mut taken = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        for client in &slow {
            match client.stream().read(&mut sink) {
                Ok(0) => anyhow::bail!("the server hung up on a slow reader"),
                Ok(some) => taken += some as u64,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("a slow reader"),
            }
            std::thread::sleep(SIP.1);
        }
    }
    Ok(taken)
}

fn look(system: &System, other: &Address, requests: usize) -> anyhow::Result<Look> {
    let mut client = Client::connect(other)?;
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    let mut block = vec![7; 4096];
    for _ in 0..3 {
        let (mut written, mut read) = (Vec::with_capacity(requests), Vec::with_capacity(requests));
        for request in 0..requests as u64 {
            let offset = request * 7919 % (client.size_bytes() / 4096) * 4096;
            let began = Instant::now();
            client.write(offset, &block)?;
            written.push(began.elapsed());
            let began = Instant::now();
            client.read(offset, &mut block)?;
            read.push(began.elapsed());
        }
        writes.push(percentile(written));
        reads.push(percentile(read));
    }
    client.close()?;
    writes.sort();
    reads.sort();
    let processes = system.processes()?;
    let pid = processes.iter().find(|(name, _)| name == "sdc1").context("no data client runs")?.1;
    let look = Look { write: writes[1], read: reads[1], resident_bytes: resident(pid)? };
    println!(
        "p99 of writes {}, of reads {}, {} MiB",
        show_fine(look.write),
        show_fine(look.read),
        look.resident_bytes >> 20
    );
    Ok(look)
}

fn percentile(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// Spans well below a second.
pub fn show_fine(span: Duration) -> String {
    if span < Duration::from_millis(100) { format!("{:.2} ms", span.as_secs_f64() * 1e3) } else { show(span) }
}
