//! Many clients at once, and clients whose bytes are almost right.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Rig, resident_bytes};
use sdc_nbd::client::Client;
use sdc_nbd::limits::Limits;
use sdc_nbd::serve::Ending;
use sdc_nbd::wire::option::{InfoRequest, OptionHead, code};
use sdc_nbd::wire::{Command, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const LONG: Duration = Duration::from_secs(20);
/// Memory that a connection which does nothing may take on the server's side and the client's, bytes.
const IDLE_BYTES_MAX: usize = 24 << 10;
/// Seconds that the search for bytes that harm goes on, instead of some rounds.
const FUZZ_SECONDS: &str = "ASHLAR_FUZZ_SECONDS";

async fn still_serves(rig: &Rig) {
    let socket = rig.socket();
    let read = move || Client::connect(&socket, "disk", LONG)?.read(0, &mut [0; 512]);
    tokio::task::spawn_blocking(read).await.unwrap().unwrap();
}

fn option(out: &mut Vec<u8>, option: u32, payload: &[u8]) {
    out.extend_from_slice(&OptionHead { option, length: payload.len() as u32 }.encode());
    out.extend_from_slice(payload);
}

/// All that a client of many wishes says in one session.
fn session(extended: bool) -> Vec<u8> {
    let mut out = 3u32.to_be_bytes().to_vec();
    option(&mut out, if extended { code::EXTENDED_HEADERS } else { code::STRUCTURED_REPLY }, &[]);
    option(&mut out, code::LIST, &[]);
    let mut meta = 4u32.to_be_bytes().to_vec();
    meta.extend_from_slice(b"disk");
    meta.extend_from_slice(&1u32.to_be_bytes());
    meta.extend_from_slice(&15u32.to_be_bytes());
    meta.extend_from_slice(b"base:allocation");
    option(&mut out, code::LIST_META_CONTEXT, &meta);
    option(&mut out, code::SET_META_CONTEXT, &meta);
    option(&mut out, code::GO, &InfoRequest { name: "disk".to_owned(), kinds: vec![0, 1, 3] }.encode());
    let commands = [
        (Command::Read, 0, 5000),
        (Command::Write, 4000, 3000),
        (Command::WriteZeroes, 0, 9000),
        (Command::Trim, 8192, 8192),
        (Command::Cache, 0, 4096),
        (Command::BlockStatus, 0, 65_536),
        (Command::Flush, 0, 0),
        (Command::Disconnect, 0, 0),
    ];
    for (cookie, (command, offset, length)) in commands.into_iter().enumerate() {
        let request = Request { flags: 0, kind: command as u16, cookie: cookie as u64, offset, length };
        let compact = request.encode();
        if extended {
            out.extend_from_slice(&sdc_nbd::wire::EXTENDED_REQUEST_MAGIC.to_be_bytes());
            out.extend_from_slice(&compact[4..24]);
            out.extend_from_slice(&length.to_be_bytes());
        } else {
            out.extend_from_slice(&compact);
        }
        if command == Command::Write {
            out.extend(std::iter::repeat_n(7, length as usize));
        }
    }
    out
}

/// A repeatable generator (xorshift*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % bound
    }
}

/// Flips, repeats, drops and swaps some bytes.
fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let other = random.below(bytes.len());
        match random.below(6) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => drop(bytes.remove(at)),
            4 => bytes.insert(at, random.below(256) as u8),
            _ => bytes.swap(at, other),
        }
    }
    if random.below(8) == 0 {
        bytes.truncate(random.below(bytes.len()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_with_spoilt_bytes_end_and_harm_nobody() {
    let rig = Rig::new(1 << 20, Limits::default());
    let seconds = std::env::var(FUZZ_SECONDS).ok().map(|text| Duration::from_secs(text.parse().unwrap()));
    let started = Instant::now();
    // A long search looks elsewhere each time.
    let mut random = Random(if seconds.is_some() { seed() } else { 1 });
    let mut rounds = 0u64;
    while seconds.map_or(rounds < 400, |seconds| started.elapsed() < seconds) {
        let mut bytes = session(rounds.is_multiple_of(2));
        // The first two are whole: what is spoilt was right.
        if rounds >= 2 {
            spoil(&mut bytes, &mut random);
        }
        let mut stream = UnixStream::connect(rig.socket()).await.unwrap();
        let talk = async {
            let (mut reader, mut writer) = stream.split();
            let send = async {
                // The server may hang up before all is said.
                let _ = writer.write_all(&bytes).await;
                let _ = writer.shutdown().await;
            };
            let mut heard = Vec::new();
            let hear = reader.read_to_end(&mut heard);
            let (_, _) = tokio::join!(send, hear);
            heard.len()
        };
        let heard = tokio::time::timeout(LONG, talk).await.unwrap_or_else(|_| panic!("no end of {bytes:02x?}"));
        assert!(rounds >= 2 || heard > 400, "a whole session is answered, {heard} bytes came");
        rounds += 1;
    }
    still_serves(&rig).await;
    assert_eq!(rig.server.shutdown(Ending::Resume, LONG).await, 0, "nothing is left of {rounds} sessions");
    println!("{rounds} sessions in {:.0} s", started.elapsed().as_secs_f64());
}

fn seed() -> u64 {
    let mut seed = [0; 8];
    let mut file = std::fs::File::open("/dev/urandom").unwrap();
    std::io::Read::read_exact(&mut file, &mut seed).unwrap();
    u64::from_le_bytes(seed) | 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_cost_little_and_slow_ones_hold_up_nobody() {
    let rig = Rig::new(64 << 20, Limits::default());
    // As many as the limit of open files allows, up to ten thousand: both ends are in this process.
    let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024);
    let count = usize::try_from(allowed.saturating_sub(400) / 2).unwrap().min(10_000);
    still_serves(&rig).await;
    let before = resident_bytes();
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = rig.socket();
        idle.push(tokio::task::spawn_blocking(move || Client::connect(&socket, "disk", LONG).unwrap()).await.unwrap());
    }
    let each = resident_bytes().saturating_sub(before) / count;
    assert!(each < IDLE_BYTES_MAX, "{each} bytes for an idle connection, of {count}");

    let quick = percentile(&rig).await;
    let mut slow = Vec::new();
    for _ in 0..100.min(count) {
        // Asks for much and reads nothing.
        let mut stream = UnixStream::connect(rig.socket()).await.unwrap();
        let mut bytes = 3u32.to_be_bytes().to_vec();
        option(&mut bytes, code::GO, &InfoRequest { name: "disk".to_owned(), kinds: vec![] }.encode());
        for cookie in 0..64 {
            let read = Request { flags: 0, kind: Command::Read as u16, cookie, offset: 0, length: 1 << 20 };
            bytes.extend_from_slice(&read.encode());
        }
        stream.write_all(&bytes).await.unwrap();
        slow.push(stream);
    }
    let beside = percentile(&rig).await;
    let grown = resident_bytes().saturating_sub(before) >> 20;
    assert!(grown < 900, "{grown} MiB with everything; payload is bounded by 512 MiB");
    println!(
        "{count} idle connections, {each} bytes each; p99 of 4 KiB reads {quick:?} beside them, {beside:?} beside \
         {} slow readers too; {grown} MiB more than at first",
        slow.len()
    );
}

/// The 99th percentile of a small read, of two thousand.
async fn percentile(rig: &Rig) -> Duration {
    let socket = rig.socket();
    let measure = move || {
        let mut client = Client::connect(&socket, "disk", LONG).unwrap();
        let mut times: Vec<Duration> = (0..2000)
            .map(|_| {
                let began = Instant::now();
                client.read(0, &mut [0; 4096]).unwrap();
                began.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() * 99 / 100]
    };
    tokio::task::spawn_blocking(measure).await.unwrap()
}
