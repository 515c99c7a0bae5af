//! Promises of the reconcilers and of the failure detector.

use std::collections::BTreeMap;

use mdm_api::command::{AdminCommand, DaemonCommand};
use mdm_api::control::ResyncReport;
use mdm_api::ids::{DeviceId, SdcId, SdsId, VolumeId};
use mdm_api::timing::Timing;

use crate::command::{Command, OwnCommand, PgUpdateKind};
use crate::testing::{GIB, Live, World, id};
use crate::view::PgHealth;

fn live(servers: usize, devices: usize, copies: u8, pg_count: u32) -> Live {
    let mut world = World::new(servers, devices, copies, pg_count);
    world.add_volume("v", GIB);
    Live::new(world)
}

fn sds(live: &Live, index: usize) -> SdsId {
    *live.world.state.sds().keys().nth(index).unwrap()
}

/// A volume that is mapped to a client and open there.
fn open_volume(live: &mut Live) -> (VolumeId, SdcId) {
    let sdc = live.world.add_sdc(1);
    let volume = *live.world.state.volumes().keys().next().unwrap();
    live.world.map(volume, sdc).unwrap();
    live.world.daemon(DaemonCommand::OpenMapping { volume, sdc, opener: 1 }).unwrap();
    (volume, sdc)
}

/// The server says that a device of its own has failed.
fn fail_device(live: &mut Live, sds: SdsId) {
    let device = live.world.state.devices().values().find(|device| device.sds == sds).unwrap().id;
    let incarnation = live.world.process(sds);
    live.world.daemon(DaemonCommand::DeviceFailed { sds, incarnation, device, reason: "EIO".to_owned() }).unwrap();
}

fn loads(live: &Live) -> BTreeMap<DeviceId, usize> {
    let mut loads: BTreeMap<DeviceId, usize> = live.world.state.devices().keys().map(|device| (*device, 0)).collect();
    for record in live.world.state.pgs().values() {
        for member in &record.config.isr {
            *loads.get_mut(member).unwrap() += 1;
        }
    }
    loads
}

#[test]
fn a_system_that_is_well_is_left_alone() {
    let mut live = live(3, 2, 2, 64);
    live.pass(10_000);
    let revision = live.world.state.revision();
    live.pass(120_000);
    assert_eq!(live.world.state.revision(), revision);
    assert!(live.all_healthy());
}

// F1, F3: backward.
#[test]
fn a_server_that_returns_within_the_grace_is_caught_up_and_nothing_moves() {
    let mut live = live(3, 2, 2, 64);
    live.pass(2000);
    let before = loads(&live);
    let away = sds(&live, 0);
    live.kill(away);
    live.pass(900);
    assert_eq!(live.count(PgHealth::Dark), 0, "within a second");
    assert!(live.count(PgHealth::Degraded) > 0);
    live.pass(30_000);
    live.restart(away);
    live.pass(2000);
    assert!(live.all_healthy());
    assert_eq!(loads(&live), before);
}

// F3: forward.
#[test]
fn a_server_that_stays_away_is_rebuilt_elsewhere_after_the_grace() {
    let mut live = live(3, 2, 2, 64);
    live.pass(2000);
    let away = sds(&live, 0);
    live.kill(away);
    live.pass(55_000);
    assert!(live.count(PgHealth::Degraded) > 0, "not before");
    live.pass(15_000);
    assert!(live.all_healthy());
    let gone: Vec<DeviceId> = live.world.state.devices().values().filter(|d| d.sds == away).map(|d| d.id).collect();
    let loads = loads(&live);
    assert!(gone.iter().all(|device| loads[device] == 0));
    live.restart(away);
    live.pass(60_000);
    assert!(live.all_healthy());
    let after = self::loads(&live);
    assert!(after.values().all(|load| (18..=25).contains(load)), "balanced again: {after:?}");
}

#[test]
fn who_returns_during_a_rebuild_stays_unless_the_rebuild_is_nearly_done() {
    for (done, keeps_returned) in [(10, true), (90, false)] {
        let mut live = live(3, 1, 2, 1);
        live.pass(2000);
        let pg = live.world.pg_ids()[0];
        let config = live.world.pg(pg);
        let primary = config.primary.unwrap();
        let lost = *config.isr.iter().find(|member| **member != primary).unwrap();
        let away = live.world.state.devices()[&lost].sds;
        live.resync = false;
        live.kill(away);
        live.pass(70_000);
        let learners = live.world.pg(pg).learners;
        assert_eq!(learners.len(), 2, "the lost one, and who takes its place");
        live.restart(away);
        let leader = live.world.state.devices()[&primary].sds;
        for server in live.world.state.sds().keys().copied().collect::<Vec<_>>() {
            let mut heartbeat = live.world.heartbeat(server);
            if server == leader {
                heartbeat.resync = vec![ResyncReport { pg, chunks_total: 100, chunks_done: done, bytes_done: 0 }];
            }
            live.observed.heartbeat(live.now, heartbeat, 1200);
        }
        live.observed.observe(&live.world.state, live.now);
        let commands = super::repair::propose(&live.world.state, &live.observed, &Timing::DEFAULT, live.now);
        let [Command::Own(OwnCommand::UpdatePgs(updates))] = commands.as_slice() else { panic!("{commands:?}") };
        let PgUpdateKind::DropLearner { device } = updates[0].kind else { panic!("{updates:?}") };
        assert_eq!(device != lost, keeps_returned);
    }
}

// F13.
#[test]
fn a_failed_device_is_rebuilt_at_once() {
    let mut live = live(3, 2, 2, 64);
    live.pass(2000);
    let server = sds(&live, 0);
    fail_device(&mut live, server);
    live.pass(3000);
    assert!(live.all_healthy());
}

// F5.
#[test]
fn after_a_power_cut_of_everything_all_groups_come_back() {
    let mut live = live(3, 2, 2, 64);
    live.pass(2000);
    let servers: Vec<SdsId> = live.world.state.sds().keys().copied().collect();
    for server in &servers {
        live.kill(*server);
    }
    live.pass(5000);
    assert_eq!(live.count(PgHealth::Dark), 64);
    for server in &servers {
        live.restart(*server);
    }
    live.pass(3000);
    assert!(live.all_healthy());
}

// F4, F5: only a member of the last ISR brings a group back, after the others had their time to report.
#[test]
fn after_a_power_cut_a_group_waits_for_all_of_its_members_and_then_settles_for_fewer() {
    let mut live = live(2, 1, 2, 8);
    live.pass(2000);
    let (one, two) = (sds(&live, 0), sds(&live, 1));
    live.kill(one);
    live.kill(two);
    // Both at once: neither has dropped the other.
    live.world.down(one);
    live.world.down(two);
    live.pass(300);
    assert_eq!(live.count(PgHealth::Dark), 8);
    live.restart(two);
    live.pass(2000);
    assert_eq!(live.count(PgHealth::Dark), 8);
    live.pass(2000);
    assert_eq!(live.count(PgHealth::Dark), 0);
    assert_eq!(live.count(PgHealth::Degraded), 8);
    live.restart(one);
    live.pass(1000);
    assert!(live.all_healthy());
}

#[test]
fn a_new_server_takes_its_share_of_data_and_of_roles() {
    let mut live = live(2, 1, 2, 64);
    live.pass(2000);
    live.world.add_server(1);
    live.pass(60_000);
    assert!(live.all_healthy());
    let loads = loads(&live);
    assert!(loads.values().all(|load| (40..=45).contains(load)), "{loads:?}");
    let leads = live.world.state.leads();
    assert!(leads.values().all(|count| (17..=26).contains(count)), "{leads:?}");
}

#[test]
fn a_device_that_is_removed_is_emptied_first_and_redundancy_never_falls() {
    let mut live = live(3, 2, 2, 64);
    live.pass(2000);
    let device = *live.world.state.devices().keys().next().unwrap();
    live.world.admin(AdminCommand::RemoveDevice { device: id(device.0), force: false }).unwrap();
    for _ in 0..200 {
        live.pass(150);
        for record in live.world.state.pgs().values() {
            assert!(record.config.isr.len() >= 2 && record.config.primary.is_some());
        }
    }
    assert!(!live.world.state.devices().contains_key(&device));
    assert!(live.all_healthy());
}

#[test]
fn a_server_is_removed_with_its_devices() {
    let mut live = live(4, 1, 2, 32);
    live.pass(2000);
    let server = sds(&live, 0);
    live.world.admin(AdminCommand::RemoveSds { sds: id(server.0), force: false }).unwrap();
    live.pass(30_000);
    assert!(!live.world.state.sds().contains_key(&server));
    assert!(live.all_healthy());
}

#[test]
fn a_three_copy_pool_survives_two_servers_one_after_the_other() {
    let mut live = live(5, 1, 3, 16);
    live.pass(2000);
    for index in [0, 1] {
        let server = sds(&live, index);
        live.kill(server);
        live.pass(80_000);
        assert!(live.all_healthy(), "after {index}");
    }
}

#[test]
fn two_lost_members_of_one_group_are_both_replaced() {
    let mut live = live(5, 1, 3, 16);
    live.pass(2000);
    let servers = [sds(&live, 0), sds(&live, 1)];
    for server in servers {
        live.kill(server);
    }
    live.pass(100_000);
    assert!(live.all_healthy());
}

// P8, I17.
#[test]
fn a_fence_waits_for_every_primary_and_says_for_whom() {
    let mut live = live(3, 1, 2, 8);
    live.pass(2000);
    let (volume, sdc) = open_volume(&mut live);
    live.pass(300);
    live.world.admin(AdminCommand::UnmapVolume { volume: id(volume.0), sdc: None }).unwrap();
    let fence = live.world.state.mappings()[&(volume, sdc)].fence_revision;
    assert!(super::fence::propose(&live.world.state, &live.observed).is_empty(), "nobody has confirmed");
    let slow = sds(&live, 1);
    for server in live.world.state.sds().keys().copied().collect::<Vec<_>>() {
        let mut heartbeat = live.world.heartbeat(server);
        if server == slow {
            heartbeat.fenced_through = mdm_api::epoch::Revision(fence.0 - 1);
        }
        live.observed.heartbeat(live.now, heartbeat, 1200);
    }
    assert!(super::fence::propose(&live.world.state, &live.observed).is_empty());
    let waiting = super::fence::waiting_for(&live.world.state, &live.observed, volume, fence);
    assert_eq!(waiting.sds, [slow]);
    // Its death does not make the fence hold; the groups' next primaries do.
    live.kill(slow);
    live.world.down(slow);
    assert!(super::fence::propose(&live.world.state, &live.observed).is_empty());
    live.pass(300);
    assert!(live.world.state.mappings().is_empty());
}

// P8: a dark group may still be served by a primary that is cut off from here alone.
#[test]
fn a_fence_does_not_hold_while_a_silent_sole_member_may_still_serve() {
    let mut live = live(2, 1, 2, 4);
    live.pass(2000);
    let (volume, _) = open_volume(&mut live);
    let (one, two) = (sds(&live, 0), sds(&live, 1));
    live.resync = false;
    live.kill(two);
    live.pass(3000);
    live.kill(one);
    live.restart(two);
    live.world.admin(AdminCommand::UnmapVolume { volume: id(volume.0), sdc: None }).unwrap();
    live.pass(20_000);
    assert_eq!(live.count(PgHealth::Dark), 4);
    assert_eq!(live.world.state.mappings().len(), 1, "not fenced");
    live.restart(one);
    live.pass(1000);
    assert!(live.world.state.mappings().is_empty());
}

// F13: a server says that a device has failed after all on it has ended, and is itself alive and well.
#[test]
fn a_fence_does_not_wait_for_a_group_that_is_lost_with_its_device() {
    let mut live = live(2, 1, 2, 4);
    live.pass(2000);
    let (volume, _) = open_volume(&mut live);
    let servers = [sds(&live, 0), sds(&live, 1)];
    live.resync = false;
    live.kill(servers[0]);
    live.pass(3000);
    live.restart(servers[0]);
    live.pass(3000);
    fail_device(&mut live, servers[1]);
    live.pass(3000);
    assert_eq!(live.count(PgHealth::Dark), 4);
    live.world.admin(AdminCommand::UnmapVolume { volume: id(volume.0), sdc: None }).unwrap();
    live.pass(300);
    assert!(live.world.state.mappings().is_empty());
}

#[test]
fn a_removed_volume_is_gone_when_every_primary_has_dropped_it() {
    let mut live = live(3, 1, 2, 8);
    live.pass(2000);
    let volume = *live.world.state.volumes().keys().next().unwrap();
    live.world.admin(AdminCommand::RemoveVolume { volume: id(volume.0) }).unwrap();
    assert!(super::drop::propose(&live.world.state, &live.observed).is_empty());
    live.pass(300);
    assert!(live.world.state.volumes().is_empty());
}
