//! What comes back, and how: a replica that was away for a moment, and a device that is lost for good.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::gaps::percentile;
use crate::nbd::{Address, Client};
use crate::runs::{HEALING, Moments, let_pass};
use crate::shell;
use crate::system::{Options, System, with_system};
use crate::worker::Worker;

const BLOCK_BYTES: u64 = 4096;
/// Written while a replica is away.
pub const OVERWRITTEN_BYTES: u64 = 64 << 20;
/// Connections that write them.
const WRITERS: u64 = 8;
/// How long a server may be away before its copies are made elsewhere.
const GRACE: Duration = Duration::from_secs(60);
/// How long the writer is watched before something happens.
const BEFORE: Duration = Duration::from_secs(20);
/// How long a rebuild may take, the grace before it included.
const REBUILDING: Duration = Duration::from_secs(1800);

/// What a return took.
#[derive(Clone, Copy, Debug)]
pub struct Return {
    /// Bytes that were copied to the server that had been away.
    pub copied_bytes: u64,
    /// From its start to full health.
    pub span: Duration,
}

/// What a writer of 4 KiB at random places saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// The middle.
    pub p50: Duration,
    /// The time that 1 of 100 exceeds.
    pub p99: Duration,
    /// Writes.
    pub writes: usize,
}

/// What a rebuild took.
#[derive(Clone, Debug, Default)]
pub struct Rebuild {
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// From the first chunk to full redundancy.
    pub span: Duration,
    /// Bytes that each server copied to others.
    pub by_server: Vec<u64>,
    /// Before.
    pub before: Latency,
    /// Meanwhile.
    pub meanwhile: Latency,
    /// Looks at `scli system show` that told progress, and those that told the time left.
    pub looks: (usize, usize),
    /// What half-way was said to be left, and what was.
    pub estimate: Option<(Duration, Duration)>,
}

fn options(volumes: Vec<&'static str>) -> Options {
    Options { devices: 1, device_size: "8GiB", volumes, ..Options::default() }
}

/// A counter of a server, as it tells it to Prometheus.
fn counter(system: &System, server: &str, name: &str) -> anyhow::Result<u64> {
    let config =
        std::fs::read_to_string(system.directory().join(format!("{server}.toml"))).context("no configuration")?;
    let line = config.lines().find_map(|line| line.strip_prefix("metrics_listen = "));
    let address = line.context("no address of the metrics")?.trim_matches('"');
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value: f64 = value.with_context(|| format!("{server} has no counter {name}"))?.trim().parse()?;
    Ok(value as u64)
}

fn copied(system: &System, servers: &[&str]) -> anyhow::Result<Vec<u64>> {
    servers.iter().map(|server| counter(system, server, "ashlar_sds_resync_bytes_total")).collect()
}

/// 4 GiB, one server away while 64 MiB of them are overwritten, block by block.
pub fn after_an_absence() -> anyhow::Result<Return> {
    with_system(&options(vec!["demo:4GiB"]), |system| {
        let address = system.nbd("demo")?;
        Client::connect(&address)?.fill()?;
        system.wait_healthy(HEALING)?;
        let others = ["sds2", "sds3"];
        system.kill("sds1")?;
        let away = Instant::now();
        overwrite(&address)?;
        let away = away.elapsed();
        ensure!(
            away < GRACE,
            "the machine is too busy: the overwriting took {} s, after which others take over",
            away.as_secs()
        );
        let before: u64 = copied(system, &others)?.iter().sum();
        let begun = Instant::now();
        system.start("sds1")?;
        system.wait_healthy(HEALING)?;
        let span = begun.elapsed();
        let after: u64 = copied(system, &others)?.iter().sum();
        Ok(Return { copied_bytes: after - before, span })
    })
}

/// Writes blocks at random places, over some connections at once: it must be over before the replica's place is given away.
fn overwrite(address: &Address) -> anyhow::Result<()> {
    let writers: Vec<Worker<anyhow::Result<()>>> = (0..WRITERS)
        .map(|_| {
            let (mut client, mut moments) = (Client::connect(address)?, Moments::fresh()?);
            Ok(Worker::start(move |_| {
                let block = [0x5a; BLOCK_BYTES as usize];
                for _ in 0..OVERWRITTEN_BYTES / BLOCK_BYTES / WRITERS {
                    client.write(moments.number(client.size_bytes() / BLOCK_BYTES) * BLOCK_BYTES, &block)?;
                }
                client.close()
            }))
        })
        .collect::<anyhow::Result<_>>()?;
    writers.into_iter().try_for_each(|writer| writer.finish()?)
}

/// A writer, one block after the other, each at a random place; when each began, and how long it took.
fn write_at_random(address: &Address) -> anyhow::Result<Worker<anyhow::Result<Vec<(Instant, Duration)>>>> {
    let mut client = Client::connect(address)?;
    let mut moments = Moments::fresh()?;
    Ok(Worker::start(move |stop| {
        let (mut taken, block) = (Vec::new(), [0xa5; BLOCK_BYTES as usize]);
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            client.write(moments.number(client.size_bytes() / BLOCK_BYTES) * BLOCK_BYTES, &block)?;
            taken.push((begun, begun.elapsed()));
        }
        Ok(taken)
    }))
}

fn latency(taken: &[(Instant, Duration)], from: Instant, to: Instant) -> Latency {
    let within = taken.iter().filter(|(begun, _)| (from..to).contains(begun));
    let mut spans: Vec<Duration> = within.map(|(_, span)| *span).collect();
    spans.sort();
    Latency { p50: percentile(&spans, 50), p99: percentile(&spans, 99), writes: spans.len() }
}

/// Chunks left and seconds left, as `scli` tells them.
fn progress(system: &System) -> anyhow::Result<(u64, Option<u64>, bool)> {
    let view: Value = serde_json::from_str(&system.scli(&["system", "show", "--output", "json"])?)?;
    let row = view.get(0).unwrap_or(&view);
    let left = row["rebuild_chunks_left"].as_u64().context("scli tells no progress")?;
    Ok((left, row["rebuild_remaining_s"].as_u64(), row["state"] == "healthy"))
}

/// A device of 8 GiB with 4 GiB of data is lost with its server; the others make its copies anew.
pub fn of_a_lost_device() -> anyhow::Result<Rebuild> {
    with_system(&options(vec!["demo:4GiB", "more:2GiB"]), |system| {
        let address = system.nbd("demo")?;
        Client::connect(&address)?.fill()?;
        Client::connect(&system.nbd("more")?)?.fill()?;
        system.wait_healthy(HEALING)?;
        let writer = write_at_random(&address)?;
        let begun = Instant::now();
        let_pass(BEFORE);
        let lost = Instant::now();
        system.kill("sds1")?;
        let servers = ["sds2", "sds3"];
        let copied_before = copied(system, &servers)?;
        let mut outcome = Rebuild::default();
        let first = follow(system, &mut outcome)?;
        let ended = Instant::now();
        let taken = writer.finish()??;
        outcome.by_server =
            copied(system, &servers)?.iter().zip(copied_before).map(|(after, before)| after - before).collect();
        outcome.copied_bytes = outcome.by_server.iter().sum();
        outcome.span = ended - first;
        outcome.before = latency(&taken, begun, lost);
        outcome.meanwhile = latency(&taken, first, ended);
        ensure!(outcome.meanwhile.writes > 0, "nothing was written meanwhile");
        Ok(outcome)
    })
}

/// Looks at a rebuild until it is done; when it began.
fn follow(system: &System, outcome: &mut Rebuild) -> anyhow::Result<Instant> {
    let mut first = None;
    let mut most = 0;
    let mut estimate: Option<(Instant, u64)> = None;
    shell::wait_until("the copies are made anew", REBUILDING, || {
        let (left, remaining_s, is_healthy) = progress(system)?;
        most = most.max(left);
        if left > 0 {
            first.get_or_insert_with(Instant::now);
            outcome.looks.0 += 1;
            outcome.looks.1 += usize::from(remaining_s.is_some());
            if left * 2 <= most && estimate.is_none() {
                estimate = remaining_s.map(|seconds| (Instant::now(), seconds));
            }
        }
        Ok(first.is_some() && is_healthy)
    })?;
    outcome.estimate = estimate.map(|(at, seconds)| (Duration::from_secs(seconds), at.elapsed()));
    first.context("the rebuild was not seen")
}
