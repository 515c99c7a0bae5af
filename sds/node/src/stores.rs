//! One open store, and the way of requests into it and of answers back to replicas.
//!
//! A store takes requests in order and refuses an append for which its journal has no room at the moment. Replicas know no
//! such refusal (I24: accepted is covered), so an append that must wait is held here, and with it everything that the same
//! group wants journaled after it: the order of a group's records is never changed.

use std::collections::{BTreeMap, VecDeque};

use mdm_api::epoch::{Nanos, Seq};
use mdm_api::ids::PgId;
use sds_api::block::{BlockRange, LayerKey};
use sds_api::entry::Entry;
use sds_replica::{StoreDone, StoreRequest, Token as ReplicaToken};
use sds_store::error::StoreError;
use sds_store::io::{DiskDone, DiskError, DiskRequest};
use sds_store::limits::REMOVE_LAYERS_MAX;
use sds_store::request::{Answer, Damage, Event, Output, PieceContent, Request, Space, Token};
use sds_store::store::Store;

use crate::limits::CAPTURES_MAX;
use crate::translate;

/// What came out of a store.
pub(crate) enum Outcome {
    /// To be carried out by the device.
    Disk(DiskRequest),
    /// For a replica.
    Replica { pg: PgId, token: ReplicaToken, result: Result<StoreDone, sds_replica::StoreError> },
    /// The store wants the replica's state.
    WantState(PgId),
    /// A scrub found a bad block.
    BadBlock { pg: PgId, layer: LayerKey, block: u16 },
    /// A scrub found something else damaged.
    Damaged { damage: Damage },
    /// An entry that was read back while opening.
    Entry { pg: PgId, seq: Seq, result: Result<Entry, StoreError> },
    /// The verdict of the opening is cleared.
    Settled,
    /// The device has failed, for good.
    Failed { reason: String },
}

/// Why the store was asked.
enum Asked {
    /// Something to be made durable. It is kept until it is answered where it may be refused for want of room.
    Durable {
        pg: PgId,
        token: ReplicaToken,
        kept: Option<StoreRequest>,
    },
    /// The last of several removals answers for all.
    Removal {
        pg: PgId,
        token: ReplicaToken,
        layers: Vec<LayerKey>,
        last: bool,
    },
    Read {
        pg: PgId,
        token: ReplicaToken,
    },
    Status {
        pg: PgId,
        token: ReplicaToken,
        blocks: BlockRange,
    },
    List {
        pg: PgId,
        token: ReplicaToken,
    },
    Capture {
        pg: PgId,
        token: ReplicaToken,
        layer: LayerKey,
        tries: u8,
    },
    /// Which block of a layer kept it from being captured?
    BadBlocks {
        pg: PgId,
        token: ReplicaToken,
        layer: LayerKey,
        tries: u8,
    },
    Repair {
        pg: PgId,
        token: ReplicaToken,
    },
    Entry {
        pg: PgId,
        seq: Seq,
    },
    Forget,
    Settle,
    Drain,
}

/// An open store.
pub(crate) struct OpenStore {
    store: Store,
    next_token: u64,
    asked: BTreeMap<Token, Asked>,
    held: BTreeMap<PgId, VecDeque<(ReplicaToken, StoreRequest)>>,
    outputs: Vec<Output>,
    draining: bool,
    failed: bool,
}

impl OpenStore {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            next_token: 0,
            asked: BTreeMap::new(),
            held: BTreeMap::new(),
            outputs: Vec::new(),
            draining: false,
            failed: false,
        }
    }

    pub(crate) fn space(&self) -> Space {
        self.store.space()
    }

    /// What is under way, in words.
    pub(crate) fn describe(&self) -> String {
        let held = |(pg, queue): (&PgId, &VecDeque<(ReplicaToken, StoreRequest)>)| {
            let names = queue.iter().map(|(_, request)| name(request));
            format!("{pg}: {}", names.collect::<Vec<_>>().join(" "))
        };
        let held: Vec<String> = self.held.iter().map(held).collect();
        format!("{}; held: [{}]", self.store.describe(), held.join("; "))
    }

    pub(crate) fn counters(&self) -> sds_store::request::Counters {
        self.store.counters()
    }

    pub(crate) fn disk(&mut self, now: Nanos, done: DiskDone, out: &mut Vec<Outcome>) {
        self.step(now, Event::Disk(done), out);
    }

    pub(crate) fn tick(&mut self, now: Nanos, out: &mut Vec<Outcome>) {
        self.step(now, Event::Tick, out);
    }

    /// Hands in what held appends wait for, as far as there is room.
    pub(crate) fn release_held(&mut self, now: Nanos, out: &mut Vec<Outcome>) {
        let groups: Vec<PgId> = self.held.keys().copied().collect();
        for pg in groups {
            while let Some((_, request)) = self.held.get(&pg).and_then(VecDeque::front) {
                if !self.has_room(request) {
                    break;
                }
                let Some((token, request)) = self.held.get_mut(&pg).and_then(VecDeque::pop_front) else { break };
                self.hand_in(now, pg, token, request, out);
                if self.held_first(pg) == Some(token) {
                    break; // refused again
                }
                if self.held.get(&pg).is_some_and(VecDeque::is_empty) {
                    self.held.remove(&pg);
                }
            }
        }
    }

    fn held_first(&self, pg: PgId) -> Option<ReplicaToken> {
        self.held.get(&pg).and_then(VecDeque::front).map(|(token, _)| *token)
    }

    /// True while a checkpoint that was asked for is not done.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// True if something waits for room.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// A replica asks.
    pub(crate) fn submit(
        &mut self,
        now: Nanos,
        pg: PgId,
        token: ReplicaToken,
        request: StoreRequest,
        out: &mut Vec<Outcome>,
    ) {
        let is_held = self.held.contains_key(&pg) && is_journaled(&request) && !self.may_pass(pg, &request);
        if is_held || !self.has_room(&request) {
            self.held.entry(pg).or_default().push_back((token, request));
        } else {
            self.hand_in(now, pg, token, request, out);
        }
    }

    /// Reads one entry back.
    pub(crate) fn read_entry(&mut self, now: Nanos, pg: PgId, seq: Seq, out: &mut Vec<Outcome>) {
        self.ask(now, Asked::Entry { pg, seq }, Request::ReadEntry { pg, seq }, out);
    }

    /// Removes a group that no replica speaks for.
    pub(crate) fn forget(&mut self, now: Nanos, pg: PgId, out: &mut Vec<Outcome>) {
        self.ask(now, Asked::Forget, Request::ForgetPg { pg }, out);
    }

    /// Clears the verdict of the opening.
    pub(crate) fn settle(&mut self, now: Nanos, out: &mut Vec<Outcome>) {
        self.ask(now, Asked::Settle, Request::Settle, out);
    }

    /// Applies and checkpoints everything.
    pub(crate) fn checkpoint(&mut self, now: Nanos, out: &mut Vec<Outcome>) {
        self.draining = true;
        self.ask(now, Asked::Drain, Request::Checkpoint, out);
    }

    fn holds_state(&self, pg: PgId) -> bool {
        let is_state = |(_, request): &(ReplicaToken, StoreRequest)| matches!(request, StoreRequest::SaveState { .. });
        self.held.get(&pg).is_some_and(|held| held.iter().any(is_state))
    }

    /// A state that speaks for nothing of what is held may go before it; and must, since the room that is waited for is
    /// perhaps what the entries take that it makes superfluous.
    fn may_pass(&self, pg: PgId, request: &StoreRequest) -> bool {
        let StoreRequest::SaveState { through, .. } = request else { return false };
        let is_later = |held: &StoreRequest| match held {
            StoreRequest::Append { entries } => entries.first().is_some_and(|entry| entry.version.seq > *through),
            _ => false,
        };
        self.held.get(&pg).is_some_and(|held| held.iter().all(|(_, held)| is_later(held)))
    }

    /// Journal bytes that an append takes at most.
    fn journal_bytes(request: &StoreRequest) -> u64 {
        let StoreRequest::Append { entries } = request else { return 0 };
        entries.iter().map(|entry| sds_replica::cost(entry).journal_bytes).sum()
    }

    /// A first look, so that what is sure to be refused is not even handed in.
    fn has_room(&self, request: &StoreRequest) -> bool {
        let bytes = Self::journal_bytes(request);
        bytes == 0 || self.store.space().journal_free >= bytes
    }

    fn hand_in(&mut self, now: Nanos, pg: PgId, token: ReplicaToken, request: StoreRequest, out: &mut Vec<Outcome>) {
        let kept = match &request {
            StoreRequest::Append { .. } => {
                // Room is seldom short, and then it is not found out by a refusal alone: entries are not copied in vain.
                let space = self.store.space();
                let is_short = space.journal_free < 4 * Self::journal_bytes(&request)
                    || space.aus_free < space.aus_total / 16
                    || space.records_free < space.records_total / 16;
                is_short.then(|| request.clone())
            }
            _ if is_journaled(&request) => Some(request.clone()),
            _ => None,
        };
        let durable = Asked::Durable { pg, token, kept };
        let (asked, request) = match request {
            StoreRequest::Append { entries } => (durable, Request::Append { entries }),
            StoreRequest::Promise { pg, term } => (durable, Request::Promise { pg, term }),
            StoreRequest::SaveState { pg, through, state } => (durable, Request::SaveState { pg, through, state }),
            StoreRequest::Void { pg, after } => (durable, Request::Void { pg, after }),
            StoreRequest::Commit { pg, through } => {
                // No answer comes.
                let token = self.token();
                self.step(now, Event::Request { token, request: Request::Commit { pg, through } }, out);
                return;
            }
            StoreRequest::Read { layer, blocks } => (Asked::Read { pg, token }, Request::Read { layer, blocks }),
            StoreRequest::Status { layer, blocks } => {
                (Asked::Status { pg, token, blocks }, Request::Status { layer, blocks })
            }
            StoreRequest::ListChunks { pg } => (Asked::List { pg, token }, Request::ListChunks { pg }),
            StoreRequest::Capture { layer } => {
                (Asked::Capture { pg, token, layer, tries: 1 }, Request::Capture { layer })
            }
            StoreRequest::Install { pg, layer, copy } => {
                (durable, Request::Install { pg, layer, content: translate::layer_content(copy) })
            }
            StoreRequest::RemoveLayers { pg, layers } => return self.remove(now, pg, token, layers, out),
            StoreRequest::Repair { pg, layer, block, checksum, data } => {
                (Asked::Repair { pg, token }, Request::Repair { layer, block, checksum, data })
            }
            StoreRequest::ForgetPg { pg } => (durable, Request::ForgetPg { pg }),
        };
        self.ask(now, asked, request, out);
    }

    /// A list of any length, in requests of the store's length; records take effect in order, so the last answers for all.
    fn remove(&mut self, now: Nanos, pg: PgId, token: ReplicaToken, layers: Vec<LayerKey>, out: &mut Vec<Outcome>) {
        let mut rest = layers;
        loop {
            let later = rest.split_off(rest.len().min(REMOVE_LAYERS_MAX));
            let asked = Asked::Removal { pg, token, layers: rest.clone(), last: later.is_empty() };
            self.ask(now, asked, Request::RemoveLayers { pg, layers: rest }, out);
            if later.is_empty() {
                return;
            }
            if let Some((first, StoreRequest::RemoveLayers { layers, .. })) =
                self.held.get_mut(&pg).and_then(VecDeque::front_mut)
                && *first == token
            {
                layers.extend(later); // refused: the rest waits with it
                return;
            }
            rest = later;
        }
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    fn ask(&mut self, now: Nanos, asked: Asked, request: Request, out: &mut Vec<Outcome>) {
        let token = self.token();
        self.asked.insert(token, asked);
        self.step(now, Event::Request { token, request }, out);
    }

    fn step(&mut self, now: Nanos, event: Event, out: &mut Vec<Outcome>) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.store.step(now, event, &mut outputs);
        self.outputs = outputs;
        self.drain(now, out);
    }

    fn drain(&mut self, now: Nanos, out: &mut Vec<Outcome>) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Disk(request) => out.push(Outcome::Disk(request)),
                // One that waits for room is answer enough.
                Output::WantState { pg } if self.holds_state(pg) => {}
                Output::WantState { pg } => out.push(Outcome::WantState(pg)),
                Output::BadBlock { pg, layer, block } => out.push(Outcome::BadBlock { pg, layer, block }),
                Output::Damaged { damage } => out.push(Outcome::Damaged { damage }),
                Output::Failed { cause } => self.fail(cause.to_string(), out),
                Output::Done { token, result } => {
                    if let Some(asked) = self.asked.remove(&token) {
                        self.answered(now, asked, result, out);
                    }
                }
            }
        }
        if self.outputs.is_empty() {
            self.outputs = outputs; // keeps its memory
        } else {
            self.drain(now, out); // an answer led to another request
        }
    }

    /// The device is given up: once.
    pub(crate) fn fail(&mut self, reason: String, out: &mut Vec<Outcome>) {
        if !self.failed {
            self.failed = true;
            self.draining = false;
            self.held.clear();
            out.push(Outcome::Failed { reason });
        }
    }

    /// The device underneath is gone.
    pub(crate) fn device_gone(&mut self, cause: DiskError, out: &mut Vec<Outcome>) {
        self.fail(cause.to_string(), out);
    }

    fn answered(&mut self, now: Nanos, asked: Asked, result: Result<Answer, StoreError>, out: &mut Vec<Outcome>) {
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => return self.refused(now, asked, error, out),
        };
        let mut done = |pg, token, done| out.push(Outcome::Replica { pg, token, result: Ok(done) });
        match (asked, answer) {
            (Asked::Durable { pg, token, .. } | Asked::Repair { pg, token }, _) => done(pg, token, StoreDone::Durable),
            (Asked::Removal { pg, token, last, .. }, _) => {
                if last {
                    done(pg, token, StoreDone::Durable);
                }
            }
            (Asked::Read { pg, token }, Answer::Read(pieces)) => done(pg, token, translate::read_done(pieces)),
            (Asked::Status { pg, token, blocks }, Answer::Status(map)) => {
                done(pg, token, translate::status_done(map, blocks));
            }
            (Asked::List { pg, token }, Answer::Chunks(chunks)) => done(pg, token, StoreDone::Chunks(chunks)),
            (Asked::Capture { pg, token, .. }, Answer::Captured(content)) => {
                let is_there = content.version != mdm_api::epoch::Version::default();
                done(pg, token, StoreDone::Layer(is_there.then(|| translate::layer_copy(content))));
            }
            (Asked::BadBlocks { pg, token, layer, tries }, Answer::Read(pieces)) => {
                let is_bad =
                    |content: &PieceContent| matches!(content, PieceContent::Bad { layer: of, .. } if *of == layer);
                let bad: Vec<u16> =
                    pieces.iter().filter(|p| is_bad(&p.content)).flat_map(|p| p.blocks.iter()).collect();
                if bad.is_empty() && tries < CAPTURES_MAX {
                    let asked = Asked::Capture { pg, token, layer, tries: tries + 1 };
                    self.ask(now, asked, Request::Capture { layer }, out);
                } else if bad.is_empty() {
                    // It reads well and cannot be captured: all of it is in doubt, and the peer's copy may take its place.
                    done(pg, token, StoreDone::BadBlocks(BlockRange::WHOLE.iter().collect()));
                } else {
                    done(pg, token, StoreDone::BadBlocks(bad));
                }
            }
            (Asked::Entry { pg, seq }, Answer::Entry(entry)) => out.push(Outcome::Entry { pg, seq, result: Ok(entry) }),
            (Asked::Settle, _) => out.push(Outcome::Settled),
            (Asked::Drain, _) => self.draining = false,
            (Asked::Forget, _) => {}
            _ => self.fail("the store gave the answer to another question".to_owned(), out),
        }
    }

    fn refused(&mut self, now: Nanos, asked: Asked, error: StoreError, out: &mut Vec<Outcome>) {
        match (asked, error) {
            // Nothing happened: it waits, in its place, until there is room.
            (Asked::Durable { pg, token, kept: Some(request) }, StoreError::NoJournalSpace | StoreError::NoSpace) => {
                self.held.entry(pg).or_default().push_front((token, request));
            }
            (Asked::Removal { pg, token, layers, .. }, StoreError::NoJournalSpace) => {
                self.held.entry(pg).or_default().push_front((token, StoreRequest::RemoveLayers { pg, layers }));
            }
            (Asked::Repair { pg, token }, StoreError::Changed | StoreError::NotFound) => {
                // The bad copy is not there any more.
                out.push(Outcome::Replica { pg, token, result: Ok(StoreDone::Durable) });
            }
            (Asked::Capture { pg, token, layer, tries }, StoreError::BadBlock) => {
                let asked = Asked::BadBlocks { pg, token, layer, tries };
                self.ask(now, asked, Request::Read { layer, blocks: BlockRange::WHOLE }, out);
            }
            (Asked::Capture { pg, token, .. }, StoreError::NotFound) => {
                out.push(Outcome::Replica { pg, token, result: Ok(StoreDone::Layer(None)) });
            }
            (Asked::Entry { pg, seq }, error) => out.push(Outcome::Entry { pg, seq, result: Err(error) }),
            (asked, StoreError::Failed(_)) => {
                if let Some((pg, token)) = asked.replica() {
                    out.push(Outcome::Replica { pg, token, result: Err(sds_replica::StoreError::DeviceFailed) });
                }
            }
            // Whatever else is refused should not have been asked: replica and store do not agree on what is there. The
            // device stops here rather than going on with data in doubt.
            (_, error) => self.fail(format!("broken invariant between replica and store: {error}"), out),
        }
    }
}

impl Asked {
    fn replica(&self) -> Option<(PgId, ReplicaToken)> {
        match self {
            Self::Durable { pg, token, .. }
            | Self::Removal { pg, token, .. }
            | Self::Read { pg, token }
            | Self::Status { pg, token, .. }
            | Self::List { pg, token }
            | Self::Capture { pg, token, .. }
            | Self::BadBlocks { pg, token, .. }
            | Self::Repair { pg, token } => Some((*pg, *token)),
            Self::Entry { .. } | Self::Forget | Self::Settle | Self::Drain => None,
        }
    }
}

fn name(request: &StoreRequest) -> String {
    match request {
        StoreRequest::Append { entries } => {
            let seq = |entry: Option<&Entry>| entry.map_or(Seq(0), |entry| entry.version.seq);
            format!("append {}..{}", seq(entries.first()), seq(entries.last()))
        }
        StoreRequest::Promise { .. } => "promise".to_owned(),
        StoreRequest::SaveState { through, .. } => format!("state {through}"),
        StoreRequest::Void { after, .. } => format!("void {after}"),
        StoreRequest::Install { .. } => "install".to_owned(),
        StoreRequest::RemoveLayers { .. } => "remove".to_owned(),
        StoreRequest::ForgetPg { .. } => "forget".to_owned(),
        _ => "read".to_owned(),
    }
}

/// True for what leaves a record in the journal, whose order within a group matters.
fn is_journaled(request: &StoreRequest) -> bool {
    match request {
        StoreRequest::Append { .. }
        | StoreRequest::Promise { .. }
        | StoreRequest::SaveState { .. }
        | StoreRequest::Void { .. }
        | StoreRequest::Install { .. }
        | StoreRequest::RemoveLayers { .. }
        | StoreRequest::ForgetPg { .. } => true,
        StoreRequest::Commit { .. }
        | StoreRequest::Read { .. }
        | StoreRequest::Status { .. }
        | StoreRequest::ListChunks { .. }
        | StoreRequest::Capture { .. }
        | StoreRequest::Repair { .. } => false,
    }
}
