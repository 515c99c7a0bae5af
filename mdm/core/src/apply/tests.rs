//! Promises of the commands: what they change, and what they refuse.

use std::collections::BTreeSet;

use mdm_api::command::{AdminCommand, CommandAnswer, DaemonCommand, ObjectRef, StoreVerdict};
use mdm_api::config::{PgChange, PgChangeKind};
use mdm_api::error::ErrorCode;
use mdm_api::ids::{DeviceId, Guid, PgId, SdsId};
use mdm_api::map::MapView;
use mdm_api::model::{AccessMode, DeviceState, Limits, MdmRole, UserRole};

use crate::command::{Command, FenceDone, LogEntry, OwnCommand, PgUpdate, PgUpdateKind};
use crate::state::{State, first_mdm_id};
use crate::testing::{Follower, GIB, World, code, create_system, id};

fn name(text: &str) -> ObjectRef {
    ObjectRef(text.to_owned())
}

fn two_servers() -> (World, PgId, DeviceId, DeviceId) {
    let mut world = World::new(2, 1, 2, 4);
    world.add_volume("v", GIB);
    let pg = world.pg_ids()[0];
    let config = world.pg(pg);
    let primary = config.primary.unwrap();
    let secondary = *config.isr.iter().find(|member| **member != primary).unwrap();
    (world, pg, primary, secondary)
}

fn server(world: &World, device: DeviceId) -> SdsId {
    world.state.devices()[&device].sds
}

#[test]
fn nothing_works_before_there_is_a_system_and_there_is_only_one() {
    let mut state = State::default();
    let command = Command::Admin(AdminCommand::AddProtectionDomain { name: "pd".to_owned() });
    let entry = |command| LogEntry { request_id: 0, at_s: 1, random: [0; 32], command };
    assert_eq!(code(crate::apply(&mut state, &entry(command)).result), ErrorCode::Unavailable);
    assert!(crate::apply(&mut state, &entry(create_system())).result.is_ok());
    assert_eq!(code(crate::apply(&mut state, &entry(create_system())).result), ErrorCode::WrongState);
    let system = state.system().unwrap().system.id;
    assert_eq!(state.mdms().keys().copied().collect::<Vec<_>>(), [first_mdm_id(system)]);
}

#[test]
fn a_repeated_request_takes_effect_once() {
    let mut world = World::new(2, 1, 2, 4);
    world.add_volume("v", GIB);
    let entry = world.log.last().unwrap().clone();
    let before = world.state.digest();
    let first = world.state.volumes().keys().next().copied().unwrap();
    let again = crate::apply(&mut world.state, &entry);
    assert_eq!(again.result, Ok(CommandAnswer::Volume { id: first, size_bytes: GIB }));
    assert_eq!(world.state.digest(), before);
}

#[test]
fn a_volume_needs_enough_fault_units_and_says_how_many_are_missing() {
    let mut world = World::new(1, 3, 2, 4);
    let add = || AdminCommand::AddVolume {
        name: "v".to_owned(),
        storage_pool: None,
        size_bytes: GIB,
        labels: Default::default(),
    };
    let error = world.admin(add()).unwrap_err();
    assert_eq!(error.code, ErrorCode::TooFewFaultUnits);
    assert!(error.to_string().contains("only 1") && error.to_string().contains("1 more"), "{error}");
    world.add_server(1);
    assert!(world.admin(add()).is_ok());
    assert_eq!(world.state.pgs().len(), 4);
}

#[test]
fn bad_input_is_refused_with_its_number_and_a_remedy() {
    let (mut world, ..) = two_servers();
    let sdc = world.add_sdc(1);
    let add = |name: &str, size_bytes| AdminCommand::AddVolume {
        name: name.to_owned(),
        storage_pool: None,
        size_bytes,
        labels: Default::default(),
    };
    assert_eq!(code(world.admin(add("v", GIB))), ErrorCode::VolumeNameInUse);
    assert_eq!(code(world.admin(add("w", 0))), ErrorCode::SizeIllegal);
    assert_eq!(code(world.admin(add("w", 5 * GIB))), ErrorCode::VolumeTooLarge);
    assert_eq!(code(world.admin(add("w", u64::MAX))), ErrorCode::VolumeTooLarge);
    assert_eq!(code(world.admin(add("a b", GIB))), ErrorCode::NameInvalid);
    assert_eq!(code(world.admin(add(&"x".repeat(32), GIB))), ErrorCode::NameTooLong);
    let absent = || name("absent");
    assert_eq!(code(world.admin(AdminCommand::RemoveVolume { volume: absent() })), ErrorCode::VolumeNotFound);
    assert_eq!(code(world.admin(AdminCommand::RemoveSds { sds: absent(), force: false })), ErrorCode::SdsNotFound);
    let shrink = AdminCommand::ResizeVolume { volume: name("v"), size_bytes: GIB / 2 };
    assert_eq!(code(world.admin(shrink)), ErrorCode::SizeCanOnlyGrow);
    let unmap = AdminCommand::UnmapVolume { volume: name("v"), sdc: Some(id(sdc.0)) };
    assert_eq!(code(world.admin(unmap)), ErrorCode::NotMapped);
    let again =
        AdminCommand::AddDevice { name: None, sds: name("sds1"), storage_pool: None, path: "/dev/disk0".to_owned() };
    assert_eq!(code(world.admin(again)), ErrorCode::DeviceUnusable);
    let pool = |copies, pg_count| AdminCommand::AddStoragePool {
        name: "other".to_owned(),
        protection_domain: None,
        copies,
        min_isr: 0,
        pg_count,
    };
    assert_eq!(code(world.admin(pool(1, 4))), ErrorCode::InvalidArgument);
    assert_eq!(code(world.admin(pool(2, 3))), ErrorCode::InvalidArgument);
    assert_eq!(
        code(world.admin(AdminCommand::RemoveStoragePool { storage_pool: name("pool") })),
        ErrorCode::StoragePoolNotEmpty
    );
    let last = AdminCommand::RemoveMdm { mdm: name("mdm1") };
    assert_eq!(code(world.admin(last)), ErrorCode::WrongState);
    assert_eq!(code(world.admin(AdminCommand::RemoveUser { user: name("admin") })), ErrorCode::WrongState);
    let plain = AdminCommand::AddUser { name: "u".to_owned(), role: UserRole::Monitor, password_hash: "x".to_owned() };
    assert_eq!(code(world.admin(plain)), ErrorCode::InvalidArgument);
}

#[test]
fn a_wiped_member_is_not_taken_back_under_its_old_name() {
    let mut world = World::empty();
    let add = |store_id, port: u16| AdminCommand::AddMdm {
        name: "mdm2".to_owned(),
        role: MdmRole::Manager,
        address: format!("127.0.0.1:{port}"),
        peer_address: format!("127.0.0.1:{}", port + 1),
        store_id,
    };
    let first = world.object(add(5, 100));
    assert_eq!(world.object(add(5, 100)), first, "the answer was lost, it joins again");
    assert_eq!(code(world.admin(add(6, 200))), ErrorCode::NameInUse);
    world.admin(AdminCommand::RemoveMdm { mdm: name("mdm2") }).unwrap();
    assert_ne!(world.object(add(6, 200)), first, "a new log, a new id");
}

// F1, F2.
#[test]
fn a_dead_server_costs_one_command_and_every_group_of_it_gets_another_primary() {
    let mut world = World::new(3, 2, 2, 64);
    world.add_volume("v", GIB);
    let dead = *world.state.sds().keys().next().unwrap();
    let led: Vec<PgId> = world
        .state
        .pgs()
        .values()
        .filter(|record| server(&world, record.config.primary.unwrap()) == dead)
        .map(|record| record.config.pg)
        .collect();
    assert!(!led.is_empty());
    let revision = world.state.revision();
    world.down(dead);
    assert_eq!(world.state.revision(), revision.next());
    for pg in led {
        let config = world.pg(pg);
        assert_ne!(server(&world, config.primary.unwrap()), dead);
        assert_eq!(config.isr.len(), 2, "dropping it from the ISR is its primary's to ask (I9)");
        assert!(!config.previous_certified_dead, "silence proves nothing");
    }
}

#[test]
fn the_same_report_of_death_twice_or_late_changes_nothing() {
    let (mut world, _, primary, _) = two_servers();
    let sds = server(&world, primary);
    let incarnation = world.process(sds);
    world.down(sds);
    let digest = world.state.to_bytes();
    world.own(OwnCommand::SdsDown { sds, incarnation }).unwrap();
    assert_eq!(world.state.to_bytes(), digest);
    world.register(sds);
    assert_eq!(code(world.own(OwnCommand::SdsDown { sds, incarnation })), ErrorCode::Stale);
}

// F1, I2, I14.
#[test]
fn a_restarted_primary_gets_a_new_term_and_its_old_process_is_certified_dead() {
    let (mut world, pg, primary, _) = two_servers();
    let before = world.pg(pg);
    let sds = server(&world, primary);
    let incarnation = world.register(sds);
    let after = world.pg(pg);
    assert_eq!((after.primary, after.primary_incarnation), (Some(primary), incarnation));
    assert!(after.term > before.term);
    assert!(after.previous_certified_dead);
}

// I14: its death frees nobody while an earlier primary may still hold a lease.
#[test]
fn a_death_is_not_certified_past_an_unsettled_predecessor() {
    let (mut world, pg, primary, secondary) = two_servers();
    world.down(server(&world, primary));
    assert_eq!(world.pg(pg).primary, Some(secondary));
    let successor = server(&world, secondary);
    world.register(successor);
    assert!(!world.pg(pg).previous_certified_dead, "{primary} may be alive and hold a grant of {secondary}");
    let epoch = world.pg(pg).epoch;
    world.own(OwnCommand::SettlePgs(vec![(pg, epoch)])).unwrap();
    world.register(successor);
    assert!(world.pg(pg).previous_certified_dead);
}

fn move_to(world: &mut World, pg: PgId, device: DeviceId) {
    let epoch = world.pg(pg).epoch;
    let kind = PgUpdateKind::MovePrimary { device };
    world.own(OwnCommand::UpdatePgs(vec![PgUpdate { pg, epoch, kind }])).unwrap();
}

// I14: nobody holds a lease after it.
#[test]
fn a_planned_move_begins_with_the_primary_and_ends_with_its_word() {
    let (mut world, pg, primary, secondary) = two_servers();
    let before = world.pg(pg);
    move_to(&mut world, pg, secondary);
    let asked = world.pg(pg);
    assert_eq!((asked.primary, asked.heir, asked.term), (Some(primary), Some(secondary), before.term));
    assert!(asked.epoch > before.epoch);
    world.change(pg, PgChangeKind::HandOver).unwrap();
    let after = world.pg(pg);
    assert_eq!((after.primary, after.heir), (Some(secondary), None));
    assert!(after.term > before.term && after.previous_certified_dead);
}

#[test]
fn an_heir_that_is_lost_is_none() {
    let (mut world, pg, primary, secondary) = two_servers();
    move_to(&mut world, pg, secondary);
    world.down(server(&world, secondary));
    let config = world.pg(pg);
    assert_eq!((config.primary, config.heir), (Some(primary), None));
    // It had released already: it leads on, but under a new term.
    world.change(pg, PgChangeKind::HandOver).unwrap();
    let after = world.pg(pg);
    assert_eq!(after.primary, Some(primary));
    assert!(after.term > config.term);
}

// F4c, I5.
#[test]
fn a_replica_that_was_dropped_never_brings_its_group_back() {
    let (mut world, pg, primary, secondary) = two_servers();
    world.change(pg, PgChangeKind::RemoveIsr(secondary)).unwrap();
    world.down(server(&world, primary));
    assert_eq!(world.pg(pg).primary, None);
    let sds = server(&world, secondary);
    world.register(sds);
    assert_eq!(world.pg(pg).primary, None);
    let update = PgUpdate {
        pg,
        epoch: world.pg(pg).epoch,
        kind: PgUpdateKind::AppointPrimary { device: secondary, incarnation: world.process(sds) },
    };
    world.own(OwnCommand::UpdatePgs(vec![update])).unwrap();
    assert_eq!(world.pg(pg).primary, None);
    world.register(server(&world, primary));
    assert_eq!(world.pg(pg).primary, Some(primary), "the only member is back");
}

// I1.
#[test]
fn a_change_of_an_old_epoch_or_of_another_process_is_refused() {
    let (mut world, pg, primary, secondary) = two_servers();
    let config = world.pg(pg);
    let change = |epoch, proposer, incarnation| {
        let kind = PgChangeKind::RemoveIsr(secondary);
        DaemonCommand::ChangePg(PgChange { pg, epoch, proposer, incarnation, kind })
    };
    let process = config.primary_incarnation;
    let other = world.process(server(&world, secondary));
    assert_eq!(code(world.daemon(change(config.epoch, secondary, other))), ErrorCode::Stale);
    assert_eq!(code(world.daemon(change(config.epoch, primary, other))), ErrorCode::Stale);
    assert_eq!(code(world.daemon(change(config.epoch.next(), primary, process))), ErrorCode::Stale);
    assert!(world.daemon(change(config.epoch, primary, process)).is_ok());
    assert_eq!(world.pg(pg).learners, [secondary]);
    assert_eq!(code(world.daemon(change(config.epoch, primary, process))), ErrorCode::Stale);
}

// F13, F14, I3.
#[test]
fn a_failed_device_leaves_all_its_groups_at_once_but_never_an_empty_one() {
    let (mut world, pg, primary, secondary) = two_servers();
    world.change(pg, PgChangeKind::RemoveIsr(secondary)).unwrap();
    let sds = server(&world, primary);
    let incarnation = world.process(sds);
    world.daemon(DaemonCommand::DeviceFailed { sds, incarnation, device: primary, reason: "EIO".to_owned() }).unwrap();
    let alone = world.pg(pg);
    assert_eq!((alone.primary, alone.isr.as_slice()), (None, [primary].as_slice()));
    for other in world.pg_ids().into_iter().filter(|other| *other != pg) {
        assert_eq!(world.pg(other).isr, [secondary]);
        assert_eq!(world.pg(other).primary, Some(secondary));
    }
    let remove = |force| AdminCommand::RemoveDevice { device: id(primary.0), force };
    assert_eq!(code(world.admin(remove(false))), ErrorCode::WrongState);
    world.admin(remove(true)).unwrap();
    assert_eq!(world.pg(pg).primary, Some(secondary), "the operator has given the last copy up");
}

// I4, F32.
#[test]
fn a_device_that_was_replaced_rolled_back_or_stolen_is_refused() {
    let (mut world, pg, primary, _) = two_servers();
    let sds = server(&world, primary);
    let refused = |world: &mut World, edit: &dyn Fn(&mut mdm_api::command::PresentedDevice)| {
        world.register_with(sds, |devices| edit(&mut devices[0]));
        world.state.devices()[&primary].opened_by.is_none()
    };
    assert!(refused(&mut world, &|device| device.incarnation.0 += 1));
    assert!(refused(&mut world, &|device| device.size_bytes /= 2));
    assert!(!refused(&mut world, &|device| device.open_count += 5));
    // One opening back: what the last process that had it open acknowledged may be gone.
    assert!(refused(&mut world, &|device| device.open_count -= 1));
    assert!(refused(&mut world, &|device| device.open_count = 1));
    assert!(world.state.devices()[&primary].suspect);
    // Opened often enough it is let in, but as what it is: not to be trusted (I12).
    assert!(!refused(&mut world, &|_| {}));
    assert!(!world.pg(pg).isr.contains(&primary));
    assert_ne!(world.pg(pg).primary, Some(primary));
}

// F17, I12.
#[test]
fn a_suspect_replica_is_in_sync_again_only_after_it_was_copied() {
    let (mut world, pg, primary, secondary) = two_servers();
    let sds = server(&world, primary);
    world.register_with(sds, |devices| devices[0].verdict = StoreVerdict::Suspect);
    let config = world.pg(pg);
    assert_eq!((config.primary, config.isr.as_slice()), (Some(secondary), [secondary].as_slice()));
    assert_eq!(config.learners, [primary]);
    for pg in world.pg_ids() {
        assert!(world.state.devices()[&primary].suspect);
        world.change(pg, PgChangeKind::AddIsr(primary)).unwrap();
    }
    assert!(!world.state.devices()[&primary].suspect);
}

#[test]
fn a_torn_tail_does_not_lead_while_another_is_sure() {
    let (mut world, pg, primary, secondary) = two_servers();
    let sds = server(&world, primary);
    world.register_with(sds, |devices| devices[0].verdict = StoreVerdict::TailUncertain);
    assert_eq!(world.pg(pg).primary, Some(secondary));
    world.down(server(&world, secondary));
    assert_eq!(world.pg(pg).primary, None, "it waits for all to be heard");
    let epoch = world.pg(pg).epoch;
    let incarnation = world.process(sds);
    let kind = PgUpdateKind::AppointPrimary { device: primary, incarnation };
    world.own(OwnCommand::UpdatePgs(vec![PgUpdate { pg, epoch, kind }])).unwrap();
    assert_eq!(world.pg(pg).primary, Some(primary), "or for the leader's judgement");
}

#[test]
fn a_process_registers_once_and_an_earlier_one_never_again() {
    let (mut world, _, primary, _) = two_servers();
    let sds = server(&world, primary);
    let register = |nonce, world: &World| DaemonCommand::RegisterSds {
        sds,
        nonce,
        addresses: vec![],
        devices: vec![world.presented(primary)],
    };
    let command = register(9000, &world);
    let first = world.daemon(command.clone()).unwrap();
    let again = world.daemon(command.clone()).unwrap();
    let of = |answer: &CommandAnswer| match answer {
        CommandAnswer::SdsRegistered { incarnation, .. } => *incarnation,
        other => panic!("{other:?}"),
    };
    assert_eq!(of(&first), of(&again));
    let next = register(9001, &world);
    world.daemon(next).unwrap();
    assert_eq!(code(world.daemon(command)), ErrorCode::Stale);
}

// P8, I17.
#[test]
fn an_unmapped_volume_is_gone_for_its_client_only_when_the_fence_holds() {
    let (mut world, ..) = two_servers();
    let sdc = world.add_sdc(1);
    let volume = *world.state.volumes().keys().next().unwrap();
    world.map(volume, sdc).unwrap();
    assert_eq!(code(world.map(volume, sdc)), ErrorCode::AlreadyMapped);
    let open = |opener| DaemonCommand::OpenMapping { volume, sdc, opener };
    let Ok(CommandAnswer::Opened { generation, .. }) = world.daemon(open(11)) else { panic!() };
    assert!(world.state.mapping_is_usable(volume, sdc, 11), "nothing older to fence");
    let Ok(CommandAnswer::Opened { generation: again, .. }) = world.daemon(open(11)) else { panic!() };
    assert_eq!(generation, again);
    let Ok(CommandAnswer::Opened { generation: newer, fence_revision }) = world.daemon(open(12)) else { panic!() };
    assert!(newer > generation && !world.state.mapping_is_usable(volume, sdc, 12));
    world.own(OwnCommand::FencesDone(vec![FenceDone { volume, sdc, fence_revision }])).unwrap();
    assert!(world.state.mapping_is_usable(volume, sdc, 12) && !world.state.mapping_is_usable(volume, sdc, 11));

    let remove = || AdminCommand::RemoveVolume { volume: id(volume.0) };
    assert_eq!(code(world.admin(remove())), ErrorCode::VolumeMapped);
    let unmap = || AdminCommand::UnmapVolume { volume: id(volume.0), sdc: None };
    let Ok(CommandAnswer::Unmapping { fence_revision, .. }) = world.admin(unmap()) else { panic!() };
    let Ok(CommandAnswer::Unmapping { fence_revision: same, .. }) = world.admin(unmap()) else { panic!() };
    assert_eq!(fence_revision, same);
    assert_eq!(code(world.daemon(open(13))), ErrorCode::NotMapped);
    assert_eq!(code(world.map(volume, sdc)), ErrorCode::Busy);
    assert_eq!(code(world.admin(remove())), ErrorCode::Busy);
    world.own(OwnCommand::FencesDone(vec![FenceDone { volume, sdc, fence_revision }])).unwrap();
    assert!(world.state.mappings().is_empty());
    world.map(volume, sdc).unwrap();
    let Ok(CommandAnswer::Opened { generation: later, .. }) = world.daemon(open(11)) else { panic!() };
    assert!(later > newer, "no generation is ever used twice");
}

#[test]
fn a_client_sees_its_own_mappings_and_volumes_and_no_keys() {
    let (mut world, ..) = two_servers();
    let (mine, other) = (world.add_sdc(1), world.add_sdc(2));
    let volume = *world.state.volumes().keys().next().unwrap();
    let hidden = world.add_volume("hidden", GIB);
    let mut follower = Follower::new(MapView::Sdc(mine));
    follower.follow(&world.state);
    assert_eq!(follower.map().volumes().count(), 0);
    world.map(volume, mine).unwrap();
    world.map(hidden, other).unwrap();
    follower.follow(&world.state);
    assert!(follower.map().volume(volume).is_some() && follower.map().volume(hidden).is_none());
    assert_eq!(follower.map().mappings().count(), 1);
    assert_eq!(follower.map().domain_keys().count(), 0);
    world.admin(AdminCommand::UnmapVolume { volume: id(volume.0), sdc: None }).unwrap();
    follower.follow(&world.state);
    assert_eq!(follower.map().volumes().count(), 0);
    let sds = *world.state.sds().keys().next().unwrap();
    let mut server = Follower::new(MapView::Sds(sds));
    server.follow(&world.state);
    assert_eq!((server.map().domain_keys().count(), server.map().volumes().count()), (1, 2));
}

#[test]
fn a_removed_volume_frees_its_name_and_goes_when_it_is_dropped() {
    let (mut world, ..) = two_servers();
    let volume = *world.state.volumes().keys().next().unwrap();
    world.admin(AdminCommand::RemoveVolume { volume: name("v") }).unwrap();
    assert!(world.state.volumes()[&volume].removing);
    let rename = AdminCommand::RenameVolume { volume: id(volume.0), name: "w".to_owned() };
    assert_eq!(code(world.admin(rename)), ErrorCode::Busy);
    world.add_volume("v", GIB);
    world.own(OwnCommand::VolumesDropped(vec![volume])).unwrap();
    assert!(!world.state.volumes().contains_key(&volume));
}

#[test]
fn a_device_that_cannot_be_formatted_is_as_if_never_added() {
    let mut world = World::new(2, 1, 2, 4);
    let sds = *world.state.sds().keys().next().unwrap();
    let add = AdminCommand::AddDevice { name: None, sds: id(sds.0), storage_pool: None, path: "/x/y".to_owned() };
    let Ok(CommandAnswer::DeviceRecorded { id: device, .. }) = world.admin(add) else { panic!() };
    assert_eq!(world.state.devices()[&device].state, DeviceState::Adding);
    let incarnation = world.process(sds);
    let reason = "in use".to_owned();
    world.daemon(DaemonCommand::DeviceRefused { sds, incarnation, device, reason }).unwrap();
    assert!(!world.state.devices().contains_key(&device));
}

#[test]
fn a_device_is_not_removed_where_that_would_leave_too_few() {
    let mut world = World::new(2, 1, 2, 4);
    let devices: Vec<DeviceId> = world.state.devices().keys().copied().collect();
    let volume = world.add_volume("v", GIB);
    let remove = |device: DeviceId, force| AdminCommand::RemoveDevice { device: id(device.0), force };
    assert_eq!(code(world.admin(remove(devices[0], false))), ErrorCode::TooFewFaultUnits);
    world.admin(AdminCommand::RemoveVolume { volume: id(volume.0) }).unwrap();
    world.own(OwnCommand::VolumesDropped(vec![volume])).unwrap();
    world.admin(remove(devices[0], false)).unwrap();
    assert!(!world.state.devices().contains_key(&devices[0]), "nothing was in it");
    // The table that is made anew goes on with higher epochs (I1).
    world.add_server(1);
    let revision = world.state.revision();
    world.add_volume("w", GIB);
    assert!(world.state.pgs().values().all(|record| record.config.epoch.0 > revision.0));
}

#[test]
fn a_server_that_is_removed_goes_with_its_last_device() {
    let mut world = World::new(3, 1, 2, 8);
    world.add_volume("v", GIB);
    let sds = *world.state.sds().keys().next().unwrap();
    world.admin(AdminCommand::RemoveSds { sds: id(sds.0), force: false }).unwrap();
    let device = *world.state.devices().values().find(|device| device.sds == sds).map(|device| &device.id).unwrap();
    assert_eq!(world.state.devices()[&device].state, DeviceState::Removing);
    world.own(OwnCommand::DevicesDrained(vec![device])).unwrap();
    assert!(world.state.devices().contains_key(&device), "groups still name it");
}

#[test]
fn one_client_at_a_time_unless_more_are_allowed() {
    let (mut world, ..) = two_servers();
    let (one, two) = (world.add_sdc(1), world.add_sdc(2));
    let volume = *world.state.volumes().keys().next().unwrap();
    world.map(volume, one).unwrap();
    let single = AdminCommand::MapVolume {
        volume: id(volume.0),
        sdc: id(two.0),
        access: AccessMode::ReadOnly,
        limits: Limits::default(),
        allow_multiple: false,
    };
    assert_eq!(code(world.admin(single)), ErrorCode::MappedElsewhere);
    assert_eq!(code(world.admin(AdminCommand::RemoveSdc { sdc: id(one.0) })), ErrorCode::SdcHasMappings);
}

#[test]
fn a_client_keeps_its_id_for_its_guid() {
    let mut world = World::empty();
    let sdc = world.add_sdc(7);
    let add = AdminCommand::AddSdc { guid: Guid([7; 16]), name: Some("host".to_owned()) };
    assert_eq!(world.object(add), sdc.0);
    let by = |text: String| AdminCommand::RenameSdc { sdc: ObjectRef(text), name: "h2".to_owned() };
    assert!(world.admin(by(Guid([7; 16]).to_string())).is_ok());
    assert!(world.admin(by("127.0.0.1".to_owned())).is_ok());
}

#[test]
fn a_snapshot_gives_the_same_state_back() {
    let (world, ..) = two_servers();
    let bytes = world.state.to_bytes();
    let copy = State::from_bytes(&bytes).unwrap();
    assert_eq!(copy, world.state);
    assert_eq!(copy.digest(), world.state.digest());
    assert!(State::from_bytes(&[]).is_err());
    assert!(State::from_bytes(&[9, 9]).is_err());
    assert!(State::from_bytes(&bytes[..bytes.len() / 2]).is_err());
}

#[test]
fn primaries_are_spread_over_all_devices() {
    let mut world = World::new(3, 2, 2, 64);
    world.add_volume("v", GIB);
    let leads = world.state.leads();
    assert_eq!(leads.len(), 6);
    assert!(leads.values().all(|count| (9..=12).contains(count)), "{leads:?}");
    let all: BTreeSet<DeviceId> = world.state.devices().keys().copied().collect();
    assert_eq!(leads.keys().copied().collect::<BTreeSet<_>>(), all);
}
