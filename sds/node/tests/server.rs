//! Whole data servers against promises: what is acknowledged stays, what is fenced stops, what fails is told.

mod world;

use mdm_api::epoch::{AttachGeneration, Revision};
use mdm_api::map::MapObject;
use mdm_api::model::{DeviceState, Sds};
use sds_api::client::{ClientError, ClientOperation};
use world::{SDC, VOLUME, World, device, mapping, sds};

/// Two servers, all groups on both, led by the first; the volume is open there.
fn pair() -> (World, u32) {
    let mut world = World::new(2);
    world.place(&[device(1), device(2)], &[]);
    let handle = world.open(sds(1));
    (world, handle)
}

#[test]
fn what_was_written_is_read_whatever_its_alignment() {
    let (mut world, handle) = pair();
    world.write(sds(1), handle, 0, 4096, &[7; 8192]);
    world.write(sds(1), handle, 0, 5000, b"in the middle");
    let read = world.read(sds(1), handle, 0, 4096, 8192);
    let mut expected = vec![7; 8192];
    expected[904..917].copy_from_slice(b"in the middle");
    assert!(read == expected);
    assert!(world.read(sds(1), handle, 1, 0, 4096) == vec![0; 4096]);
}

#[test]
fn every_acknowledged_write_survives_the_death_of_its_primary() {
    let (mut world, handle) = pair();
    for chunk in 0..8 {
        world.write(sds(1), handle, chunk, 0, &[chunk as u8 + 1; 4096]);
    }
    world.kill(sds(1));
    world.place(&[device(2)], &[device(1)]);
    let handle = world.open(sds(2));
    for chunk in 0..8 {
        assert!(world.read(sds(2), handle, chunk, 0, 4096) == vec![chunk as u8 + 1; 4096], "chunk {chunk}");
    }
}

#[test]
fn a_server_that_returns_catches_up_and_can_lead_again() {
    let (mut world, handle) = pair();
    world.write(sds(1), handle, 0, 0, &[1; 4096]);
    world.kill(sds(1));
    world.place(&[device(2)], &[device(1)]);
    let handle = world.open(sds(2));
    for chunk in 0..8 {
        world.write(sds(2), handle, chunk, 4096, &[chunk as u8 + 10; 4096]);
    }
    world.start(sds(1));
    world.settle("both are in sync", |world| world.map.pgs().all(|config| config.isr.len() == 2));
    world.kill(sds(2));
    world.place(&[device(1)], &[device(2)]);
    let handle = world.open(sds(1));
    assert!(world.read(sds(1), handle, 0, 0, 4096) == vec![1; 4096]);
    for chunk in 0..8 {
        assert!(world.read(sds(1), handle, chunk, 4096, 4096) == vec![chunk as u8 + 10; 4096], "chunk {chunk}");
    }
}

#[test]
fn everything_acknowledged_is_there_after_all_processes_died_at_once() {
    let (mut world, handle) = pair();
    for chunk in 0..8 {
        world.write(sds(1), handle, chunk, 8192, &[chunk as u8 + 30; 12_288]);
    }
    world.kill(sds(1));
    world.kill(sds(2));
    world.start(sds(1));
    world.start(sds(2));
    world.settle("both have registered", |world| world.servers.values().all(|server| server.shard.is_current()));
    let handle = world.open(sds(1));
    for chunk in 0..8 {
        assert!(world.read(sds(1), handle, chunk, 8192, 12_288) == vec![chunk as u8 + 30; 12_288], "chunk {chunk}");
    }
}

#[test]
fn a_dead_secondary_is_proposed_for_removal_before_anything_is_acknowledged_without_it() {
    let (mut world, handle) = pair();
    world.write(sds(1), handle, 0, 0, &[1; 4096]);
    world.kill(sds(2));
    world.write(sds(1), handle, 0, 0, &[2; 4096]);
    let written = world.map.pgs().filter(|config| config.isr == [device(1)]).count();
    assert!(written >= 1, "the group that was written to has shrunk first");
}

// F2, F3: no connection says that the host is gone; the map does.
#[test]
fn a_server_that_the_map_calls_dead_is_not_waited_for_as_long_as_one_that_is_only_silent() {
    let (mut world, handle) = pair();
    world.write(sds(1), handle, 0, 0, &[1; 4096]);
    world.vanish(sds(2));
    let dead = Sds { connected: false, ..world.map.sds(sds(2)).unwrap().clone() };
    world.change(vec![MapObject::Sds(dead)], vec![]);
    let began = world.now;
    world.write(sds(1), handle, 0, 0, &[2; 4096]);
    assert!(world.now.ms_since(began) < 600, "{} ms", world.now.ms_since(began));
}

#[test]
fn nothing_of_a_fenced_generation_is_taken_once_the_fence_is_reported() {
    let (mut world, handle) = pair();
    world.write(sds(1), handle, 0, 0, &[1; 4096]);
    let mut fenced = mapping(2);
    (fenced.fenced, fenced.fence_revision) = (false, world.map.revision().next());
    let revision = world.change(vec![MapObject::Mapping(fenced)], vec![]);
    world.settle("the fence holds", |world| {
        world.servers[&sds(1)].shard.heartbeat(world.now).fenced_through >= revision
    });
    let operation = world.write_operation(0, &[2; 4096]);
    assert_eq!(world.perform(sds(1), handle, 0, operation), Err(ClientError::Fenced));
    let handle = world.open(sds(1));
    assert!(world.read(sds(1), handle, 0, 0, 4096) == vec![1; 4096]);
}

#[test]
fn fences_are_not_reported_while_a_group_is_on_its_way_into_service() {
    let mut world = World::new(2);
    world.wait_ms(100);
    let before = world.servers[&sds(1)].shard.heartbeat(world.now).fenced_through;
    assert_eq!(before, world.map.revision());
    world.kill(sds(2));
    world.place(&[device(1), device(2)], &[]);
    world.wait_ms(200);
    assert_eq!(world.servers[&sds(1)].shard.heartbeat(world.now).fenced_through, before);
}

#[test]
fn a_ticket_that_is_newer_than_the_map_waits_for_it() {
    let (mut world, _) = pair();
    let newer = Revision(world.map.revision().0 + 1);
    let credential = world.credential(1, newer);
    world.send_open(sds(1), &credential);
    world.wait_ms(200);
    assert_eq!(world.opened.get(&sds(1)), None);
    world.change(vec![MapObject::Mapping(mapping(1))], vec![]);
    world.settle("it opens", |world| world.opened.contains_key(&sds(1)));
    assert!(world.opened[&sds(1)].is_ok());
    let credential = world.credential(1, Revision(newer.0 + 5));
    world.send_open(sds(1), &credential);
    world.settle("it is told to try again", |world| world.opened.contains_key(&sds(1)));
    assert!(world.opened[&sds(1)].is_err());
}

#[test]
fn a_forged_or_replayed_ticket_opens_nothing() {
    let (mut world, _) = pair();
    let good = world.credential(1, world.map.revision());
    let mut forged = good.clone();
    forged.ticket[20] ^= 1;
    let mut replayed = good.clone();
    replayed.secret = [0; 32];
    for credential in [forged, replayed] {
        world.send_open(sds(1), &credential);
        world.settle("it is answered", |world| world.opened.contains_key(&sds(1)));
        assert!(world.opened[&sds(1)].is_err());
    }
}

#[test]
fn what_lies_outside_of_the_volume_or_elsewhere_is_refused() {
    let (mut world, handle) = pair();
    let read = |length| ClientOperation::Read { offset: 0, length };
    assert_eq!(world.perform(sds(1), handle, 8, read(4096)), Err(ClientError::OutOfRange));
    assert_eq!(world.perform(sds(1), handle + 1, 0, read(4096)), Err(ClientError::UnknownHandle));
    let handle = world.open(sds(2));
    assert!(matches!(world.perform(sds(2), handle, 0, read(4096)), Err(ClientError::WrongPrimary(_))));
    let mut removed = world.map.volume(VOLUME).unwrap().clone();
    removed.removing = true;
    world.change(vec![MapObject::Volume(removed)], vec![]);
    assert_eq!(world.perform(sds(2), handle, 0, read(4096)), Err(ClientError::Fenced));
}

#[test]
fn damage_in_flight_is_found_before_anything_is_written() {
    let (mut world, handle) = pair();
    let mut operation = world.write_operation(0, &[5; 4096]);
    if let ClientOperation::Write { checksums, .. } = &mut operation {
        checksums[0] ^= 1;
    }
    assert_eq!(world.perform(sds(1), handle, 0, operation), Err(ClientError::Damaged));
    assert!(world.read(sds(1), handle, 0, 0, 4096) == vec![0; 4096]);
}

#[test]
fn a_write_error_fails_the_device_once_and_the_system_is_told() {
    let (mut world, handle) = pair();
    world.write(sds(1), handle, 0, 0, &[1; 4096]);
    world.disks.get_mut(&device(1)).unwrap().failing = true;
    let operation = world.write_operation(0, &[2; 4096]);
    let tag = world.request(sds(1), handle, 0, operation);
    world.settle("the system knows", |world| world.map.device(device(1)).unwrap().state == DeviceState::Failed);
    world.settle("the client is answered", |world| world.replies.contains_key(&(sds(1), tag)));
    assert!(world.replies[&(sds(1), tag)].is_err());
    world.place(&[device(2)], &[]);
    let handle = world.open(sds(2));
    let read = world.read(sds(2), handle, 0, 0, 4096);
    assert!(read == vec![1; 4096] || read == vec![2; 4096], "the unanswered write took effect whole or not at all");
}

#[test]
fn a_device_that_fails_before_its_server_has_registered_is_told_of_after_it() {
    let (mut world, handle) = pair();
    world.write(sds(1), handle, 0, 0, &[1; 4096]);
    world.kill(sds(1));
    world.is_silent = true;
    world.start(sds(1));
    let failures = |world: &World| world.servers[&sds(1)].shard.figures().device_failures;
    world.settle("the device is open", |world| !world.servers[&sds(1)].shard.figures().devices.is_empty());
    world.lose_device(1);
    world.settle("the device has failed", |world| failures(world) == 1);
    world.is_silent = false;
    world.settle("the system knows", |world| world.map.device(device(1)).unwrap().state == DeviceState::Failed);
}

#[test]
fn a_removed_volume_is_dropped_on_all_copies_and_reported() {
    let (mut world, handle) = pair();
    for chunk in 0..8 {
        world.write(sds(1), handle, chunk, 0, &vec![3; 65_536]);
    }
    let mut volume = world.map.volume(VOLUME).unwrap().clone();
    volume.removing = true;
    world.change(vec![MapObject::Volume(volume)], vec![]);
    for number in [1, 2] {
        world.settle("the volume is reported as dropped", |world| {
            world.servers[&sds(number)].shard.heartbeat(world.now).dropped == [VOLUME]
        });
    }
    world.settle("its space comes back on both copies", |world| {
        [1, 2].iter().all(|number| {
            let figures = world.servers[&sds(*number)].shard.figures();
            let (space, _) = figures.devices[0].store.unwrap();
            space.aus_free == space.aus_total
        })
    });
}

#[test]
fn a_device_that_is_no_longer_named_forgets_the_group() {
    let mut world = World::new(3);
    world.place(&[device(1), device(2)], &[]);
    let handle = world.open(sds(1));
    world.write(sds(1), handle, 0, 0, &vec![3; 65_536]);
    world.place(&[device(1), device(3)], &[]);
    world.settle("nothing is left", |world| {
        let figures = world.servers[&sds(2)].shard.figures();
        let (space, _) = figures.devices[0].store.unwrap();
        space.aus_free == space.aus_total && figures.roles.iter().sum::<usize>() == 0
    });
}

#[test]
fn a_dark_group_reports_the_end_of_its_log() {
    let (mut world, handle) = pair();
    world.write(sds(1), handle, 0, 0, &[1; 4096]);
    let dark = world.map.pgs().cloned().map(|mut config| {
        config.epoch = config.epoch.next();
        config.primary = None;
        MapObject::Pg(config)
    });
    let dark: Vec<MapObject> = dark.collect();
    let count = dark.len();
    world.change(dark, vec![]);
    world.settle("both report", |world| {
        [1, 2].iter().all(|number| world.servers[&sds(*number)].shard.heartbeat(world.now).tails.len() == count)
    });
}

#[test]
fn a_second_process_under_the_same_id_stops_the_first() {
    let (mut world, _) = pair();
    let mut record = world.map.sds(sds(1)).unwrap().clone();
    record.incarnation = Some(mdm_api::ids::ProcessIncarnation(99_999));
    world.change(vec![MapObject::Sds(record)], vec![]);
    world.settle("it stops", |world| world.servers[&sds(1)].stopped.is_some());
}

#[test]
fn heartbeats_name_the_servers_with_which_leases_are_exchanged() {
    let (mut world, _) = pair();
    world.wait_ms(500);
    let heartbeat = world.servers[&sds(1)].shard.heartbeat(world.now);
    assert_eq!(
        (heartbeat.leases_with.as_slice(), heartbeat.unreachable.as_slice()),
        ([sds(2)].as_slice(), [].as_slice())
    );
    world.kill(sds(2));
    world.wait_ms(700);
    let heartbeat = world.servers[&sds(1)].shard.heartbeat(world.now);
    assert_eq!(
        (heartbeat.leases_with.as_slice(), heartbeat.unreachable.as_slice()),
        ([].as_slice(), [sds(2)].as_slice())
    );
    assert_eq!(world.map.mapping(VOLUME, SDC).unwrap().generation, AttachGeneration(1));
}
