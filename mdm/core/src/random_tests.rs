//! Random histories: whatever is asked, in whatever order, the invariants hold after every command (checked by
//! [`crate::testing::World::run`]), every follower holds the map, every member the same state, and when the faults stop
//! redundancy returns.

use mdm_api::command::{AdminCommand, DaemonCommand, StoreVerdict};
use mdm_api::config::PgChangeKind;
use mdm_api::ids::{DeviceId, PgId, SdcId, SdsId, VolumeId};
use mdm_api::map::MapView;
use mdm_api::model::DeviceState;
use proptest::prelude::*;

use crate::command::{OwnCommand, PgUpdate, PgUpdateKind};
use crate::state::State;
use crate::testing::{Follower, GIB, Live, World, id};

#[derive(Clone, Debug)]
enum Step {
    AddServer,
    AddDevice(usize),
    Kill(usize),
    Restart(usize, u8),
    Down(usize),
    Fail(usize),
    RemoveDevice(usize, bool),
    RemoveServer(usize),
    RemoveIsr(usize, usize),
    AddIsr(usize, usize),
    Update(usize, usize, u8),
    HandOver(usize),
    AddVolume(u64),
    RemoveVolume(usize),
    Map(usize, usize),
    Open(usize, usize, u64),
    Unmap(usize),
    Pass(u64),
    Resync(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0..64_usize;
    prop_oneof![
        1 => Just(Step::AddServer),
        1 => n.clone().prop_map(Step::AddDevice),
        3 => n.clone().prop_map(Step::Kill),
        4 => (n.clone(), 0..6_u8).prop_map(|(a, b)| Step::Restart(a, b)),
        2 => n.clone().prop_map(Step::Down),
        1 => n.clone().prop_map(Step::Fail),
        1 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Step::RemoveDevice(a, b)),
        1 => n.clone().prop_map(Step::RemoveServer),
        3 => (n.clone(), n.clone()).prop_map(|(a, b)| Step::RemoveIsr(a, b)),
        3 => (n.clone(), n.clone()).prop_map(|(a, b)| Step::AddIsr(a, b)),
        1 => n.clone().prop_map(Step::HandOver),
        3 => (n.clone(), n.clone(), 0..5_u8).prop_map(|(a, b, c)| Step::Update(a, b, c)),
        2 => (1..3 * GIB).prop_map(Step::AddVolume),
        1 => n.clone().prop_map(Step::RemoveVolume),
        1 => (n.clone(), n.clone()).prop_map(|(a, b)| Step::Map(a, b)),
        2 => (n.clone(), n.clone(), 1..4_u64).prop_map(|(a, b, c)| Step::Open(a, b, c)),
        1 => n.clone().prop_map(Step::Unmap),
        6 => prop_oneof![Just(150), Just(600), Just(3000), Just(70_000)].prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Resync),
    ]
}

fn pick<T: Copy>(all: impl Iterator<Item = T>, index: usize) -> Option<T> {
    let all: Vec<T> = all.collect();
    (!all.is_empty()).then(|| all[index % all.len()])
}

struct Names {
    sdcs: Vec<SdcId>,
    volumes: u32,
}

/// Refusals are fine: what matters is that they change nothing, which the world checks.
fn run(live: &mut Live, names: &mut Names, step: &Step) -> Option<()> {
    let sds = |live: &Live, index| pick(live.world.state.sds().keys().copied(), index);
    let device = |live: &Live, index| pick(live.world.state.devices().keys().copied(), index);
    let volume = |live: &Live, index| pick(live.world.state.volumes().keys().copied(), index);
    let pg = |live: &Live, index| -> Option<PgId> { pick(live.world.state.pgs().keys().copied(), index) };
    match step {
        Step::AddServer if live.world.state.sds().len() < 6 && live.world.log.len() < 200 => {
            // Names count up, so one that was removed leaves a gap that would be taken twice.
            let name = format!("more{}", live.world.log.len());
            let addresses = vec![format!("127.0.0.1:{}", 8000 + live.world.log.len())];
            let add = AdminCommand::AddSds { name, protection_domain: None, fault_set: None, addresses };
            let sds = SdsId(live.world.object(add));
            live.world.register(sds);
            live.world.add_device(sds, "/dev/first");
        }
        Step::AddServer => {}
        Step::AddDevice(index) => {
            let sds = sds(live, *index)?;
            let removable = live.world.state.registrations.get(&sds).is_some_and(|r| r.removing);
            if live.world.state.devices().len() < 12 && live.world.state.sds()[&sds].connected && !removable {
                live.world.add_device(sds, &format!("/dev/more{}", live.world.log.len()));
            }
        }
        Step::Kill(index) => live.kill(sds(live, *index)?),
        Step::Restart(index, kind) => {
            let sds = sds(live, *index)?;
            live.dead.remove(&sds);
            live.world.register_with(sds, |devices| match kind {
                0 => devices.iter_mut().for_each(|device| device.verdict = StoreVerdict::TailUncertain),
                1 => devices.iter_mut().take(1).for_each(|device| device.verdict = StoreVerdict::Suspect),
                2 => devices.truncate(1),
                3 => devices.iter_mut().take(1).for_each(|device| device.open_count = 1),
                _ => {}
            });
        }
        Step::Down(index) => {
            let sds = sds(live, *index)?;
            let incarnation = live.world.state.sds()[&sds].incarnation?;
            let _ = live.world.own(OwnCommand::SdsDown { sds, incarnation });
        }
        Step::Fail(index) => {
            let device: DeviceId = device(live, *index)?;
            // Of several failures the spares must be left to see redundancy return.
            let failed = live.world.state.devices().values().filter(|d| d.state == DeviceState::Failed).count();
            let sds = live.world.state.devices()[&device].sds;
            let incarnation = live.world.state.sds()[&sds].incarnation?;
            if failed < 2 {
                let reason = "EIO".to_owned();
                let _ = live.world.daemon(DaemonCommand::DeviceFailed { sds, incarnation, device, reason });
            }
        }
        Step::RemoveDevice(index, force) => {
            let device = id(device(live, *index)?.0);
            let _ = live.world.admin(AdminCommand::RemoveDevice { device, force: *force });
        }
        Step::RemoveServer(index) => {
            let sds = id(sds(live, *index)?.0);
            let _ = live.world.admin(AdminCommand::RemoveSds { sds, force: false });
        }
        Step::RemoveIsr(index, member) => {
            let pg = pg(live, *index)?;
            let config = live.world.pg(pg);
            config.primary?;
            let member = pick(config.isr.iter().copied(), *member)?;
            let _ = live.world.change(pg, PgChangeKind::RemoveIsr(member));
        }
        Step::HandOver(index) => {
            let pg = pg(live, *index)?;
            live.world.pg(pg).primary?;
            let _ = live.world.change(pg, PgChangeKind::HandOver);
        }
        Step::AddIsr(index, member) => {
            let pg = pg(live, *index)?;
            let config = live.world.pg(pg);
            config.primary?;
            let member = pick(config.learners.iter().copied(), *member)?;
            let _ = live.world.change(pg, PgChangeKind::AddIsr(member));
        }
        Step::Update(index, member, kind) => {
            let pg = pg(live, *index)?;
            let device: DeviceId = device(live, *member)?;
            let sds = live.world.state.devices()[&device].sds;
            let incarnation = live.world.state.sds()[&sds].incarnation?;
            let epoch = live.world.pg(pg).epoch;
            let replaces = pick(live.world.pg(pg).isr.into_iter(), *member);
            let kind = match kind {
                0 => PgUpdateKind::AppointPrimary { device, incarnation },
                1 => PgUpdateKind::AddLearner { device, replaces },
                2 => PgUpdateKind::DropLearner { device },
                3 => PgUpdateKind::MovePrimary { device },
                _ => PgUpdateKind::RemoveSurplus { device },
            };
            live.world.own(OwnCommand::UpdatePgs(vec![PgUpdate { pg, epoch, kind }])).unwrap();
        }
        Step::AddVolume(size_bytes) => {
            names.volumes += 1;
            let name = format!("v{}", names.volumes);
            let add = AdminCommand::AddVolume {
                name,
                storage_pool: None,
                size_bytes: *size_bytes,
                labels: Default::default(),
            };
            let _ = live.world.admin(add);
        }
        Step::RemoveVolume(index) => {
            let volume = id(volume(live, *index)?.0);
            let _ = live.world.admin(AdminCommand::RemoveVolume { volume });
        }
        Step::Map(index, sdc) => {
            let sdc = pick(names.sdcs.iter().copied(), *sdc)?;
            let volume: VolumeId = volume(live, *index)?;
            let _ = live.world.map(volume, sdc);
        }
        Step::Open(index, sdc, opener) => {
            let sdc = pick(names.sdcs.iter().copied(), *sdc)?;
            let volume = volume(live, *index)?;
            let _ = live.world.daemon(DaemonCommand::OpenMapping { volume, sdc, opener: *opener });
        }
        Step::Unmap(index) => {
            let volume = id(volume(live, *index)?.0);
            let _ = live.world.admin(AdminCommand::UnmapVolume { volume, sdc: None });
        }
        Step::Pass(ms) => live.pass(*ms),
        Step::Resync(on) => live.resync = *on,
    }
    Some(())
}

/// The same log gives the same state, each entry told twice as well.
fn assert_replay(live: &Live) {
    let mut once = State::default();
    let mut twice = State::default();
    for entry in &live.world.log {
        let first = crate::apply(&mut once, entry);
        let again = crate::apply(&mut twice, entry);
        assert_eq!(first, again);
        if first.result.is_ok() && !matches!(entry.command, crate::Command::Own(_)) {
            assert_eq!(crate::apply(&mut twice, entry).result, first.result);
        }
    }
    assert_eq!(once.digest(), live.world.state.digest());
    assert_eq!(twice.digest(), live.world.state.digest());
    assert_eq!(State::from_bytes(&once.to_bytes()).unwrap(), once);
}

/// Groups of which no good copy can be had any more by anybody: their only one has failed, or is in doubt.
fn is_lost(state: &State, pg: PgId) -> bool {
    let record = &state.pgs()[&pg];
    record
        .config
        .isr
        .iter()
        .all(|member| state.devices()[member].state == DeviceState::Failed || record.suspects.contains(member))
}

/// A few histories in every run; `PROPTEST_CASES` for a long one.
fn config() -> ProptestConfig {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 20 };
    ProptestConfig { cases, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_history_keeps_the_invariants_and_heals(
        copies in 2..=3_u8,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(4, 2, copies, 8);
        world.add_volume("first", GIB);
        let sdcs: Vec<SdcId> = (1..=2).map(|number| world.add_sdc(number)).collect();
        let sds = *world.state.sds().keys().next().unwrap();
        let mut followers = vec![Follower::new(MapView::Sds(sds))];
        followers.extend(sdcs.iter().map(|sdc| Follower::new(MapView::Sdc(*sdc))));
        let mut live = Live::new(world);
        let mut names = Names { sdcs, volumes: 0 };
        for (index, step) in steps.iter().enumerate() {
            run(&mut live, &mut names, step);
            for (number, follower) in followers.iter_mut().enumerate() {
                // Some follow every step, some only now and then.
                if index % (number + 1) == 0 && live.world.state.sds().contains_key(&sds) {
                    follower.follow(&live.world.state);
                    follower.check(&live.world.state);
                }
            }
        }
        assert_replay(&live);
        // The faults stop: all that can come back does.
        live.resync = true;
        for sds in live.world.state.sds().keys().copied().collect::<Vec<_>>() {
            live.restart(sds);
        }
        live.pass(150_000);
        for pg in live.world.pg_ids() {
            let record = &live.world.state.pgs()[&pg];
            if is_lost(&live.world.state, pg) {
                continue;
            }
            prop_assert!(record.config.primary.is_some(), "dark: {:?}", record);
            let table = crate::placement::slots(&live.world.state, pg.pool);
            let units: std::collections::BTreeSet<_> = table.values().map(|slot| slot.unit).collect();
            if units.len() >= usize::from(copies) {
                let staying = live.world.state.staying_isr(record).count();
                prop_assert!(staying == usize::from(copies), "{:?}", record);
                prop_assert!(record.config.learners.is_empty() || record.replacing.is_some(), "{:?}", record);
            }
        }
        prop_assert!(live.world.state.mappings().values().all(|mapping| !mapping.revoked)
            || live.world.pg_ids().into_iter().any(|pg| is_lost(&live.world.state, pg)));
    }
}
