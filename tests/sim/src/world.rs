//! A world: hosts, and the loop that lets things happen to them, one at a time.

use mdm_api::command::AdminCommand;
use mdm_core::State;
use sds_replica::Role;

use crate::clock::{MS, Time};
use crate::cluster;
use crate::core::{Core, Input, What};
use crate::faults::Faults;
use crate::host::Host;
use crate::host::operator::{Answer, Operator};
use crate::net::NodeId;
use crate::plan::Plan;
use crate::trace::Trace;

/// How long a person waits for an answer before the question is asked anew.
const PATIENCE_MS: u64 = 125_000;
/// How often servers are looked at.
const LOOK: Time = 50 * MS;

/// A world.
pub struct World {
    /// What hosts share.
    pub core: Core,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// What is broken, and what is to break.
    pub faults: Faults,
    next_look: Time,
}

/// Gives commands.
pub struct Commands<'a> {
    core: &'a mut Core,
    operator: &'a mut Operator,
}

impl Commands<'_> {
    /// Gives one; its answer comes under the number.
    pub fn command(&mut self, command: AdminCommand) -> u64 {
        self.operator.command(self.core, command, PATIENCE_MS)
    }
}

impl World {
    /// The hosts of a seed's plan.
    pub fn new(seed: u64, plan: Plan, trace: Trace) -> Self {
        let nodes = plan.nodes();
        let mut core = Core::new(seed, plan, nodes, trace);
        let faults = Faults::new(core.rng.fork());
        let mut world = Self { core, hosts: Vec::new(), faults, next_look: 0 };
        cluster::hosts(&mut world);
        let operator = world.core.directory.operator;
        world.start(operator);
        world
    }

    /// The operator.
    pub fn operator(&mut self) -> Commands<'_> {
        match &mut self.hosts[self.core.directory.operator] {
            Host::Operator(operator) => Commands { core: &mut self.core, operator },
            _ => unreachable!("the operator's host is the operator's"),
        }
    }

    /// The answer to a command, if it has come.
    pub fn answer(&self, number: u64) -> Option<&Answer> {
        match &self.hosts[self.core.directory.operator] {
            Host::Operator(operator) => operator.answers.get(&number),
            _ => None,
        }
    }

    /// Takes the answer to a command.
    pub fn take_answer(&mut self, number: u64) -> Option<Answer> {
        match &mut self.hosts[self.core.directory.operator] {
            Host::Operator(operator) => operator.answers.remove(&number),
            _ => None,
        }
    }

    /// The newest state of the metadata manager that any living member has.
    pub fn state(&self) -> Option<&State> {
        let states = self.hosts.iter().filter_map(|host| match host {
            Host::Mdm(host) => host.member().map(mdm_node::Node::state),
            _ => None,
        });
        states.max_by_key(|state| state.revision())
    }

    /// Lets time pass until something holds; false if it does not within the bound, or if a check fails.
    pub fn run_until(&mut self, bound: Time, holds: impl Fn(&Self) -> bool) -> bool {
        let end = self.core.now + bound;
        while self.core.now < end {
            if holds(self) {
                return true;
            }
            if self.core.watch.failure.is_some() {
                return false;
            }
            let pause = (self.core.now + 10 * MS).min(end);
            self.run_to(pause);
        }
        holds(self)
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Time) {
        self.run_to(self.core.now + time);
    }

    fn run_to(&mut self, end: Time) {
        while self.core.watch.failure.is_none() {
            let Some(what) = self.core.next(end) else { return };
            self.happen(what);
            if self.core.now >= self.next_look {
                self.next_look = self.core.now + LOOK;
                self.look();
            }
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Net(later) => {
                for (node, conn, signal) in self.core.net_happen(later) {
                    self.input(node, Input::Net(conn, signal));
                }
            }
            What::Node(node, life, input) => {
                if self.core.hosts[node].life != life || !self.core.reach[node].running {
                    return;
                }
                if matches!(input, Input::Wake) && !self.core.reach[node].paused && !self.core.disarm(node) {
                    return;
                }
                self.input(node, input);
            }
            What::Fault => self.fault(),
            What::EndFault(number) => self.end_fault(number),
        }
    }

    fn input(&mut self, node: NodeId, input: Input) {
        if !self.core.reach[node].running {
            return;
        }
        if self.core.reach[node].paused {
            self.core.hosts[node].held.push(input);
            return;
        }
        let word = match &input {
            Input::Start => 1,
            Input::Wake => 2,
            Input::Files => 3,
            Input::Disk(slot, number) => 4 | (*slot as u64) << 8 | number << 16,
            Input::Net(conn, crate::net::Signal::Frame(frame)) => frame.digest() ^ conn.0 << 32,
            Input::Net(conn, _) => 5 | conn.0 << 8,
        };
        self.core.trace.word(self.core.now ^ (node as u64) << 56);
        self.core.trace.word(word);
        self.core.at = Some(node);
        self.hosts[node].input(&mut self.core, input);
        self.core.at = None;
        if !self.core.watch.protocol.risen.is_empty() {
            self.compare_risen();
        }
    }

    /// An assertion did not hold: what it says, and in whom.
    pub fn panicked(&self, text: &str) -> String {
        let place = match self.core.at {
            None => "the simulator".to_owned(),
            Some(node) => format!("{} of host {node}", self.hosts[node].what()),
        };
        self.core.trace.line(self.core.now, || format!("{place} panics: {text}"));
        format!("panic: {text}, in {place}")
    }

    /// Restarts what ended by its own will, and looks for old primaries that could still answer.
    fn look(&mut self) {
        for node in std::mem::take(&mut self.core.watch.wants_restart) {
            self.crash(node, false);
            self.start(node);
        }
        for node in self.core.directory.sds_nodes.clone() {
            let Host::Sds(host) = &self.hosts[node] else { continue };
            let Some(shard) = host.shard() else { continue };
            let now = self.core.local(node);
            let old = shard.leaders().find(|(pg, device, replica)| {
                replica.promised() < self.core.watch.protocol.serving(*pg) && shard.may_answer_reads(now, *pg, *device)
            });
            if let Some((pg, device, replica)) = old {
                let (term, serving) = (replica.promised(), self.core.watch.protocol.serving(pg));
                let text = format!("I13: {device} may read {pg} in term {term}; term {serving} is being served");
                self.core.watch.fail(self.core.now, text);
            }
        }
    }

    /// A primary has begun to serve: from this moment on no older one may (I13, I14, I15). The last answer that it waited for may
    /// itself come late, when a newer one serves already; that one may read, and [`Self::look`] sees that this one may not.
    fn compare_risen(&mut self) {
        for risen in std::mem::take(&mut self.core.watch.protocol.risen) {
            for node in self.core.directory.sds_nodes.clone() {
                let Host::Sds(host) = &self.hosts[node] else { continue };
                let Some(shard) = host.shard() else { continue };
                let now = self.core.local(node);
                let others = shard.replicas_of(risen.pg).filter(|(device, _)| *device != risen.device);
                let leading = others.filter(|(_, replica)| replica.role() == Role::Primary);
                for (device, replica) in leading.filter(|(_, replica)| replica.promised() < risen.term) {
                    self.core.marks.hit("I13");
                    if shard.may_answer_reads(now, risen.pg, device) {
                        let text = format!(
                            "I13: {device} may still read {} in term {}, {} serves it in term {}",
                            risen.pg,
                            replica.promised(),
                            risen.device,
                            risen.term
                        );
                        self.core.watch.fail(self.core.now, text);
                    }
                }
            }
        }
    }

    /// Starts the process of a host.
    pub fn start(&mut self, node: NodeId) {
        if self.core.reach[node].running || !self.core.reach[node].powered {
            return;
        }
        self.mark_start(node);
        self.core.new_life(node);
        self.core.reach[node].running = true;
        self.core.trace.line(self.core.now, || format!("host {node} starts"));
        self.input(node, Input::Start);
    }

    /// Ends the process of a host, with its power if so.
    pub fn crash(&mut self, node: NodeId, power_lost: bool) {
        self.mark_end(node);
        self.core.hosts[node].ended_at = self.core.now;
        let was_running = std::mem::replace(&mut self.core.reach[node].running, false);
        self.core.reach[node].paused = false;
        if power_lost {
            self.core.reach[node].powered = false;
        }
        self.core
            .trace
            .line(self.core.now, || format!("host {node} {}", if power_lost { "loses power" } else { "crashes" }));
        self.core.new_life(node);
        if was_running || power_lost {
            self.core.with_net(|net, now, out| net.process_ended(now, node, !power_lost, out));
            let Self { core, hosts, .. } = self;
            hosts[node].ended(core, power_lost);
        }
    }

    /// Gives a host power again and starts its process.
    pub fn power_on(&mut self, node: NodeId) {
        if !std::mem::replace(&mut self.core.reach[node].powered, true) {
            self.core.with_net(|net, now, out| net.powered_on(now, node, out));
        }
        self.start(node);
    }

    /// Stops the process of a host; it goes on where it was.
    pub fn pause(&mut self, node: NodeId) {
        self.core.reach[node].paused = self.core.reach[node].running;
        self.core.trace.line(self.core.now, || format!("host {node} is paused"));
    }

    /// Lets it go on.
    pub fn resume(&mut self, node: NodeId) {
        if !std::mem::replace(&mut self.core.reach[node].paused, false) {
            return;
        }
        self.core.trace.line(self.core.now, || format!("host {node} goes on"));
        self.mark_resume(node);
        self.core.disarm(node);
        let held = std::mem::take(&mut self.core.hosts[node].held);
        for input in held {
            self.input(node, input);
        }
        self.input(node, Input::Wake);
        self.core.with_net(|net, now, out| net.resumed(now, node, out));
    }
}
