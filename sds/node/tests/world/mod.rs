//! Data servers with disks in memory, a network that keeps order, and a scripted metadata manager.

#![allow(clippy::unwrap_used, missing_docs)] // helpers of tests: what cannot be is a failed test

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mdm_api::command::{CommandAnswer, DaemonCommand, PresentedDevice};
use mdm_api::config::{PgChangeKind, PgConfig};
use mdm_api::epoch::{AttachGeneration, Epoch, Nanos, RequestNumber, Revision, SnapSeq, Term};
use mdm_api::ids::{
    DeviceId, DeviceIncarnation, KeyId, PgId, ProcessIncarnation, ProtectionDomainId, SdcId, SdsId, StoragePoolId,
    SystemId, VolumeId, VtreeId,
};
use mdm_api::map::{ClusterMap, MapDelta, MapKey, MapObject};
use mdm_api::model::{
    AccessMode, Device, DeviceState, DomainKey, Limits, Mapping, ProtectionDomain, Sds, StoragePool, System, Volume,
};
use mdm_api::placement::pg_index;
use mdm_api::ticket::{Credential, Ticket, client_proof};
use mdm_api::timing::Timing;
use sds_api::block::ChunkId;
use sds_api::client::{ClientAnswer, ClientError, ClientOperation, ClientRequest, RequestIdentity};
use sds_api::client_codec::piece_checksums;
use sds_node::{Action, ClientOpen, CommandFailure, Event, KnownDevice, Settings, Shard};
use sds_store::io::{DiskDone, DiskError, DiskOp, OpId};

pub const SYSTEM: SystemId = SystemId(0xa5);
pub const DOMAIN: ProtectionDomainId = ProtectionDomainId(1);
pub const POOL: StoragePoolId = StoragePoolId(2);
pub const KEY: KeyId = KeyId(3);
pub const SDC: SdcId = SdcId(4);
pub const VOLUME: VolumeId = VolumeId(5);
pub const VTREE: VtreeId = VtreeId(6);
pub const DEVICE_BYTES: u64 = 64 << 20;
const PG_COUNT: u32 = 4;

/// A disk whose writes are durable at once.
pub struct Disk {
    bytes: Vec<u8>,
    pub failing: bool,
}

impl Disk {
    fn carry_out(&mut self, op: &DiskOp) -> Result<Bytes, DiskError> {
        match op {
            DiskOp::Read { offset, length } => {
                let at = *offset as usize;
                Ok(Bytes::copy_from_slice(&self.bytes[at..at + *length as usize]))
            }
            _ if self.failing => Err(DiskError::Io),
            DiskOp::Write { offset, buffers, .. } => {
                let mut at = *offset as usize;
                for buffer in buffers {
                    self.bytes[at..at + buffer.len()].copy_from_slice(buffer);
                    at += buffer.len();
                }
                Ok(Bytes::new())
            }
            DiskOp::Flush | DiskOp::Discard { .. } => Ok(Bytes::new()),
        }
    }
}

enum Wire {
    Event(Event),
    Frame { from: SdsId, incarnation: ProcessIncarnation, frame: sds_api::peer::PeerFrame },
}

pub struct Server {
    pub shard: Shard,
    inbox: VecDeque<Wire>,
    known: Vec<KnownDevice>,
    wanted: BTreeSet<SdsId>,
    linked: BTreeMap<SdsId, ProcessIncarnation>,
    pub alive: bool,
    pub stopped: Option<String>,
}

pub struct World {
    pub now: Nanos,
    pub servers: BTreeMap<SdsId, Server>,
    pub disks: BTreeMap<DeviceId, Disk>,
    pub map: ClusterMap,
    pub replies: BTreeMap<(SdsId, u64), Result<ClientAnswer, ClientError>>,
    pub opened: BTreeMap<SdsId, Result<u32, String>>,
    pub refusals: Vec<(DeviceId, String)>,
    /// The metadata manager answers nobody.
    pub is_silent: bool,
    next_id: u64,
    next_tag: u64,
    next_request: u64,
    starts: u64,
}

pub fn sds(number: u64) -> SdsId {
    SdsId(0x10 + number)
}

pub fn device(number: u64) -> DeviceId {
    DeviceId(0x20 + number)
}

impl World {
    /// `count` servers with one device each, which are still to be formatted; two copies; one mapped volume of 8 chunks.
    pub fn new(count: u64) -> Self {
        let mut world = Self {
            now: Nanos(1_000_000_000_000),
            servers: BTreeMap::new(),
            disks: BTreeMap::new(),
            map: ClusterMap::default(),
            replies: BTreeMap::new(),
            opened: BTreeMap::new(),
            refusals: Vec::new(),
            is_silent: false,
            next_id: 1000,
            next_tag: 0,
            next_request: 0,
            starts: 0,
        };
        let mut objects = vec![
            MapObject::System(System { id: SYSTEM, name: "test".to_owned() }),
            MapObject::ProtectionDomain(ProtectionDomain { id: DOMAIN, name: "d".to_owned() }),
            MapObject::StoragePool(StoragePool {
                id: POOL,
                name: "p".to_owned(),
                protection_domain: DOMAIN,
                copies: 2,
                min_isr: 1,
                pg_count: PG_COUNT,
                placement_version: 1,
            }),
            MapObject::DomainKey(DomainKey { id: KEY, protection_domain: DOMAIN, secret: [9; 32] }),
            MapObject::Volume(Volume {
                id: VOLUME,
                name: "v".to_owned(),
                pool: POOL,
                vtree: VTREE,
                size_bytes: 8 << 20,
                snap_seq: SnapSeq(0),
                created_s: 0,
                removing: false,
                labels: Default::default(),
            }),
            MapObject::Mapping(mapping(1)),
        ];
        for number in 1..=count {
            objects.push(MapObject::Sds(Sds {
                id: sds(number),
                name: format!("s{number}"),
                protection_domain: DOMAIN,
                fault_set: None,
                addresses: vec![format!("10.0.0.{number}:7072")],
                incarnation: None,
                connected: false,
            }));
            objects.push(MapObject::Device(Device {
                id: device(number),
                name: format!("d{number}"),
                sds: sds(number),
                pool: POOL,
                path: format!("/dev/{number}"),
                incarnation: DeviceIncarnation(0x30 + number),
                open_count: 0,
                opened_by: None,
                size_bytes: 0,
                state: DeviceState::Adding,
                suspect: false,
                error: None,
            }));
            world.disks.insert(device(number), Disk { bytes: vec![0; DEVICE_BYTES as usize], failing: false });
        }
        world.change(objects, vec![]);
        for number in 1..=count {
            world.start(sds(number));
        }
        world.settle("all devices are in use", |world| {
            world.map.devices().all(|device| device.state == DeviceState::Normal)
        });
        world
    }

    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// A committed change of the map; every live server hears of it.
    pub fn change(&mut self, changed: Vec<MapObject>, removed: Vec<MapKey>) -> Revision {
        let from = self.map.revision();
        let delta = MapDelta { from, to: from.next(), changed, removed };
        self.map.apply(&delta).unwrap();
        for server in self.servers.values_mut().filter(|server| server.alive) {
            server.inbox.push_back(Wire::Event(Event::Delta(delta.clone())));
        }
        from.next()
    }

    pub fn start(&mut self, id: SdsId) {
        self.starts += 1;
        let settings = Settings {
            system: SYSTEM,
            sds: id,
            nonce: self.starts,
            seed: self.starts,
            addresses: Vec::new(),
            journal_bytes: Some(8 << 20),
            scrub_period_ms: 60_000,
            retained_bytes: sds_node::limits::RETAINED_BYTES,
            timing: Timing::DEFAULT,
        };
        let known = self.servers.remove(&id).map(|server| server.known).unwrap_or_default();
        let whole = MapDelta {
            from: Revision(0),
            to: self.map.revision(),
            changed: self.map.objects().cloned().collect(),
            removed: vec![],
        };
        let boot = Wire::Event(Event::Boot { devices: known.clone() });
        let inbox = VecDeque::from([boot, Wire::Event(Event::Delta(whole))]);
        let (wanted, linked) = (BTreeSet::new(), BTreeMap::new());
        let shard = Shard::new(settings);
        self.servers.insert(id, Server { shard, inbox, known, wanted, linked, alive: true, stopped: None });
    }

    /// The host loses its power: nobody hears of it.
    pub fn vanish(&mut self, id: SdsId) {
        let server = self.servers.get_mut(&id).unwrap();
        server.alive = false;
        server.inbox.clear();
        server.linked.clear();
    }

    /// The process is killed: whatever was under way is lost, what is on its disk stays.
    pub fn kill(&mut self, id: SdsId) {
        self.vanish(id);
        for other in self.servers.values_mut().filter(|other| other.alive) {
            if other.linked.remove(&id).is_some() {
                other.inbox.push_back(Wire::Event(Event::PeerDown { sds: id, reset: true }));
            }
        }
    }

    /// The medium does nothing any more.
    pub fn lose_device(&mut self, number: u64) {
        let event = Event::DeviceGone { device: device(number), cause: DiskError::Io };
        self.servers.get_mut(&sds(number)).unwrap().inbox.push_back(Wire::Event(event));
    }

    /// Goes on until it holds; what it is is named when it never does.
    pub fn settle(&mut self, what: &str, holds: impl Fn(&World) -> bool) {
        for _ in 0..4000 {
            self.turn();
            if holds(self) {
                return;
            }
            self.now = self.now.plus_ms(5);
            for server in self.servers.values_mut().filter(|server| server.alive) {
                server.inbox.push_back(Wire::Event(Event::Tick));
            }
        }
        panic!("never: {what}");
    }

    fn turn(&mut self) {
        self.link();
        for _ in 0..100_000 {
            let ids: Vec<SdsId> = self.servers.keys().copied().collect();
            let mut idle = true;
            for id in ids {
                let Some(wire) = self.servers.get_mut(&id).filter(|s| s.alive).and_then(|s| s.inbox.pop_front()) else {
                    continue;
                };
                idle = false;
                let event = match wire {
                    Wire::Event(event) => event,
                    Wire::Frame { from, incarnation, frame } => Event::PeerFrame { sds: from, incarnation, frame },
                };
                let mut actions = Vec::new();
                self.servers.get_mut(&id).unwrap().shard.step(self.now, event, &mut actions);
                for action in actions {
                    self.carry_out(id, action);
                }
            }
            if idle {
                return;
            }
        }
        panic!("the servers never come to rest");
    }

    fn link(&mut self) {
        let up: Vec<(SdsId, ProcessIncarnation)> = self
            .servers
            .iter()
            .filter(|(_, s)| s.alive && s.shard.is_current())
            .filter_map(|(id, s)| Some((*id, s.shard.incarnation()?)))
            .collect();
        for (a, incarnation) in &up {
            for (b, _) in &up {
                let both = self.servers[a].wanted.contains(b) && self.servers[b].wanted.contains(a);
                let server = self.servers.get_mut(b).unwrap();
                if both && server.linked.get(a) != Some(incarnation) {
                    server.linked.insert(*a, *incarnation);
                    server.inbox.push_back(Wire::Event(Event::PeerUp { sds: *a, incarnation: *incarnation }));
                }
            }
        }
    }

    fn carry_out(&mut self, id: SdsId, action: Action) {
        let now_event = |world: &mut World, event: Event| {
            world.servers.get_mut(&id).unwrap().inbox.push_back(Wire::Event(event));
        };
        match action {
            Action::OpenDevice { device, .. } => {
                now_event(self, Event::DeviceOpened { device, result: Ok(DEVICE_BYTES) });
            }
            Action::Disk { device, requests } => {
                let disk = self.disks.get_mut(&device).unwrap();
                let done: Vec<DiskDone> = requests
                    .iter()
                    .map(|request| DiskDone { id: OpId(request.id.0), result: disk.carry_out(&request.op) })
                    .collect();
                now_event(self, Event::Disk { device, done });
            }
            Action::RememberDevices(list) => self.servers.get_mut(&id).unwrap().known = list,
            Action::Command { id: command_id, command } => {
                let result = if self.is_silent { Err(CommandFailure::Unknown) } else { Ok(self.command(command)) };
                now_event(self, Event::CommandDone { id: command_id, result });
            }
            Action::ConnectPeer { sds, .. } => {
                self.servers.get_mut(&id).unwrap().wanted.insert(sds);
            }
            Action::DisconnectPeer { sds } => {
                self.servers.get_mut(&id).unwrap().wanted.remove(&sds);
                self.servers.get_mut(&id).unwrap().linked.remove(&sds);
            }
            Action::SendPeer { sds, frame } => {
                let Some(incarnation) = self.servers[&id].shard.incarnation() else { return };
                let linked = self.servers[&id].linked.contains_key(&sds);
                if let Some(other) = self.servers.get_mut(&sds).filter(|other| other.alive && linked) {
                    // As bytes, so that what is sent is what can be sent.
                    let encoded = frame.encode();
                    let payload = Bytes::from(encoded.payload.concat());
                    let frame = sds_api::peer::PeerFrame::decode(&encoded.header, payload).unwrap();
                    other.inbox.push_back(Wire::Frame { from: id, incarnation, frame });
                }
            }
            Action::Opened { handle, .. } => {
                self.opened.insert(id, Ok(handle));
            }
            Action::OpenRefused { text, .. } => {
                self.opened.insert(id, Err(text));
            }
            Action::Reply { reply, .. } => {
                self.replies.insert((id, reply.tag), reply.result);
            }
            Action::Stop { reason } => self.servers.get_mut(&id).unwrap().stopped = Some(reason),
            Action::CloseDevice { .. } | Action::FollowAnew | Action::Notice(_) => {}
            Action::CloseClient { text, .. } => panic!("a client's connection was closed: {text}"),
        }
    }

    fn command(&mut self, command: DaemonCommand) -> CommandAnswer {
        match command {
            DaemonCommand::RegisterSds { sds, devices, .. } => {
                let incarnation = ProcessIncarnation(self.id());
                let mut record = self.map.sds(sds).unwrap().clone();
                (record.incarnation, record.connected) = (Some(incarnation), true);
                let mut changed = vec![MapObject::Sds(record)];
                let mine: Vec<Device> = self.map.devices().filter(|device| device.sds == sds).cloned().collect();
                for mut record in mine {
                    record.opened_by = devices.iter().any(|d| d.device == record.id).then_some(incarnation);
                    changed.push(MapObject::Device(record));
                }
                // I2: what the process before led gets a new term.
                let revision = self.map.revision().next();
                let mine = |device: Option<DeviceId>| device.is_some_and(|d| self.map.device(d).unwrap().sds == sds);
                let led: Vec<PgConfig> = self.map.pgs().filter(|config| mine(config.primary)).cloned().collect();
                for mut config in led {
                    config.epoch = Epoch(config.epoch.0 + 1);
                    config.term = Term(config.epoch.0);
                    config.primary_incarnation = incarnation;
                    changed.push(MapObject::Pg(config));
                }
                self.change(changed, vec![]);
                CommandAnswer::SdsRegistered { incarnation, revision, refused: vec![] }
            }
            DaemonCommand::PresentDevice { incarnation, device, .. }
            | DaemonCommand::DeviceReady { incarnation, device, .. } => {
                self.presented(incarnation, &device);
                CommandAnswer::Done
            }
            DaemonCommand::DeviceRefused { device, reason, .. } => {
                self.refusals.push((device, reason));
                self.change(vec![], vec![MapKey::Device(device)]);
                CommandAnswer::Done
            }
            DaemonCommand::DeviceFailed { device, reason, .. } => {
                let mut record = self.map.device(device).unwrap().clone();
                (record.state, record.error, record.opened_by) = (DeviceState::Failed, Some(reason), None);
                self.change(vec![MapObject::Device(record)], vec![]);
                CommandAnswer::Done
            }
            DaemonCommand::ChangePg(change) => {
                let config = self.map.pg(change.pg).unwrap().clone();
                let is_current = config.epoch == change.epoch && config.primary_incarnation == change.incarnation;
                if is_current {
                    let mut config = config;
                    config.epoch = Epoch(config.epoch.0 + 1);
                    let (from, to, moved) = match change.kind {
                        PgChangeKind::HandOver => {
                            let heir = config.heir.take().unwrap();
                            let server = self.map.device(heir).unwrap().sds;
                            config.term = Term(config.epoch.0);
                            config.primary = Some(heir);
                            config.primary_incarnation = self.map.sds(server).unwrap().incarnation.unwrap();
                            self.change(vec![MapObject::Pg(config)], vec![]);
                            return CommandAnswer::Done;
                        }
                        PgChangeKind::AddIsr(device) => (&mut config.learners, &mut config.isr, device),
                        PgChangeKind::RemoveIsr(device) => (&mut config.isr, &mut config.learners, device),
                    };
                    from.retain(|device| *device != moved);
                    to.push(moved);
                    to.sort();
                    assert_eq!(config.check(), Ok(()));
                    self.change(vec![MapObject::Pg(config)], vec![]);
                }
                CommandAnswer::Done
            }
            DaemonCommand::RegisterSdc { .. } | DaemonCommand::OpenMapping { .. } => panic!("not a server's"),
        }
    }

    fn presented(&mut self, incarnation: ProcessIncarnation, device: &PresentedDevice) {
        let mut record = self.map.device(device.device).unwrap().clone();
        record.opened_by = Some(incarnation);
        (record.open_count, record.size_bytes, record.state) =
            (device.open_count, device.size_bytes, DeviceState::Normal);
        self.change(vec![MapObject::Device(record)], vec![]);
    }

    /// All groups on these devices, led by the first.
    pub fn place(&mut self, isr: &[DeviceId], learners: &[DeviceId]) {
        let home = self.map.device(isr[0]).unwrap().sds;
        let incarnation = self.map.sds(home).unwrap().incarnation.unwrap();
        let mut changed = Vec::new();
        for index in 0..PG_COUNT {
            let pg = PgId { pool: POOL, index };
            let epoch = Epoch(self.map.pg(pg).map_or(0, |config| config.epoch.0) + 1);
            let sorted = |list: &[DeviceId]| list.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
            changed.push(MapObject::Pg(PgConfig {
                pg,
                epoch,
                term: Term(epoch.0),
                primary: Some(isr[0]),
                primary_incarnation: incarnation,
                isr: sorted(isr),
                learners: sorted(learners),
                previous_certified_dead: false,
                heir: None,
            }));
        }
        self.change(changed, vec![]);
    }

    pub fn credential(&self, generation: u64, revision: Revision) -> Credential {
        let key = self.map.domain_key(KEY).unwrap();
        Ticket {
            key: KEY,
            system: SYSTEM,
            volume: VOLUME,
            pool: POOL,
            sdc: SDC,
            access: AccessMode::ReadWrite,
            generation: AttachGeneration(generation),
            revision,
            expires_s: 2000,
            not_before_s: 0,
        }
        .issue(key)
    }

    /// Sends an opening; the outcome stands in `opened`.
    pub fn send_open(&mut self, at: SdsId, credential: &Credential) {
        self.opened.remove(&at);
        let (server_nonce, client_nonce) = ([1; 32], [2; 32]);
        let proof = client_proof(&credential.secret, &credential.ticket, at, &server_nonce, &client_nonce);
        let open = ClientOpen {
            connection: 1,
            sdc: SDC,
            request: 1,
            ticket: credential.ticket.clone(),
            proof,
            server_nonce,
            client_nonce,
            now_s: 1000,
        };
        self.servers.get_mut(&at).unwrap().inbox.push_back(Wire::Event(Event::ClientOpen(open)));
    }

    pub fn open(&mut self, at: SdsId) -> u32 {
        let generation = self.map.mapping(VOLUME, SDC).unwrap().generation.0;
        let credential = self.credential(generation, self.map.revision());
        self.send_open(at, &credential);
        self.settle("the volume opens", |world| world.opened.contains_key(&at));
        self.opened[&at].clone().unwrap()
    }

    pub fn request(&mut self, at: SdsId, handle: u32, chunk: u64, operation: ClientOperation) -> u64 {
        self.next_tag += 1;
        let tag = self.next_tag;
        let pg = PgId { pool: POOL, index: pg_index(VTREE, chunk, PG_COUNT) };
        let epoch = self.map.pg(pg).map_or(Epoch(0), |config| config.epoch);
        let chunk = ChunkId { vtree: VTREE, index: chunk };
        let request = ClientRequest { tag, handle, pg, epoch, chunk, snap_seq: SnapSeq(0), operation };
        let event = Event::ClientRequest { connection: 1, request };
        self.servers.get_mut(&at).unwrap().inbox.push_back(Wire::Event(event));
        tag
    }

    pub fn write_operation(&mut self, offset: u32, data: &[u8]) -> ClientOperation {
        self.next_request += 1;
        let request = RequestNumber(self.next_request);
        let data = Bytes::copy_from_slice(data);
        let checksums = piece_checksums(offset, [&data]);
        let identity = RequestIdentity { request, oldest_unacked: request };
        ClientOperation::Write { identity, offset, checksums, data }
    }

    /// One operation, repeated for as long as the answer is "not now".
    pub fn perform(
        &mut self,
        at: SdsId,
        handle: u32,
        chunk: u64,
        operation: ClientOperation,
    ) -> Result<ClientAnswer, ClientError> {
        for _ in 0..500 {
            let tag = self.request(at, handle, chunk, operation.clone());
            self.settle("a request is answered", |world| world.replies.contains_key(&(at, tag)));
            match self.replies.remove(&(at, tag)).unwrap() {
                Err(ClientError::Retry) => {
                    self.now = self.now.plus_ms(20);
                    self.servers
                        .values_mut()
                        .filter(|s| s.alive)
                        .for_each(|s| s.inbox.push_back(Wire::Event(Event::Tick)));
                }
                other => return other,
            }
        }
        panic!("never served");
    }

    pub fn write(&mut self, at: SdsId, handle: u32, chunk: u64, offset: u32, data: &[u8]) {
        let operation = self.write_operation(offset, data);
        assert_eq!(self.perform(at, handle, chunk, operation), Ok(ClientAnswer::Done));
    }

    pub fn read(&mut self, at: SdsId, handle: u32, chunk: u64, offset: u32, length: u32) -> Vec<u8> {
        match self.perform(at, handle, chunk, ClientOperation::Read { offset, length }) {
            Ok(ClientAnswer::Data { data, .. }) => data.concat(),
            other => panic!("not data: {other:?}"),
        }
    }

    pub fn wait_ms(&mut self, ms: u64) {
        let until = self.now.plus_ms(ms);
        self.settle("time passes", |world| world.now >= until);
    }
}

pub fn mapping(generation: u64) -> Mapping {
    Mapping {
        volume: VOLUME,
        sdc: SDC,
        access: AccessMode::ReadWrite,
        limits: Limits::default(),
        generation: AttachGeneration(generation),
        mapped: AttachGeneration(1),
        opened_by: 1,
        fence_revision: Revision(0),
        fenced: true,
        revoked: false,
    }
}
