//! A miniature world: replicas of one group on model stores, a network, a metadata manager of one page, clients. Virtual
//! time, everything from one seed. All messages go through the real codec.

#![allow(dead_code, clippy::unwrap_used)] // Each test uses a part of it; it is test code all through.

pub mod check;
pub mod clients;
pub mod faults;
pub mod manager;
pub mod network;
pub mod rng;
pub mod store;

use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use mdm_api::config::{PgChange, PgConfig};
use mdm_api::epoch::{Nanos, Seq};
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation, SdsId, StoragePoolId};
use mdm_api::timing::Timing;
use sds_api::client::{ClientAnswer, ClientError};
use sds_api::entry::{Entry, EntryBody};
use sds_api::peer::{CreditGrant, PeerBody, PeerFrame, PeerMessage};
use sds_replica::{
    Action, ClientRef, Context, Credits, Event, Identity, Leases, Replica, ResyncBudget, RetainedBudget, Role,
    StoreDone, StoreRequest, Token, Verdict,
};

use clients::Client;
use manager::Manager;
use rng::Rng;
use store::Store;

pub const MS: u64 = 1_000_000;

pub fn pg() -> PgId {
    PgId { pool: StoragePoolId(1), index: 0 }
}

pub fn device(node: usize) -> DeviceId {
    DeviceId(10 + node as u64)
}

pub fn node_of(device: DeviceId) -> usize {
    (device.0 - 10) as usize
}

pub fn server(node: usize) -> SdsId {
    SdsId(1 + node as u64)
}

/// What happens at a time.
pub enum Happening {
    Deliver { from: usize, to: usize, connection: u64, header: Vec<u8>, payload: Bytes },
    AskLeases { node: usize, incarnation: ProcessIncarnation },
    Tick { node: usize, incarnation: ProcessIncarnation, wanted: u64 },
    Flush { node: usize, incarnation: ProcessIncarnation },
    StoreDone { node: usize, incarnation: ProcessIncarnation, token: Token, done: StoreDone },
    Register { node: usize, incarnation: ProcessIncarnation },
    Config { node: usize, incarnation: ProcessIncarnation, config: PgConfig, revision: u64 },
    Proposal(PgChange),
    Scan,
    Lost { node: usize, peer: usize, connection: u64, reset: bool },
    Connect { a: usize, b: usize },
    Restart { node: usize },
    Fault,
    EndOfCut { a: usize, b: usize, connection: u64 },
    EndOfManagerCut { node: usize },
    ClientStart { client: usize },
    ClientArrives { client: usize, op: u64, node: usize },
    ClientAgain { client: usize, op: u64, attempt: u32 },
    ClientReply { client: usize, op: u64, result: Result<ClientAnswer, ClientError> },
}

struct Timed {
    at: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

pub struct Node {
    pub up: bool,
    pub incarnation: ProcessIncarnation,
    pub replica: Option<Replica>,
    pub context: Context,
    pub store: Store,
    pub verdict: Verdict,
    pub registered: bool,
    pub revision: u64,
    rate_percent: u64,
    offset: u64,
    flushing: bool,
    wanted: u64,
    pub slow: bool,
}

/// What the world lets happen by itself.
#[derive(Clone, Copy)]
pub struct Options {
    pub nodes: usize,
    pub clients: usize,
    pub faults: bool,
    pub skewed_clocks: bool,
    pub late_duplicates: bool,
    pub min_isr: u8,
    pub retained_bytes: usize,
    pub fault_ms: u64,
    pub slow_network: bool,
}

impl Options {
    pub fn quiet(nodes: usize) -> Self {
        Self {
            nodes,
            clients: 2,
            faults: false,
            skewed_clocks: false,
            late_duplicates: false,
            min_isr: 1,
            retained_bytes: 1 << 20,
            fault_ms: 0,
            slow_network: false,
        }
    }
}

pub struct World {
    pub rng: Rng,
    pub now: u64,
    order: u64,
    queue: BinaryHeap<Timed>,
    pub options: Options,
    pub nodes: Vec<Node>,
    pub manager: Manager,
    pub clients: Vec<Client>,
    pub registers: BTreeMap<(u64, u64), check::Register>,
    next_incarnation: u64,
    /// Connection of each pair, if there is one.
    connections: BTreeMap<(usize, usize), u64>,
    next_connection: u64,
    last_delivery: BTreeMap<(usize, usize), u64>,
    /// Directions in which nothing arrives.
    pub cut: BTreeMap<(usize, usize), bool>,
    pub committed: BTreeMap<Seq, Entry>,
    identities: BTreeMap<(u64, u64), Seq>,
    pub next_value: u64,
    pub faults_until: u64,
    pub log: Vec<String>,
    pub trace: bool,
    pub dropped: Vec<mdm_api::ids::VtreeId>,
    pub fenced: Vec<(u64, Option<mdm_api::epoch::Term>)>,
    pub bad_blocks: Vec<bool>,
    /// Copies of layers, whole or in part.
    pub copies: u64,
    /// Blocks in those that were sent in part.
    pub patched_blocks: usize,
    pub resets: u64,
    pub allow_medium: bool,
}

fn context(node: usize, incarnation: ProcessIncarnation, now: Nanos, options: Options) -> Context {
    let mut credits = Credits::default();
    for primary in 0..options.nodes {
        credits.set_share(device(node), device(primary), CreditGrant { aus: 64, journal_bytes: 8 << 20 });
    }
    Context {
        leases: Leases::new(server(node), incarnation, Timing::DEFAULT, now),
        credits,
        resync: ResyncBudget { slots: 2, is_open: true, ..ResyncBudget::default() },
        retained: RetainedBudget { limit: options.retained_bytes, used: 0 },
    }
}

impl World {
    /// One whose copies are all in sync, and whose blocks may be spoilt.
    pub fn healthy(options: Options) -> World {
        let mut world = World::new(7, options);
        world.allow_medium = true;
        assert!(world.run(10_000, World::is_healthy), "{}", world.state());
        world
    }

    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng(seed);
        let mut nodes = Vec::new();
        for node in 0..options.nodes {
            let rate_percent = if options.skewed_clocks { rng.between(95, 105) } else { 100 };
            let offset = rng.below(1 << 40);
            nodes.push(Node {
                up: false,
                incarnation: ProcessIncarnation(0),
                replica: None,
                context: context(node, ProcessIncarnation(0), Nanos(0), options),
                store: Store::new(),
                verdict: Verdict::Clean,
                registered: false,
                revision: 0,
                rate_percent,
                offset,
                flushing: false,
                wanted: 0,
                slow: false,
            });
        }
        let mut world = Self {
            rng,
            now: 1,
            order: 0,
            queue: BinaryHeap::new(),
            options,
            nodes,
            manager: Manager::new(options.nodes),
            clients: (0..options.clients).map(|_| Client::default()).collect(),
            registers: BTreeMap::new(),
            next_incarnation: 0,
            connections: BTreeMap::new(),
            next_connection: 0,
            last_delivery: BTreeMap::new(),
            cut: BTreeMap::new(),
            committed: BTreeMap::new(),
            identities: BTreeMap::new(),
            next_value: 0,
            faults_until: options.fault_ms * MS,
            log: Vec::new(),
            trace: false,
            dropped: Vec::new(),
            fenced: Vec::new(),
            bad_blocks: Vec::new(),
            copies: 0,
            patched_blocks: 0,
            resets: 0,
            allow_medium: false,
        };
        for node in 0..options.nodes {
            world.start(node);
        }
        world.at(MS, Happening::Scan);
        if options.faults {
            world.at(300 * MS, Happening::Fault);
            for client in 0..options.clients {
                world.at(MS, Happening::ClientStart { client });
            }
        }
        world
    }

    pub fn at(&mut self, delay: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Timed { at: self.now + delay, order: self.order, what });
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.trace {
            let line = format!("{:>9.3} {}", self.now as f64 / MS as f64, text());
            self.log.push(line);
        }
    }

    fn local(&self, node: usize) -> Nanos {
        let node = &self.nodes[node];
        Nanos(node.offset + self.now / 100 * node.rate_percent)
    }

    /// Runs until `done` or for `ms` of virtual time. True if done.
    pub fn run(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + ms * MS;
        loop {
            if done(self) {
                return true;
            }
            let Some(next) = self.queue.peek() else { return false };
            if next.at > end {
                self.now = end;
                return done(self);
            }
            let next = self.queue.pop().unwrap();
            self.now = next.at;
            self.happen(next.what);
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Deliver { from, to, connection, header, payload } => {
                self.deliver(from, to, connection, &header, payload);
            }
            Happening::AskLeases { node, incarnation } => {
                if self.is(node, incarnation) {
                    for peer in (0..self.options.nodes).filter(|peer| *peer != node) {
                        let ask = self.nodes[node].context.leases.ask(self.local(node), server(peer));
                        self.transmit(node, peer, &PeerFrame::Lease(ask));
                    }
                    self.at(Timing::DEFAULT.lease_renew_ms * MS, Happening::AskLeases { node, incarnation });
                }
            }
            Happening::Tick { node, incarnation, wanted } => {
                if self.is(node, incarnation) && self.nodes[node].wanted == wanted {
                    self.nodes[node].wanted = 0;
                    self.step(node, Event::Tick);
                }
            }
            Happening::Flush { node, incarnation } => {
                if self.is(node, incarnation) {
                    self.nodes[node].flushing = false;
                    let count = 1 + self.rng.below(4) as usize;
                    for token in self.nodes[node].store.write(count) {
                        let delay = self.rng.below(MS / 2);
                        let done = StoreDone::Durable;
                        self.at(delay, Happening::StoreDone { node, incarnation, token, done });
                    }
                    self.plan_flush(node);
                }
            }
            Happening::StoreDone { node, incarnation, token, done } => {
                if self.is(node, incarnation) {
                    self.step(node, Event::Store { token, result: Ok(done) });
                }
            }
            Happening::Config { node, incarnation, config, revision } => {
                if self.is(node, incarnation) && self.nodes[node].registered && !self.manager.is_cut(node) {
                    self.nodes[node].revision = self.nodes[node].revision.max(revision);
                    let homes = self.manager.homes(&config);
                    self.step(node, Event::Config { config, min_isr: self.options.min_isr, homes });
                }
            }
            Happening::Register { node, incarnation } => self.register(node, incarnation),
            Happening::Proposal(change) => self.propose(&change),
            Happening::Scan => self.scan(),
            Happening::Lost { node, peer, connection, reset } => {
                let pair = (node.min(peer), node.max(peer));
                if self.nodes[node].up && self.connections.get(&pair).is_none_or(|newer| *newer <= connection) {
                    self.step(node, Event::PeerLost { device: device(peer), reset });
                }
            }
            Happening::Connect { a, b } => self.connect(a, b),
            Happening::Restart { node } => self.start(node),
            Happening::Fault => self.fault(),
            Happening::EndOfCut { a, b, connection } => self.end_cut(a, b, connection),
            Happening::EndOfManagerCut { node } => self.manager.cut[node] = None,
            Happening::ClientStart { client } => self.client_start(client),
            Happening::ClientArrives { client, op, node } => self.client_arrives(client, op, node),
            Happening::ClientAgain { client, op, attempt } => self.client_again(client, op, attempt),
            Happening::ClientReply { client, op, result } => self.client_reply(client, op, result),
        }
    }

    pub fn is(&self, node: usize, incarnation: ProcessIncarnation) -> bool {
        self.nodes[node].up && self.nodes[node].incarnation == incarnation
    }

    /// A new process on the node.
    pub fn start(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.next_incarnation += 1;
        let incarnation = ProcessIncarnation(self.next_incarnation);
        let now = self.local(node);
        let identity = Identity { pg: pg(), device: device(node), server: server(node), incarnation };
        let mut fresh = context(node, incarnation, now, self.options);
        let verdict = std::mem::replace(&mut self.nodes[node].verdict, Verdict::Clean);
        let recovered = self.nodes[node].store.recovered(verdict);
        let replica = Replica::new(identity, recovered, &mut fresh);
        let entry = &mut self.nodes[node];
        entry.up = true;
        entry.incarnation = incarnation;
        entry.context = fresh;
        entry.replica = Some(replica);
        entry.registered = false;
        entry.revision = 0;
        entry.flushing = false;
        entry.wanted = 0;
        self.note(|| format!("node {node} starts as {incarnation}"));
        self.at(MS, Happening::Register { node, incarnation });
        let delay = self.rng.below(150 * MS);
        self.at(delay, Happening::AskLeases { node, incarnation });
        for peer in (0..self.options.nodes).filter(|peer| *peer != node) {
            let delay = self.rng.between(1, 5) * MS;
            self.at(delay, Happening::Connect { a: node, b: peer });
        }
    }

    /// The process dies. `kept`: how many records that were under way survive.
    pub fn crash(&mut self, node: usize, kept: usize) {
        if !self.nodes[node].up {
            return;
        }
        self.note(|| format!("node {node} dies"));
        let entry = &mut self.nodes[node];
        entry.up = false;
        entry.replica = None;
        entry.store.crash(kept);
        self.manager.down(node, self.now);
        for peer in (0..self.options.nodes).filter(|peer| *peer != node) {
            let pair = (node.min(peer), node.max(peer));
            if let Some(connection) = self.connections.remove(&pair) {
                let delay = self.rng.between(1, 3) * MS;
                self.at(delay, Happening::Lost { node: peer, peer: node, connection, reset: true });
            }
        }
    }

    /// One step of the node's replica, with everything that it asks for.
    pub fn step(&mut self, node: usize, event: Event) {
        let now = self.local(node);
        if self.trace && !matches!(event, Event::Tick) {
            let text = format!("{event:?}");
            self.note(|| format!("{node}: {}", text.chars().take(260).collect::<String>()));
        }
        let entry = &mut self.nodes[node];
        let Some(replica) = entry.replica.as_mut() else { return };
        let mut actions = Vec::new();
        let before = replica.status().role;
        replica.step(now, event, &mut entry.context, &mut actions);
        let after = replica.status().role;
        let deadline = replica.deadline(&entry.context);
        if before != after {
            self.note(|| format!("{node}: {before:?} -> {after:?}"));
        }
        for action in actions {
            self.act(node, action);
        }
        self.check_commits(node);
        self.plan_flush(node);
        self.plan_tick(node, deadline);
    }

    fn act(&mut self, node: usize, action: Action) {
        let incarnation = self.nodes[node].incarnation;
        match action {
            Action::Send(message) => {
                let to = node_of(message.to);
                match &message.body {
                    PeerBody::Copy { .. } => self.copies += 1,
                    PeerBody::Patch { copy, .. } => {
                        self.copies += 1;
                        self.patched_blocks += copy.block_count();
                    }
                    PeerBody::Reset { .. } => self.resets += 1,
                    _ => {}
                }
                let PeerMessage { pg: sent, .. } = &message;
                assert_eq!(*sent, pg());
                self.transmit(node, to, &PeerFrame::Replica(message));
            }
            Action::Store { token, request } => {
                let commit = matches!(request, StoreRequest::Commit { .. });
                let answer = self.nodes[node].store.request(token, request);
                if let Some(done) = answer {
                    assert!(!commit);
                    let delay = self.rng.between(MS / 50, MS / 2);
                    self.at(delay, Happening::StoreDone { node, incarnation, token, done });
                }
            }
            Action::Reply { client, result } => {
                let ClientRef { connection, tag } = client;
                let delay = self.rng.between(MS / 20, MS);
                if self.options.faults && self.now < self.faults_until && self.rng.chance(3) {
                    return; // F23: the answer is lost.
                }
                self.at(delay, Happening::ClientReply { client: connection as usize, op: tag, result });
            }
            Action::Propose(change) => {
                if !self.manager.is_cut(node) {
                    let delay = self.rng.between(1, 15) * MS;
                    self.at(delay, Happening::Proposal(change));
                }
            }
            Action::WantMap { .. } => self.manager.wanted(node),
            Action::Fenced { fence, term } => self.fenced.push((fence, term)),
            Action::Dropped { vtree } => self.dropped.push(vtree),
            Action::Gone => self.nodes[node].replica = None,
            Action::BadBlock { repaired, .. } => self.bad_blocks.push(repaired),
        }
    }

    /// I6, I9, I11, I16: whatever any replica commits at a place in the order, all commit there, and no request twice.
    fn check_commits(&mut self, node: usize) {
        for entry in std::mem::take(&mut self.nodes[node].store.newly_committed) {
            if matches!(entry.body, EntryBody::Elsewhere { .. }) {
                continue;
            }
            let seq = entry.version.seq;
            if let Some(known) = self.committed.get(&seq) {
                assert!(
                    *known == entry,
                    "node {node} commits {:?} where {:?} is committed",
                    entry.version,
                    known.version
                );
                continue;
            }
            if let Some(identity) = &entry.identity {
                let key = (identity.sdc.0, identity.request.0);
                let twice = self.identities.insert(key, seq);
                assert!(twice.is_none(), "I16: request {key:?} is committed at {twice:?} and {seq:?}");
            }
            self.committed.insert(seq, entry);
        }
    }

    fn plan_flush(&mut self, node: usize) {
        if self.nodes[node].flushing || self.nodes[node].store.undurable() == 0 {
            return;
        }
        self.nodes[node].flushing = true;
        let incarnation = self.nodes[node].incarnation;
        let delay = if self.nodes[node].slow { self.rng.between(20, 200) * MS } else { self.rng.between(MS / 20, MS) };
        self.at(delay, Happening::Flush { node, incarnation });
    }

    fn plan_tick(&mut self, node: usize, deadline: Nanos) {
        if deadline == Nanos::NEVER {
            return;
        }
        let local = self.local(node);
        let rate = self.nodes[node].rate_percent;
        let wait = deadline.0.saturating_sub(local.0) / rate * 100 + 200;
        let wanted = self.now + wait;
        if self.nodes[node].wanted != 0 && self.nodes[node].wanted <= wanted {
            return;
        }
        self.nodes[node].wanted = wanted;
        let incarnation = self.nodes[node].incarnation;
        self.at(wait, Happening::Tick { node, incarnation, wanted });
    }

    pub fn role(&self, node: usize) -> Role {
        self.nodes[node].replica.as_ref().map_or(Role::Idle, |replica| replica.status().role)
    }

    /// The node that serves, if any.
    pub fn primary(&self) -> Option<usize> {
        (0..self.options.nodes).find(|node| self.role(*node) == Role::Primary)
    }

    pub fn committed_at(&self, node: usize) -> Seq {
        self.nodes[node].replica.as_ref().map_or(Seq(0), |replica| replica.status().committed)
    }

    /// True if everybody is in the ISR and one of them serves.
    pub fn is_healthy(&self) -> bool {
        let config = &self.manager.config;
        config.isr.len() == self.options.nodes
            && config.primary.is_some_and(|primary| self.role(node_of(primary)) == Role::Primary)
            && (0..self.options.nodes).all(|node| self.nodes[node].revision == self.manager.revision)
    }
}
