//! A model of what decides whether data is safe while roles move: configurations, leases, activation. Nothing else is in it,
//! so that a person can hold it beside the code, and a machine can look at every state that it can reach.
//!
//! The simulator runs the code itself, and a sample of what may happen to it. This is the other half: one placement group,
//! three replicas, a handful of decisions of the metadata manager, and *every* order in which messages, timers, restarts and
//! decisions can come. Messages are steps that may come late or never; time is the order of steps. Of clocks one thing is
//! assumed, the drift margin: a lease ends at its holder before it ends at its granter (I13, I14).
//!
//! What is checked ([`Protocol::properties`]): there is one order (I6), all that is committed is at the front of the log of
//! every in-sync replica (I9), and whoever may answer a read has all of it (P2). Each rule can be left out ([`Rule`]), and
//! the checker must then find out what goes wrong: a model in which a rule does not matter is not a model of it.
//!
//! | here | there |
//! |---|---|
//! | [`Step::Appoint`], [`Step::NameHeir`], [`Step::Decide`] | `mdm-core`: commands that change a `PgConfig` |
//! | [`Step::Hear`], [`Step::Lead`] .. [`Step::Commit`] | `sds-replica`: `role`, `activate`, `write` |
//! | [`Step::ProposeRemoval`], [`Step::ProposeLearner`] | `sds-replica`: `isr` |
//! | [`Step::Grant`] .. [`Step::ExpireAtGranter`] | `sds-replica`: `lease` |
//! | [`Step::Release`], [`Step::HearRelease`], [`Step::HandOver`] | `sds-replica`: `fence`; decision 0016 |

mod state;
mod steps;

pub use state::{Config, Entry, Leader, Lease, Phase, Replica, Set, State};
pub use steps::Step;

use stateright::{Model, Property};

/// Replicas of the group. At the beginning the first one serves and the second one is in sync.
pub const REPLICAS: usize = 3;

/// A rule that the protocol cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// I14: who is appointed waits until no lease that it granted is left.
    WaitForGrants,
    /// I14: a new process waits for leases of which it knows nothing.
    WaitAfterRestart,
    /// I14: only a process that is gone is certified dead; a silent one is not.
    CertifyOnlyTheGone,
    /// I15: who has promised a newer term grants nothing to the older one.
    ExcludeFromGrants,
    /// I7: who has promised a newer term takes nothing from the older one.
    KeepPromises,
    /// I9: a member is waited for until its removal is decided.
    RequireUntilRemoved,
    /// I5, I9: a learner is waited for before it is proposed.
    RequireBeforeProposed,
    /// I3: only an in-sync replica is appointed.
    AppointInSync,
    /// I1: a change is decided only upon the configuration that it was proposed for.
    CompareEpochs,
    /// I11: nothing is served before the first entry of the term is committed.
    CommitEpochStart,
    /// A primary that has released its leases serves no more.
    StopAfterRelease,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::WaitForGrants,
        Self::WaitAfterRestart,
        Self::CertifyOnlyTheGone,
        Self::ExcludeFromGrants,
        Self::KeepPromises,
        Self::RequireUntilRemoved,
        Self::RequireBeforeProposed,
        Self::AppointInSync,
        Self::CompareEpochs,
        Self::CommitEpochStart,
        Self::StopAfterRelease,
    ];
}

/// How far the model goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Configurations, the first one included.
    pub configs: usize,
    /// Writes of clients.
    pub writes: u8,
    /// Restarts of processes.
    pub restarts: u8,
}

/// The protocol, with all its rules or without one.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// How far it goes.
    pub bounds: Bounds,
    /// The rule that is left out.
    pub without: Option<Rule>,
}

impl Protocol {
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }
}

/// I6: committed entries are one sequence.
const ONE_ORDER: &str = "there is one order";
/// I9: every in-sync replica has all that is committed.
const ON_ALL_COPIES: &str = "what is committed is on every in-sync replica";
/// P2, I13: a read misses nothing that was committed.
const READS_ARE_FRESH: &str = "whoever may read has all that is committed";
/// I3.
const PRIMARY_IN_SYNC: &str = "the primary is in sync";
/// What always holds.
pub const PROMISES: [&str; 4] = [ONE_ORDER, ON_ALL_COPIES, READS_ARE_FRESH, PRIMARY_IN_SYNC];

/// A role moves after a failure.
const FAILS_OVER: &str = "a second primary serves a write of the first";
/// The ISR grows.
const GROWS: &str = "a learner has come in, and reads go on";
/// The ISR shrinks.
const SHRINKS: &str = "a member is out, and reads go on";
/// A role is handed over.
const HANDS_OVER: &str = "an heir goes on before the leases of the last primary end by themselves";
/// What the model comes to: else it would promise nothing.
pub const STORIES: [&str; 4] = [FAILS_OVER, GROWS, SHRINKS, HANDS_OVER];

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.possible(state, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        self.take(&mut next, step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_ORDER, |_, state: &State| !state.forked),
            Property::always(ON_ALL_COPIES, |_, state: &State| {
                state.newest().isr.iter().all(|member| state.replicas[member].log.starts_with(&state.order))
            }),
            Property::always(READS_ARE_FRESH, |model: &Self, state: &State| {
                (0..REPLICAS).all(|at| !model.may_read(state, at) || state.committed_at(at) == state.order.len())
            }),
            Property::always(PRIMARY_IN_SYNC, |_, state: &State| state.newest().isr.contains(state.newest().primary)),
            Property::sometimes(FAILS_OVER, |model: &Self, state: &State| {
                (0..REPLICAS).any(|at| model.may_read(state, at) && state.has_write_of_other(at))
            }),
            Property::sometimes(GROWS, |model: &Self, state: &State| {
                model.may_read(state, 0) && state.known(0).is_some_and(|config| config.isr.contains(2))
            }),
            Property::sometimes(SHRINKS, |model: &Self, state: &State| {
                model.may_read(state, 0) && state.known(0).is_some_and(|config| !config.isr.contains(1))
            }),
            Property::sometimes(HANDS_OVER, |_, state: &State| {
                let phase = |at: usize| state.replicas[at].leader.as_ref().map(|leader| leader.phase);
                let runs = state.leases[0][1].got;
                phase(0) == Some(Phase::Released) && phase(1) == Some(Phase::CollectPromises) && runs
            }),
        ]
    }
}
