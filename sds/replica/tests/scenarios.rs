//! Stories of single faults, each named for what is promised.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod world;

use mdm_api::epoch::{AttachGeneration, RequestNumber};
use mdm_api::ids::{SdcId, VolumeId, VtreeId};
use sds_api::client::{ClientError, ClientOperation, RequestIdentity};
use sds_api::entry::WriteIdentity;
use sds_replica::{ClientRef, Event, Role, Verdict};
use world::clients::layer;
use world::{Happening, MS, Options, World, device};

fn pair() -> World {
    World::healthy(Options::quiet(2))
}

/// A write that is answered.
fn write(world: &mut World, first: u64, count: u64) -> u64 {
    let op = world.begin(0, 0, first, count, true);
    world.wait(0, op).unwrap();
    world.clients[0].ops[&op].value.unwrap()
}

fn read(world: &mut World, first: u64, count: u64) -> Result<Vec<u64>, ClientError> {
    let op = world.begin(1, 0, first, count, false);
    world.wait(1, op)
}

fn other(world: &World) -> usize {
    1 - world.primary().unwrap()
}

/// Sends one client's write again, as it was.
fn again(world: &mut World, client: usize, op: u64, node: usize) {
    world.clients[client].ops.get_mut(&op).unwrap().result = None;
    world.at(MS, Happening::ClientArrives { client, op, node });
}

fn writes_in_order(world: &World) -> usize {
    world.committed.values().filter(|entry| entry.identity.is_some()).count()
}

#[test]
fn what_is_written_is_read_and_lies_on_every_copy() {
    for nodes in [1, 2, 3] {
        let mut world = World::healthy(Options::quiet(nodes));
        let value = write(&mut world, 0, 5);
        assert_eq!(read(&mut world, 0, 6).unwrap(), [value, value, value, value, value, 0]);
        world.run(200, |_| false);
        world.check_copies();
    }
}

#[test]
fn deposed_primary_serves_no_reads() {
    // F6, F8: the old primary is cut off from everybody but its clients; a value is overwritten at the new one.
    let mut world = pair();
    let old = world.primary().unwrap();
    let new = 1 - old;
    write(&mut world, 0, 2);
    world.cut(old, new, 60_000);
    world.cut(new, old, 60_000);
    world.manager.cut[old] = Some(world.now);
    assert!(world.run(5_000, |world| world.role(new) == Role::Primary), "{}", world.state());
    let value = write(&mut world, 0, 2);
    assert_eq!(world.role(old), Role::Primary, "it has not heard");
    world.clients[1].believes = Some(old);
    let stale = world.begin(1, 0, 0, 2, false);
    assert!(!world.run(3_000, |world| world.result(1, stale).is_some()), "the old primary answers");
    world.clients[1].believes = None;
    assert_eq!(world.wait(1, stale).unwrap(), [value, value]);
    world.finish();
}

#[test]
fn a_promise_ends_the_old_primary_though_leases_go_on() {
    // F6, I15: only the manager cannot reach the old primary; the servers go on exchanging leases in bulk.
    let mut world = pair();
    let old = world.primary().unwrap();
    let new = 1 - old;
    write(&mut world, 0, 2);
    world.manager.cut[old] = Some(world.now);
    assert!(world.run(8_000, |world| world.role(new) == Role::Primary), "{}", world.state());
    let value = write(&mut world, 0, 2);
    assert_eq!(world.role(old), Role::Primary, "it has not heard");
    world.clients[1].believes = Some(old);
    let stale = world.begin(1, 0, 0, 2, false);
    assert!(!world.run(3_000, |world| world.result(1, stale).is_some()), "the old primary answers");
    world.clients[1].believes = None;
    assert_eq!(world.wait(1, stale).unwrap(), [value, value]);
    world.finish();
}

#[test]
fn retry_after_lost_ack_writes_once() {
    let mut world = pair(); // F23
    let primary = world.primary().unwrap();
    let op = world.begin(0, 0, 0, 2, true);
    world.wait(0, op).unwrap();
    let newer = world.begin(1, 0, 0, 2, true);
    world.wait(1, newer).unwrap();
    let newer = world.clients[1].ops[&newer].value.unwrap();
    let before = writes_in_order(&world);
    again(&mut world, 0, op, primary);
    world.wait(0, op).unwrap();
    assert_eq!(writes_in_order(&world), before);
    assert_eq!(read(&mut world, 0, 2).unwrap(), [newer, newer], "an old write takes no effect again");
}

#[test]
fn retry_across_fail_over_writes_once() {
    let mut world = pair(); // F2, F23
    let primary = world.primary().unwrap();
    let op = world.begin(0, 0, 0, 2, true);
    world.wait(0, op).unwrap();
    let before = writes_in_order(&world);
    world.crash(primary, 0);
    let next = 1 - primary;
    assert!(world.run(5_000, |world| world.role(next) == Role::Primary), "{}", world.state());
    again(&mut world, 0, op, next);
    world.wait(0, op).unwrap();
    assert_eq!(writes_in_order(&world), before, "I16");
    world.start(primary);
    world.finish();
}

#[test]
fn retry_survives_a_saved_state_and_a_black_out() {
    let mut world = pair(); // F5
    let op = world.begin(0, 0, 0, 2, true);
    world.wait(0, op).unwrap();
    let before = writes_in_order(&world);
    world.run(200, |_| false);
    for node in 0..2 {
        world.step(node, Event::WantState);
        world.run(50, |_| false);
        world.nodes[node].store.checkpoint(None);
        world.crash(node, 0);
        world.at(100 * MS, Happening::Restart { node });
    }
    assert!(world.run(5_000, World::is_healthy), "{}", world.state());
    let primary = world.primary().unwrap();
    again(&mut world, 0, op, primary);
    world.wait(0, op).unwrap();
    assert_eq!(writes_in_order(&world), before);
    world.finish();
}

#[test]
fn restarted_secondary_waits_a_full_lease() {
    let mut world = pair(); // F31, I14
    let (old, new) = (world.primary().unwrap(), other(&world));
    world.crash(new, 9);
    world.start(new);
    let started = world.now;
    world.crash(old, 9);
    assert!(world.run(5_000, |world| world.role(new) == Role::Primary), "{}", world.state());
    assert!(world.now - started >= 600 * MS, "it may have granted just before it died");
    world.start(old);
    world.finish();
}

#[test]
fn a_certified_death_ends_the_wait() {
    let mut world = pair(); // F1
    let (old, new) = (world.primary().unwrap(), other(&world));
    world.crash(old, 9);
    world.start(old);
    let died = world.now;
    world.run(3, |_| false);
    world.manager.appoint(device(new), None);
    world.publish();
    assert!(world.run(2_000, |world| world.role(new) == Role::Primary), "{}", world.state());
    assert!(world.now - died < 200 * MS, "the newer process proves the death: {} ms", (world.now - died) / MS);
    world.finish();
}

#[test]
fn learner_is_promoted_only_when_complete() {
    // F28, F29: nothing is retained, so the learner is fed by copies; it dies half way, twice.
    let mut world = World::healthy(Options { retained_bytes: 0, ..Options::quiet(2) });
    let (primary, learner) = (world.primary().unwrap(), other(&world));
    write(&mut world, 0, 6);
    world.crash(learner, 0);
    for chunk in 0..3 {
        let op = world.begin(0, chunk, 0, 8, true);
        world.wait(0, op).unwrap();
    }
    for _ in 0..2 {
        world.nodes[learner].slow = true;
        world.start(learner);
        let copies = world.copies;
        let status = |world: &World| world.nodes[learner].replica.as_ref().unwrap().status();
        let half_way = |world: &World| world.copies > copies && !status(world).complete;
        assert!(world.run(5_000, half_way), "{}", world.state());
        assert!(!world.manager.config.isr.contains(&device(learner)));
        world.crash(learner, 1);
    }
    world.nodes[learner].slow = false;
    world.start(learner);
    assert!(world.run(10_000, |world| world.manager.config.isr.contains(&device(learner))), "{}", world.state());
    assert!(world.nodes[learner].replica.as_ref().unwrap().status().complete);
    assert_eq!(world.primary(), Some(primary));
    world.run(500, |_| false);
    world.check_copies();
}

#[test]
fn a_replica_that_was_away_for_a_moment_gets_only_what_it_missed() {
    let mut world = pair();
    let away = other(&world);
    write(&mut world, 0, 4);
    world.crash(away, 9);
    write(&mut world, 2, 4);
    world.start(away);
    assert!(world.run(5_000, World::is_healthy), "{}", world.state());
    assert_eq!((world.copies, world.resets), (0, 0), "the log is enough");
    world.run(200, |_| false);
    world.check_copies();
}

#[test]
fn a_replica_that_was_away_for_longer_gets_the_blocks_that_changed_and_not_their_chunks() {
    let mut world = World::healthy(Options { retained_bytes: 0, ..Options::quiet(2) });
    let away = other(&world);
    for chunk in 0..3 {
        let op = world.begin(0, chunk, 0, 8, true);
        world.wait(0, op).unwrap();
    }
    world.run(300, |_| false);
    world.cut(away, 1 - away, 5_000);
    world.cut(1 - away, away, 5_000);
    write(&mut world, 2, 1);
    assert!(world.run(20_000, World::is_healthy), "{}", world.state());
    assert_eq!((world.copies, world.patched_blocks), (1, 1));
    world.run(300, |_| false);
    world.check_copies();
}

#[test]
fn shrink_outcome_unknown_requires_both() {
    let mut world = pair(); // F21, I9
    let away = other(&world);
    write(&mut world, 0, 2);
    world.manager.awake = false;
    world.crash(away, 9);
    let op = world.begin(0, 0, 0, 2, true);
    assert!(!world.run(4_000, |world| world.result(0, op).is_some()), "acknowledged without the other copy");
    world.manager.awake = true;
    world.wait(0, op).unwrap();
    assert_eq!(world.manager.config.isr.len(), 1, "only after the removal is committed");
    world.start(away);
    world.finish();
}

#[test]
fn grow_outcome_unknown_requires_both() {
    let mut world = pair(); // I5, I9
    let away = other(&world);
    world.crash(away, 9);
    write(&mut world, 0, 2);
    world.manager.awake = false;
    world.start(away);
    world.run(1_000, |_| false);
    world.crash(away, 9);
    let op = world.begin(0, 0, 0, 2, true);
    assert!(!world.run(3_000, |world| world.result(0, op).is_some()), "its AddIsr may have been committed");
    world.manager.awake = true;
    world.wait(0, op).unwrap();
    world.start(away);
    world.finish();
}

#[test]
fn diverged_tail_is_voided() {
    // F4a: the secondary journals a write that the primary never made durable, and comes back with it.
    let mut world = pair();
    let (primary, secondary) = (world.primary().unwrap(), other(&world));
    let first = write(&mut world, 0, 2);
    world.nodes[primary].slow = true;
    world.begin(0, 0, 0, 2, true);
    let ahead = |world: &World| {
        let last = |node: usize| world.nodes[node].replica.as_ref().unwrap().status().last;
        world.nodes[secondary].store.undurable() == 0
            && last(secondary) > world.committed.values().last().unwrap().version
    };
    assert!(world.run(30, ahead), "the secondary has the entry");
    world.crash(secondary, 9);
    world.crash(primary, 0);
    world.nodes[primary].slow = false;
    world.clients[0].ops.clear();
    world.start(primary);
    assert!(world.run(8_000, |world| world.role(primary) == Role::Primary), "{}", world.state());
    assert_eq!(read(&mut world, 0, 2).unwrap(), [first, first]);
    world.start(secondary);
    assert!(world.run(8_000, World::is_healthy), "{}", world.state());
    world.run(300, |_| false);
    world.check_copies();
}

#[test]
fn read_waits_for_overlapping_write() {
    let mut world = pair();
    let secondary = other(&world);
    let old = write(&mut world, 0, 8);
    world.nodes[secondary].slow = true;
    let op = world.begin(0, 0, 2, 2, true);
    world.run(5, |_| false);
    let overlapping = world.begin(1, 0, 0, 8, false);
    let elsewhere = world.begin(1, 0, 6, 2, false);
    assert!(world.run(15, |world| world.result(1, elsewhere).is_some()), "no overlap, no wait");
    assert!(world.result(1, overlapping).is_none() && world.result(0, op).is_none());
    let value = world.clients[0].ops[&op].value.unwrap();
    assert_eq!(world.wait(1, overlapping).unwrap(), [old, old, value, value, old, old, old, old]);
    assert_eq!(world.wait(1, elsewhere).unwrap(), [old, old]);
}

#[test]
fn partial_block_writes_of_two_clients_both_win() {
    let mut world = pair(); // F25
    let left = world.begin(0, 0, 0, 1, true);
    let right = world.begin(1, 0, 1, 1, true);
    let across = world.begin(0, 0, 3, 2, true);
    for (client, op) in [(0, left), (1, right), (0, across)] {
        world.wait(client, op).unwrap();
    }
    let value = |client: usize, op: u64| world.clients[client].ops[&op].value.unwrap();
    let expected = [value(0, left), value(1, right), 0, value(0, across), value(0, across), 0];
    assert_eq!(read(&mut world, 0, 6).unwrap(), expected);
}

#[test]
fn bad_block_is_answered_from_the_peer() {
    let mut world = pair(); // F15
    let primary = world.primary().unwrap();
    let value = write(&mut world, 0, 4);
    world.nodes[primary].store.bad.insert((layer(0), 1));
    assert_eq!(read(&mut world, 0, 4).unwrap(), [value; 4]);
    assert_eq!(world.bad_blocks, [true]);
    assert!(world.nodes[primary].store.bad.is_empty(), "and repaired in place");
    // A merge needs the bad block too.
    world.nodes[primary].store.bad.insert((layer(0), 1));
    let half = write(&mut world, 3, 1);
    assert_eq!(read(&mut world, 2, 2).unwrap(), [value, half]);
}

#[test]
fn a_block_without_a_good_copy_is_an_error_and_an_overwrite_heals_it() {
    let mut world = pair(); // F16
    let _ = write(&mut world, 0, 4);
    world.run(200, |_| false);
    for node in &mut world.nodes {
        node.store.bad.insert((layer(0), 1));
    }
    assert_eq!(read(&mut world, 0, 4), Err(ClientError::Medium));
    assert!(read(&mut world, 0, 2).is_ok(), "that block only");
    let value = write(&mut world, 2, 2);
    assert_eq!(read(&mut world, 2, 2).unwrap(), [value, value]);
}

#[test]
fn a_suspect_replica_leaves_the_isr_and_comes_back_by_copies() {
    let mut world = pair(); // F17, I12
    let suspect = other(&world);
    write(&mut world, 0, 8);
    world.run(200, |_| false);
    world.crash(suspect, 9);
    world.nodes[suspect].store.lose_tail(1);
    world.nodes[suspect].verdict = Verdict::Suspect;
    world.start(suspect);
    let out = |world: &World| !world.manager.config.isr.contains(&device(suspect));
    assert!(world.run(5_000, out), "{}", world.state());
    assert!(world.run(5_000, World::is_healthy), "{}", world.state());
    assert!(world.copies > 0);
    world.finish();
}

// F18: found by simulation: a layer of the right version and a part of its content was taken for a whole one.
#[test]
fn what_a_suspect_replica_says_of_its_versions_is_not_believed() {
    let mut world = pair();
    let suspect = other(&world);
    write(&mut world, 0, 8);
    world.run(200, |_| false);
    world.crash(suspect, 9);
    world.nodes[suspect].store.lose_page();
    world.nodes[suspect].verdict = Verdict::Suspect;
    world.start(suspect);
    let out = |world: &World| !world.manager.config.isr.contains(&device(suspect));
    assert!(world.run(5_000, out), "{}", world.state());
    assert!(world.run(5_000, World::is_healthy), "{}", world.state());
    world.finish();
}

#[test]
fn a_disk_that_lied_is_found_by_what_it_had_acknowledged() {
    let mut world = pair();
    let liar = other(&world);
    write(&mut world, 0, 8);
    world.run(200, |_| false);
    world.crash(liar, 9);
    world.nodes[liar].store.lose_tail(1);
    world.start(liar);
    assert!(world.run(5_000, |world| world.manager.config.isr.len() == 1), "{}", world.state());
    assert!(world.run(5_000, World::is_healthy), "{}", world.state());
    world.finish();
}

#[test]
fn writes_below_the_policy_wait_and_reads_go_on() {
    let mut world = World::healthy(Options { min_isr: 2, ..Options::quiet(2) });
    let away = other(&world);
    let value = write(&mut world, 0, 2);
    world.crash(away, 9);
    let op = world.begin(0, 0, 0, 2, true);
    let early = world.begin(0, 0, 4, 1, true);
    assert!(!world.run(4_000, |world| world.result(0, op).is_some()));
    assert_eq!(read(&mut world, 6, 2).unwrap(), [0, 0]);
    let _ = value;
    world.start(away);
    world.wait(0, op).unwrap();
    world.wait(0, early).unwrap();
    world.finish();
}

#[test]
fn a_fence_is_done_when_earlier_writes_are_decided() {
    let mut world = pair(); // F26, I17
    let (primary, secondary) = (world.primary().unwrap(), other(&world));
    write(&mut world, 0, 2);
    world.nodes[secondary].slow = true;
    let op = world.begin(0, 0, 2, 2, true);
    world.run(5, |_| false);
    let below = AttachGeneration(2);
    world.step(primary, Event::Fence { fence: 5, volume: VolumeId(1), sdc: SdcId(1), below });
    assert!(world.fenced.is_empty(), "a write is in flight");
    world.wait(0, op).unwrap();
    world.run(10, |_| false);
    assert!(matches!(world.fenced[..], [(5, Some(_))]));
    world.step(secondary, Event::Fence { fence: 6, volume: VolumeId(1), sdc: SdcId(1), below });
    assert_eq!(world.fenced[1], (6, None), "nothing is accepted there");
    // A late packet of the fenced session.
    let identity = WriteIdentity {
        volume: VolumeId(1),
        sdc: SdcId(1),
        session: AttachGeneration(1),
        request: RequestNumber(50),
        oldest_unacked: RequestNumber(50),
    };
    let numbers = RequestIdentity { request: RequestNumber(50), oldest_unacked: RequestNumber(50) };
    let operation = ClientOperation::Zero { identity: numbers, offset: 0, length: 4096 };
    let before = writes_in_order(&world);
    let client = ClientRef { connection: 0, tag: op };
    world.step(primary, Event::Client { client, operation, identity: Some(identity), layer: layer(0) });
    world.run(500, |_| false);
    assert_eq!(writes_in_order(&world), before);
}

#[test]
fn zeros_are_read_where_they_were_written_at_any_alignment() {
    let mut world = pair();
    let primary = world.primary().unwrap();
    let value = write(&mut world, 0, 8);
    for (request, offset, length) in [(100, 2048_u32, 4096_u32), (101, 12288, 4096)] {
        let identity = WriteIdentity {
            volume: VolumeId(1),
            sdc: SdcId(9),
            session: AttachGeneration(1),
            request: RequestNumber(request),
            oldest_unacked: RequestNumber(100),
        };
        let numbers = RequestIdentity { request: RequestNumber(request), oldest_unacked: RequestNumber(100) };
        let operation = ClientOperation::Zero { identity: numbers, offset, length };
        let client = ClientRef { connection: 0, tag: 1 };
        world.step(primary, Event::Client { client, operation, identity: Some(identity), layer: layer(0) });
        world.run(100, |_| false);
    }
    world.registers.clear();
    assert_eq!(read(&mut world, 0, 8).unwrap(), [value, 0, 0, value, value, value, 0, 0]);
    world.run(200, |_| false);
    world.check_copies();
}

#[test]
fn a_dropped_tree_is_gone_on_every_copy() {
    let mut world = pair();
    let primary = world.primary().unwrap();
    write(&mut world, 0, 8);
    world.step(primary, Event::DropVtree { vtree: VtreeId(1) });
    assert!(world.run(500, |world| !world.dropped.is_empty()));
    world.run(200, |_| false);
    assert!(world.nodes.iter().all(|node| node.store.layers().is_empty()));
}

#[test]
fn a_damaged_or_impossible_request_changes_nothing() {
    let mut world = pair();
    let primary = world.primary().unwrap();
    let value = write(&mut world, 0, 2);
    let before = writes_in_order(&world);
    let numbers = RequestIdentity { request: RequestNumber(9), oldest_unacked: RequestNumber(9) };
    let identity = WriteIdentity {
        volume: VolumeId(1),
        sdc: SdcId(7),
        session: AttachGeneration(1),
        request: RequestNumber(9),
        oldest_unacked: RequestNumber(9),
    };
    let data = bytes::Bytes::from(vec![1; 4096]);
    let bad: Vec<ClientOperation> = vec![
        ClientOperation::Write { identity: numbers, offset: 0, checksums: vec![1].into(), data: data.clone() },
        ClientOperation::Write { identity: numbers, offset: 0, checksums: vec![].into(), data: data.clone() },
        ClientOperation::Write { identity: numbers, offset: u32::MAX, checksums: vec![1].into(), data },
        ClientOperation::Zero { identity: numbers, offset: 1 << 20, length: 1 },
        ClientOperation::Read { offset: 0, length: 0 },
        ClientOperation::Read { offset: 4096, length: u32::MAX },
    ];
    for operation in bad {
        let client = ClientRef { connection: 0, tag: 1 };
        world.step(primary, Event::Client { client, operation, identity: Some(identity), layer: layer(0) });
    }
    world.run(200, |_| false);
    assert_eq!(writes_in_order(&world), before);
    assert_eq!(read(&mut world, 0, 2).unwrap(), [value, value]);
}

#[test]
fn a_replica_that_is_no_longer_named_forgets() {
    let mut world = pair();
    let gone = other(&world);
    write(&mut world, 0, 2);
    let mut config = world.manager.config.clone();
    config.epoch = config.epoch.next();
    config.isr.retain(|member| *member != device(gone));
    let homes = world.manager.homes(&config);
    world.step(gone, Event::Config { config, min_isr: 1, homes });
    assert!(world.run(500, |world| world.nodes[gone].replica.is_none()));
    assert!(world.nodes[gone].store.layers().is_empty());
    assert!(world.nodes[gone].store.recovered(Verdict::Clean).is_none());
}

// I24: found by simulation: a grant is told with acknowledgements alone, and who has none sends nothing to acknowledge.
#[test]
fn a_primary_that_was_told_of_too_little_room_hears_of_more() {
    let mut world = pair();
    let (primary, member) = (world.primary().unwrap(), other(&world));
    let set_share = |world: &mut World, journal_bytes| {
        let share = sds_api::peer::CreditGrant { aus: 64, journal_bytes };
        world.nodes[member].context.credits.set_share(device(member), device(primary), share);
    };
    set_share(&mut world, 0);
    write(&mut world, 0, 1);
    let op = world.begin(0, 0, 1, 1, true);
    assert!(!world.run(2000, |world| world.clients[0].ops[&op].result.is_some()), "it waits for room");
    set_share(&mut world, 8 << 20);
    assert!(world.wait(0, op).is_ok(), "{}", world.state());
}
