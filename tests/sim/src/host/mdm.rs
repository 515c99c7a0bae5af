//! A host of the metadata manager: the member itself is the production core; around it files, timers and connections.

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_api::control::{ControlMessage, PeerRole, Request, Response, decode, encode};
use mdm_api::epoch::Nanos;
use mdm_api::frame::FrameKind;
use mdm_api::ids::{MdmId, SystemId};
use mdm_node::{Action, ConnectionId, CreateSystem, Event, Moment, Node, Notice, RequestKey};
use mdm_raft::{Settings, StoreId, recover};

use crate::clock::{MS, SECOND};
use crate::core::{Core, Input};
use crate::files::Files;
use crate::net::{ConnId, Frame, NodeId, Port, Signal};
use crate::rng::Rng;

/// How often the member is told that time passes.
const TICK_MS: u64 = 50;
/// The wall clock at the beginning.
pub const WALL_S: u64 = 1_800_000_000;
const REDIAL_MS: u64 = 150;

/// How the member's log begins.
#[derive(Clone, Debug)]
pub enum Birth {
    /// It creates the system.
    Create(Box<CreateSystem>),
    /// It joins under a recorded identity.
    Join(StoreId),
}

/// See the module.
pub struct MdmHost {
    node: NodeId,
    system: SystemId,
    /// Who it is, once known.
    pub id: Option<MdmId>,
    /// What its log begins with, until it does.
    pub birth: Option<Birth>,
    member: Option<Node>,
    /// Its files.
    pub files: Files,
    rng: Rng,
    next_tick: Nanos,
    callers: BTreeMap<ConnId, PeerRole>,
    inbound: BTreeMap<ConnId, MdmId>,
    outbound: BTreeMap<MdmId, (ConnId, bool)>,
    redial: BTreeMap<MdmId, Nanos>,
    peers: Vec<MdmId>,
    /// Its log was wiped: nobody may hear it any more.
    pub is_wiped: bool,
    /// Times that its disk takes.
    pub slowness: u64,
    /// Raft messages that are sent twice, of a million.
    pub doubles_ppm: u64,
}

impl MdmHost {
    /// A host without a member.
    pub fn new(node: NodeId, system: SystemId, rng: Rng) -> Self {
        Self {
            node,
            system,
            id: None,
            birth: None,
            member: None,
            files: Files::default(),
            rng,
            next_tick: Nanos(0),
            callers: BTreeMap::new(),
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            redial: BTreeMap::new(),
            peers: Vec::new(),
            is_wiped: false,
            slowness: 1,
            doubles_ppm: 0,
        }
    }

    /// The member, while its process runs.
    pub fn member(&self) -> Option<&Node> {
        self.member.as_ref()
    }

    fn moment(&mut self, core: &Core) -> Moment {
        Moment { now: core.local(self.node), wall_s: WALL_S + core.now / SECOND, seed: self.rng.bytes32() }
    }

    /// Its files are gone; the next start finds nothing, and begins a log under that number.
    pub fn wipe(&mut self, store: StoreId) {
        self.files = Files::default();
        self.birth = Some(Birth::Join(store));
    }

    /// The process has ended.
    pub fn ended(&mut self) {
        self.member = None;
        self.callers.clear();
        self.inbound.clear();
        self.outbound.clear();
        self.redial.clear();
        self.peers.clear();
    }

    /// Something happened.
    pub fn input(&mut self, core: &mut Core, input: Input) {
        match input {
            Input::Start => self.start(core),
            Input::Wake => self.wake(core),
            Input::Files => {
                if let Some(id) = self.files.finish() {
                    self.step(core, Event::Persisted(id));
                }
            }
            Input::Net(conn, signal) => self.signal(core, conn, signal),
            Input::Disk(..) => {}
        }
        core.arm(self.node, self.next_tick);
    }

    fn start(&mut self, core: &mut Core) {
        let Some(id) = self.id else { return };
        let mut settings = Settings::new(id, self.system, self.rng.word(), self.rng.word());
        // Snapshots and segments come within a run.
        settings.snapshot_entries = 150 + self.rng.below(300);
        settings.keep_entries = 40 + self.rng.below(60);
        settings.segment_bytes = 64 << 10;
        let moment = self.moment(core);
        let mut actions = Vec::new();
        let opened = match self.birth.take() {
            Some(Birth::Create(create)) => Node::create(settings, &create, moment, &mut actions),
            Some(Birth::Join(store)) => Node::join(settings, store, moment, &mut actions),
            None => match recover(&self.files.read()) {
                Ok(Some(recovered)) => Node::open(settings, recovered, moment, &mut actions),
                Ok(None) => return core.watch.fail(core.now, format!("mdm at host {}: its log is gone", self.node)),
                Err(error) => return core.watch.fail(core.now, format!("mdm at host {}: {error}", self.node)),
            },
        };
        match opened {
            Ok(member) => self.member = Some(member),
            Err(error) => {
                return core.watch.fail(core.now, format!("mdm at host {} does not start: {error}", self.node));
            }
        }
        self.next_tick = core.local(self.node);
        self.carry_out(core, actions);
    }

    fn wake(&mut self, core: &mut Core) {
        let now = core.local(self.node);
        if self.next_tick > now {
            return;
        }
        self.next_tick = now.plus_ms(TICK_MS);
        for peer in self.peers.clone() {
            self.line(core, peer);
        }
        self.step(core, Event::Tick);
    }

    fn step(&mut self, core: &mut Core, event: Event) {
        let moment = self.moment(core);
        let Some(member) = &mut self.member else { return };
        let mut actions = Vec::new();
        member.step(moment, event, &mut actions);
        core.watch.look_at_state(core.now, self.node, member.state(), &mut core.marks, &mut core.trace);
        self.carry_out(core, actions);
    }

    fn carry_out(&mut self, core: &mut Core, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Persist { id, ops } => {
                    self.files.begin(id, ops);
                    let takes = (150_000 + self.rng.around(150_000)) * self.slowness;
                    core.later(self.node, takes, Input::Files);
                }
                Action::SendPeer { to, bytes, is_snapshot } => self.send_peer(core, to, bytes, is_snapshot),
                Action::Peers(peers) => self.peers = peers.into_iter().map(|(id, _)| id).collect(),
                Action::Respond { key, result } => {
                    self.send(core, key.connection, &ControlMessage::Response { id: key.id, result }, false);
                }
                Action::HeartbeatAck { connection, revision, leader } => {
                    self.send(core, connection, &ControlMessage::HeartbeatAck { revision, leader }, false);
                }
                Action::Push { connection, delta } => self.send(core, connection, &ControlMessage::Push(delta), true),
                Action::Close { connection, error } => {
                    self.send(core, connection, &ControlMessage::Refused { error }, false);
                    core.close(ConnId(connection.0), self.node);
                    self.caller_lost(core, ConnId(connection.0), false);
                }
                Action::CheckPassword { key, user, password, .. } => {
                    let right = user.is_some() && password == "right";
                    self.step(core, Event::PasswordChecked { key, user, right });
                }
                Action::Sign(order) => {
                    let result = Ok(Box::new(Response::Joined(order.joined)));
                    self.send(
                        core,
                        order.key.connection,
                        &ControlMessage::Response { id: order.key.id, result },
                        false,
                    );
                }
                Action::JoinToken { key, secret, .. } => {
                    let result = Ok(Box::new(Response::JoinToken { token: secret }));
                    self.send(core, key.connection, &ControlMessage::Response { id: key.id, result }, false);
                }
                Action::Notice(notice) => self.notice(core, &notice),
                Action::Halt { reason } if self.is_wiped => {
                    let node = self.node;
                    core.trace.line(core.now, || format!("mdm@{node} halts: {reason}"));
                    self.member = None;
                    return;
                }
                Action::Halt { reason } => {
                    core.watch.fail(core.now, format!("mdm at host {} halted: {reason}", self.node));
                    self.member = None;
                    return;
                }
            }
        }
    }

    fn notice(&self, core: &mut Core, notice: &Notice) {
        if let Notice::LeaderChanged { is_self: true, .. } = notice {
            core.marks.hit("F21");
        }
        let node = self.node;
        match notice {
            Notice::Applied { .. } => {}
            other => core.trace.line(core.now, || format!("mdm@{node}: {other:?}")),
        }
    }

    fn send(&self, core: &mut Core, connection: ConnectionId, message: &ControlMessage, wants_written: bool) {
        let mut frame = Frame::new(FrameKind::Control, encode(message), Bytes::new());
        frame.wants_written = wants_written;
        core.send(ConnId(connection.0), self.node, frame);
    }

    fn line(&mut self, core: &mut Core, to: MdmId) -> Option<ConnId> {
        if let Some((conn, is_up)) = self.outbound.get(&to) {
            return is_up.then_some(*conn);
        }
        if self.redial.get(&to).is_some_and(|at| *at > core.local(self.node)) {
            return None;
        }
        let (node, id) = (core.directory.mdm_ids.get(&to).copied()?, self.id?);
        let conn = core.dial(self.node, node, Port::Raft, PeerRole::Mdm(id));
        self.outbound.insert(to, (conn, false));
        None
    }

    fn send_peer(&mut self, core: &mut Core, to: MdmId, bytes: Bytes, is_snapshot: bool) {
        let conn = self.line(core, to);
        if let Some(conn) = conn {
            let copies = if self.doubles_ppm > 0 && self.rng.ppm(self.doubles_ppm) { 2 } else { 1 };
            for _ in 0..copies {
                core.send(conn, self.node, Frame::new(FrameKind::Raft, bytes.to_vec(), Bytes::new()));
            }
        }
        if is_snapshot {
            self.step(core, Event::SnapshotSent { to, ok: conn.is_some() });
        }
    }

    fn signal(&mut self, core: &mut Core, conn: ConnId, signal: Signal) {
        match signal {
            Signal::Accepted { port: Port::Raft, caller: PeerRole::Mdm(id) } => {
                self.inbound.insert(conn, id);
            }
            Signal::Accepted { port: Port::Control, caller } => {
                self.callers.insert(conn, caller);
                self.step(core, Event::Connected { connection: ConnectionId(conn.0), peer: caller });
            }
            Signal::Accepted { .. } => core.close(conn, self.node),
            Signal::Connected => {
                if let Some(line) = self.outbound.values_mut().find(|line| line.0 == conn) {
                    line.1 = true;
                }
            }
            Signal::Written => self.step(core, Event::PushWritten(ConnectionId(conn.0))),
            Signal::Lost { reset } => self.lost(core, conn, reset),
            Signal::Frame(frame) => {
                if !self.frame(core, conn, frame) {
                    core.close(conn, self.node);
                    self.lost(core, conn, false);
                }
            }
        }
    }

    fn lost(&mut self, core: &mut Core, conn: ConnId, reset: bool) {
        if self.inbound.remove(&conn).is_some() {
            return;
        }
        if let Some(peer) = self.outbound.iter().find(|(_, line)| line.0 == conn).map(|(peer, _)| *peer) {
            self.outbound.remove(&peer);
            self.redial.insert(peer, core.local(self.node).plus_ms(REDIAL_MS));
            self.step(core, Event::PeerLost(peer));
            return;
        }
        self.caller_lost(core, conn, reset);
    }

    fn caller_lost(&mut self, core: &mut Core, conn: ConnId, was_reset: bool) {
        if self.callers.remove(&conn).is_some() {
            self.step(core, Event::Disconnected { connection: ConnectionId(conn.0), was_reset });
        }
    }

    /// False if it makes no sense.
    fn frame(&mut self, core: &mut Core, conn: ConnId, frame: Frame) -> bool {
        let Some((kind, header, _)) = frame.open() else { return false };
        if let Some(from) = self.inbound.get(&conn).copied() {
            if kind == FrameKind::Raft {
                self.step(core, Event::PeerMessage { from, bytes: header });
            }
            return kind == FrameKind::Raft;
        }
        let (FrameKind::Control, Ok(message)) = (kind, decode(&header)) else { return false };
        let connection = ConnectionId(conn.0);
        match message {
            ControlMessage::Request { id, request } => {
                let request: Request = *request;
                self.step(core, Event::Request { key: RequestKey { connection, id }, request });
            }
            ControlMessage::Heartbeat(heartbeat) => self.step(core, Event::Heartbeat { connection, heartbeat }),
            ControlMessage::Follow { view, have } => self.step(core, Event::Follow { connection, view, have }),
            _ => return false,
        }
        true
    }
}

/// How long a member's restart takes after a crash.
pub const RESTART_NS: u64 = 300 * MS;
