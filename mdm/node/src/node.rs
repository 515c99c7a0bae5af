//! The member: one owner of its log, its state and everything volatile; one event at a time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mdm_api::control::{Heartbeat, MdmAddress, PeerRole, RequestError, Response};
use mdm_api::epoch::Nanos;
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{MdmId, SdcId, SystemId};
use mdm_api::map::MapView;
use mdm_api::timing::Timing;
use mdm_core::command::CreateSystem;
use mdm_core::{Command, LogEntry, Observed, State};
use mdm_raft::{Event as RaftEvent, NewGroup, OpenError, RaftNode, Recovered, Settings, StoreId};

use crate::authorise::not_yours;
use crate::deferred::{Decided, Deferred};
use crate::event::{Action, ConnectionId, Event, Moment, Notice, RequestKey};
use crate::followers::Connections;
use crate::leadership::Leadership;
use crate::proposals::{Proposals, Purpose};

/// How long a client counts as connected after it was last heard of.
pub(crate) const CLIENT_SEEN_MS: u64 = 10_000;

/// A linearizable read under way: what is answered when it is confirmed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Read {
    /// This leader's state is current from then on.
    Current,
    /// A question about everything, or about the accounts.
    Query(RequestKey, mdm_api::command::Query),
    /// A client's credential.
    Credential { key: RequestKey, volume: mdm_api::ids::VolumeId, sdc: SdcId, opener: u64 },
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log is not this member's.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system cannot be created so.
    #[error(transparent)]
    Refused(#[from] CommandError),
}

/// A member of the metadata manager.
pub struct Node {
    pub(crate) id: MdmId,
    pub(crate) system: SystemId,
    pub(crate) timing: Timing,
    pub(crate) raft: RaftNode,
    backlog: VecDeque<mdm_raft::Action>,
    pub(crate) state: State,
    pub(crate) observed: Observed,
    pub(crate) leader: Option<MdmId>,
    pub(crate) term: u64,
    pub(crate) leadership: Option<Leadership>,
    pub(crate) connections: Connections,
    pub(crate) proposals: Proposals,
    pub(crate) reads: BTreeMap<u64, Read>,
    pub(crate) deferred: Deferred,
    /// Passwords that are being checked.
    pub(crate) logins: BTreeMap<RequestKey, ()>,
    /// When clients were last heard of here.
    pub(crate) clients_seen: BTreeMap<SdcId, Nanos>,
    /// When other members were last heard of here.
    pub(crate) members_seen: BTreeMap<MdmId, Nanos>,
    /// The state changed in this step.
    pub(crate) has_applied: bool,
    halted: bool,
}

impl Node {
    /// The first member of a new system: its log begins with the system's creation.
    pub fn create(
        settings: Settings,
        create: &CreateSystem,
        moment: Moment,
        out: &mut Vec<Action>,
    ) -> Result<Self, StartError> {
        let mut state = State::default();
        let entry = LogEntry {
            request_id: 0,
            at_s: moment.wall_s,
            random: moment.seed,
            command: Command::CreateSystem(Box::new(create.clone())),
        };
        mdm_core::apply(&mut state, &entry).result?;
        let store = StoreId(create.mdm_store_id);
        let member = mdm_raft::Member {
            store,
            role: mdm_raft::MdmRole::Manager,
            standing: mdm_raft::Standing::Voter,
            addresses: vec![create.mdm_peer_address.clone()],
        };
        let group = NewGroup::First { member, state: Bytes::from(state.to_bytes()) };
        Self::start(settings, |settings, actions| RaftNode::create(settings, store, group, actions), moment, out)
    }

    /// A member with a new log that was, or will be, added to a group.
    pub fn join(settings: Settings, store: StoreId, moment: Moment, out: &mut Vec<Action>) -> Result<Self, StartError> {
        Self::start(
            settings,
            |settings, actions| RaftNode::create(settings, store, NewGroup::Joining, actions),
            moment,
            out,
        )
    }

    /// A member that continues its log.
    pub fn open(
        settings: Settings,
        recovered: Recovered,
        moment: Moment,
        out: &mut Vec<Action>,
    ) -> Result<Self, StartError> {
        Self::start(settings, |settings, actions| RaftNode::open(settings, recovered, actions), moment, out)
    }

    fn start(
        settings: Settings,
        open: impl FnOnce(Settings, &mut Vec<mdm_raft::Action>) -> Result<RaftNode, OpenError>,
        moment: Moment,
        out: &mut Vec<Action>,
    ) -> Result<Self, StartError> {
        let (id, system) = (settings.id, settings.system);
        let mut actions = Vec::new();
        let raft = open(settings, &mut actions)?;
        let mut node = Self {
            id,
            system,
            timing: Timing::DEFAULT,
            raft,
            backlog: actions.into(),
            state: State::default(),
            observed: Observed::default(),
            leader: None,
            term: 0,
            leadership: None,
            connections: Connections::default(),
            proposals: Proposals::default(),
            reads: BTreeMap::new(),
            deferred: Deferred::default(),
            logins: BTreeMap::new(),
            clients_seen: BTreeMap::new(),
            members_seen: BTreeMap::new(),
            has_applied: false,
            halted: false,
        };
        node.observed.lead(moment.now);
        node.drain(moment, out);
        node.announce_peers(out);
        Ok(node)
    }

    /// Takes one event and appends what is to be done, in order.
    pub fn step(&mut self, moment: Moment, event: Event, out: &mut Vec<Action>) {
        if self.halted {
            return;
        }
        match event {
            Event::Tick => self.tick(moment, out),
            Event::Persisted(id) => self.raft_event(moment, RaftEvent::Persisted { id }),
            Event::PeerMessage { from, bytes } => {
                self.members_seen.insert(from, moment.now);
                self.raft_event(moment, RaftEvent::Message { from, bytes });
            }
            Event::PeerLost(peer) => self.raft_event(moment, RaftEvent::Unreachable { peer }),
            Event::SnapshotSent { to, ok } => self.raft_event(moment, RaftEvent::SnapshotSent { to, ok }),
            Event::Connected { connection, peer } => self.connected(moment, connection, peer),
            Event::Disconnected { connection, was_reset } => self.disconnected(moment, connection, was_reset),
            Event::Request { key, request } => self.request(moment, key, request, out),
            Event::Heartbeat { connection, heartbeat } => self.heartbeat(moment, connection, *heartbeat, out),
            Event::Follow { connection, view, have } => {
                if self.connections.follow(connection, view, have, moment.now) {
                    self.connections.push_one(connection, &self.state, moment.now, out);
                } else {
                    let error = not_yours("a daemon may only follow the map as itself");
                    out.push(Action::Close { connection, error });
                }
                if let MapView::Sdc(sdc) = view {
                    self.clients_seen.insert(sdc, moment.now);
                }
            }
            Event::PushWritten(connection) => {
                self.connections.push_written(connection);
                self.connections.push_one(connection, &self.state, moment.now, out);
            }
            Event::PasswordChecked { key, user, right } => self.password_checked(moment, key, user, right, out),
        }
        self.drain(moment, out);
        self.settle(moment, out);
    }

    fn tick(&mut self, moment: Moment, out: &mut Vec<Action>) {
        self.raft_event(moment, RaftEvent::Tick);
        self.drain(moment, out);
        self.lead(moment, out);
        self.drain(moment, out);
        self.decide_deferred(moment, out);
        self.observed.note_registered(&self.state, moment.now);
        // A member that hears of no leader may be cut off from the others: its map may be old, for ever.
        if self.leader.is_some() {
            self.connections.keep_alive(&self.state, moment.now, out);
        }
    }

    /// Hands an event to Raft; what comes of it is worked off by [`Node::drain`].
    pub(crate) fn raft_event(&mut self, moment: Moment, event: RaftEvent) {
        let mut actions = Vec::new();
        self.raft.step(moment.now.0, event, &mut actions);
        self.backlog.extend(actions);
    }

    fn drain(&mut self, moment: Moment, out: &mut Vec<Action>) {
        while let Some(action) = self.backlog.pop_front() {
            self.raft_action(moment, action, out);
        }
    }

    /// What follows from a changed state: answers that waited for it, and steps for followers.
    fn settle(&mut self, moment: Moment, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.has_applied) {
            self.decide_deferred(moment, out);
            self.connections.push(&self.state, moment.now, out);
        }
    }

    fn decide_deferred(&mut self, moment: Moment, out: &mut Vec<Action>) {
        let mut decided: Vec<Decided> = Vec::new();
        self.deferred.decide(&self.state, &self.observed, moment.now, moment.wall_s, &mut decided);
        answer_all(decided, out);
    }

    fn connected(&mut self, moment: Moment, connection: ConnectionId, peer: PeerRole) {
        self.connections.insert(connection, peer);
        if let PeerRole::Sdc(sdc) = peer {
            self.clients_seen.insert(sdc, moment.now);
        }
    }

    fn disconnected(&mut self, moment: Moment, connection: ConnectionId, was_reset: bool) {
        let Some(gone) = self.connections.remove(connection) else { return };
        self.deferred.forget(|key| key.connection == connection);
        self.logins.retain(|key, ()| key.connection != connection);
        match gone.peer {
            // A killed process is noticed at once; the detector probes before it judges.
            PeerRole::Sds(sds) if was_reset => self.observed.reset(moment.now, sds),
            PeerRole::Sdc(sdc) => {
                self.clients_seen.insert(sdc, moment.now);
            }
            _ => {}
        }
        self.clients_seen.retain(|sdc, _| self.state.sdcs().contains_key(sdc));
    }

    fn heartbeat(&mut self, moment: Moment, connection: ConnectionId, heartbeat: Heartbeat, out: &mut Vec<Action>) {
        let is_own = self.connections.get(connection).is_some_and(|c| c.peer == PeerRole::Sds(heartbeat.sds));
        if !is_own {
            let error = not_yours("a heartbeat comes from the data server that it is about");
            out.push(Action::Close { connection, error });
            return;
        }
        self.observed.heartbeat(moment.now, heartbeat, self.timing.dead_after_ms);
        out.push(Action::HeartbeatAck { connection, revision: self.state.revision(), leader: self.leader });
    }

    /// Answers a request if its connection is still there.
    pub(crate) fn answer<E: Into<RequestError>>(
        &self,
        key: RequestKey,
        result: Result<Box<Response>, E>,
        out: &mut Vec<Action>,
    ) {
        if self.connections.get(key.connection).is_some() {
            out.push(Action::Respond { key, result: result.map_err(Into::into) });
        }
    }

    /// Answers a request with what it asked for.
    pub(crate) fn answer_ok(&self, key: RequestKey, response: Response, out: &mut Vec<Action>) {
        self.answer::<RequestError>(key, Ok(Box::new(response)), out);
    }

    /// Sends a caller to the leader.
    pub(crate) fn redirect(&self, key: RequestKey, out: &mut Vec<Action>) {
        let elsewhere = self.leader_address().filter(|leader| leader.id != self.id);
        self.answer(key, Err(RequestError::NotLeader(elsewhere)), out);
    }

    /// What was proposed will not be known here: whoever waits for it asks the leader.
    pub(crate) fn lost(&mut self, purposes: Vec<Purpose>, out: &mut Vec<Action>) {
        for purpose in purposes {
            match purpose {
                Purpose::Own(slot) => {
                    if let Some(leadership) = &mut self.leadership {
                        leadership.free(slot);
                    }
                }
                other => {
                    if let Some(key) = other.key() {
                        self.redirect(key, out);
                    }
                }
            }
        }
    }

    /// Ends this member for good.
    pub(crate) fn halt(&mut self, reason: String, out: &mut Vec<Action>) {
        self.halted = true;
        out.push(Action::Halt { reason });
    }

    pub(crate) fn warn(text: String, out: &mut Vec<Action>) {
        out.push(Action::Notice(Notice::Warned(text)));
    }

    /// Where the leader takes control connections, if it is known.
    pub fn leader_address(&self) -> Option<MdmAddress> {
        let leader = self.state.mdms().get(&self.leader?)?;
        Some(MdmAddress { id: leader.id, address: leader.address.clone() })
    }

    /// The replicated state, as far as it was applied here.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Raft's view of the group.
    pub fn raft_status(&self) -> mdm_raft::Status {
        self.raft.status()
    }

    /// This member.
    pub fn id(&self) -> MdmId {
        self.id
    }
}

/// Turns decided answers into actions.
pub(crate) fn answer_all(decided: Vec<Decided>, out: &mut Vec<Action>) {
    out.extend(
        decided.into_iter().map(|(key, result)| Action::Respond { key, result: result.map_err(RequestError::Refused) }),
    );
}

/// Too much at once.
pub(crate) fn busy(what: &str) -> CommandError {
    CommandError::new(ErrorCode::Busy, what, "try again in a moment")
}
