//! One replica: what it is, which event goes where, and what every role does.
//!
//! Always true:
//! - `promised` never decreases, and nothing that depends on it leaves before it is durable (I7).
//! - There is a [`Leader`] exactly while the role leads.

use std::collections::BTreeMap;

use mdm_api::config::PgConfig;
use mdm_api::epoch::{Epoch, Nanos, Seq, Term};
use mdm_api::ids::{DeviceId, ProcessIncarnation};
use mdm_api::mutants::{self, Mutant};
use sds_api::block::LayerKey;
use sds_api::client::ClientError;
use sds_api::entry::EntryBody;
use sds_api::peer::{PeerBody, PeerMessage};

use crate::action::{Action, Status, StoreRequest};
use crate::dedup::Sessions;
use crate::event::{Event, Identity, MemberHome, Recovered, StoreDone, StoreError, Token, Verdict};
use crate::leader::Leader;
use crate::limits::PEERS_MAX;
use crate::log::Log;
use crate::role::{ActivationStep, Role};
use crate::scrub::FoundBlocks;
use crate::secondary::Follower;
use crate::{Context, state};

/// Where a step reads what is shared and puts what is to be done.
pub(crate) struct Cx<'a> {
    pub(crate) context: &'a mut Context,
    pub(crate) out: &'a mut Vec<Action>,
}

/// What is known of the way to another member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) incarnation: ProcessIncarnation,
    pub(crate) connected: bool,
    pub(crate) reset: bool,
    pub(crate) since: Nanos,
}

/// Why the store was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// An entry, a void or a state in the order of the log.
    Journal,
    /// A promise.
    Promise(Term),
    /// The group is being forgotten: this replica ends.
    Forget,
    /// Nothing waits for it.
    Nothing,
    /// A copy, removal or completion of a stream.
    StreamWork,
    /// What a patch goes on.
    PatchBase,
    /// A learner's list of layers.
    Listing,
    /// Blocks for a primary.
    Fetch { to: DeviceId, term: Term, request: u64, count: u16 },
    /// A client's read or status.
    Request(u64),
    /// A block that a partial write is merged into.
    Edge { request: u64, block: u16 },
    /// The primary's own list, for a learner.
    OwnListing { learner: DeviceId, stream: u64 },
    /// A layer for a learner.
    Capture { learner: DeviceId, stream: u64 },
    /// A good block over a bad one.
    Repair(u64),
    /// The same where this is no primary.
    Mend { layer: LayerKey, block: u16 },
}

impl Purpose {
    /// True if the completion still means something when the term is over.
    pub(crate) fn outlives_leader(self) -> bool {
        match self {
            Self::Journal
            | Self::Promise(_)
            | Self::Forget
            | Self::Nothing
            | Self::StreamWork
            | Self::PatchBase
            | Self::Listing
            | Self::Mend { .. }
            | Self::Fetch { .. } => true,
            Self::Request(_) | Self::Edge { .. } | Self::OwnListing { .. } | Self::Capture { .. } | Self::Repair(_) => {
                false
            }
        }
    }
}

/// One group on one device.
#[derive(Debug)]
pub struct Replica {
    pub(crate) me: Identity,
    pub(crate) role: Role,
    pub(crate) now: Nanos,
    pub(crate) promised: Term,
    pub(crate) promise_durable: Term,
    pub(crate) config: Option<PgConfig>,
    pub(crate) min_isr: u8,
    pub(crate) homes: BTreeMap<DeviceId, MemberHome>,
    pub(crate) peers: BTreeMap<DeviceId, Peer>,
    pub(crate) log: Log,
    pub(crate) sessions: Sessions,
    pub(crate) complete: bool,
    pub(crate) suspect: bool,
    /// The store knows entries through here as committed, whether or not they could be read back.
    pub(crate) stored_committed: Seq,
    pub(crate) forgetting: bool,
    pub(crate) tokens: BTreeMap<Token, Purpose>,
    next_token: u64,
    next_number: u64,
    pub(crate) follower: Follower,
    pub(crate) leader: Option<Leader>,
    pub(crate) found: FoundBlocks,
}

impl Replica {
    /// A replica as its store has kept it; `None` for one that is new, of which the store has nothing.
    pub fn new(identity: Identity, recovered: Option<Recovered>, context: &mut Context) -> Self {
        let mut replica = Self {
            me: identity,
            role: Role::Idle,
            now: Nanos(0),
            promised: Term(0),
            promise_durable: Term(0),
            config: None,
            min_isr: 1,
            homes: BTreeMap::new(),
            peers: BTreeMap::new(),
            log: Log::default(),
            sessions: Sessions::default(),
            complete: true,
            suspect: false,
            stored_committed: Seq(0),
            forgetting: false,
            tokens: BTreeMap::new(),
            next_token: 0,
            next_number: 0,
            follower: Follower::default(),
            leader: None,
            found: FoundBlocks::default(),
        };
        if let Some(recovered) = recovered {
            replica.recover(recovered, context);
        }
        replica
    }

    fn recover(&mut self, recovered: Recovered, context: &mut Context) {
        (self.promised, self.promise_durable) = (recovered.promised, recovered.promised);
        self.suspect = recovered.verdict == Verdict::Suspect;
        if let Some((through, bytes)) = &recovered.state {
            match state::decode(bytes) {
                Some(saved) if saved.through.seq == *through => {
                    self.log = Log::at(saved.through, saved.history);
                    self.sessions = saved.sessions;
                    self.complete = saved.complete;
                }
                _ => self.suspect = true,
            }
        }
        for entry in recovered.entries {
            let last = self.log.last();
            if self.suspect && entry.version.seq != last.seq.next() {
                break; // A hole in what a suspect store found: what lies beyond is no order.
            }
            if entry.version.seq <= last.seq {
                continue;
            }
            if entry.version.seq != last.seq.next() || entry.version.term < last.term {
                self.suspect = true;
                break;
            }
            if let Some(identity) = &entry.identity {
                self.sessions.record(identity, entry.version.seq);
            }
            self.log.push(entry, &mut context.retained);
        }
        self.stored_committed = recovered.committed;
        // What the store knows as committed stays so: it may be in its content already, and can never be voided.
        self.log.commit(recovered.committed.min(self.log.last().seq));
        // All of it came from the journal.
        let token = self.token(Purpose::Nothing);
        self.log.journal(token, self.log.last().seq);
        self.log.journaled(token);
        self.tokens.clear();
    }

    /// Something happened at `now`. What is to be done is appended to `out`.
    pub fn step(&mut self, now: Nanos, event: Event, context: &mut Context, out: &mut Vec<Action>) {
        if self.role == Role::Failed {
            return;
        }
        self.now = self.now.max(now);
        let cx = &mut Cx { context, out };
        match event {
            Event::Config { config, min_isr, homes } => self.on_config(cx, config, min_isr, homes),
            Event::Client { client, operation, identity, layer } => {
                self.on_client(cx, client, operation, identity, layer);
            }
            Event::Peer(message) => self.on_peer(cx, message),
            Event::PeerConnected { device, incarnation } => self.on_connected(cx, device, incarnation),
            Event::PeerLost { device, reset } => self.on_lost(cx, device, reset),
            Event::Store { token, result } => self.on_store(cx, token, result),
            Event::WantState => self.save_state(cx),
            Event::BadBlock { layer, block } => self.on_bad_block(layer, block),
            Event::Fence { fence, volume, sdc, below } => self.on_fence(cx, fence, volume, sdc, below),
            Event::DropVtree { vtree } => self.on_drop(vtree),
            Event::Tick => {}
        }
        if self.role == Role::Failed {
            return;
        }
        self.mend_found(cx);
        if self.leader.is_some() {
            self.settle_leader(cx);
        } else {
            self.settle_follower(cx);
        }
    }

    /// What it is and has.
    pub fn status(&self) -> Status {
        Status {
            role: self.role,
            last: self.log.last(),
            committed: self.log.committed(),
            promised: self.promised,
            suspect: self.suspect,
            complete: self.complete,
            requests: self.leader.as_ref().map_or(0, Leader::open_requests),
            resync: self.leader.as_ref().map_or_else(Vec::new, Leader::progress),
        }
    }

    /// Gives back what it holds of shared budgets; the last call before it is dropped.
    pub fn close(&mut self, context: &mut Context) {
        self.end_leader(&mut Cx { context, out: &mut Vec::new() }, &Err(ClientError::Retry));
        self.log.close(&mut context.retained);
        self.role = Role::Failed;
    }

    /// True if this replica is appointed in this configuration, in this process.
    pub(crate) fn is_appointed(&self, config: &PgConfig) -> bool {
        config.primary == Some(self.me.device) && config.primary_incarnation == self.me.incarnation
    }

    /// I2: each process of a primary has a term of its own.
    fn is_new_term(&self, term: Term) -> bool {
        term > self.promised || mutants::is_on(Mutant::KeepTermOverRestart) && term == self.promised
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.config.as_ref().map_or(Epoch(0), |config| config.epoch)
    }

    fn on_config(&mut self, cx: &mut Cx<'_>, config: PgConfig, min_isr: u8, homes: Vec<MemberHome>) {
        let known = self.config.as_ref().map(|known| (known.epoch, known.term));
        if config.pg != self.me.pg || config.check().is_err() || known.is_some_and(|(epoch, _)| config.epoch < epoch) {
            return;
        }
        self.homes = homes.into_iter().map(|home| (home.device, home)).collect();
        self.min_isr = min_isr.max(1);
        let newer_term = known.is_none_or(|(_, term)| config.term > term);
        let newer_epoch = known.is_none_or(|(epoch, _)| config.epoch > epoch);
        if newer_term {
            // I15: whoever led before gets no more grants for this group; I14: what it has binds this server.
            cx.context.leases.supersede(self.me.pg, config.term);
        }
        self.config = Some(config.clone());
        if !newer_epoch {
            return;
        }
        if self.leader.is_some() && (newer_term || !self.is_appointed(&config)) {
            self.end_leader(cx, &Err(ClientError::WrongPrimary(Some(Box::new(config.clone())))));
        }
        if newer_term {
            self.follower.unfollow();
        }
        if self.leader.is_some() {
            self.members_changed(cx);
        } else if !config.names(self.me.device) {
            self.forget(cx);
        } else if self.is_appointed(&config) && self.is_new_term(config.term) && self.complete && !self.suspect {
            // I12: a suspect replica does not lead, whoever says so.
            if self.role == Role::Learner {
                self.become_role(Role::Secondary); // The configuration that took it in was skipped.
            }
            self.activate(cx, config.term);
        } else if config.isr.contains(&self.me.device) {
            self.become_role(Role::Secondary);
        } else {
            self.become_role(Role::Learner);
        }
    }

    /// Moves to a role along the picture in `role`.
    pub(crate) fn become_role(&mut self, role: Role) {
        assert!(self.role.may_become(role), "no way from {:?} to {role:?}", self.role);
        self.role = role;
    }

    fn forget(&mut self, cx: &mut Cx<'_>) {
        self.become_role(Role::Idle);
        self.follower.unfollow();
        if !self.forgetting {
            self.forgetting = true;
            self.store(cx, Purpose::Forget, StoreRequest::ForgetPg { pg: self.me.pg });
        }
    }

    fn on_peer(&mut self, cx: &mut Cx<'_>, message: PeerMessage) {
        let for_me = message.pg == self.me.pg
            && message.to == self.me.device
            && message.to_incarnation == self.me.incarnation
            && message.from != self.me.device;
        if !for_me || self.forgetting {
            return;
        }
        match message.body {
            PeerBody::FetchBlocks { request, layer, blocks, commit } if self.leader.is_some() => {
                self.on_member_fetches(cx, (message.from, message.term), request, (layer, blocks), commit);
            }
            PeerBody::Blocks { request, content } if self.leader.is_none() => {
                if self.is_led_by(message.from, message.incarnation, message.term) {
                    self.on_primary_hands_over(cx, request, content);
                }
            }
            PeerBody::Activate { .. }
            | PeerBody::Follow { .. }
            | PeerBody::Reset { .. }
            | PeerBody::Replicate { .. }
            | PeerBody::Copy { .. }
            | PeerBody::Patch { .. }
            | PeerBody::RemoveLayers { .. }
            | PeerBody::Complete { .. }
            | PeerBody::ListChunks { .. }
            | PeerBody::FetchBlocks { .. }
            | PeerBody::Release => self.on_primary_says(cx, message),
            PeerBody::Tail { .. }
            | PeerBody::Refused { .. }
            | PeerBody::AskStream { .. }
            | PeerBody::Durable { .. }
            | PeerBody::ChunkVersions { .. }
            | PeerBody::Blocks { .. } => self.on_member_says(cx, message),
        }
    }

    fn on_connected(&mut self, cx: &mut Cx<'_>, device: DeviceId, incarnation: ProcessIncarnation) {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&device) {
            let stranger = self.peers.keys().copied().find(|peer| !self.homes.contains_key(peer));
            if let Some(stranger) = stranger {
                self.peers.remove(&stranger);
            }
        }
        self.peers.insert(device, Peer { incarnation, connected: true, reset: false, since: self.now });
        self.member_connected(cx, device);
    }

    fn on_lost(&mut self, cx: &mut Cx<'_>, device: DeviceId, reset: bool) {
        let since = self.now;
        let entry = self.peers.entry(device).or_insert(Peer {
            incarnation: ProcessIncarnation(0),
            connected: true,
            reset,
            since,
        });
        if entry.connected {
            *entry = Peer { connected: false, reset, since, ..*entry };
            self.member_lost(cx, device);
        } else {
            entry.reset |= reset;
        }
    }

    fn on_store(&mut self, cx: &mut Cx<'_>, token: Token, result: Result<StoreDone, StoreError>) {
        let Some(purpose) = self.tokens.remove(&token) else { return };
        let done = match result {
            Ok(done) => done,
            Err(StoreError::DeviceFailed) => {
                // I22, F13, F14: nothing is acknowledged from here any more.
                self.end_leader(cx, &Err(ClientError::Retry));
                self.role = Role::Failed;
                return;
            }
        };
        match purpose {
            Purpose::Journal => self.log.journaled(token),
            Purpose::Promise(term) => self.promise_durable = self.promise_durable.max(term),
            Purpose::Forget => cx.out.push(Action::Gone),
            Purpose::Nothing => {}
            Purpose::StreamWork => self.stream_work_done(token),
            Purpose::PatchBase => self.patch_base_read(cx, token, done),
            Purpose::Listing => self.listing_done(cx, done),
            Purpose::Fetch { to, term, request, count } => self.fetch_done(cx, to, term, request, count, done),
            Purpose::Request(request) => self.request_read(cx, request, done),
            Purpose::Edge { request, block } => self.edge_read(cx, request, block, done),
            Purpose::OwnListing { learner, stream } => self.own_listing_done(cx, learner, stream, done),
            Purpose::Capture { learner, stream } => self.captured(cx, learner, stream, done),
            Purpose::Repair(repair) => self.block_repaired(cx, repair),
            Purpose::Mend { layer, block } => self.mended(cx, layer, block),
        }
    }

    /// Saves the state as of the last committed entry.
    pub(crate) fn save_state(&mut self, cx: &mut Cx<'_>) {
        // A suspect replica may know less than its store: its state would cover nothing, be asked for again and again, and
        // fill the journal in the end. The primary's state comes with the stream, and covers all.
        if self.forgetting || self.suspect {
            return;
        }
        let request = self.state_request();
        self.store(cx, Purpose::Nothing, request);
    }

    pub(crate) fn state_request(&self) -> StoreRequest {
        let bytes = state::encode(&self.log, &self.sessions, self.complete);
        StoreRequest::SaveState { pg: self.me.pg, through: self.log.committed(), state: bytes }
    }

    pub(crate) fn promise(&mut self, cx: &mut Cx<'_>, term: Term) {
        assert!(term > self.promised, "I7: a promise is newer than all before");
        self.promised = term;
        self.store(cx, Purpose::Promise(term), StoreRequest::Promise { pg: self.me.pg, term });
    }

    fn token(&mut self, purpose: Purpose) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.tokens.insert(token, purpose);
        token
    }

    /// A number that this replica has not used before: for questions, streams, requests and locks.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(crate) fn store(&mut self, cx: &mut Cx<'_>, purpose: Purpose, request: StoreRequest) -> Token {
        let token = self.token(purpose);
        cx.out.push(Action::Store { token, request });
        token
    }

    pub(crate) fn send(&self, cx: &mut Cx<'_>, to: DeviceId, term: Term, body: PeerBody) {
        let (pg, from, incarnation) = (self.me.pg, self.me.device, self.me.incarnation);
        let Some(peer) = self.peers.get(&to).filter(|peer| peer.connected) else { return };
        let to_incarnation = peer.incarnation;
        cx.out.push(Action::Send(PeerMessage { pg, term, from, to, incarnation, to_incarnation, body }));
    }

    pub(crate) fn want_map(&self, cx: &mut Cx<'_>, epoch: Epoch) {
        cx.out.push(Action::WantMap { pg: self.me.pg, epoch });
    }

    /// Shows the store's readers, and this log, what is committed through `through`.
    pub(crate) fn commit_to(&mut self, cx: &mut Cx<'_>, through: Seq) -> bool {
        let moved = self.log.commit(through);
        if moved {
            let request = StoreRequest::Commit { pg: self.me.pg, through };
            // No completion will come.
            let token = Token(self.next_token + 1);
            self.next_token += 1;
            cx.out.push(Action::Store { token, request });
        }
        moved
    }

    /// True if a tree's drop is ordered and not committed at or before `seq`.
    pub(crate) fn drop_is_open(&self, seq: Seq) -> bool {
        self.log.range(self.log.committed(), seq).any(|entry| matches!(entry.body, EntryBody::DropVtree { .. }))
    }

    /// True in the given activation step.
    pub(crate) fn is_at(&self, step: ActivationStep) -> bool {
        self.role == Role::Activating(step)
    }
}
