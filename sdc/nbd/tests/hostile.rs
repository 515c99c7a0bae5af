//! Clients that vanish, dawdle, flood or speak garbage; and how the server ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::Rig;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use sdc_nbd::client::{Client, ClientError, query};
use sdc_nbd::limits::Limits;
use sdc_nbd::serve::Ending;
use sdc_nbd::wire::option::{InfoRequest, OptionHead, code};
use sdc_nbd::wire::{Command, Headers, Request, errno};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const LONG: Duration = Duration::from_secs(20);

async fn dial(rig: &Rig) -> UnixStream {
    UnixStream::connect(rig.socket()).await.unwrap()
}

/// A connection in the transmission phase, by hand.
async fn go(rig: &Rig, options: &[u32]) -> UnixStream {
    let mut stream = dial(rig).await;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.unwrap();
    stream.write_all(&3u32.to_be_bytes()).await.unwrap();
    let ask = InfoRequest { name: "disk".to_owned(), kinds: vec![] }.encode();
    for option in options.iter().copied().chain([code::GO]) {
        let payload = if option == code::GO { &ask[..] } else { &[] };
        stream.write_all(&OptionHead { option, length: payload.len() as u32 }.encode()).await.unwrap();
        stream.write_all(payload).await.unwrap();
        // The last reply to each option is an ACK without payload.
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes(head[16..20].try_into().unwrap());
            stream.read_exact(&mut vec![0; length as usize]).await.unwrap();
            if head[12..16] == 1u32.to_be_bytes() {
                break;
            }
            assert_eq!(head[12..16], 3u32.to_be_bytes(), "information or acknowledgement");
        }
    }
    stream
}

fn request(command: Command, cookie: u64, offset: u64, length: u64) -> [u8; 28] {
    Request { flags: 0, kind: command as u16, cookie, offset, length }.encode()
}

async fn ended(stream: &mut UnixStream) {
    let mut sink = Vec::new();
    // An error is an end too: the server closed with our bytes unread.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut sink)).await.expect("the server hangs up");
}

async fn still_serves(rig: &Rig) {
    let socket = rig.socket();
    let read = move || Client::connect(&socket, "disk", LONG)?.read(0, &mut [0; 512]);
    tokio::task::spawn_blocking(read).await.unwrap().unwrap();
}

async fn no_connections(rig: &Rig) {
    assert_eq!(rig.server.shutdown(Ending::Resume, LONG).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_its_own_connection_and_no_other() {
    let rig = Rig::new(1 << 20, Limits::default());
    let mut runner = TestRunner::deterministic();
    let garbage = proptest::collection::vec(proptest::num::u8::ANY, 1..2000);
    for round in 0..200 {
        let bytes = garbage.new_tree(&mut runner).unwrap().current();
        let mut stream = if round % 2 == 0 { dial(&rig).await } else { go(&rig, &[]).await };
        // The server may have hung up before all is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        ended(&mut stream).await;
    }
    still_serves(&rig).await;
    no_connections(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_and_malformed_options_are_answered_and_the_talk_goes_on() {
    let rig = Rig::new(1 << 20, Limits::default());
    let mut stream = dial(&rig).await;
    stream.read_exact(&mut [0; 18]).await.unwrap();
    stream.write_all(&3u32.to_be_bytes()).await.unwrap();
    let unsup = 1u32 << 31 | 1;
    let cases: [(u32, Vec<u8>, u32); 8] = [
        (4711, vec![1, 2, 3], unsup),
        (code::STARTTLS, vec![], 1 << 31 | 2),
        (code::LIST, vec![0], 1 << 31 | 3),
        (code::INFO, vec![255; 6], 1 << 31 | 3),
        (code::SET_META_CONTEXT, vec![0; 8], 1 << 31 | 3),
        (code::STRUCTURED_REPLY, vec![1], 1 << 31 | 3),
        (code::GO, vec![0; 70 << 10], 1 << 31 | 9),
        (code::INFO, InfoRequest { name: "nobody".to_owned(), kinds: vec![] }.encode(), 1 << 31 | 6),
    ];
    for (option, payload, expected) in cases {
        stream.write_all(&OptionHead { option, length: payload.len() as u32 }.encode()).await.unwrap();
        stream.write_all(&payload).await.unwrap();
        let mut head = [0; 20];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(u32::from_be_bytes(head[12..16].try_into().unwrap()), expected, "option {option}");
        let length = u32::from_be_bytes(head[16..20].try_into().unwrap());
        stream.read_exact(&mut vec![0; length as usize]).await.unwrap();
    }
    stream.write_all(&OptionHead { option: code::GO, length: u32::MAX }.encode()).await.unwrap();
    ended(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_dawdles_or_never_ends_is_cut_off() {
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let rig = Rig::new(1 << 20, limits);
    let mut silent = dial(&rig).await;
    ended(&mut silent).await;
    let mut talker = dial(&rig).await;
    talker.write_all(&3u32.to_be_bytes()).await.unwrap();
    for _ in 0..10_000 {
        if talker.write_all(&OptionHead { option: 99, length: 0 }.encode()).await.is_err() {
            break;
        }
    }
    ended(&mut talker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_allowed_are_refused_until_one_leaves() {
    let rig = Rig::new(1 << 20, Limits { connections: 2, ..Limits::default() });
    let (first, _second) = (go(&rig, &[]).await, go(&rig, &[]).await);
    let mut third = dial(&rig).await;
    ended(&mut third).await;
    drop(first);
    tokio::time::timeout(LONG, async {
        while rig.server.connections().len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    still_serves(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooder_is_not_read_beyond_its_bounds() {
    let limits = Limits { requests_per_connection: 8, ..Limits::default() };
    let rig = Rig::new(1 << 20, limits);
    let held = rig.disk.gate.forget_permits(1 << 20);
    let mut stream = go(&rig, &[]).await;
    let flood: Vec<u8> = (0..1000).flat_map(|cookie| request(Command::Read, cookie, 0, 512)).collect();
    stream.write_all(&flood).await.unwrap();
    rig.disk.wait_arrived(8).await;
    still_held(&rig, 8).await;
    rig.disk.gate.add_permits(held);
    let mut seen = vec![false; 1000];
    for _ in 0..1000 {
        let mut reply = [0; 16 + 512];
        stream.read_exact(&mut reply).await.unwrap();
        seen[u64::from_be_bytes(reply[8..16].try_into().unwrap()) as usize] = true;
    }
    assert!(seen.iter().all(|seen| *seen), "every request is answered once");
}

/// After the server had every chance to read on, exactly `count` requests have arrived.
async fn still_held(rig: &Rig, count: u64) {
    let more = tokio::time::timeout(Duration::from_millis(200), async {
        rig.disk.arrived.subscribe().wait_for(|now| *now > count).await.unwrap();
    });
    assert!(more.await.is_err(), "more than {count} requests in flight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_that_fill_the_common_budget_leave_room_for_small_requests() {
    let limits = Limits { bytes_in_all: 33 << 20, ..Limits::default() };
    let rig = Rig::new(64 << 20, limits);
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut stream = go(&rig, &[]).await;
        for cookie in 0..4 {
            stream.write_all(&request(Command::Read, cookie, 0, 20 << 20)).await.unwrap();
        }
        slow.push(stream);
    }
    rig.disk.wait_arrived(1).await;
    for _ in 0..10 {
        tokio::time::timeout(LONG, still_serves(&rig)).await.expect("small requests pass");
    }
    assert!(*rig.disk.arrived.borrow() <= 11 + 1, "the budget holds one large read at a time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_is_dropped() {
    let rig = Rig::new(64 << 20, Limits { stall: Duration::from_millis(300), ..Limits::default() });
    let mut stream = go(&rig, &[]).await;
    stream.write_all(&request(Command::Read, 1, 0, 4 << 20)).await.unwrap();
    tokio::time::timeout(LONG, async {
        while !rig.server.connections().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("dropped");
    let mut half = go(&rig, &[]).await;
    half.write_all(&request(Command::Write, 1, 0, 4096)).await.unwrap();
    half.write_all(&[1; 100]).await.unwrap();
    ended(&mut half).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_slow_gets_all_that_it_asked_for() {
    let stall = Duration::from_millis(500);
    let rig = Rig::new(64 << 20, Limits { stall, ..Limits::default() });
    let mut stream = go(&rig, &[]).await;
    for cookie in 0..16 {
        stream.write_all(&request(Command::Read, cookie, 0, 1 << 20)).await.unwrap();
    }
    // Each reply moves; all of them take several times as long as one may stand still.
    let began = std::time::Instant::now();
    let mut sip = vec![0; 64 << 10];
    let mut left = 16 * (16 + (1 << 20));
    while left > 0 {
        let taken = stream.read(&mut sip).await.unwrap();
        assert!(taken > 0, "hung up with {left} bytes to go");
        left -= taken;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(began.elapsed() > 3 * stall, "that was not slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_is_gone_only_when_its_writes_have_ended() {
    let rig = Rig::new(1 << 20, Limits::default());
    let held = rig.disk.gate.forget_permits(1 << 20);
    let mut stream = go(&rig, &[]).await;
    stream.write_all(&request(Command::Write, 1, 0, 512)).await.unwrap();
    stream.write_all(&[7; 512]).await.unwrap();
    rig.disk.wait_arrived(1).await;
    drop(stream);
    let left = rig.server.evict("disk", Ending::Resume, Duration::from_millis(200)).await;
    assert_eq!(left, 1, "its write is still running");
    rig.disk.gate.add_permits(held);
    assert_eq!(rig.server.evict("disk", Ending::Resume, LONG).await, 0);
    assert_eq!(rig.disk.finished.load(Ordering::SeqCst), 1, "and was not cut short");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_vanished_clients_do_not_pile_up_on_a_volume_that_does_not_answer() {
    let rig = Rig::new(64 << 20, Limits { bytes_in_all: 40 << 20, ..Limits::default() });
    let held = rig.disk.gate.forget_permits(1 << 20);
    for round in 0..2 {
        // As the kernel does whose requests time out: another connection, the same requests.
        let mut stream = go(&rig, &[]).await;
        stream.write_all(&request(Command::Write, 1, 0, 32 << 20)).await.unwrap();
        stream.write_all(&vec![7; 32 << 20]).await.unwrap();
        tokio::time::timeout(LONG, rig.disk.wait_arrived(round + 1)).await.expect("the budget has room again");
    }
    rig.disk.gate.add_permits(held);
    still_serves(&rig).await;
    no_connections(&rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_for_a_restart_answers_what_is_in_flight_and_reads_no_more() {
    let rig = Rig::new(1 << 20, Limits::default());
    let held = rig.disk.gate.forget_permits(1 << 20);
    let mut stream = go(&rig, &[]).await;
    stream.write_all(&request(Command::Flush, 5, 0, 0)).await.unwrap();
    rig.disk.wait_arrived(1).await;
    let server = rig.server.clone();
    let ending = tokio::spawn(async move { server.shutdown(Ending::Resume, LONG).await });
    rig.disk.gate.add_permits(held);
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).await.unwrap();
    assert_eq!((replies.len(), replies[15]), (16, 5), "one answer, then the end");
    assert_eq!(ending.await.unwrap(), 0);
    let mut late = dial(&rig).await;
    ended(&mut late).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_for_good_says_so_to_later_requests() {
    let rig = Rig::new(1 << 20, Limits::default());
    let mut stream = go(&rig, &[]).await;
    let server = rig.server.clone();
    let ending = tokio::spawn(async move { server.evict("disk", Ending::Refuse, LONG).await });
    let mut told = false;
    for cookie in 0.. {
        stream.write_all(&request(Command::Flush, cookie, 0, 0)).await.unwrap();
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).await.unwrap();
        if reply[4..8] == errno::SHUTDOWN.to_be_bytes() {
            told = true;
            break;
        }
    }
    assert!(told);
    stream.write_all(&request(Command::Disconnect, 0, 0, 0)).await.unwrap();
    ended(&mut stream).await;
    assert_eq!(ending.await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_waits_for_what_came_before_it() {
    let rig = Rig::new(1 << 20, Limits::default());
    let held = rig.disk.gate.forget_permits(1 << 20);
    let mut stream = go(&rig, &[]).await;
    for cookie in 1..=3 {
        stream.write_all(&request(Command::Flush, cookie, 0, 0)).await.unwrap();
    }
    stream.write_all(&request(Command::Disconnect, 4, 0, 0)).await.unwrap();
    rig.disk.wait_arrived(3).await;
    rig.disk.gate.add_permits(held);
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).await.unwrap();
    assert_eq!(replies.len(), 3 * 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growth_is_seen_by_new_requests_and_new_clients() {
    let rig = Rig::new(1 << 20, Limits::default());
    let socket = rig.socket();
    let mut client = Client::connect(&socket, "disk", LONG).unwrap();
    assert!(matches!(client.read(1 << 20, &mut [0; 512]), Err(ClientError::Request(errno::INVAL))));
    rig.disk.blocks.lock().unwrap().resize(512, None);
    rig.disk.size.store(2 << 20, Ordering::SeqCst);
    client.read(1 << 20, &mut [0; 512]).unwrap();
    assert_eq!(query(&socket, "disk", LONG).unwrap().size_bytes, 2 << 20);
    assert!(matches!(query(&socket, "nobody", LONG), Err(ClientError::Refused { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_headers_carry_64_bit_lengths_and_counted_payloads() {
    let rig = Rig::new(8 << 30, Limits::default());
    let mut stream = go(&rig, &[code::EXTENDED_HEADERS]).await;
    let ask = |flags: u16, command: Command, cookie: u64, offset: u64, length: u64| {
        let mut out = sdc_nbd::wire::EXTENDED_REQUEST_MAGIC.to_be_bytes().to_vec();
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&(command as u16).to_be_bytes());
        for value in [cookie, offset, length] {
            out.extend_from_slice(&value.to_be_bytes());
        }
        assert_eq!(out.len(), Headers::Extended.request_bytes());
        out
    };
    stream.write_all(&ask(0, Command::WriteZeroes, 1, 0, 8 << 30)).await.unwrap();
    let mut reply = [0; 32];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 0], "done, nothing to say");
    stream.write_all(&ask(1 << 5, Command::Write, 2, 100, 4)).await.unwrap();
    stream.write_all(b"abcd").await.unwrap();
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[4..8], [0, 1, 0, 0]);
    stream.write_all(&ask(0, Command::Read, 3, 100, 4)).await.unwrap();
    let mut data = [0; 32 + 8 + 4];
    stream.read_exact(&mut data).await.unwrap();
    assert_eq!(data[24..32], 12u64.to_be_bytes());
    assert_eq!(&data[40..], b"abcd");
}
