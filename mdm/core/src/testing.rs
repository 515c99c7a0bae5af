//! A small system for tests: commands in, invariants checked after each.

use std::collections::BTreeSet;

use mdm_api::command::{AdminCommand, CommandAnswer, CommandResult, DaemonCommand, PresentedDevice, StoreVerdict};
use mdm_api::config::{PgChange, PgChangeKind, PgConfig};
use mdm_api::control::Heartbeat;
use mdm_api::epoch::{Nanos, Revision};
use mdm_api::error::ErrorCode;
use mdm_api::ids::{DeviceId, Guid, PgId, ProcessIncarnation, SdcId, SdsId, StoragePoolId, SystemId, VolumeId};
use mdm_api::map::{ClusterMap, MapView};
use mdm_api::model::{AccessMode, DeviceState, Limits};
use mdm_api::timing::Timing;

use crate::command::{Command, CreateSystem, LogEntry, OwnCommand};
use crate::observed::Observed;
use crate::reconcile::Reconcilers;
use crate::state::State;
use crate::view::{PgHealth, pg_health};

pub(crate) const GIB: u64 = 1 << 30;

/// A state with its log, checked at every step.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) log: Vec<LogEntry>,
    next_request: u128,
    next_nonce: u64,
}

pub(crate) fn create_system() -> Command {
    Command::CreateSystem(Box::new(CreateSystem {
        system: SystemId(0x1234_5678_9abc_def0),
        name: "test".to_owned(),
        authority_certificate_pem: "certificate".to_owned(),
        authority_key_pem: "key".to_owned(),
        mdm_name: "mdm1".to_owned(),
        mdm_address: "127.0.0.1:6611".to_owned(),
        mdm_peer_address: "127.0.0.1:6612".to_owned(),
        mdm_store_id: 77,
        admin_password_hash: "$argon2id$x".to_owned(),
        join_token_hash: [1; 32],
    }))
}

impl World {
    /// A system with a domain and nothing else.
    pub(crate) fn empty() -> Self {
        let mut world = Self { state: State::default(), log: Vec::new(), next_request: 1, next_nonce: 100 };
        world.run(create_system()).unwrap();
        world.admin(AdminCommand::AddProtectionDomain { name: "pd".to_owned() }).unwrap();
        world
    }

    /// A system with a pool of `copies` and `pg_count`, and servers with devices of 4 GiB, all running.
    pub(crate) fn new(servers: usize, devices: usize, copies: u8, pg_count: u32) -> Self {
        let mut world = Self::empty();
        world.add_pool("pool", copies, pg_count);
        for _ in 0..servers {
            world.add_server(devices);
        }
        world
    }

    pub(crate) fn add_pool(&mut self, name: &str, copies: u8, pg_count: u32) -> StoragePoolId {
        let command = AdminCommand::AddStoragePool {
            name: name.to_owned(),
            protection_domain: None,
            copies,
            min_isr: 0,
            pg_count,
        };
        StoragePoolId(self.object(command))
    }

    pub(crate) fn add_server(&mut self, devices: usize) -> SdsId {
        let index = self.state.sds().len() + 1;
        let sds = SdsId(self.object(AdminCommand::AddSds {
            name: format!("sds{index}"),
            protection_domain: None,
            fault_set: None,
            addresses: vec![format!("127.0.0.1:{}", 7000 + index)],
        }));
        self.register(sds);
        for device in 0..devices {
            self.add_device(sds, &format!("/dev/disk{device}"));
        }
        sds
    }

    pub(crate) fn add_device(&mut self, sds: SdsId, path: &str) -> DeviceId {
        let command = AdminCommand::AddDevice { name: None, sds: id(sds.0), storage_pool: None, path: path.to_owned() };
        let Ok(CommandAnswer::DeviceRecorded { id, .. }) = self.admin(command) else { panic!("device refused") };
        let device = self.presented(id);
        let incarnation = self.process(sds);
        self.daemon(DaemonCommand::DeviceReady { sds, incarnation, device }).unwrap();
        id
    }

    pub(crate) fn presented(&self, device: DeviceId) -> PresentedDevice {
        let record = &self.state.devices()[&device];
        PresentedDevice {
            device,
            incarnation: record.incarnation,
            open_count: record.open_count + 1,
            size_bytes: 4 * GIB,
            verdict: StoreVerdict::Clean,
        }
    }

    pub(crate) fn process(&self, sds: SdsId) -> ProcessIncarnation {
        self.state.sds()[&sds].incarnation.unwrap()
    }

    /// A new process of the server registers with all its devices.
    pub(crate) fn register(&mut self, sds: SdsId) -> ProcessIncarnation {
        self.register_with(sds, |_| {})
    }

    pub(crate) fn register_with(
        &mut self,
        sds: SdsId,
        edit: impl FnOnce(&mut Vec<PresentedDevice>),
    ) -> ProcessIncarnation {
        self.next_nonce += 1;
        let nonce = self.next_nonce;
        let own = self.state.devices().values().filter(|d| d.sds == sds && d.state != DeviceState::Failed);
        let mut devices: Vec<PresentedDevice> = own.map(|device| self.presented(device.id)).collect();
        edit(&mut devices);
        let command = DaemonCommand::RegisterSds { sds, nonce, addresses: vec![], devices };
        let Ok(CommandAnswer::SdsRegistered { incarnation, .. }) = self.daemon(command) else { panic!("refused") };
        incarnation
    }

    pub(crate) fn down(&mut self, sds: SdsId) {
        let incarnation = self.process(sds);
        self.own(OwnCommand::SdsDown { sds, incarnation }).unwrap();
    }

    pub(crate) fn change(&mut self, pg: PgId, kind: PgChangeKind) -> CommandResult {
        let config = self.pg(pg);
        let change = PgChange {
            pg,
            epoch: config.epoch,
            proposer: config.primary.unwrap(),
            incarnation: config.primary_incarnation,
            kind,
        };
        self.daemon(DaemonCommand::ChangePg(change))
    }

    pub(crate) fn pg(&self, pg: PgId) -> PgConfig {
        self.state.pg(pg).unwrap().clone()
    }

    pub(crate) fn add_volume(&mut self, name: &str, size_bytes: u64) -> VolumeId {
        let command = AdminCommand::AddVolume {
            name: name.to_owned(),
            storage_pool: None,
            size_bytes,
            labels: Default::default(),
        };
        let Ok(CommandAnswer::Volume { id, .. }) = self.admin(command) else { panic!("volume refused") };
        id
    }

    pub(crate) fn add_sdc(&mut self, number: u8) -> SdcId {
        let guid = Guid([number; 16]);
        let command = DaemonCommand::RegisterSdc { guid, name: None, address: format!("127.0.0.1:{number}") };
        let Ok(CommandAnswer::SdcRegistered { id }) = self.daemon(command) else { panic!("SDC refused") };
        id
    }

    pub(crate) fn map(&mut self, volume: VolumeId, sdc: SdcId) -> CommandResult {
        self.admin(AdminCommand::MapVolume {
            volume: id(volume.0),
            sdc: id(sdc.0),
            access: AccessMode::ReadWrite,
            limits: Limits::default(),
            allow_multiple: true,
        })
    }

    pub(crate) fn object(&mut self, command: AdminCommand) -> u64 {
        let Ok(CommandAnswer::Object { id }) = self.admin(command) else { panic!("refused") };
        id
    }

    pub(crate) fn admin(&mut self, command: AdminCommand) -> CommandResult {
        self.run(Command::Admin(command))
    }

    pub(crate) fn daemon(&mut self, command: DaemonCommand) -> CommandResult {
        self.run(Command::Daemon(command))
    }

    pub(crate) fn own(&mut self, command: OwnCommand) -> CommandResult {
        self.run(Command::Own(command))
    }

    pub(crate) fn run(&mut self, command: Command) -> CommandResult {
        let request_id = self.next_request;
        self.next_request += 1;
        let at_s = 1_700_000_000 + self.log.len() as u64;
        let entry = LogEntry { request_id, at_s, random: [self.log.len() as u8; 32], command };
        self.log.push(entry.clone());
        let before = self.state.clone();
        let applied = crate::apply(&mut self.state, &entry);
        if applied.result.is_err() {
            assert_eq!(before, self.state, "a refused command has changed something: {entry:?}");
        }
        check_step(&before, &self.state, &entry);
        applied.result
    }

    /// A heartbeat of a server that is well: it follows the map to the end, and all its groups are active.
    pub(crate) fn heartbeat(&self, sds: SdsId) -> Heartbeat {
        let own = |device: DeviceId| self.state.devices().get(&device).is_some_and(|device| device.sds == sds);
        let others = || self.state.sds().keys().copied().filter(move |other| *other != sds);
        let dropped = self.state.volumes().values().filter(|volume| volume.removing).map(|volume| volume.id);
        let dark = self.state.pgs().values().filter(|record| record.config.primary.is_none());
        let tails = dark.flat_map(|record| {
            let pg = record.config.pg;
            let members = record.config.isr.iter().copied().filter(|member| own(*member));
            members.map(move |device| mdm_api::control::TailReport { pg, device, tail: Default::default() })
        });
        Heartbeat {
            sds,
            incarnation: self.state.sds()[&sds].incarnation,
            map_revision: self.state.revision(),
            fenced_through: self.state.revision(),
            dropped: dropped.collect(),
            devices: Vec::new(),
            tails: tails.collect(),
            resync: Vec::new(),
            unreachable: Vec::new(),
            leases_with: others().filter(|other| self.state.sds()[other].connected).collect(),
        }
    }

    pub(crate) fn pg_ids(&self) -> Vec<PgId> {
        self.state.pgs().keys().copied().collect()
    }
}

pub(crate) fn id(number: u64) -> mdm_api::command::ObjectRef {
    mdm_api::command::ObjectRef(format!("{number:016x}"))
}

pub(crate) fn code(result: CommandResult) -> ErrorCode {
    let error = result.expect_err("should have been refused");
    assert!(!error.message.is_empty());
    error.code
}

/// A system with time: a leader with its reconcilers, servers that live or do not, and primaries that do their part.
pub(crate) struct Live {
    pub(crate) world: World,
    pub(crate) observed: Observed,
    pub(crate) reconcilers: Reconcilers,
    pub(crate) now: Nanos,
    /// Servers whose process is dead.
    pub(crate) dead: BTreeSet<SdsId>,
    /// False: learners stay learners.
    pub(crate) resync: bool,
}

impl Live {
    pub(crate) fn new(world: World) -> Self {
        let mut live = Self {
            world,
            observed: Observed::default(),
            reconcilers: Reconcilers::default(),
            now: Nanos(0).plus_ms(100_000),
            dead: BTreeSet::new(),
            resync: true,
        };
        live.observed.lead(live.now);
        live
    }

    pub(crate) fn kill(&mut self, sds: SdsId) {
        self.dead.insert(sds);
        self.observed.reset(self.now, sds);
    }

    pub(crate) fn restart(&mut self, sds: SdsId) {
        self.dead.remove(&sds);
        self.world.register(sds);
    }

    /// Time passes in steps of a heartbeat.
    pub(crate) fn pass(&mut self, ms: u64) {
        let timing = Timing::DEFAULT;
        let end = self.now.plus_ms(ms);
        while self.now < end {
            self.now = self.now.plus_ms(timing.heartbeat_ms);
            let servers: Vec<SdsId> = self.world.state.sds().keys().copied().collect();
            for sds in servers.into_iter().filter(|sds| !self.dead.contains(sds)) {
                let mut heartbeat = self.world.heartbeat(sds);
                heartbeat.leases_with.retain(|other| !self.dead.contains(other));
                heartbeat.unreachable = self.dead.iter().copied().collect();
                self.observed.heartbeat(self.now, heartbeat, timing.dead_after_ms);
            }
            let commands = self.reconcilers.propose(&self.world.state, &mut self.observed, &timing, self.now);
            for command in commands {
                // Things may have moved on by the commands before it.
                let _ = self.world.run(command);
            }
            self.primaries();
        }
    }

    /// What living primaries ask for: dead members out, caught-up learners in.
    fn primaries(&mut self) {
        for pg in self.world.pg_ids() {
            let config = self.world.pg(pg);
            let Some(primary) = config.primary else { continue };
            let is_alive = |device: DeviceId| {
                let sds = self.world.state.devices()[&device].sds;
                !self.dead.contains(&sds) && self.world.state.is_fit(device)
            };
            if !is_alive(primary) {
                continue;
            }
            let lost = config.isr.iter().copied().find(|member| !is_alive(*member));
            let ready = config.learners.iter().copied().find(|learner| self.resync && is_alive(*learner));
            if config.heir.is_some() {
                self.world.change(pg, PgChangeKind::HandOver).unwrap();
            } else if let Some(device) = lost {
                self.world.change(pg, PgChangeKind::RemoveIsr(device)).unwrap();
            } else if let Some(device) = ready {
                // Refused where it is not needed any more.
                let _ = self.world.change(pg, PgChangeKind::AddIsr(device));
            }
        }
    }

    pub(crate) fn count(&self, health: PgHealth) -> usize {
        let state = &self.world.state;
        state.pgs().values().filter(|record| pg_health(state, record) == health).count()
    }

    pub(crate) fn all_healthy(&self) -> bool {
        self.count(PgHealth::Healthy) == self.world.state.pgs().len()
    }
}

/// What every command keeps.
pub(crate) fn check_step(before: &State, after: &State, entry: &LogEntry) {
    assert!(after.revision() >= before.revision());
    assert!(after.revision().0 <= before.revision().0 + 1);
    let forced = matches!(
        &entry.command,
        Command::Admin(AdminCommand::RemoveDevice { force: true, .. } | AdminCommand::RemoveSds { force: true, .. })
    );
    for (pg, record) in after.pgs() {
        let config = &record.config;
        assert_eq!(config.check(), Ok(()), "{config:?}");
        for member in record.members() {
            assert!(after.devices().contains_key(&member), "I4: {member} is gone and in {config:?}");
        }
        assert!(config.primary.is_none_or(|primary| !record.suspects.contains(&primary)), "I12: {record:?}");
        if let Some(primary) = config.primary {
            assert!(after.is_fit(primary), "a primary that is not there: {config:?}");
            assert_eq!(after.sds_of(primary).unwrap().incarnation, Some(config.primary_incarnation), "I2");
        }
        check_units(after, *pg);
        let Some(old) = before.pgs().get(pg).map(|record| &record.config) else { continue };
        if old == config {
            continue;
        }
        assert!(config.epoch > old.epoch, "I1: {old:?} -> {config:?}");
        let appointment = |config: &PgConfig| (config.primary, config.primary_incarnation);
        let handed_over = matches!(&entry.command, Command::Daemon(DaemonCommand::ChangePg(change))
            if change.pg == *pg && change.kind == PgChangeKind::HandOver);
        let reappointed = appointment(old) != appointment(config) || handed_over;
        assert_eq!(reappointed, config.term != old.term, "I2: {old:?} -> {config:?}");
        assert!(config.term >= old.term);
        // I5: who joins the ISR was a learner that the primary of then proposed.
        for joined in config.isr.iter().filter(|member| !old.isr.contains(member)) {
            let proposed = matches!(&entry.command, Command::Daemon(DaemonCommand::ChangePg(change))
                if change.kind == PgChangeKind::AddIsr(*joined)
                    && Some(change.proposer) == old.primary
                    && change.incarnation == old.primary_incarnation
                    && change.epoch == old.epoch);
            assert!(forced || proposed && old.learners.contains(joined), "I5: {old:?} -> {config:?}");
        }
    }
}

/// Two copies that are to stay never lie in one fault unit.
fn check_units(state: &State, pg: PgId) {
    let record = &state.pgs()[&pg];
    let moved = record.replacing.filter(|replacing| record.config.isr.contains(&replacing.to)).map(|r| r.from);
    let mut seen = std::collections::BTreeSet::new();
    for member in state.staying_isr(record).filter(|member| Some(*member) != moved) {
        assert!(seen.insert(state.fault_unit(member)), "two copies in one fault unit: {:?}", record.config);
    }
}

/// A follower that takes every delta, and one that takes the whole map, must hold the same.
pub(crate) struct Follower {
    view: MapView,
    map: ClusterMap,
}

impl Follower {
    pub(crate) fn new(view: MapView) -> Self {
        Self { view, map: ClusterMap::default() }
    }

    pub(crate) fn follow(&mut self, state: &State) {
        let delta = state.delta(self.view, self.map.revision());
        self.map.apply(&delta).unwrap();
        assert_eq!(self.map.revision(), state.revision());
    }

    pub(crate) fn check(&self, state: &State) {
        let mut whole = ClusterMap::default();
        whole.apply(&state.delta(self.view, Revision(0))).unwrap();
        assert_eq!(self.map, whole, "{:?}", self.view);
    }

    pub(crate) fn map(&self) -> &ClusterMap {
        &self.map
    }
}
