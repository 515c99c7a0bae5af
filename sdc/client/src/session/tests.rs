//! Promises of a session, against model servers.

mod world;

use bytes::Bytes;
use mdm_api::epoch::SnapSeq;
use mdm_api::ids::SdsId;
use mdm_api::model::AccessMode;

use crate::io::{IoError, IoId, IoOutput, IoRequest};
use crate::limits::{BYTES_MAX, IO_BYTES_MAX, OPERATIONS_MAX};
use crate::session::{Event, NoSpacePolicy, Policy};
use world::{CELL, CHUNK, Faults, Rng, SIZE, World, mapping, volume};

const QUIET: Faults = Faults {
    drop_connection: 0,
    mute_connection: 0,
    duplicate: 0,
    fail_over: 0,
    retry: 0,
    damage: 0,
    forget_handle: 0,
    no_space: 0,
    snapshot: 0,
    refuse_open: 0,
    lose_request: 0,
};

/// How many seeds a test tries; fewer where the compiler does not optimise.
const fn seeds(optimised: u64) -> u64 {
    if cfg!(debug_assertions) { optimised / 10 } else { optimised }
}

fn quiet() -> World {
    World::new(1, QUIET, Policy::default())
}

/// Bytes around a chunk boundary, so that overlaps and splits are common.
fn range(rng: &mut Rng) -> (u64, u64) {
    let centre = (1 + rng.below(3)) * CHUNK;
    let start = centre - 16 * CELL + rng.below(32) * CELL;
    (start, (1 + rng.below(24)) * CELL)
}

fn random_request(world: &mut World) -> Option<IoRequest> {
    let (offset, length) = range(&mut world.rng);
    Some(match world.rng.below(20) {
        0..=7 => return None, // a write, stamped with its id
        8..=15 => IoRequest::Read { offset, length },
        16 | 17 => IoRequest::Zero { offset, length },
        18 => IoRequest::Status { offset, length },
        _ => IoRequest::Flush,
    })
}

fn storm(seed: u64, faults: Faults, cancels: bool) -> World {
    let mut world = World::new(seed, faults, Policy::default());
    for _ in 0..150 {
        let id = match random_request(&mut world) {
            Some(request) => world.submit(request),
            None => {
                let (offset, length) = range(&mut world.rng);
                world.write(offset, length)
            }
        };
        if cancels && world.rng.chance(10) {
            let victim = IoId(1 + world.rng.below(id.0));
            world.event(Event::Cancel(victim));
        }
        for _ in 0..world.rng.below(12) {
            world.run_one();
        }
    }
    world.faults = QUIET;
    world.run_all();
    world
}

#[test]
fn through_all_faults_every_io_is_answered_once_and_in_order() {
    for seed in 0..seeds(3000) {
        let world = storm(seed, Faults::ALL, false);
        assert_eq!(world.results.len(), 150, "seed {seed}");
        assert_eq!(world.released.len(), 150, "seed {seed}");
        assert!(world.results.values().all(Result::is_ok), "seed {seed}: P6: a pause, never an error");
        world.check_content();
    }
}

#[test]
fn cancelled_ios_leave_no_trace_behind() {
    for seed in 0..seeds(1000) {
        let world = storm(seed, Faults::ALL, true);
        assert_eq!(world.released.len(), 150, "seed {seed}");
        assert!(world.session.pieces.iter().next().is_none() && world.session.sent.is_empty(), "seed {seed}");
        assert_eq!((world.session.payload_bytes, world.session.uncertain), (0, 0), "seed {seed}");
        assert!(world.results.values().all(Result::is_ok), "seed {seed}");
    }
}

#[test]
fn a_connection_that_falls_silent_is_replaced() {
    let mut world = World::new(3, Faults { mute_connection: 100, ..QUIET }, Policy::default());
    let id = world.write(0, CELL);
    for _ in 0..5 {
        world.run_one();
    }
    world.faults = QUIET;
    world.run_all();
    assert_eq!(world.results[&id], Ok(IoOutput::Done));
    assert_eq!((world.applied, world.session.stats().connections_lost), (1, 1));
}

#[test]
fn a_request_that_a_talking_server_forgot_goes_again() {
    let mut world = World::new(5, Faults { lose_request: 100, ..QUIET }, Policy::default());
    let (write, read) = (world.write(0, CELL), world.submit(IoRequest::Read { offset: CHUNK, length: CELL }));
    for _ in 0..5 {
        world.run_one();
    }
    world.faults = QUIET;
    // The server is heard all the while: the connection is good, only these two are gone.
    for _ in 0..60 {
        for offset in [8 * CELL, CHUNK] {
            let other = world.submit(IoRequest::Read { offset, length: CELL });
            while !world.results.contains_key(&other) {
                assert!(world.run_one());
            }
        }
        world.run_one();
    }
    assert_eq!(world.results.get(&write), Some(&Ok(IoOutput::Done)));
    assert!(world.results[&read].is_ok());
    assert_eq!((world.applied, world.session.stats().connections_lost), (1, 0));
    world.run_all();
    world.check_content();
}

#[test]
fn retry_after_lost_ack_writes_once() {
    for seed in 0..seeds(200) {
        let mut world = World::new(seed, Faults { drop_connection: 6, duplicate: 30, ..QUIET }, Policy::default());
        for index in 0..20 {
            world.write(index * 8 * CELL, 8 * CELL);
        }
        world.run_all();
        assert_eq!(world.applied, 20, "F23, I16");
        world.check_content();
    }
}

#[test]
fn a_request_goes_to_the_new_primary_as_soon_as_the_map_says_so() {
    let mut world = quiet();
    world.write(0, CELL);
    world.run_all();
    // The old primary is cut off: nothing comes back, and nobody says so.
    world.faults.mute_connection = 100;
    let id = world.write(0, CELL);
    world.faults = QUIET;
    let pg = world.session.geometry.pg(0).index;
    let submitted = world.now;
    world.fail_over(pg, 20);
    world.run_all();
    assert_eq!(world.results[&id], Ok(IoOutput::Done));
    assert!(world.now - submitted < 60_000_000, "{} ns after the map was due in 20 ms", world.now - submitted);
}

#[test]
fn a_stale_map_is_corrected_by_the_old_primary() {
    for seed in 0..seeds(50) {
        let mut world = World::new(seed, QUIET, Policy::default());
        let pg = world.session.geometry.pg(0).index;
        world.fail_over(pg, 3_600_000); // the map comes an hour late
        let id = world.write(0, CELL);
        world.run_all();
        assert_eq!(world.results[&id], Ok(IoOutput::Done), "F12");
        assert!(world.now < 10_000_000_000);
    }
}

#[test]
fn a_read_sees_every_write_that_was_answered_before() {
    for seed in 0..seeds(300) {
        let mut world = World::new(seed, Faults::ALL, Policy::default());
        for round in 0..10 {
            let id = world.write(CHUNK - 4 * CELL, 8 * CELL);
            world.run_all();
            let read = world.submit(IoRequest::Read { offset: CHUNK - 4 * CELL, length: 8 * CELL });
            world.run_all();
            let Ok(IoOutput::Data(data)) = &world.results[&read] else { panic!("round {round}: no data") };
            assert_eq!(data.concat(), World::stamp(id, 8 * CELL));
        }
    }
}

#[test]
fn a_flush_completes_after_every_earlier_change_and_before_none() {
    for seed in 0..seeds(100) {
        let mut world = World::new(seed, Faults { retry: 50, ..QUIET }, Policy::default());
        let before: Vec<IoId> = (0..20).map(|index| world.write(index * CELL, CELL)).collect();
        let flush = world.submit(IoRequest::Flush);
        let after = world.write(CHUNK, CELL);
        while !world.results.contains_key(&flush) {
            assert!(world.run_one());
        }
        assert!(before.iter().all(|id| world.results.contains_key(id)));
        world.run_all();
        assert!(world.results[&after].is_ok());
    }
    let mut world = quiet();
    let flush = world.submit(IoRequest::Flush);
    assert_eq!(world.results[&flush], Ok(IoOutput::Done), "nothing to wait for, nobody to ask");
}

#[test]
fn a_snapshot_drains_the_old_sequence_before_the_new_one_starts() {
    for seed in 0..seeds(300) {
        // The world asserts I18 at every send.
        let faults = Faults { snapshot: 10, drop_connection: 5, duplicate: 10, retry: 10, ..QUIET };
        let mut world = World::new(seed, faults, Policy::default());
        for index in 0..60 {
            world.write(index * 64 * CELL, CELL);
            for _ in 0..world.rng.below(6) {
                world.run_one();
            }
        }
        world.faults = QUIET;
        world.run_all();
        world.check_content();
        assert!(world.session.stats().snapshot_switches > 0 && world.session.snap_seq() > SnapSeq(0));
    }
}

#[test]
fn new_changes_are_held_while_the_old_sequence_drains() {
    let mut world = quiet();
    world.write(0, CELL);
    world.run_all();
    world.faults = Faults { retry: 100, ..QUIET };
    let old = world.write(0, CELL);
    world.change_map(vec![volume(SIZE, SnapSeq(1))]);
    let (requests, new) = (world.session.stats().requests, world.write(CHUNK, CELL));
    assert_eq!(world.session.stats().requests, requests, "I18: hold");
    assert_eq!(world.session.snap_seq(), SnapSeq(0), "I18: drain");
    world.snap_seq = SnapSeq(1);
    world.faults = QUIET;
    world.run_all();
    assert!(world.results[&old].is_ok() && world.results[&new].is_ok());
    assert_eq!(world.session.snap_seq(), SnapSeq(1), "I18: switch");
}

#[test]
fn a_fenced_session_fails_everything_for_good() {
    let mut world = quiet();
    world.fenced = true;
    let ids = [world.write(0, CELL), world.write(0, CELL), world.submit(IoRequest::Flush)];
    world.run_all();
    for id in ids {
        assert_eq!(world.results[&id], Err(IoError::Revoked));
    }
    let late = world.submit(IoRequest::Read { offset: 0, length: CELL });
    assert_eq!(world.results[&late], Err(IoError::Revoked), "F26");
    assert_eq!(world.released.len(), 4);
}

#[test]
fn a_mapping_that_is_taken_away_or_opened_anew_ends_the_session() {
    for object in [mapping(3, true, AccessMode::ReadWrite), mapping(4, false, AccessMode::ReadWrite)] {
        let mut world = quiet();
        let id = world.write(0, CELL);
        world.change_map(vec![object]);
        assert_eq!(world.results[&id], Err(IoError::Revoked));
        assert_eq!(world.session.failed(), Some(&IoError::Revoked));
    }
}

#[test]
fn an_older_mapping_in_the_map_does_not_end_the_session() {
    let mut world = quiet();
    world.change_map(vec![mapping(2, false, AccessMode::ReadWrite)]);
    assert_eq!(world.session.failed(), None);
}

#[test]
fn a_read_only_mapping_refuses_changes_only() {
    let mut world = quiet();
    world.change_map(vec![mapping(3, false, AccessMode::ReadOnly)]);
    let (write, read) = (world.write(0, CELL), world.submit(IoRequest::Read { offset: 0, length: CELL }));
    world.run_all();
    assert_eq!(world.results[&write], Err(IoError::ReadOnly));
    assert!(world.results[&read].is_ok());
}

#[test]
fn a_volume_that_grows_serves_its_new_end() {
    let mut world = quiet();
    let beyond = world.submit(IoRequest::Zero { offset: SIZE - CELL, length: 2 * CELL });
    assert!(matches!(world.results[&beyond], Err(IoError::OutOfRange { .. })));
    world.change_map(vec![volume(2 * SIZE, SnapSeq(0))]);
    assert_eq!(world.session.size_bytes(), 2 * SIZE);
    let within = world.submit(IoRequest::Status { offset: SIZE, length: SIZE });
    world.run_all();
    assert_eq!(world.results[&within], Ok(IoOutput::Status(vec![true; (SIZE / 4096) as usize])));
}

#[test]
fn no_space_is_waited_for_unless_the_policy_says_otherwise() {
    let mut world = World::new(1, Faults { no_space: 100, ..QUIET }, Policy::default());
    let id = world.write(0, CELL);
    for _ in 0..100 {
        world.run_one();
    }
    assert!(!world.results.contains_key(&id), "F20");
    world.faults = QUIET;
    world.run_all();
    assert_eq!(world.results[&id], Ok(IoOutput::Done));
    let policy = Policy { no_space: NoSpacePolicy::Fail, ..Policy::default() };
    let mut world = World::new(1, Faults { no_space: 100, ..QUIET }, policy);
    let id = world.write(0, CELL);
    world.run_all();
    assert_eq!(world.results[&id], Err(IoError::NoSpace));
}

#[test]
fn an_io_is_given_up_only_if_the_policy_says_so_and_keeps_its_place_in_the_order() {
    let policy = Policy { give_up_ms: Some(500), ..Policy::default() };
    let mut world = World::new(1, Faults { retry: 100, ..QUIET }, policy);
    let id = world.write(0, CELL);
    while !world.results.contains_key(&id) {
        assert!(world.run_one());
    }
    assert_eq!(world.results[&id], Err(IoError::TimedOut));
    assert!((500..520).contains(&(world.now / 1_000_000)));
    assert!(!world.released.contains(&id), "it was sent, so it may still take effect");
    world.faults = QUIET;
    let next = world.write(0, CELL);
    world.run_all();
    assert_eq!((world.content[0], world.applied), (next.0, 2));
}

#[test]
fn a_full_session_refuses_and_takes_again_when_something_is_released() {
    let mut world = World::new(1, Faults { retry: 100, ..QUIET }, Policy::default());
    for _ in 0..OPERATIONS_MAX {
        world.submit(IoRequest::Read { offset: 0, length: CELL });
    }
    let refused = world.submit(IoRequest::Read { offset: 0, length: CELL });
    assert_eq!(world.results[&refused], Err(IoError::Busy));
    world.faults = QUIET;
    world.run_all();
    let taken = world.submit(IoRequest::Read { offset: 0, length: CELL });
    world.run_all();
    assert!(world.results[&taken].is_ok());
}

#[test]
fn ios_that_are_too_long_or_empty_are_refused() {
    let mut world = quiet();
    world.change_map(vec![volume(4 * BYTES_MAX as u64, SnapSeq(0))]);
    let long = world.submit(IoRequest::Read { offset: 0, length: IO_BYTES_MAX as u64 + 1 });
    assert_eq!(world.results[&long], Err(IoError::TooLong(IO_BYTES_MAX as u64 + 1)));
    let empty = world.submit(IoRequest::Write { offset: 0, data: Bytes::new() });
    assert!(matches!(world.results[&empty], Err(IoError::OutOfRange { .. })));
}

#[test]
fn a_group_takes_more_changes_than_its_window_holds() {
    let mut world = World::new(5, Faults { retry: 20, drop_connection: 1, ..QUIET }, Policy::default());
    for index in 0..1000 {
        world.write(index % 2000 * CELL, CELL);
    }
    world.run_all();
    assert_eq!(world.applied, 1000);
    world.check_content();
}

#[test]
fn zeroing_a_whole_volume_goes_in_bounded_steps() {
    let mut world = quiet();
    let write = world.write(CHUNK, CELL);
    let zero = world.submit(IoRequest::Zero { offset: 0, length: SIZE });
    world.run_all();
    assert!(world.results[&write].is_ok() && world.results[&zero].is_ok());
    assert!(world.content.iter().all(|cell| *cell == 0));
}

#[test]
fn a_refused_ticket_is_renewed() {
    let mut world = World::new(2, Faults { refuse_open: 95, ..QUIET }, Policy::default());
    let id = world.write(0, CELL);
    world.run_all();
    assert!(world.results[&id].is_ok() && world.renewals > 0);
}

#[test]
fn an_idle_session_asks_for_no_time() {
    let mut world = quiet();
    assert_eq!(world.session.next_deadline(), mdm_api::epoch::Nanos::NEVER);
    world.write(0, CELL);
    world.run_all();
    while world.run_one() {}
    assert_eq!(world.session.next_deadline(), mdm_api::epoch::Nanos::NEVER);
    world.event(Event::Down(SdsId(1)));
    assert_eq!(world.session.next_deadline(), mdm_api::epoch::Nanos::NEVER);
}
