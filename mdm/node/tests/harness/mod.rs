//! A group of members in memory: virtual time, a network that can be cut, disks that are always ready.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mdm_api::control::{PeerRole, Request, RequestError, Response};
use mdm_api::epoch::Nanos;
use mdm_api::ids::{MdmId, SystemId};
use mdm_api::map::MapDelta;
use mdm_node::{Action, ConnectionId, CreateSystem, Event, Moment, Node, RequestKey, first_mdm_id, join_secret_hash};
use mdm_raft::{FileOp, Settings, StoreId, recover};

pub const SYSTEM: SystemId = SystemId(0x0123_4567_89ab_cdef);
pub const JOIN_SECRET: &str = "invited";

/// What a caller got.
#[derive(Debug, Clone)]
pub enum Got {
    Answer(u64, Result<Box<Response>, RequestError>),
    Push(MapDelta),
    Ack,
    Closed,
    Sign(PeerRole),
}

pub struct Member {
    pub node: Option<Node>,
    pub files: BTreeMap<String, Vec<u8>>,
    pub halted: Option<String>,
}

pub struct World {
    pub now: Nanos,
    pub members: BTreeMap<MdmId, Member>,
    pub cut: BTreeSet<MdmId>,
    pub got: BTreeMap<(MdmId, ConnectionId), Vec<Got>>,
    /// Pushes are reported as written at once, unless this is set.
    pub hold_pushes: bool,
    network: VecDeque<(MdmId, MdmId, Bytes)>,
    seeds: u64,
    next: u64,
}

pub fn create_system() -> CreateSystem {
    CreateSystem {
        system: SYSTEM,
        name: "s".to_owned(),
        authority_certificate_pem: "certificate".to_owned(),
        authority_key_pem: "key".to_owned(),
        mdm_name: "mdm1".to_owned(),
        mdm_address: "h1:6611".to_owned(),
        mdm_peer_address: "h1:9011".to_owned(),
        mdm_store_id: 101,
        admin_password_hash: "$argon2id$hash".to_owned(),
        join_token_hash: join_secret_hash(JOIN_SECRET),
    }
}

impl World {
    /// One member that leads.
    pub fn new() -> Self {
        let mut world = Self {
            now: Nanos(1_000_000_000),
            members: BTreeMap::new(),
            cut: BTreeSet::new(),
            got: BTreeMap::new(),
            hold_pushes: false,
            network: VecDeque::new(),
            seeds: 0,
            next: 0,
        };
        let id = first_mdm_id(SYSTEM);
        let mut actions = Vec::new();
        let node = Node::create(world.settings(id), &create_system(), world.moment(), &mut actions).unwrap();
        world.members.insert(id, Member { node: Some(node), files: BTreeMap::new(), halted: None });
        world.carry_out(id, actions);
        world.run(2000);
        world
    }

    /// A group of three managers.
    pub fn three() -> Self {
        let mut world = Self::new();
        for number in 2..=3 {
            world.add_member(number);
            world.run(3000);
        }
        let leader = world.leader().expect("a group of three has a leader");
        let state = world.node(leader).state();
        assert!(state.mdms().len() == 3 && state.mdms().values().all(|mdm| mdm.voter), "{:?}", state.mdms());
        world
    }

    fn settings(&mut self, id: MdmId) -> Settings {
        self.seeds += 2;
        Settings::new(id, SYSTEM, self.seeds, self.seeds + 1)
    }

    pub fn moment(&mut self) -> Moment {
        self.seeds += 1;
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&self.seeds.to_le_bytes());
        Moment { now: self.now, wall_s: 1_700_000_000 + self.now.0 / 1_000_000_000, seed }
    }

    /// Joins a further manager.
    pub fn add_member(&mut self, number: u64) -> MdmId {
        self.add_member_as(number, false)
    }

    /// Joins a further member.
    pub fn add_member_as(&mut self, number: u64, tie_breaker: bool) -> MdmId {
        let leader = self.leader().expect("somebody leads");
        let connection = self.connect(leader, PeerRole::Joiner);
        let store_id = 100 + number;
        let role = mdm_api::control::JoinRole::Mdm {
            name: format!("mdm{number}"),
            tie_breaker,
            address: format!("h{number}:6611"),
            peer_address: format!("h{number}:9011"),
            store_id,
        };
        let request = Request::Join { role, secret: JOIN_SECRET.to_owned(), csr_pem: "csr".to_owned() };
        self.ask(leader, connection, request);
        self.run(500);
        let signed = self.got[&(leader, connection)].iter().find_map(|got| match got {
            Got::Sign(PeerRole::Mdm(id)) => Some(*id),
            _ => None,
        });
        let id = signed.expect("a certificate was ordered");
        let mut actions = Vec::new();
        let settings = self.settings(id);
        let node = Node::join(settings, StoreId(store_id), self.moment(), &mut actions).unwrap();
        self.members.insert(id, Member { node: Some(node), files: BTreeMap::new(), halted: None });
        self.carry_out(id, actions);
        id
    }

    pub fn node(&self, id: MdmId) -> &Node {
        self.members[&id].node.as_ref().expect("it runs")
    }

    /// The one that leads with a current state, among those that are not cut off.
    pub fn leader(&self) -> Option<MdmId> {
        let leads = |id: &MdmId| self.members[id].node.as_ref().is_some_and(|node| node.figures().leads);
        let mut leaders: Vec<MdmId> =
            self.members.keys().filter(|id| !self.cut.contains(id) && leads(id)).copied().collect();
        leaders.sort_by_key(|id| std::cmp::Reverse(self.node(*id).figures().term));
        leaders.first().copied()
    }

    /// The process dies; its disk stays.
    pub fn kill(&mut self, id: MdmId) {
        self.members.get_mut(&id).expect("a member").node = None;
    }

    /// It starts again from its disk.
    pub fn start(&mut self, id: MdmId) {
        let files: BTreeMap<String, Bytes> =
            self.members[&id].files.iter().map(|(name, bytes)| (name.clone(), Bytes::from(bytes.clone()))).collect();
        let recovered = recover(&files).unwrap().expect("there is a log");
        let settings = self.settings(id);
        let mut actions = Vec::new();
        let node = Node::open(settings, recovered, self.moment(), &mut actions).unwrap();
        self.members.get_mut(&id).expect("a member").node = Some(node);
        self.carry_out(id, actions);
    }

    /// It starts under its old id with a new log, as after a lost disk.
    pub fn start_wiped(&mut self, id: MdmId) {
        let settings = self.settings(id);
        let mut actions = Vec::new();
        let node = Node::join(settings, StoreId(4711), self.moment(), &mut actions).expect("a new log");
        self.members.insert(id, Member { node: Some(node), files: BTreeMap::new(), halted: None });
        self.carry_out(id, actions);
    }

    /// Lets time pass.
    pub fn run(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while self.now < end {
            self.now = self.now.plus_ms(50);
            let ids: Vec<MdmId> = self.members.keys().copied().collect();
            for id in ids {
                self.step(id, Event::Tick);
            }
            self.deliver();
        }
    }

    fn deliver(&mut self) {
        while let Some((from, to, bytes)) = self.network.pop_front() {
            if !self.cut.contains(&from) && !self.cut.contains(&to) {
                self.step(to, Event::PeerMessage { from, bytes });
            }
        }
    }

    /// One event, and all that follows at once.
    pub fn step(&mut self, id: MdmId, event: Event) {
        let moment = self.moment();
        let mut actions = Vec::new();
        let Some(node) = self.members.get_mut(&id).and_then(|member| member.node.as_mut()) else { return };
        node.step(moment, event, &mut actions);
        self.carry_out(id, actions);
    }

    fn carry_out(&mut self, id: MdmId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Persist { id: batch, ops } => {
                    let files = &mut self.members.get_mut(&id).expect("a member").files;
                    ops.into_iter().for_each(|op| execute(files, op));
                    self.step(id, Event::Persisted(batch));
                }
                Action::SendPeer { to, bytes, .. } => self.network.push_back((id, to, bytes)),
                Action::Respond { key, result } => self.give(id, key.connection, Got::Answer(key.id, result)),
                Action::HeartbeatAck { connection, .. } => self.give(id, connection, Got::Ack),
                Action::Push { connection, delta } => {
                    self.give(id, connection, Got::Push(delta));
                    if !self.hold_pushes {
                        self.step(id, Event::PushWritten(connection));
                    }
                }
                Action::Close { connection, .. } => self.give(id, connection, Got::Closed),
                Action::CheckPassword { key, user, password, .. } => {
                    let right = user.is_some() && password == "right";
                    self.step(id, Event::PasswordChecked { key, user, right });
                }
                Action::Sign(order) => self.give(id, order.key.connection, Got::Sign(order.role)),
                Action::Halt { reason } => {
                    let member = self.members.get_mut(&id).expect("a member");
                    (member.halted, member.node) = (Some(reason), None);
                    return;
                }
                Action::Peers(_) | Action::JoinToken { .. } | Action::Notice(_) => {}
            }
        }
    }

    fn give(&mut self, member: MdmId, connection: ConnectionId, got: Got) {
        self.got.entry((member, connection)).or_default().push(got);
    }

    pub fn connect(&mut self, member: MdmId, peer: PeerRole) -> ConnectionId {
        self.next += 1;
        let connection = ConnectionId(self.next);
        self.got.insert((member, connection), Vec::new());
        self.step(member, Event::Connected { connection, peer });
        connection
    }

    /// A connection of `admin`.
    pub fn admin(&mut self, member: MdmId) -> ConnectionId {
        let connection = self.connect(member, PeerRole::Tool);
        let login = Request::Login { user: "admin".to_owned(), password: "right".to_owned() };
        let answer = self.call(member, connection, login, 0).expect("logins are answered at once");
        assert!(matches!(answer.as_deref(), Ok(Response::LoggedIn { .. })), "{answer:?}");
        connection
    }

    /// Asks; gives the number of the request.
    pub fn ask(&mut self, member: MdmId, connection: ConnectionId, request: Request) -> u64 {
        self.next += 1;
        let id = self.next;
        self.step(member, Event::Request { key: RequestKey { connection, id }, request });
        id
    }

    pub fn answer(
        &self,
        member: MdmId,
        connection: ConnectionId,
        id: u64,
    ) -> Option<Result<Box<Response>, RequestError>> {
        self.got.get(&(member, connection))?.iter().find_map(|got| match got {
            Got::Answer(number, result) if *number == id => Some(result.clone()),
            _ => None,
        })
    }

    /// Asks and lets time pass.
    pub fn call(
        &mut self,
        member: MdmId,
        connection: ConnectionId,
        request: Request,
        ms: u64,
    ) -> Option<Result<Box<Response>, RequestError>> {
        let id = self.ask(member, connection, request);
        self.run(ms);
        self.answer(member, connection, id)
    }

    pub fn pushes(&self, member: MdmId, connection: ConnectionId) -> Vec<MapDelta> {
        let all = self.got[&(member, connection)].iter();
        all.filter_map(|got| if let Got::Push(delta) = got { Some(delta.clone()) } else { None }).collect()
    }
}

fn execute(files: &mut BTreeMap<String, Vec<u8>>, op: FileOp) {
    match op {
        FileOp::Append { file, bytes } => {
            files.get_mut(&file).expect("appended to a file that exists").extend_from_slice(&bytes)
        }
        FileOp::Sync { .. } => {}
        FileOp::Replace { file, bytes } => drop(files.insert(file, bytes.to_vec())),
        FileOp::Remove { file } => drop(files.remove(&file)),
    }
}
