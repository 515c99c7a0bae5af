//! What there is: the manager's decisions, the replicas, the leases between them, and what was committed.

use crate::{Protocol, REPLICAS, Rule};

/// Some replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Set(u8);

impl Set {
    /// These.
    pub fn of(members: &[usize]) -> Self {
        members.iter().fold(Self::default(), |set, member| set.with(*member))
    }

    /// With one more.
    pub fn with(self, member: usize) -> Self {
        Self(self.0 | 1 << member)
    }

    /// Without one.
    pub fn without(self, member: usize) -> Self {
        Self(self.0 & !(1 << member))
    }

    /// True if it is one of them.
    pub fn contains(self, member: usize) -> bool {
        self.0 & 1 << member != 0
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..REPLICAS).filter(move |member| self.contains(*member))
    }
}

/// A decision of the manager. Its epoch is its place among all of them, from 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The epoch in which the primary was appointed.
    pub term: usize,
    /// Who leads.
    pub primary: usize,
    /// Which of its processes was appointed.
    pub process: u8,
    /// In sync.
    pub isr: Set,
    /// Who leads next, if a move is planned.
    pub heir: Option<usize>,
    /// The last primary, if the process that was appointed is gone for certain.
    pub certified: Option<usize>,
}

/// An entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Under which term it was ordered.
    pub term: usize,
    /// A client's write, from 1; 0 is the start of the term.
    pub write: u8,
}

/// How far a primary has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It waits until no lease is left that it granted to others.
    WaitGrants,
    /// It asks members to promise.
    CollectPromises,
    /// The first entry of its term is on its way.
    Starting,
    /// It serves.
    Serving,
    /// It has given its leases back.
    Released,
}

/// What a primary knows, and loses with its process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    /// Its term.
    pub term: usize,
    /// How far it is.
    pub phase: Phase,
    /// Who has promised its term, as far as it heard.
    pub promised: Set,
    /// How much of its log each has, as far as it heard.
    pub acks: [usize; REPLICAS],
    /// How much is committed.
    pub committed: usize,
    /// Entries through the first one of its term; none before it is ordered.
    pub start: Option<usize>,
    /// Who is proposed as a new member, from before it is.
    pub adding: Option<usize>,
    /// Whose removal is proposed.
    pub removing: Option<usize>,
}

/// A replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Replica {
    /// The newest configuration that it heard of; 0: none.
    pub knows: usize,
    /// On its device: the newest term that it promised.
    pub promised: usize,
    /// On its device.
    pub log: Vec<Entry>,
    /// Its part as a primary.
    pub leader: Option<Leader>,
    /// Counts its processes.
    pub process: u8,
    /// An earlier process may have granted what this one does not know of.
    pub cooling: bool,
}

/// A lease of one replica from another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The holder has it, and its time is running.
    pub got: bool,
    /// The granter's time is running, as far as it knows.
    pub owed: bool,
}

/// What was proposed to the manager, and may be decided at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Proposal {
    /// Upon which configuration.
    pub epoch: usize,
    /// By whom.
    pub by: usize,
    /// What.
    pub change: Change,
}

/// What can be proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// A member is out.
    Remove(usize),
    /// A learner is in.
    Add(usize),
    /// The heir leads.
    HandOver,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What the manager decided.
    pub configs: Vec<Config>,
    /// The replicas.
    pub replicas: [Replica; REPLICAS],
    /// By holder and granter.
    pub leases: [[Lease; REPLICAS]; REPLICAS],
    /// On their way to the manager.
    pub proposals: Vec<Proposal>,
    /// What is committed, as the clients see it.
    pub order: Vec<Entry>,
    /// Something else was committed in its place.
    pub forked: bool,
    /// Writes that clients have made.
    pub writes: u8,
    /// Processes that were restarted.
    pub restarts: u8,
}

impl State {
    /// The first replica serves, with a lease from the second one, which is in sync.
    pub(crate) fn first() -> Self {
        let (isr, log) = (Set::of(&[0, 1]), vec![Entry { term: 1, write: 0 }]);
        let leader = Leader {
            term: 1,
            phase: Phase::Serving,
            promised: isr,
            acks: [1, 1, 0],
            committed: 1,
            start: Some(1),
            adding: None,
            removing: None,
        };
        let member = Replica { knows: 1, promised: 1, log: log.clone(), ..Replica::default() };
        let mut leases: [[Lease; REPLICAS]; REPLICAS] = Default::default();
        leases[0][1] = Lease { got: true, owed: true };
        Self {
            configs: vec![Config { term: 1, primary: 0, process: 0, isr, heir: None, certified: None }],
            replicas: [Replica { leader: Some(leader), ..member.clone() }, member, Replica::default()],
            leases,
            proposals: Vec::new(),
            order: log,
            forked: false,
            writes: 0,
            restarts: 0,
        }
    }

    /// What the manager decided last.
    pub fn newest(&self) -> &Config {
        &self.configs[self.configs.len() - 1]
    }

    /// What a replica knows.
    pub fn known(&self, at: usize) -> Option<&Config> {
        self.configs.get(self.replicas[at].knows.checked_sub(1)?)
    }

    pub(crate) fn committed_at(&self, at: usize) -> usize {
        self.replicas[at].leader.as_ref().map_or(0, |leader| leader.committed)
    }

    /// A write that another primary ordered is committed here.
    pub(crate) fn has_write_of_other(&self, at: usize) -> bool {
        let Some(leader) = &self.replicas[at].leader else { return false };
        let mut committed = self.replicas[at].log.iter().take(leader.committed);
        committed.any(|entry| entry.write > 0 && entry.term < leader.term)
    }
}

impl Protocol {
    /// Whose acknowledgements and leases a primary needs, itself included: of every ISR that may be in force.
    pub(crate) fn required(&self, state: &State, at: usize) -> Set {
        let (Some(config), Some(leader)) = (state.known(at), &state.replicas[at].leader) else { return Set::default() };
        let mut members = config.isr;
        if let Some(learner) = leader.adding.filter(|_| self.keeps(Rule::RequireBeforeProposed)) {
            members = members.with(learner);
        }
        if let Some(member) = leader.removing.filter(|_| !self.keeps(Rule::RequireUntilRemoved)) {
            members = members.without(member);
        }
        members
    }

    /// True if a read would be answered at this moment (I13).
    pub(crate) fn may_read(&self, state: &State, at: usize) -> bool {
        let Some(leader) = &state.replicas[at].leader else { return false };
        let serves = match leader.phase {
            Phase::Serving => true,
            Phase::Released => !self.keeps(Rule::StopAfterRelease),
            _ => false,
        };
        serves && self.required(state, at).without(at).iter().all(|member| state.leases[at][member].got)
    }
}
