//! Promises of a member, alone and in a group of three, on virtual time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod harness;

use harness::{Got, World};
use mdm_api::command::{
    AdminCommand, CommandAnswer, DaemonCommand, ObjectRef, PresentedDevice, Query, QueryAnswer, StoreVerdict,
};
use mdm_api::control::{DeviceReport, Heartbeat, JoinRole, PeerRole, Request, RequestError, Response};
use mdm_api::epoch::Revision;
use mdm_api::error::ErrorCode;
use mdm_api::ids::{DeviceId, DeviceIncarnation, Guid, MdmId, ProcessIncarnation, SdcId, SdsId, VolumeId};
use mdm_api::map::{ClusterMap, MapView};
use mdm_api::model::{AccessMode, Limits};
use mdm_node::{ConnectionId, Event};

fn admin(id: u128, command: AdminCommand) -> Request {
    Request::Admin { request_id: id, command }
}

fn daemon(id: u128, command: DaemonCommand) -> Request {
    Request::Daemon { request_id: id, command }
}

type Answer = Option<Result<Box<Response>, RequestError>>;

#[track_caller]
fn command(answer: Answer) -> CommandAnswer {
    match answer.expect("answered").map(|response| *response) {
        Ok(Response::Command(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(answer: Answer) -> ErrorCode {
    match answer.expect("answered") {
        Err(RequestError::Refused(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

fn add_domain(id: u128, name: &str) -> Request {
    admin(id, AdminCommand::AddProtectionDomain { name: name.to_owned() })
}

#[test]
fn nobody_acts_without_logging_in_and_a_wrong_password_is_refused() {
    let mut world = World::new();
    let leader = world.leader().unwrap();
    let tool = world.connect(leader, PeerRole::Tool);
    assert_eq!(refused(world.call(leader, tool, add_domain(1, "d"), 100)), ErrorCode::InvalidSession);
    assert_eq!(refused(world.call(leader, tool, Request::Query(Query::Cluster), 100)), ErrorCode::InvalidSession);
    for (user, password) in [("admin", "wrong"), ("nobody", "right")] {
        let login = Request::Login { user: user.to_owned(), password: password.to_owned() };
        assert_eq!(refused(world.call(leader, tool, login, 100)), ErrorCode::WrongPassword);
    }
    assert_eq!(refused(world.call(leader, tool, Request::JoinToken, 100)), ErrorCode::InvalidSession);
    let sds = world.connect(leader, PeerRole::Sds(SdsId(1)));
    assert_eq!(refused(world.call(leader, sds, add_domain(2, "d"), 100)), ErrorCode::PermissionDenied);
    let joiner = world.connect(leader, PeerRole::Joiner);
    let join = Request::Join {
        role: JoinRole::Sdc { guid: Guid([1; 16]), name: None },
        secret: "guess".to_owned(),
        csr_pem: String::new(),
    };
    assert_eq!(refused(world.call(leader, joiner, join, 100)), ErrorCode::PermissionDenied);
}

#[test]
fn a_session_is_good_on_any_member_until_the_password_changes() {
    let mut world = World::three();
    let leader = world.leader().unwrap();
    let other = *world.members.keys().find(|id| **id != leader).unwrap();
    let tool = world.connect(leader, PeerRole::Tool);
    let login = Request::Login { user: "admin".to_owned(), password: "right".to_owned() };
    let Some(Ok(response)) = world.call(leader, tool, login, 0) else { panic!("not logged in") };
    let Response::LoggedIn { token, .. } = *response else { panic!("{response:?}") };
    let elsewhere = world.connect(other, PeerRole::Tool);
    let resume = Request::Resume { token: token.clone() };
    assert!(matches!(world.call(other, elsewhere, resume, 0), Some(Ok(_))));
    let cluster = world.call(other, elsewhere, Request::Query(Query::Cluster), 0);
    let Some(Ok(response)) = cluster else { panic!("{cluster:?}") };
    let Response::Query(QueryAnswer::Cluster(view)) = *response else { panic!("{response:?}") };
    assert_eq!((view.leader, view.answered_by, view.members.len()), (Some(leader), other, 3));
    assert!(view.members.iter().any(|member| member.mdm.id == leader && member.connected));
    let forged = format!("{}0", &token[..token.len() - 1]);
    if forged != token {
        assert_eq!(
            refused(world.call(other, elsewhere, Request::Resume { token: forged }, 0)),
            ErrorCode::InvalidSession
        );
    }
    let set = AdminCommand::SetPassword { user: ObjectRef::from("admin"), password_hash: "$argon2id$new".to_owned() };
    command(world.call(leader, tool, admin(7, set), 500));
    let again = world.call(other, elsewhere, Request::Query(Query::Cluster), 0);
    assert_eq!(refused(again), ErrorCode::InvalidSession);
    assert_eq!(refused(world.call(other, elsewhere, Request::Resume { token }, 0)), ErrorCode::InvalidSession);
}

#[test]
fn a_follower_names_the_leader_and_the_next_leader_gives_the_same_answer() {
    let mut world = World::three();
    let first = world.leader().unwrap();
    let follower = *world.members.keys().find(|id| **id != first).unwrap();
    let tool = world.admin(follower);
    match world.call(follower, tool, add_domain(5, "d"), 100) {
        Some(Err(RequestError::NotLeader(Some(address)))) => assert_eq!(address.id, first),
        other => panic!("{other:?}"),
    }
    let tool = world.admin(first);
    let answer = command(world.call(first, tool, add_domain(5, "d"), 200));
    world.kill(first);
    world.run(5000);
    let second = world.leader().expect("two of three elect a leader");
    assert_ne!(first, second);
    let tool = world.admin(second);
    assert_eq!(command(world.call(second, tool, add_domain(5, "d"), 200)), answer);
    assert_eq!(refused(world.call(second, tool, add_domain(6, "d"), 200)), ErrorCode::NameInUse);
    world.start(first);
    world.run(3000);
    let digest = world.node(second).state().digest();
    assert_eq!(world.node(first).state().digest(), digest, "it catches up from its log");
}

#[test]
fn a_leader_that_is_cut_off_answers_nobody_as_if_it_led() {
    let mut world = World::three();
    let old = world.leader().unwrap();
    let tool = world.admin(old);
    world.cut.insert(old);
    let lost = world.ask(old, tool, add_domain(9, "lost"));
    let query = world.ask(old, tool, Request::Query(Query::System));
    world.run(6000);
    let new = world.leader().expect("the others elect a leader");
    assert_ne!(new, old);
    for id in [lost, query] {
        let answer = world.answer(old, tool, id);
        assert!(matches!(answer, Some(Err(RequestError::NotLeader(_)))), "{answer:?}");
    }
    let tool = world.admin(new);
    command(world.call(new, tool, add_domain(9, "lost"), 200));
    world.cut.clear();
    world.run(3000);
    assert_eq!(world.node(old).state().digest(), world.node(new).state().digest());
}

#[test]
fn a_member_that_was_away_long_catches_up_and_a_removed_one_stops() {
    let mut world = World::three();
    let leader = world.leader().unwrap();
    let away = *world.members.keys().find(|id| **id != leader).unwrap();
    world.kill(away);
    let tool = world.admin(leader);
    for number in 0..50 {
        command(world.call(leader, tool, add_domain(100 + number, &format!("d{number}")), 100));
    }
    world.start(away);
    world.run(3000);
    assert_eq!(world.node(away).state().protection_domains().len(), 50);
    let leader = world.leader().unwrap();
    let tool = world.admin(leader);
    let victim = *world.members.keys().find(|id| **id != leader).unwrap();
    let remove = AdminCommand::RemoveMdm { mdm: ObjectRef(victim.to_string()) };
    command(world.call(leader, tool, admin(999, remove), 5000));
    let halted = world.members[&victim].halted.clone().expect("a removed member stops");
    assert!(halted.contains("mdm join"), "{halted}");
}

#[test]
fn a_leader_that_is_removed_hands_over_and_goes() {
    let mut world = World::three();
    let old = world.leader().unwrap();
    let tool = world.admin(old);
    let remove = AdminCommand::RemoveMdm { mdm: ObjectRef(old.to_string()) };
    command(world.call(old, tool, admin(1, remove), 8000));
    assert!(world.members[&old].halted.is_some());
    let new = world.leader().expect("the others go on");
    let tool = world.admin(new);
    command(world.call(new, tool, add_domain(2, "d"), 500));
}

#[test]
fn a_tie_breaker_votes_and_never_takes_commands() {
    let mut world = World::new();
    world.add_member(2);
    world.run(3000);
    let tie_breaker = world.add_member_as(3, true);
    world.run(3000);
    let first = world.leader().unwrap();
    world.kill(first);
    world.run(6000);
    let second = world.leader().expect("a manager and a tie-breaker elect the manager");
    assert!(second != first && second != tie_breaker);
    let tool = world.admin(second);
    command(world.call(second, tool, add_domain(1, "d"), 300));
    let tool = world.admin(tie_breaker);
    let answer = world.call(tie_breaker, tool, add_domain(2, "e"), 300);
    assert!(matches!(answer, Some(Err(RequestError::NotLeader(Some(_))))), "{answer:?}");
}

#[test]
fn a_member_whose_log_was_wiped_stops_and_says_what_to_do() {
    let mut world = World::three();
    let leader = world.leader().unwrap();
    let wiped = *world.members.keys().find(|id| **id != leader).unwrap();
    world.kill(wiped);
    world.run(500);
    world.start_wiped(wiped);
    world.run(5000);
    let halted = world.members[&wiped].halted.clone().expect("it is refused under its old id");
    assert!(halted.contains("scli mdm remove") && halted.contains("mdm join"), "{halted}");
    let leader = world.leader().expect("the others go on");
    let tool = world.admin(leader);
    command(world.call(leader, tool, add_domain(1, "d"), 300));
}

/// A small system: a domain, a pool, two servers with a device each, one client.
struct System {
    world: World,
    leader: MdmId,
    tool: ConnectionId,
    servers: Vec<Server>,
    sdc: (SdcId, ConnectionId),
    next: u128,
}

struct Server {
    id: SdsId,
    incarnation: ProcessIncarnation,
    connection: ConnectionId,
    is_alive: bool,
    fenced: bool,
}

impl System {
    fn new() -> Self {
        let mut world = World::new();
        let leader = world.leader().unwrap();
        let tool = world.admin(leader);
        let mut system =
            Self { world, leader, tool, servers: Vec::new(), sdc: (SdcId(0), ConnectionId(0)), next: 1000 };
        system.admin(AdminCommand::AddProtectionDomain { name: "d".to_owned() });
        let pool = AdminCommand::AddStoragePool {
            name: "p".to_owned(),
            protection_domain: None,
            copies: 2,
            min_isr: 0,
            pg_count: 8,
        };
        system.admin(pool);
        for number in 1..=2 {
            system.add_server(number);
        }
        let guid = Guid([9; 16]);
        let CommandAnswer::Object { id } = system.admin(AdminCommand::AddSdc { guid, name: None }) else {
            panic!("no SDC")
        };
        let connection = system.world.connect(leader, PeerRole::Sdc(SdcId(id)));
        system.sdc = (SdcId(id), connection);
        system
    }

    fn number(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    fn ask(&mut self, command: AdminCommand) -> u64 {
        let request = admin(self.number(), command);
        self.world.ask(self.leader, self.tool, request)
    }

    fn answer(&self, id: u64) -> Answer {
        self.world.answer(self.leader, self.tool, id)
    }

    #[track_caller]
    fn admin(&mut self, admin: AdminCommand) -> CommandAnswer {
        let id = self.ask(admin);
        self.run(200);
        command(self.answer(id))
    }

    #[track_caller]
    fn daemon(&mut self, connection: ConnectionId, request: DaemonCommand) -> CommandAnswer {
        let request = daemon(self.number(), request);
        command(self.world.call(self.leader, connection, request, 100))
    }

    fn add_server(&mut self, number: u64) {
        let name = format!("sds{number}");
        let addresses = vec![format!("h{number}:7072")];
        let add = AdminCommand::AddSds { name, protection_domain: None, fault_set: None, addresses: addresses.clone() };
        let CommandAnswer::Object { id } = self.admin(add) else { panic!("no SDS") };
        let id = SdsId(id);
        let connection = self.world.connect(self.leader, PeerRole::Sds(id));
        let register = DaemonCommand::RegisterSds { sds: id, nonce: number, addresses, devices: vec![] };
        let CommandAnswer::SdsRegistered { incarnation, .. } = self.daemon(connection, register) else {
            panic!("not registered")
        };
        self.servers.push(Server { id, incarnation, connection, is_alive: true, fenced: true });
        let device = self.recorded(id);
        self.ready(self.servers.len() - 1, device);
        self.run(200);
    }

    /// Asks for a device; waits until it is recorded.
    fn recorded(&mut self, sds: SdsId) -> (u64, DeviceId, DeviceIncarnation) {
        let path = "/dev/x".to_owned();
        let add = AdminCommand::AddDevice { name: None, sds: ObjectRef(sds.to_string()), storage_pool: None, path };
        let asked = self.ask(add);
        self.run(200);
        assert!(self.answer(asked).is_none(), "answered before its server said that it is ready");
        let state = self.world.node(self.leader).state();
        let device = state.devices().values().rfind(|device| device.sds == sds).expect("recorded");
        (asked, device.id, device.incarnation)
    }

    fn ready(&mut self, server: usize, (asked, device, incarnation): (u64, DeviceId, DeviceIncarnation)) {
        let (sds, process, connection) =
            (self.servers[server].id, self.servers[server].incarnation, self.servers[server].connection);
        let presented =
            PresentedDevice { device, incarnation, open_count: 1, size_bytes: 8 << 30, verdict: StoreVerdict::Clean };
        self.daemon(connection, DaemonCommand::DeviceReady { sds, incarnation: process, device: presented });
        self.run(100);
        assert!(matches!(command(self.answer(asked)), CommandAnswer::DeviceRecorded { id, .. } if id == device));
    }

    /// Lets time pass while the servers that live report.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(100) {
            for server in &self.servers {
                let revision = self.world.node(self.leader).state().revision();
                let heartbeat = Heartbeat {
                    sds: server.id,
                    incarnation: Some(server.incarnation),
                    map_revision: revision,
                    fenced_through: if server.fenced { revision } else { Revision(0) },
                    dropped: vec![],
                    devices: vec![DeviceReport { device: DeviceId(0), used_bytes: 0, free_bytes: 0 }],
                    tails: vec![],
                    resync: vec![],
                    unreachable: vec![],
                    leases_with: vec![],
                };
                if server.is_alive {
                    let event = Event::Heartbeat { connection: server.connection, heartbeat: Box::new(heartbeat) };
                    self.world.step(self.leader, event);
                }
            }
            self.world.run(100);
        }
    }

    fn mapped_volume(&mut self) -> VolumeId {
        let add = AdminCommand::AddVolume {
            name: "v".to_owned(),
            storage_pool: None,
            size_bytes: 1 << 30,
            labels: Default::default(),
        };
        let CommandAnswer::Volume { id, .. } = self.admin(add) else { panic!("no volume") };
        let map = AdminCommand::MapVolume {
            volume: "v".into(),
            sdc: ObjectRef(self.sdc.0.to_string()),
            access: AccessMode::ReadWrite,
            limits: Limits::default(),
            allow_multiple: false,
        };
        self.admin(map);
        self.run(1000);
        id
    }

    fn open(&mut self, volume: VolumeId, opener: u64) -> u64 {
        let (sdc, connection) = self.sdc;
        self.daemon(connection, DaemonCommand::OpenMapping { volume, sdc, opener });
        self.world.ask(self.leader, connection, Request::Credential { volume, opener })
    }

    fn credential(&self, asked: u64) -> Answer {
        self.world.answer(self.leader, self.sdc.1, asked)
    }
}

#[test]
fn a_device_is_answered_when_it_is_in_use_and_its_refusal_is_told_in_the_servers_words() {
    let mut system = System::new();
    let sds = system.servers[0].id;
    let (process, connection) = (system.servers[0].incarnation, system.servers[0].connection);
    let path = "/dev/y".to_owned();
    let add = AdminCommand::AddDevice { name: None, sds: ObjectRef(sds.to_string()), storage_pool: None, path };
    let asked = system.ask(add);
    system.run(200);
    let state = system.world.node(system.leader).state();
    let device = state.devices().values().find(|device| device.path == "/dev/y").unwrap().id;
    let reason = "it belongs to another system".to_owned();
    system.daemon(connection, DaemonCommand::DeviceRefused { sds, incarnation: process, device, reason });
    match system.answer(asked) {
        Some(Err(RequestError::Refused(error))) => {
            assert_eq!(error.code, ErrorCode::DeviceUnusable);
            assert!(error.to_string().contains("it belongs to another system"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_credential_is_given_only_after_everything_older_is_fenced() {
    let mut system = System::new();
    let volume = system.mapped_volume();
    let first = system.open(volume, 11);
    system.run(500);
    assert!(matches!(system.credential(first), Some(Ok(_))), "{:?}", system.credential(first));
    // I17: a second opening waits for a server that has not confirmed the fence.
    system.servers[0].fenced = false;
    let second = system.open(volume, 12);
    system.run(2000);
    assert!(system.credential(second).is_none());
    assert_eq!(
        refused({
            let connection = system.sdc.1;
            let id = system.world.ask(system.leader, connection, Request::Credential { volume, opener: 11 });
            system.run(200);
            system.credential(id)
        }),
        ErrorCode::Stale
    );
    system.servers[0].fenced = true;
    system.run(500);
    let answer = system.credential(second);
    assert!(matches!(answer.as_ref().map(|r| r.as_deref()), Some(Ok(Response::Credential(_)))), "{answer:?}");
}

#[test]
fn unmapping_returns_when_every_server_has_fenced_and_else_says_who_has_not() {
    let mut system = System::new();
    let volume = system.mapped_volume();
    system.open(volume, 11);
    system.run(500);
    system.servers[1].fenced = false;
    let unmap = || AdminCommand::UnmapVolume { volume: "v".into(), sdc: None };
    let asked = system.ask(unmap());
    system.run(2000);
    assert!(system.answer(asked).is_none(), "P8: not before the fence holds");
    system.run(30_000);
    match system.answer(asked) {
        Some(Err(RequestError::Refused(error))) => {
            assert_eq!(error.code, ErrorCode::NotFenced);
            assert!(error.message.contains("SDS sds2") && !error.message.contains("sds1"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let again = system.ask(unmap());
    system.servers[1].fenced = true;
    system.run(1000);
    assert!(matches!(command(system.answer(again)), CommandAnswer::Unmapping { .. }));
    assert!(system.world.node(system.leader).state().mappings().is_empty());
}

#[test]
fn a_silent_server_is_found_dead_and_its_groups_move() {
    let mut system = System::new();
    system.mapped_volume();
    system.run(3000);
    let dead = system.servers[0].id;
    system.servers[0].is_alive = false;
    system.run(2500);
    let state = system.world.node(system.leader).state();
    assert!(!state.sds()[&dead].connected);
    for record in state.pgs().values() {
        let primary = record.config.primary.expect("the other copy leads");
        assert_eq!(state.devices()[&primary].sds, system.servers[1].id);
    }
}

#[test]
fn a_daemon_asks_only_for_itself() {
    let mut system = System::new();
    let volume = system.mapped_volume();
    let (own, other) = (system.servers[0].connection, system.servers[1].id);
    let register = daemon(
        1,
        DaemonCommand::RegisterSds { sds: other, nonce: 1, addresses: vec!["h:1".to_owned()], devices: vec![] },
    );
    assert_eq!(refused(system.world.call(system.leader, own, register, 100)), ErrorCode::PermissionDenied);
    let open = daemon(2, DaemonCommand::OpenMapping { volume, sdc: SdcId(1), opener: 5 });
    assert_eq!(refused(system.world.call(system.leader, system.sdc.1, open, 100)), ErrorCode::PermissionDenied);
    let heartbeat = Heartbeat {
        sds: other,
        incarnation: None,
        map_revision: Revision(0),
        fenced_through: Revision(0),
        dropped: vec![],
        devices: vec![],
        tails: vec![],
        resync: vec![],
        unreachable: vec![],
        leases_with: vec![],
    };
    system.world.step(system.leader, Event::Heartbeat { connection: own, heartbeat: Box::new(heartbeat) });
    assert!(matches!(system.world.got[&(system.leader, own)].last(), Some(Got::Closed)));
}

#[test]
fn a_follower_gets_steps_that_follow_on_each_other_and_one_at_a_time() {
    let mut system = System::new();
    let (sds, connection) = (system.servers[0].id, system.servers[0].connection);
    let follow = Event::Follow { connection, view: MapView::Sds(sds), have: Revision(0) };
    system.world.hold_pushes = true;
    system.world.step(system.leader, follow);
    for name in ["a", "b", "c"] {
        system.admin(AdminCommand::AddProtectionDomain { name: name.to_owned() });
    }
    assert_eq!(system.world.pushes(system.leader, connection).len(), 1, "one step under way");
    system.world.hold_pushes = false;
    system.world.step(system.leader, Event::PushWritten(connection));
    let pushes = system.world.pushes(system.leader, connection);
    assert_eq!(pushes.len(), 2, "what came meanwhile is one step");
    let mut map = ClusterMap::default();
    for push in &pushes {
        assert_eq!(map.apply(push), Ok(true));
    }
    assert_eq!(map.revision(), system.world.node(system.leader).state().revision());
    assert!(map.domain_keys().count() == 1, "the key of its own domain, and of no other");
    let foreign = Event::Follow { connection, view: MapView::Sdc(SdcId(1)), have: Revision(0) };
    system.world.step(system.leader, foreign);
    assert!(matches!(system.world.got[&(system.leader, connection)].last(), Some(Got::Closed)));
}

#[test]
fn a_follower_hears_that_nothing_changes_and_nothing_from_a_member_without_a_leader() {
    let mut system = System::new();
    let (sds, connection) = (system.servers[0].id, system.servers[0].connection);
    system.world.step(system.leader, Event::Follow { connection, view: MapView::Sds(sds), have: Revision(0) });
    let before = system.world.pushes(system.leader, connection);
    let revision = before.last().unwrap().to;
    system.world.run(1000);
    let after = system.world.pushes(system.leader, connection);
    let fresh = &after[before.len()..];
    assert!(fresh.len() >= 3 && fresh.iter().all(|push| push.to == revision && push.changed.is_empty()), "{fresh:?}");
}

#[test]
fn a_member_that_is_cut_off_from_the_others_says_nothing_to_its_followers() {
    let mut world = World::three();
    let follower = *world.members.keys().find(|id| Some(**id) != world.leader()).unwrap();
    let sds = SdsId(7);
    let connection = world.connect(follower, PeerRole::Sds(sds));
    world.step(follower, Event::Follow { connection, view: MapView::Sds(sds), have: Revision(1) });
    world.run(1000);
    assert!(world.pushes(follower, connection).len() >= 3);
    world.cut.insert(follower);
    world.run(4000);
    let before = world.pushes(follower, connection).len();
    world.run(4000);
    assert_eq!(world.pushes(follower, connection).len(), before);
}
