//! What can happen: which steps are possible in a state, and what each of them does.

use crate::state::{Change, Config, Entry, Leader, Phase, Proposal, Replica, State};
use crate::{Protocol, REPLICAS, Rule, Set};

/// Something happens. Replicas are named by their places; where two are, the first one is the primary or holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The manager takes the primary for dead and appoints this one.
    Appoint(usize),
    /// The manager wants this one to lead next.
    NameHeir(usize),
    /// The manager decides upon a proposal, by its place.
    Decide(usize),
    /// A replica hears of a configuration, by its epoch; it may have missed others.
    Hear(usize, usize),
    /// I14: an appointed replica goes on.
    Lead(usize),
    /// A member promises the primary's term.
    Promise(usize, usize),
    /// All have promised: the first entry of the term is ordered.
    Start(usize),
    /// A member takes what it lacks of the primary's log, drops what is beyond it, and acknowledges it.
    Replicate(usize, usize),
    /// The primary commits what all have, and serves.
    Commit(usize),
    /// A client writes.
    Write(usize),
    /// A learner gets all that there is.
    Feed(usize, usize),
    /// The primary proposes to take a learner in.
    ProposeLearner(usize, usize),
    /// It proposes to do without a member.
    ProposeRemoval(usize, usize),
    /// A member grants the lease that it was asked for; a question that comes late or never is this step coming late or never.
    Grant(usize, usize),
    /// The time of the lease is over at its holder.
    ExpireAtHolder(usize, usize),
    /// It is over at the granter as well.
    ExpireAtGranter(usize, usize),
    /// The primary has drained, and gives its leases back.
    Release(usize),
    /// A member hears that it does.
    HearRelease(usize, usize),
    /// The primary asks for its heir to lead.
    HandOver(usize),
    /// A process ends, and the next one begins.
    Restart(usize),
    /// Whatever an earlier process granted is over.
    Cool(usize),
}

impl Protocol {
    /// What can happen next.
    pub(crate) fn possible(&self, state: &State, steps: &mut Vec<Step>) {
        self.of_the_manager(state, steps);
        for at in 0..REPLICAS {
            let replica = &state.replicas[at];
            steps.extend((replica.knows + 1..=state.configs.len()).map(|epoch| Step::Hear(at, epoch)));
            if state.restarts < self.bounds.restarts && replica.knows > 0 {
                steps.push(Step::Restart(at));
            }
            if replica.cooling && (0..REPLICAS).all(|holder| state.is_over_at_holder(holder, at)) {
                steps.push(Step::Cool(at));
            }
            for granter in 0..REPLICAS {
                let lease = state.leases[at][granter];
                if lease.got {
                    steps.push(Step::ExpireAtHolder(at, granter));
                }
                // The drift margin: the holder stops first.
                if lease.owed && !lease.got {
                    steps.push(Step::ExpireAtGranter(at, granter));
                }
            }
            if let Some(leader) = &replica.leader {
                self.of_a_primary(state, at, leader, steps);
            }
        }
    }

    fn of_the_manager(&self, state: &State, steps: &mut Vec<Step>) {
        if state.configs.len() >= self.bounds.configs {
            return;
        }
        let config = state.newest();
        let fit = |at: usize| config.isr.contains(at) || !self.keeps(Rule::AppointInSync);
        steps.extend((0..REPLICAS).filter(|at| fit(*at)).map(Step::Appoint));
        if config.heir.is_none() {
            steps.extend(config.isr.without(config.primary).iter().map(Step::NameHeir));
        }
        let is_in_time =
            |proposal: &Proposal| proposal.epoch == state.configs.len() || !self.keeps(Rule::CompareEpochs);
        let all = state.proposals.iter().enumerate();
        steps.extend(all.filter(|(_, proposal)| is_in_time(proposal)).map(|(number, _)| Step::Decide(number)));
    }

    fn of_a_primary(&self, state: &State, at: usize, leader: &Leader, steps: &mut Vec<Step>) {
        let replica = &state.replicas[at];
        let others = self.required(state, at).without(at);
        match leader.phase {
            Phase::WaitGrants if self.may_lead(state, at) => steps.push(Step::Lead(at)),
            Phase::CollectPromises => {
                let willing = others.iter().filter(|other| {
                    !leader.promised.contains(*other) && state.replicas[*other].promised <= leader.term
                });
                steps.extend(willing.map(|other| Step::Promise(at, other)));
                if others.iter().all(|other| leader.promised.contains(other)) {
                    steps.push(Step::Start(at));
                }
            }
            Phase::Starting | Phase::Serving => {
                let follows = |other: &usize| {
                    let promised = state.replicas[*other].promised;
                    leader.promised.contains(*other)
                        && (promised == leader.term || !self.keeps(Rule::KeepPromises))
                        && state.replicas[*other].log != replica.log
                };
                steps.extend(others.iter().filter(follows).map(|other| Step::Replicate(at, other)));
                if self.committable(state, at, leader) > leader.committed {
                    steps.push(Step::Commit(at));
                }
                self.of_leases(state, at, leader, others, steps);
            }
            _ => {}
        }
        if leader.phase == Phase::Serving {
            self.of_a_serving_one(state, at, leader, steps);
        }
        if leader.phase == Phase::Released {
            let owing = |other: &usize| state.leases[at][*other].owed && state.replicas[*other].promised == leader.term;
            steps.extend(others.iter().filter(owing).map(|other| Step::HearRelease(at, other)));
            let proposal = Proposal { epoch: replica.knows, by: at, change: Change::HandOver };
            if !state.proposals.contains(&proposal) {
                steps.push(Step::HandOver(at));
            }
        }
        let is_free = leader.adding.is_none() && leader.removing.is_none();
        if is_free && !matches!(leader.phase, Phase::WaitGrants | Phase::Released) {
            steps.extend(others.iter().map(|other| Step::ProposeRemoval(at, other)));
        }
    }

    fn of_leases(&self, state: &State, at: usize, leader: &Leader, others: Set, steps: &mut Vec<Step>) {
        for other in others.iter().filter(|other| leader.promised.contains(*other)) {
            let lease = state.leases[at][other];
            let is_excluded = state.replicas[other].promised > leader.term && self.keeps(Rule::ExcludeFromGrants);
            if !lease.got && !is_excluded {
                steps.push(Step::Grant(at, other));
            }
        }
    }

    fn of_a_serving_one(&self, state: &State, at: usize, leader: &Leader, steps: &mut Vec<Step>) {
        let log = &state.replicas[at].log;
        if state.writes < self.bounds.writes {
            steps.push(Step::Write(at));
        }
        let Some(config) = state.known(at) else { return };
        let is_free = leader.adding.is_none() && leader.removing.is_none();
        for learner in (0..REPLICAS).filter(|other| !config.isr.contains(*other)) {
            let replica = &state.replicas[learner];
            if replica.promised < leader.term || (replica.promised == leader.term && replica.log != *log) {
                steps.push(Step::Feed(at, learner));
            } else if is_free && replica.promised == leader.term {
                steps.push(Step::ProposeLearner(at, learner));
            }
        }
        let is_drained = leader.committed == log.len() && is_free;
        if config.heir.is_some() && is_drained {
            steps.push(Step::Release(at));
        }
    }

    /// I14: no lease is left that binds it.
    fn may_lead(&self, state: &State, at: usize) -> bool {
        let certified = state.known(at).and_then(|config| config.certified);
        let free = |holder: usize| certified == Some(holder) || !state.leases[holder][at].owed;
        let cool = !state.replicas[at].cooling || !self.keeps(Rule::WaitAfterRestart);
        (cool && (0..REPLICAS).all(free)) || !self.keeps(Rule::WaitForGrants)
    }

    /// I9: what all members have whose word is needed.
    fn committable(&self, state: &State, at: usize, leader: &Leader) -> usize {
        let all = self.required(state, at).with(at);
        let least = all.iter().map(|member| leader.acks[member]).min().unwrap_or(0);
        if leader.start.is_some_and(|start| least >= start) { least } else { 0 }
    }

    /// Carries a step out.
    pub(crate) fn take(&self, state: &mut State, step: Step) {
        match step {
            Step::Appoint(at) => self.appoint(state, at),
            Step::NameHeir(at) => state.decide(|config| config.heir = Some(at)),
            Step::Decide(number) => self.decide(state, number),
            Step::Hear(at, epoch) => state.hear(at, epoch),
            Step::Lead(at) => state.lead(at).phase = Phase::CollectPromises,
            Step::Promise(at, other) => {
                let term = state.lead(at).term;
                state.replicas[other].promise(term);
                state.lead(at).promised = state.lead(at).promised.with(other);
            }
            Step::Start(at) => {
                let term = state.lead(at).term;
                state.append(at, Entry { term, write: 0 });
                let start = state.replicas[at].log.len();
                let leader = state.lead(at);
                leader.start = Some(start);
                leader.phase = if self.keeps(Rule::CommitEpochStart) { Phase::Starting } else { Phase::Serving };
            }
            Step::Replicate(at, other) => state.copy(at, other),
            Step::Commit(at) => self.commit(state, at),
            Step::Write(at) => {
                state.writes += 1;
                let entry = Entry { term: state.lead(at).term, write: state.writes };
                state.append(at, entry);
            }
            Step::Feed(at, learner) => {
                let term = state.lead(at).term;
                state.replicas[learner].promise(term);
                state.lead(at).promised = state.lead(at).promised.with(learner);
                state.copy(at, learner);
            }
            Step::ProposeLearner(at, learner) => {
                state.lead(at).adding = Some(learner);
                state.propose(at, Change::Add(learner));
            }
            Step::ProposeRemoval(at, member) => {
                state.lead(at).removing = Some(member);
                state.propose(at, Change::Remove(member));
            }
            Step::Grant(at, other) => {
                // A grant for a term that was given up binds nobody: the granter does not think of this group.
                let binds = state.replicas[other].promised <= state.lead(at).term;
                let lease = &mut state.leases[at][other];
                lease.got = true;
                lease.owed |= binds;
            }
            Step::ExpireAtHolder(at, other) => state.leases[at][other].got = false,
            Step::ExpireAtGranter(at, other) => state.leases[at][other].owed = false,
            Step::Release(at) => state.lead(at).phase = Phase::Released,
            Step::HearRelease(at, other) => state.leases[at][other].owed = false,
            Step::HandOver(at) => state.propose(at, Change::HandOver),
            Step::Restart(at) => state.restart(at),
            Step::Cool(at) => state.replicas[at].cooling = false,
        }
        state.forget_leases_of_followers();
    }

    fn appoint(&self, state: &mut State, at: usize) {
        let (last, term) = (state.newest().clone(), state.configs.len() + 1);
        // Of the process that was appointed a newer one has come.
        let is_gone = state.replicas[last.primary].process > last.process || !self.keeps(Rule::CertifyOnlyTheGone);
        let certified = is_gone.then_some(last.primary);
        let process = state.replicas[at].process;
        state.decide(|config| *config = Config { term, primary: at, process, heir: None, certified, isr: config.isr });
    }

    fn decide(&self, state: &mut State, number: usize) {
        let proposal = state.proposals.remove(number);
        let term = state.configs.len() + 1;
        match proposal.change {
            Change::Remove(member) => state.decide(|config| {
                config.isr = config.isr.without(member);
                config.heir.take_if(|heir| *heir == member && self.keeps(Rule::AppointInSync));
            }),
            Change::Add(learner) => state.decide(|config| config.isr = config.isr.with(learner)),
            Change::HandOver => {
                let Some(heir) = state.newest().heir else { return };
                let process = state.replicas[heir].process;
                let isr = state.newest().isr;
                let next = Config { term, primary: heir, process, heir: None, certified: None, isr };
                state.decide(|config| *config = next);
            }
        }
    }

    fn commit(&self, state: &mut State, at: usize) {
        let Some(leader) = state.replicas[at].leader.clone() else { return };
        // Without rules others may have cut its log.
        let through = self.committable(state, at, &leader).min(state.replicas[at].log.len());
        let log = state.replicas[at].log[..through].to_vec();
        let shared = log.len().min(state.order.len());
        state.forked |= log[..shared] != state.order[..shared];
        if log.len() > shared {
            state.order = log;
        }
        let leader = state.lead(at);
        leader.committed = through;
        if leader.phase == Phase::Starting {
            leader.phase = Phase::Serving; // I11
        }
    }
}

impl Replica {
    /// I7: on its device before it is answered.
    fn promise(&mut self, term: usize) {
        self.promised = term;
        self.leader.take_if(|leader| leader.term < term);
    }
}

impl State {
    /// The part as primary that the step speaks of.
    fn lead(&mut self, at: usize) -> &mut Leader {
        self.replicas[at].leader.as_mut().expect("the step was possible")
    }

    /// The newest configuration with a change is the next one (I1).
    fn decide(&mut self, change: impl FnOnce(&mut Config)) {
        let mut next = self.newest().clone();
        change(&mut next);
        self.configs.push(next);
    }

    fn hear(&mut self, at: usize, epoch: usize) {
        let config = self.configs[epoch - 1].clone();
        let replica = &mut self.replicas[at];
        replica.knows = epoch;
        match &mut replica.leader {
            Some(leader) if leader.term == config.term => (leader.adding, leader.removing) = (None, None),
            leader => *leader = None,
        }
        if config.primary == at && config.term > replica.promised && config.process == replica.process {
            replica.promise(config.term);
            replica.leader = Some(Leader {
                term: config.term,
                phase: Phase::WaitGrants,
                promised: Set::of(&[at]),
                acks: [0; REPLICAS],
                committed: 0,
                start: None,
                adding: None,
                removing: None,
            });
        }
    }

    fn append(&mut self, at: usize, entry: Entry) {
        self.replicas[at].log.push(entry);
        let length = self.replicas[at].log.len();
        self.lead(at).acks[at] = length;
    }

    fn copy(&mut self, at: usize, other: usize) {
        let log = self.replicas[at].log.clone();
        self.lead(at).acks[other] = log.len();
        self.replicas[other].log = log;
    }

    fn propose(&mut self, at: usize, change: Change) {
        let proposal = Proposal { epoch: self.replicas[at].knows, by: at, change };
        if let Err(place) = self.proposals.binary_search(&proposal) {
            self.proposals.insert(place, proposal);
        }
    }

    fn restart(&mut self, at: usize) {
        self.restarts += 1;
        let replica = &mut self.replicas[at];
        (replica.leader, replica.knows, replica.cooling) = (None, 0, true);
        replica.process += 1;
        for holder in 0..REPLICAS {
            self.leases[holder][at].owed = false;
        }
    }

    /// Who does not lead holds no leases; what was granted to it runs out by itself.
    fn forget_leases_of_followers(&mut self) {
        for (replica, leases) in self.replicas.iter().zip(&mut self.leases) {
            if replica.leader.is_none() {
                leases.iter_mut().for_each(|lease| lease.got = false);
            }
        }
    }

    /// The holder does not hold what a process of the granter gave that is gone.
    fn is_over_at_holder(&self, holder: usize, granter: usize) -> bool {
        let lease = self.leases[holder][granter];
        !lease.got || lease.owed
    }
}
