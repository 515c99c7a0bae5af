//! A world in one thread: members, a network that loses, delays, repeats and reorders, disks that lose what was not synced,
//! virtual time, everything from one seed. It checks after every action what must always be true.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use disk::Disk;
use mdm_raft::{
    Action, DropReason, Event, FileOp, HaltReason, MdmId, MdmRole, Member, MembersChange, NewGroup, PersistId,
    RaftNode, Refusal, Settings, Standing, Status, StoreId, SystemId, recover,
};

pub const MS: u64 = 1_000_000;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Debug)]
enum Due {
    Tick { id: u64, life: u64 },
    Arrive { from: u64, to: u64, bytes: Bytes },
    Written { id: u64, life: u64, persist: PersistId },
}

/// One member's host.
pub struct Host {
    pub node: Option<RaftNode>,
    pub disk: Disk,
    pub store: StoreId,
    life: u64,
    writing: Option<(PersistId, Vec<FileOp>)>,
    /// The state: index of the last command, and a hash over all commands.
    pub applied: u64,
    pub digest: u64,
    pub refused: Vec<(MdmId, Refusal)>,
    pub halted: Option<HaltReason>,
    pub open_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Proposed { index: u64, term: u64 },
    Dropped(DropReason),
    ReadReady { index: u64, digest: u64 },
    TransferStarted,
}

pub struct World {
    pub now: u64,
    pub random: Random,
    pub hosts: BTreeMap<u64, Host>,
    queue: BTreeMap<(u64, u64), Due>,
    sequence: u64,
    pub cut: BTreeSet<(u64, u64)>,
    /// Messages lost, in percent; repeated, in percent; greatest delay.
    pub loss: u64,
    pub repeat: u64,
    pub delay_ms: u64,
    pub write_ms: u64,
    /// Members whose writes never end.
    hung: BTreeSet<u64>,
    /// What was committed: index to term and command. Whatever any member ever applied.
    pub history: BTreeMap<u64, (u64, Bytes)>,
    digests: BTreeMap<u64, u64>,
    pub leaders: BTreeMap<u64, u64>,
    pub answers: BTreeMap<u64, Answer>,
    pub tokens: u64,
    pub restores: u64,
    pub snapshots: u64,
    pub trace: u64,
    pub tune: fn(&mut Settings),
}

impl World {
    /// One member, number 1.
    pub fn new(seed: u64, tune: fn(&mut Settings)) -> Self {
        let mut world = Self {
            now: 1_000 * MS,
            random: Random(seed),
            hosts: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            cut: BTreeSet::new(),
            loss: 0,
            repeat: 0,
            delay_ms: 5,
            write_ms: 4,
            hung: BTreeSet::new(),
            history: BTreeMap::new(),
            digests: BTreeMap::new(),
            leaders: BTreeMap::new(),
            answers: BTreeMap::new(),
            tokens: 0,
            restores: 0,
            snapshots: 0,
            trace: 0,
            tune,
        };
        let store = StoreId(world.random.next());
        let member = member(store, MdmRole::Manager);
        world.create(1, store, NewGroup::First { member, state: Bytes::from(state_bytes(0, 0)) });
        world
    }

    fn settings(&mut self, id: u64) -> Settings {
        let mut settings = Settings::new(MdmId(id), SystemId(77), self.random.0, self.random.next());
        (self.tune)(&mut settings);
        settings
    }

    fn create(&mut self, id: u64, store: StoreId, group: NewGroup) {
        let settings = self.settings(id);
        let mut out = Vec::new();
        let node = RaftNode::create(settings, store, group, &mut out).unwrap();
        let life = self.hosts.get(&id).map_or(0, |h| h.life + 1);
        let host = Host {
            node: Some(node),
            disk: Disk::default(),
            store,
            life,
            writing: None,
            applied: 0,
            digest: 0,
            refused: Vec::new(),
            halted: None,
            open_error: None,
        };
        self.hosts.insert(id, host);
        self.act(id, out);
        self.later(self.now + 50 * MS, Due::Tick { id, life });
    }

    /// A new member's host: a fresh log that waits for a leader.
    pub fn join(&mut self, id: u64) -> StoreId {
        let store = StoreId(self.random.next());
        self.create(id, store, NewGroup::Joining);
        store
    }

    fn later(&mut self, at: u64, due: Due) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), due);
    }

    pub fn run(&mut self, ms: u64) {
        let end = self.now + ms * MS;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), due) = entry.remove_entry();
            self.now = at;
            self.happen(due);
        }
        self.now = end;
    }

    /// Runs until `done`, at most `ms`.
    pub fn run_until(&mut self, ms: u64, what: &str, done: impl Fn(&World) -> bool) {
        let end = self.now + ms * MS;
        while !done(self) {
            assert!(self.now < end, "{what}: not within {ms} ms; {:#?}", self.statuses());
            self.run(10);
        }
    }

    pub fn statuses(&self) -> Vec<Status> {
        self.hosts.values().filter_map(|h| h.node.as_ref()).map(RaftNode::status).collect()
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Tick { id, life } => {
                if self.hosts[&id].life == life && self.hosts[&id].node.is_some() {
                    self.feed(id, Event::Tick);
                    self.later(self.now + 50 * MS, Due::Tick { id, life });
                }
            }
            Due::Arrive { from, to, bytes } => {
                if !self.cut.contains(&(from, to)) && self.hosts.get(&to).is_some_and(|h| h.node.is_some()) {
                    self.feed(to, Event::Message { from: MdmId(from), bytes });
                }
            }
            Due::Written { id, life, persist } => {
                let host = self.hosts.get_mut(&id).unwrap();
                if host.life == life && host.node.is_some() {
                    let (writing, ops) = host.writing.take().unwrap();
                    assert_eq!(writing, persist);
                    ops.iter().for_each(|op| host.disk.perform(op));
                    self.feed(id, Event::Persisted { id: persist });
                }
            }
        }
    }

    pub fn feed(&mut self, id: u64, event: Event) {
        let mut out = Vec::new();
        if let Some(node) = self.hosts.get_mut(&id).unwrap().node.as_mut() {
            node.step(self.now, event, &mut out);
        }
        self.act(id, out);
    }

    fn act(&mut self, id: u64, actions: Vec<Action>) {
        for action in actions {
            let mut hasher = DefaultHasher::new();
            (self.trace, self.now, id, format!("{action:?}")).hash(&mut hasher);
            self.trace = hasher.finish();
            self.act_one(id, action);
        }
    }

    fn act_one(&mut self, id: u64, action: Action) {
        let life = self.hosts[&id].life;
        match action {
            Action::Send { to, bytes, .. } => self.transmit(id, to.0, bytes),
            Action::Persist { id: persist, ops } => {
                let host = self.hosts.get_mut(&id).unwrap();
                assert!(host.writing.replace((persist, ops)).is_none(), "one write at a time");
                let at = self.now + self.random.below(self.write_ms * MS) + 1;
                if !self.hung.contains(&id) {
                    self.later(at, Due::Written { id, life, persist });
                }
            }
            Action::Apply { index, term, command } => self.apply(id, index, term, command),
            Action::Restore { index, state, .. } => self.restore(id, index, &state),
            Action::WantSnapshot { through_index } => {
                self.snapshots += 1;
                let host = &self.hosts[&id];
                let state = Bytes::from(state_bytes(host.applied, host.digest));
                self.feed(id, Event::SnapshotTaken { index: through_index, state });
            }
            Action::LeaderChanged { term, is_self: true, .. } => {
                let leader = *self.leaders.entry(term).or_insert(id);
                assert_eq!(leader, id, "two leaders in term {term}");
            }
            Action::Proposed { token, index, term } => self.answer(token, Answer::Proposed { index, term }),
            Action::Dropped { token, reason, .. } => self.answer(token, Answer::Dropped(reason)),
            Action::TransferStarted { token } => self.answer(token, Answer::TransferStarted),
            Action::ReadReady { token, index } => {
                let digest = self.hosts[&id].digest;
                self.answer(token, Answer::ReadReady { index, digest });
            }
            Action::Refused { by, reason } => self.hosts.get_mut(&id).unwrap().refused.push((by, reason)),
            Action::Halted { reason } => self.hosts.get_mut(&id).unwrap().halted = Some(reason),
            Action::LeaderChanged { .. } | Action::ApplyMembers { .. } | Action::PeerRefused { .. } => {}
        }
    }

    fn answer(&mut self, token: u64, answer: Answer) {
        assert!(self.answers.insert(token, answer).is_none(), "token {token} was answered twice");
    }

    fn transmit(&mut self, from: u64, to: u64, bytes: Bytes) {
        let copies = 1 + u64::from(self.random.below(100) < self.repeat);
        for _ in 0..copies {
            if self.random.below(100) >= self.loss {
                let delay = self.random.below(self.delay_ms * MS) + 1;
                self.later(self.now + delay, Due::Arrive { from, to, bytes: bytes.clone() });
            }
        }
    }

    fn apply(&mut self, id: u64, index: u64, term: u64, command: Bytes) {
        let host = self.hosts.get_mut(&id).unwrap();
        assert!(index > host.applied, "member {id} applies {index} after {}", host.applied);
        host.applied = index;
        let mut hasher = DefaultHasher::new();
        (host.digest, index, &command).hash(&mut hasher);
        host.digest = hasher.finish();
        let digest = host.digest;
        let known = self.history.entry(index).or_insert((term, command.clone()));
        assert_eq!(*known, (term, command), "member {id} has another entry {index}: a committed one was lost");
        assert_eq!(
            *self.digests.entry(index).or_insert(digest),
            digest,
            "member {id} skipped a command before {index}"
        );
    }

    fn restore(&mut self, id: u64, index: u64, state: &[u8]) {
        let applied = u64::from_le_bytes(state[..8].try_into().unwrap());
        let digest = u64::from_le_bytes(state[8..16].try_into().unwrap());
        let expected = self.digests.range(..=index).next_back().map_or((0, 0), |(i, d)| (*i, *d));
        assert_eq!((applied, digest), expected, "member {id} was given a wrong state");
        let host = self.hosts.get_mut(&id).unwrap();
        (host.applied, host.digest) = (applied, digest);
        self.restores += 1;
    }

    /// Kills a member. With `power`, what was not synced may be lost.
    pub fn crash(&mut self, id: u64, power: bool) {
        let host = self.hosts.get_mut(&id).unwrap();
        if host.node.take().is_none() {
            return;
        }
        host.life += 1;
        if let Some((_, ops)) = host.writing.take() {
            let done = self.random.below(ops.len() as u64 + 1) as usize;
            ops[..done].iter().for_each(|op| host.disk.perform(op));
        }
        if power { host.disk.power_cut(&mut self.random) } else { host.disk.process_crash() }
    }

    pub fn start(&mut self, id: u64) {
        if self.hosts[&id].node.is_some() {
            return;
        }
        let recovered = match recover(&self.hosts[&id].disk.contents()) {
            Ok(Some(recovered)) => recovered,
            Ok(None) => {
                // Creation was never completed: as a daemon would, create again.
                let store = self.hosts[&id].store;
                if id == 1 {
                    let member = member(store, MdmRole::Manager);
                    let state = Bytes::from(state_bytes(0, 0));
                    return self.create(id, store, NewGroup::First { member, state });
                }
                return self.create(id, store, NewGroup::Joining);
            }
            Err(error) => {
                self.hosts.get_mut(&id).unwrap().open_error = Some(error.to_string());
                return;
            }
        };
        let settings = self.settings(id);
        let mut out = Vec::new();
        let node = RaftNode::open(settings, recovered, &mut out).unwrap();
        let host = self.hosts.get_mut(&id).unwrap();
        host.node = Some(node);
        (host.applied, host.digest) = (0, 0);
        let life = host.life;
        self.act(id, out);
        self.later(self.now + 50 * MS, Due::Tick { id, life });
    }

    pub fn restart(&mut self, id: u64) {
        self.crash(id, false);
        self.start(id);
    }

    pub fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self.hosts.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            self.cut_link(id, other);
        }
    }

    pub fn cut_link(&mut self, a: u64, b: u64) {
        self.cut.extend([(a, b), (b, a)]);
    }

    pub fn leader(&self) -> Option<u64> {
        let leading = self.statuses().into_iter().filter(|s| s.is_leader);
        leading.max_by_key(|s| s.term).map(|s| s.id.0)
    }

    pub fn leader_except(&self, id: u64) -> Option<u64> {
        self.statuses().into_iter().find(|s| s.is_leader && s.id.0 != id).map(|s| s.id.0)
    }

    /// From now on this member's writes never end.
    pub fn hang(&mut self, id: u64) {
        self.hung.insert(id);
    }

    pub fn wait_leader(&mut self) -> u64 {
        self.run_until(20_000, "a leader", |w| w.leader().is_some());
        self.leader().unwrap()
    }

    fn ask(&mut self, id: u64, event: impl Fn(u64) -> Event) -> u64 {
        self.tokens += 1;
        let token = self.tokens;
        self.feed(id, event(token));
        token
    }

    pub fn propose(&mut self, id: u64, command: &str) -> u64 {
        let command = Bytes::copy_from_slice(command.as_bytes());
        self.ask(id, |token| Event::Propose { token, command: command.clone() })
    }

    pub fn read(&mut self, id: u64) -> u64 {
        self.ask(id, |token| Event::ReadIndex { token })
    }

    pub fn transfer(&mut self, id: u64, to: u64) -> u64 {
        self.ask(id, |token| Event::TransferLeadership { token, to: MdmId(to) })
    }

    pub fn change(&mut self, id: u64, change: MembersChange) -> u64 {
        self.ask(id, |token| Event::ProposeMembers { token, change: change.clone() })
    }

    /// Proposes at whoever leads until it is committed.
    pub fn commit(&mut self, command: &str) -> u64 {
        self.until_committed(command, |w, leader| w.propose(leader, command))
    }

    /// Changes the members through whoever leads.
    pub fn commit_change(&mut self, change: &MembersChange) {
        let what = format!("{change:?}");
        self.until_committed(&what, |w, leader| w.change(leader, change.clone()));
    }

    fn until_committed(&mut self, what: &str, propose: impl Fn(&mut World, u64) -> u64) -> u64 {
        for _ in 0..200 {
            let leader = self.wait_leader();
            let token = propose(self, leader);
            self.run(100);
            if let Some(Answer::Proposed { index, term }) = self.answers.get(&token).cloned() {
                for _ in 0..50 {
                    let done = |s: &Status| s.id.0 == leader && s.term == term && s.applied >= index;
                    if self.statuses().iter().any(done) {
                        return index;
                    }
                    self.run(20);
                }
            }
        }
        panic!("{what} was not committed; {:#?}", self.statuses());
    }

    /// Adds a fresh member and makes it a voter.
    pub fn grow(&mut self, id: u64, role: MdmRole) {
        let store = self.join(id);
        self.commit_change(&MembersChange::Add { id: MdmId(id), member: member(store, role) });
        self.commit_change(&MembersChange::Promote { id: MdmId(id) });
    }

    pub fn group(seed: u64, size: u64, tune: fn(&mut Settings)) -> Self {
        let mut world = Self::new(seed, tune);
        for id in 2..=size {
            world.grow(id, MdmRole::Manager);
        }
        world.settle();
        world
    }

    /// All that run agree.
    pub fn settle(&mut self) {
        self.run_until(60_000, "agreement", |w| {
            let statuses: Vec<Status> = w.statuses().into_iter().filter(|s| s.halted.is_none()).collect();
            let last = statuses.iter().map(|s| s.last_index).max().unwrap_or(0);
            w.leader().is_some() && statuses.iter().all(|s| s.applied == last && s.leader.is_some())
        });
    }
}

pub fn member(store: StoreId, role: MdmRole) -> Member {
    Member { store, role, standing: Standing::Learner, addresses: vec!["10.0.0.1:7000".to_owned()] }
}

fn state_bytes(applied: u64, digest: u64) -> Vec<u8> {
    [applied.to_le_bytes(), digest.to_le_bytes()].concat()
}
