//! What all hosts share: time, what is to happen, the network, what is recorded.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use mdm_api::control::PeerRole;
use mdm_api::epoch::Nanos;

use crate::check::Watch;
use crate::clock::{Clock, RATE_TRUE, Time};
use crate::cluster::Directory;
use crate::history::History;
use crate::marks::Marks;
use crate::net::{ConnId, Effects, Frame, Later, Net, NodeId, Port, Reach, Signal};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::trace::Trace;

/// Events of a run; a healthy one has a hundredth of them.
const EVENTS_MAX: u64 = 20_000_000;

/// What a host's process is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// It starts.
    Start,
    /// Of a connection.
    Net(ConnId, Signal),
    /// Time that was asked for has come.
    Wake,
    /// An operation of a device ended: device slot and number.
    Disk(usize, u64),
    /// The operations on files ended.
    Files,
}

/// What is to happen.
#[derive(Clone, Debug)]
pub enum What {
    /// In the network.
    Net(Later),
    /// At a host, if its process is still the one of that life.
    Node(NodeId, u32, Input),
    /// The next fault is due.
    Fault,
    /// A fault ends.
    EndFault(u64),
}

struct Entry {
    at: Time,
    order: u64,
    what: What,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A host: power, process, clock.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its clock.
    pub clock: Clock,
    /// Counts the processes.
    pub life: u32,
    /// When its last process ended.
    pub ended_at: Time,
    /// When it is to be woken.
    armed: Time,
    /// What waits for the end of its pause.
    pub held: Vec<Input>,
}

/// What all hosts share.
pub struct Core {
    /// True time.
    pub now: Time,
    order: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    /// The source of chance of everything that has none of its own.
    pub rng: Rng,
    /// What was drawn for this seed.
    pub plan: Plan,
    /// The network.
    pub net: Net,
    /// Hosts.
    pub hosts: Vec<Host>,
    /// How the network sees them.
    pub reach: Vec<Reach>,
    /// Who is where.
    pub directory: Directory,
    /// What clients did and saw.
    pub history: History,
    /// What must always hold.
    pub watch: Watch,
    /// What was reached.
    pub marks: Marks,
    /// The trace.
    pub trace: Trace,
    /// Events that happened.
    pub events: u64,
    /// The host to which something happens just now.
    pub at: Option<NodeId>,
    effects: Effects,
}

impl Core {
    /// Nothing has happened yet. Every host's clock gets a rate of its own.
    pub fn new(seed: u64, plan: Plan, nodes: usize, trace: Trace) -> Self {
        let mut rng = Rng::new(seed);
        let net = Net::new(nodes, rng.fork());
        let hosts = (0..nodes)
            .map(|_| {
                let spread = plan.clock_spread_ppm;
                let rate = if spread == 0 { RATE_TRUE } else { RATE_TRUE - spread + rng.below(2 * spread + 1) };
                let clock = Clock::new(rng.below(1 << 40), rate);
                Host { clock, life: 0, ended_at: 0, armed: Time::MAX, held: Vec::new() }
            })
            .collect();
        Self {
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            rng,
            plan,
            net,
            hosts,
            reach: vec![Reach { powered: true, running: false, paused: false }; nodes],
            directory: Directory::default(),
            history: History::default(),
            watch: Watch::default(),
            marks: Marks::default(),
            trace,
            events: 0,
            at: None,
            effects: Effects::default(),
        }
    }

    /// Something is to happen at that time.
    pub fn schedule(&mut self, at: Time, what: What) {
        self.order += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), order: self.order, what }));
    }

    /// The next thing that happens, if it does so before `end`.
    pub fn next(&mut self, end: Time) -> Option<What> {
        if self.queue.peek().is_none_or(|Reverse(entry)| entry.at > end) {
            self.now = self.now.max(end);
            return None;
        }
        let Reverse(entry) = self.queue.pop()?;
        self.now = entry.at;
        self.events += 1;
        if self.events > EVENTS_MAX {
            self.watch.fail(self.now, "the world spins: too many events".to_owned());
        }
        Some(entry.what)
    }

    /// Tells a host's process something later.
    pub fn later(&mut self, node: NodeId, after: Time, input: Input) {
        let life = self.hosts[node].life;
        self.schedule(self.now + after, What::Node(node, life, input));
    }

    /// What a host's clock shows.
    pub fn local(&self, node: NodeId) -> Nanos {
        self.hosts[node].clock.at(self.now)
    }

    /// Wakes a host's process at that moment of its clock, or before.
    pub fn arm(&mut self, node: NodeId, deadline: Nanos) {
        let at = self.hosts[node].clock.when(deadline).max(self.now + 1);
        if at < self.hosts[node].armed {
            self.hosts[node].armed = at;
            let life = self.hosts[node].life;
            self.schedule(at, What::Node(node, life, Input::Wake));
        }
    }

    /// A wake-up of this host is being delivered; stale ones are not.
    pub fn disarm(&mut self, node: NodeId) -> bool {
        if self.hosts[node].armed > self.now {
            return false;
        }
        self.hosts[node].armed = Time::MAX;
        true
    }

    /// A new process begins: what was to be told to the one before is not told.
    pub fn new_life(&mut self, node: NodeId) {
        let host = &mut self.hosts[node];
        host.life += 1;
        host.armed = Time::MAX;
        host.held.clear();
    }

    /// Calls a host.
    pub fn dial(&mut self, from: NodeId, to: NodeId, port: Port, caller: PeerRole) -> ConnId {
        let id = self.net.dial(self.now, from, to, port, caller, &mut self.effects);
        self.flush();
        id
    }

    /// Sends over a connection.
    pub fn send(&mut self, conn: ConnId, from: NodeId, frame: Frame) {
        self.net.send(self.now, conn, from, frame, &mut self.effects);
        self.flush();
    }

    /// Ends a connection in good order.
    pub fn close(&mut self, conn: ConnId, from: NodeId) {
        self.net.close(self.now, conn, from, &mut self.effects);
        self.flush();
    }

    /// Something of the network is due.
    pub fn net_happen(&mut self, later: Later) -> Vec<(NodeId, ConnId, Signal)> {
        self.net.happen(self.now, later, &self.reach, &mut self.effects);
        let signals = std::mem::take(&mut self.effects.signals);
        self.flush();
        signals
    }

    /// Changes the network.
    pub fn with_net(&mut self, change: impl FnOnce(&mut Net, Time, &mut Effects)) {
        change(&mut self.net, self.now, &mut self.effects);
        self.flush();
    }

    /// Schedules what the network wants. Signals outside of a delivery come at once, but not within this call.
    fn flush(&mut self) {
        for (at, later) in std::mem::take(&mut self.effects.later) {
            self.schedule(at, What::Net(later));
        }
        for (node, conn, signal) in std::mem::take(&mut self.effects.signals) {
            self.later(node, 0, Input::Net(conn, signal));
        }
    }
}
