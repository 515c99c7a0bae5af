//! One volume in a small world: what the machine decides is carried out, fails, is lost, or is killed in between.

use std::collections::BTreeMap;

use mdm_api::epoch::Nanos;
use mdm_api::ids::{SdcId, VolumeId};
use mdm_api::model::AccessMode;
use proptest::prelude::*;

use super::{Action, Answer, Event, Failure, Machine, Outcome, Policy, Preempt, Step};
use crate::core::content::Content;
use crate::core::facts::{Device, Facts, Here, Holder, InSystem};
use crate::core::labels::{MakeState, Spec};
use crate::core::record::Record;

const VOLUME: VolumeId = VolumeId(7);
const SECOND: u64 = 1_000_000_000;

/// One host and the system, as far as one volume sees them.
struct World {
    machine: Machine,
    now: Nanos,
    system: Option<InSystem>,
    device: Option<Device>,
    mounted: Option<(u32, u32)>,
    content: Content,
    on_disk: Option<Record>,
    working: Option<Step>,
    answers: BTreeMap<u64, Result<Answer, String>>,
    made: u32,
    next_minor: u32,
    /// The file system that is mounted may hold data.
    is_precious: bool,
    reachable: bool,
    /// The mapping was taken away since the facts were gathered: that cannot be known yet.
    is_lost_since: bool,
    log: Vec<String>,
}

fn spec(state: MakeState) -> Spec {
    Spec { state, ..Spec::of(&BTreeMap::new()) }
}

fn holder(silent_ms: u64) -> Holder {
    Holder { sdc: SdcId(9), name: "host2".to_owned(), access: AccessMode::ReadWrite, silent_ms, is_going: false }
}

impl World {
    fn new(preempt: Preempt, state: MakeState, content: Content) -> Self {
        let policy = Policy { preempt, grace_ms: 10_000 };
        let system = InSystem { volume: VOLUME, size_bytes: 1 << 30, spec: spec(state), here: None, holders: vec![] };
        Self {
            machine: Machine::new(policy, Record::new("db", "boot"), false),
            now: Nanos(SECOND),
            system: Some(system),
            device: None,
            mounted: None,
            content,
            on_disk: None,
            working: None,
            answers: BTreeMap::new(),
            made: 0,
            next_minor: 1,
            is_precious: state == MakeState::Made,
            reachable: true,
            is_lost_since: false,
            log: vec![],
        }
    }

    fn event(&mut self, event: Event) {
        for action in self.machine.step(self.now, event) {
            match action {
                Action::Do(step) => {
                    assert!(self.working.is_none(), "two steps at a time");
                    self.working = Some(step);
                }
                Action::Answer { token, answer } => {
                    if matches!(answer, Ok(Answer::Mounted { .. })) {
                        assert!(self.mounted.is_some(), "a directory that is no mount was handed out");
                        let number = self.device.as_ref().map(|device| device.number);
                        assert!(self.is_lost_since || self.mounted == number, "{:?} {number:?}", self.mounted);
                        let is_held = self.on_disk.as_ref().is_some_and(|record| !record.ids.is_empty());
                        assert!(is_held, "answered before the record was kept");
                        self.is_precious = true;
                    }
                    assert!(self.answers.insert(token, answer).is_none(), "answered twice");
                }
                Action::Wake(_) => {}
                Action::Say(text) => self.log.push(text),
            }
        }
    }

    fn system(&mut self) -> &mut InSystem {
        self.system.as_mut().expect("the volume is there")
    }

    /// Carries out the step under way.
    fn carry_out(&mut self) {
        let Some(step) = self.working.take() else { return };
        let outcome = self.perform(step);
        self.event(Event::Done(outcome));
    }

    fn perform(&mut self, step: Step) -> Outcome {
        let needs_mapping = matches!(step, Step::Limit { .. } | Step::Attach { .. });
        let needs_device = matches!(step, Step::Make { .. } | Step::Mount { .. } | Step::Grow { .. });
        if (needs_mapping && self.system().here.is_none()) || (needs_device && self.device.is_none()) {
            return Outcome::Failed(Failure { text: "it was taken away".to_owned(), is_final: false });
        }
        match step {
            Step::Keep(record) => self.on_disk = Some(record),
            Step::Forget => {
                assert!(self.mounted.is_none(), "forgotten while it is mounted");
                self.on_disk = None;
            }
            Step::Look => {
                self.is_lost_since = false;
                let system = if self.reachable { Ok(self.system.clone()) } else { Err("nobody answers".to_owned()) };
                let facts = Facts { system, device: Ok(self.device.clone()), mounted: self.mounted };
                return Outcome::Seen(Box::new(facts));
            }
            Step::Map { access, limits, .. } => {
                assert!(self.on_disk.is_some(), "mapped before the record was kept");
                assert!(self.system().holders.is_empty(), "mapped while another host has it");
                self.system().here = Some(Here { access, limits, is_going: false, revision: 3 });
                return Outcome::Mapped { revision: 3 };
            }
            Step::Limit { limits, .. } => self.system().here.as_mut().expect("mapped").limits = limits,
            Step::Unmap { from: None, .. } => {
                assert!(self.mounted.is_none() && self.device.is_none(), "unmapped under its users");
                self.system().here = None;
            }
            Step::Unmap { from: Some(_), .. } => self.system().holders.clear(),
            Step::Attach { .. } => {
                let number = (7, self.next_minor);
                self.next_minor += 1;
                let size_bytes = self.system().size_bytes;
                let device = Device { path: "/dev/x".to_owned(), number, size_bytes };
                self.device = Some(device.clone());
                return Outcome::Attached(device);
            }
            Step::Detach { .. } => {
                assert!(self.mounted.is_none(), "detached while it is mounted");
                self.device = None;
            }
            Step::Probe { .. } => return Outcome::Probed(self.content),
            Step::Label { state, .. } => self.system().spec.state = state,
            Step::Make { device, .. } => {
                assert!(!self.is_precious, "a file system was made over data");
                assert!(self.mounted.is_none());
                self.made += 1;
                self.content = Content::Ext4 { size_bytes: device.size_bytes };
            }
            Step::Check { .. } => assert!(self.mounted.is_none(), "checked while it is mounted"),
            Step::Mount { device, .. } => {
                assert!(self.system().spec.state != MakeState::Making, "mounted unfinished");
                self.mounted = Some(device.number);
            }
            Step::Grow { device, .. } => self.content = Content::Ext4 { size_bytes: device.size_bytes },
            Step::Unmount | Step::DropMount => self.mounted = None,
        }
        Outcome::Done
    }

    /// Until nothing is under way and nothing would happen by itself within `seconds`.
    fn settle(&mut self, seconds: u64) {
        let end = Nanos(self.now.0 + seconds * SECOND);
        for _ in 0..10_000 {
            if self.working.is_some() {
                self.carry_out();
            } else if self.now < end {
                self.now = self.now.plus_ms(100);
                self.event(Event::Tick);
            } else {
                return;
            }
        }
        panic!("it never settles: {:?}", self.log);
    }

    fn mount(&mut self, token: u64, id: &str) {
        let deadline = self.now.plus_ms(25_000);
        self.event(Event::Mount { token, id: id.to_owned(), deadline });
    }

    fn unmount(&mut self, token: u64, id: &str) {
        let deadline = self.now.plus_ms(20_000);
        self.event(Event::Unmount { token, id: id.to_owned(), deadline });
    }

    fn is_clean(&mut self) -> bool {
        let unmapped = self.system.as_ref().is_none_or(|system| system.here.is_none());
        self.mounted.is_none() && self.device.is_none() && unmapped && self.on_disk.is_none() && self.machine.is_idle()
    }
}

#[test]
fn a_first_mount_makes_the_file_system_once_and_the_last_unmount_leaves_nothing() {
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::New, Content::Blank);
    world.mount(1, "a");
    world.mount(2, "b");
    world.settle(1);
    assert_eq!(world.answers[&1], Ok(Answer::Mounted { in_data: true }));
    assert_eq!(world.answers[&2], Ok(Answer::Mounted { in_data: true }));
    world.unmount(3, "a");
    world.settle(1);
    assert!(world.mounted.is_some(), "another container has it");
    world.mount(4, "b");
    world.settle(1);
    world.unmount(5, "b");
    world.settle(1);
    assert!(world.mounted.is_some(), "`docker cp` mounts and unmounts under the name of the running container");
    world.unmount(6, "b");
    world.settle(1);
    assert!(world.is_clean());
    world.mount(7, "c");
    world.settle(1);
    assert_eq!(world.made, 1);
}

#[test]
fn an_unfinished_file_system_is_made_anew_and_a_finished_one_never() {
    let there = Content::Ext4 { size_bytes: 1 << 30 };
    let mut world = World::new(Preempt::Never, MakeState::Making, there);
    world.mount(1, "a");
    world.settle(1);
    assert!(world.answers[&1].is_ok());
    assert_eq!(world.made, 1);
    for (state, content, why) in [
        (MakeState::Made, Content::Blank, "has lost its file system"),
        (MakeState::Made, Content::Other, "left as it is"),
        (MakeState::New, Content::Other, "left as it is"),
        (MakeState::Given, Content::Other, "left as it is"),
    ] {
        let mut world = World::new(Preempt::Never, state, content);
        world.mount(1, "a");
        world.settle(1);
        let refused = world.answers[&1].clone().unwrap_err();
        assert!(refused.contains(why), "{refused}");
        assert!(world.is_clean() && world.made == 0, "a failed mount leaves nothing behind");
    }
}

#[test]
fn a_file_system_of_somebody_else_is_mounted_as_it_is() {
    let mut world = World::new(Preempt::Never, MakeState::Given, Content::Xfs { size_bytes: 1 << 30 });
    world.mount(1, "a");
    world.settle(1);
    assert_eq!(world.answers[&1], Ok(Answer::Mounted { in_data: false }));
    assert_eq!(world.made, 0);
}

#[test]
fn a_living_host_keeps_its_volume_and_a_silent_one_loses_it() {
    let there = Content::Ext4 { size_bytes: 1 << 30 };
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::Made, there);
    world.system().holders = vec![holder(300)];
    world.mount(1, "a");
    world.settle(30);
    let refused = world.answers[&1].clone().unwrap_err();
    assert!(refused.contains("host2"), "{refused}");
    assert_eq!(world.system().holders.len(), 1);
    world.system().holders = vec![holder(10_000)];
    world.mount(2, "a");
    world.settle(1);
    assert!(world.answers[&2].is_ok() && world.system().holders.is_empty());

    let mut world = World::new(Preempt::Never, MakeState::Made, there);
    world.system().holders = vec![holder(u64::MAX)];
    world.mount(1, "a");
    world.settle(30);
    assert!(world.answers[&1].clone().unwrap_err().contains("never"));
    world.system().holders.clear();
    world.settle(1);
    assert!(world.is_clean());

    let mut world = World::new(Preempt::Always, MakeState::Made, there);
    world.system().holders = vec![holder(0)];
    world.mount(1, "a");
    world.settle(1);
    assert!(world.answers[&1].is_ok());
}

#[test]
fn a_mount_whose_mapping_was_taken_away_is_dropped_and_never_handed_out() {
    let there = Content::Ext4 { size_bytes: 1 << 30 };
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::Made, there);
    world.mount(1, "a");
    world.settle(1);
    // Another host took it: mapping and device are gone, the mount hangs on.
    world.system().here = None;
    world.system().holders = vec![holder(0)];
    world.device = None;
    world.event(Event::Inspect);
    world.settle(1);
    assert!(world.mounted.is_none() && world.log.iter().any(|line| line.contains("taken away")), "{:?}", world.log);
    world.mount(2, "a");
    world.settle(30);
    assert!(world.answers[&2].is_err());
    world.system().holders.clear();
    world.mount(3, "b");
    world.settle(1);
    assert!(world.answers[&3].is_ok());
}

#[test]
fn what_cannot_be_asked_is_not_taken_for_lost() {
    let there = Content::Ext4 { size_bytes: 1 << 30 };
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::Made, there);
    world.mount(1, "a");
    world.settle(1);
    world.reachable = false;
    world.event(Event::Inspect);
    world.settle(5);
    assert!(world.mounted.is_some());
    world.unmount(2, "a");
    world.settle(30);
    assert_eq!(world.answers[&2], Ok(Answer::Done), "the engine is not kept waiting");
    assert!(world.mounted.is_none() && world.on_disk.is_some(), "the rest is still to be done");
    world.reachable = true;
    world.settle(10);
    assert!(world.is_clean());
}

#[test]
fn a_mount_nobody_waits_for_any_more_is_undone() {
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::New, Content::Blank);
    world.mount(1, "a");
    world.carry_out();
    world.event(Event::Abandon { token: 1 });
    world.settle(2);
    assert!(world.answers.is_empty() && world.is_clean());
}

#[test]
fn a_mount_that_is_unmounted_while_somebody_waits_for_it_fails_and_leaves_nothing() {
    for carried_out in 0..8 {
        let mut world = World::new(Preempt::WhenUnreachable, MakeState::New, Content::Blank);
        world.mount(1, "a");
        for _ in 0..carried_out {
            world.carry_out();
        }
        if !world.answers.is_empty() {
            continue;
        }
        world.mount(2, "a");
        world.unmount(3, "a");
        world.settle(1);
        assert!(
            world.answers[&1].clone().unwrap_err().contains("was unmounted while"),
            "the count of two was one too many"
        );
        assert_eq!(world.answers[&2], Ok(Answer::Mounted { in_data: true }));
        assert_eq!(world.answers[&3], Ok(Answer::Done));
        let deadline = world.now.plus_ms(20_000);
        world.mount(4, "b");
        world.event(Event::Release { token: 5, deadline });
        world.settle(1);
        assert!(world.answers[&4].is_err() && world.is_clean());
    }
}

#[test]
fn a_step_that_hangs_keeps_nobody_waiting_beyond_his_deadline() {
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::New, Content::Blank);
    world.mount(1, "a");
    while !matches!(world.working, Some(Step::Make { .. })) {
        world.carry_out();
    }
    world.now = world.now.plus_ms(26_000);
    world.event(Event::Tick);
    let refused = world.answers[&1].clone().unwrap_err();
    assert!(refused.contains("make an ext4 file system"), "{refused}");
    world.settle(2);
    assert!(world.is_clean(), "what ended late is undone");
}

#[test]
fn mounts_left_over_are_forgotten_but_not_those_somebody_waits_for() {
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::New, Content::Blank);
    world.mount(1, "a");
    world.settle(1);
    world.mount(2, "b");
    world.event(Event::Unused);
    world.settle(1);
    assert!(world.answers[&2].is_ok());
    assert_eq!(world.machine.record().ids.keys().collect::<Vec<_>>(), ["b"]);
    world.event(Event::Unused);
    world.settle(1);
    assert!(world.is_clean());
}

#[test]
fn a_killed_engine_that_returns_mounts_once_more_and_unmounts_once() {
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::New, Content::Blank);
    world.mount(1, "a");
    world.settle(1);
    world.event(Event::EngineStarted);
    world.mount(2, "a");
    world.settle(1);
    assert!(world.answers[&2].is_ok());
    world.unmount(3, "a");
    world.settle(1);
    assert!(world.is_clean());
}

#[test]
fn a_volume_that_grew_takes_its_file_system_along() {
    let there = Content::Ext4 { size_bytes: 1 << 30 };
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::Made, there);
    world.system().size_bytes = 2 << 30;
    world.mount(1, "a");
    world.settle(1);
    assert_eq!(world.content, Content::Ext4 { size_bytes: 2 << 30 }, "at the mount");
    world.system().size_bytes = 3 << 30;
    world.device.as_mut().expect("attached").size_bytes = 3 << 30;
    world.event(Event::Inspect);
    world.settle(1);
    assert_eq!(world.content, Content::Ext4 { size_bytes: 3 << 30 }, "while mounted");
}

#[test]
fn a_volume_in_use_is_not_cleared_and_a_free_one_is() {
    let mut world = World::new(Preempt::WhenUnreachable, MakeState::New, Content::Blank);
    world.mount(1, "a");
    world.settle(1);
    let deadline = world.now.plus_ms(5000);
    world.event(Event::Clear { token: 2, deadline });
    assert!(world.answers[&2].clone().unwrap_err().contains("in use"));
    world.unmount(3, "a");
    world.event(Event::Clear { token: 4, deadline });
    world.settle(1);
    assert_eq!(world.answers[&4], Ok(Answer::Done));
    assert!(world.is_clean());
}

/// What may befall a volume.
#[derive(Clone, Debug)]
enum Chance {
    Mount(u8),
    Unmount(u8),
    Abandon,
    Release,
    Work,
    Fail,
    Wait,
    Kill,
    Lose,
    Reach(bool),
    Inspect,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        4 => (0..3_u8).prop_map(Chance::Mount),
        4 => (0..3_u8).prop_map(Chance::Unmount),
        1 => Just(Chance::Abandon),
        1 => Just(Chance::Release),
        20 => Just(Chance::Work),
        3 => Just(Chance::Fail),
        3 => Just(Chance::Wait),
        1 => Just(Chance::Kill),
        1 => Just(Chance::Lose),
        1 => any::<bool>().prop_map(Chance::Reach),
        1 => Just(Chance::Inspect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
    /// The assertions are in `World`: whatever happens, in whatever order, and wherever the plugin is killed.
    #[test]
    fn nothing_is_made_over_data_and_nothing_is_left_behind(chances in proptest::collection::vec(chance(), 1..120)) {
        let mut world = World::new(Preempt::WhenUnreachable, MakeState::New, Content::Blank);
        let mut token = 0;
        for chance in chances {
            token += 1;
            match chance {
                Chance::Mount(id) => world.mount(token, &id.to_string()),
                Chance::Unmount(id) => world.unmount(token, &id.to_string()),
                Chance::Abandon => world.event(Event::Abandon { token: token - 1 }),
                Chance::Release => {
                    let deadline = world.now.plus_ms(20_000);
                    world.event(Event::Release { token, deadline });
                }
                Chance::Work => world.carry_out(),
                Chance::Fail => {
                    if world.working.take().is_some() {
                        let failure = Failure { text: "failed".to_owned(), is_final: token % 2 == 0 };
                        world.event(Event::Done(Outcome::Failed(failure)));
                    }
                }
                Chance::Wait => {
                    world.now = world.now.plus_ms(3000);
                    world.event(Event::Tick);
                }
                Chance::Kill => {
                    world.working = None;
                    let on_disk = world.on_disk.clone();
                    let record = on_disk.clone().unwrap_or_else(|| Record::new("db", "boot"));
                    world.machine = Machine::new(world.machine.policy, record, on_disk.is_some());
                    world.event(Event::Tick);
                }
                Chance::Lose => {
                    world.is_lost_since = true;
                    world.system().here = None;
                    world.device = None;
                }
                Chance::Reach(reachable) => world.reachable = reachable,
                Chance::Inspect => world.event(Event::Inspect),
            }
        }
        world.reachable = true;
        world.settle(30);
        world.event(Event::Unused);
        world.settle(60);
        prop_assert!(world.is_clean(), "{:?} {:?} {:?}", world.mounted, world.device, world.system);
    }
}
