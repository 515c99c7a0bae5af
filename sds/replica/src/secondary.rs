//! Following a primary: promise, accept, acknowledge, commit; for a learner also copies.
//!
//! Always true:
//! - Nothing is taken but from the primary of the newest configuration that this replica knows, in its appointed process,
//!   under a term that is promised durably (I7). A restarted replica follows nobody before it has a current map, so it
//!   never acknowledges anything to a deposed primary whose term it once promised.
//! - `Durable{through}` names a prefix that is in the journal for good (I8).
//! - What is committed to the store is behind every copy that came before it in the stream: a copy never lands on a
//!   newer write, and an unfinished copy never passes for its version (I23, F29).

use std::collections::{BTreeSet, VecDeque};

use mdm_api::epoch::{Epoch, Seq, Term, Version};
use mdm_api::ids::{DeviceId, ProcessIncarnation};
use mdm_api::mutants::{self, Mutant};
use sds_api::block::{BlockRange, LayerKey};
use sds_api::checksum::first_mismatch;
use sds_api::entry::{Entry, EntryBody};
use sds_api::peer::{LAYERS_PER_MESSAGE_MAX, LayerCopy, PeerBody, PeerMessage, Tail};

use crate::action::StoreRequest;
use crate::event::{StoreDone, Token};
use crate::replica::{Cx, Purpose, Replica};
use crate::resync::patch::{Blocks, merge};
use crate::state;

/// What a learner does in the order of the stream, one at a time.
#[derive(Clone, Debug)]
enum Work {
    Install { layer: LayerKey, copy: LayerCopy },
    Patch(Patch),
    Remove { layers: Vec<LayerKey> },
    Complete,
}

/// Some blocks of a layer, and what they go on.
#[derive(Clone, Debug)]
struct Patch {
    layer: LayerKey,
    base: Version,
    blocks: Blocks,
    copy: LayerCopy,
}

impl Patch {
    /// True if it holds only what it speaks of, and that intact (I21).
    fn verify(&self) -> bool {
        let within = self.copy.presence.iter().zip(&self.blocks).all(|(present, spoken)| present & !spoken == 0);
        within && self.copy.verify()
    }
}

#[derive(Clone, Debug)]
struct StreamWork {
    /// The last entry that came before it: none beyond may be committed before the work is done.
    position: Seq,
    work: Work,
}

/// The stream from the primary.
#[derive(Clone, Debug)]
struct Stream {
    id: u64,
    /// Number of the next message.
    next_number: u64,
    commit_heard: Seq,
    work: VecDeque<StreamWork>,
    operations: u64,
    /// What the last `Durable` said.
    told: Option<(Seq, u64)>,
    /// This learner's list, while it is being handed over.
    listing: Option<Vec<(LayerKey, Version)>>,
    listing_asked: Option<Option<LayerKey>>,
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    ask: u64,
    term: Term,
    from: DeviceId,
    incarnation: ProcessIncarnation,
}

/// What a replica that does not lead has on its hands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follower {
    /// A question that is not answered yet.
    asked: Option<Ask>,
    stream: Option<Stream>,
    /// The newest question of this term that was answered; none is answered twice.
    answered: u64,
    /// The answered question whose stream has not begun yet.
    awaited: Option<u64>,
    /// The term of the primary that asked it.
    term: Option<Term>,
    /// Work of any stream that the store has in hand; the next waits for it.
    running: Option<(Token, Option<u64>, Seq)>,
    /// The patch whose base is being read.
    patch: Option<Patch>,
    /// Layers of which this replica's version is not to be built upon: they are wanted whole.
    unread: BTreeSet<LayerKey>,
}

impl Follower {
    /// Another term: what was followed is over.
    pub(crate) fn unfollow(&mut self) {
        self.asked = None;
        self.stream = None;
        self.answered = 0;
        self.awaited = None;
        self.term = None;
    }

    /// The term of the primary whose question was answered last, while that is the one that is followed.
    pub(crate) fn term(&self) -> Option<Term> {
        self.term
    }

    /// The last entry that may be committed while copies are open.
    fn commit_limit(&self) -> Seq {
        let queued = self.stream.as_ref().and_then(|stream| stream.work.front()).map(|work| work.position);
        let running = self.running.map(|(_, _, position)| position);
        queued.into_iter().chain(running).min().unwrap_or(Seq(u64::MAX))
    }
}

impl Replica {
    /// A message that only a primary sends.
    pub(crate) fn on_primary_says(&mut self, cx: &mut Cx<'_>, message: PeerMessage) {
        let PeerMessage { term, from, incarnation, body, .. } = message;
        let epoch = match &body {
            PeerBody::Activate { epoch, .. } => *epoch,
            _ => Epoch(0),
        };
        if !self.is_led_by(from, incarnation, term) {
            if self.config.as_ref().is_none_or(|config| config.term < term) {
                // A configuration that is not known here yet: nothing is taken on the sender's word.
                self.want_map(cx, epoch);
            }
            if matches!(body, PeerBody::Activate { .. } | PeerBody::Replicate { .. }) {
                let refused = PeerBody::Refused { promised: self.promised, epoch: self.epoch() };
                self.send(cx, from, term, refused);
            }
            return;
        }
        match body {
            PeerBody::Activate { ask, .. } => self.on_activate(cx, Ask { ask, term, from, incarnation }),
            // Everything else builds on an answered question, and so on a durable promise.
            _ if self.promise_durable < term => {}
            PeerBody::Follow { stream, after, commit } => self.on_follow(cx, from, stream, after, commit),
            PeerBody::Reset { stream, through, state } => self.on_reset(cx, from, stream, through, &state),
            PeerBody::Replicate { stream, number, commit, entries } => {
                if self.takes(cx, from, stream, number) {
                    self.on_entries(cx, from, commit, entries);
                }
            }
            PeerBody::Copy { stream, number, layer, copy } => {
                if self.takes(cx, from, stream, number) {
                    let verified = copy.verify(); // I21
                    self.on_stream_work(cx, from, verified, Work::Install { layer, copy });
                }
            }
            PeerBody::Patch { stream, number, layer, base, blocks, copy } => {
                if self.takes(cx, from, stream, number) {
                    let patch = Patch { layer, base, blocks, copy };
                    self.on_stream_work(cx, from, patch.verify(), Work::Patch(patch));
                }
            }
            PeerBody::RemoveLayers { stream, number, layers } => {
                if self.takes(cx, from, stream, number) {
                    self.on_stream_work(cx, from, true, Work::Remove { layers });
                }
            }
            PeerBody::Complete { stream, number } => {
                if self.takes(cx, from, stream, number) {
                    self.on_stream_work(cx, from, true, Work::Complete);
                }
            }
            PeerBody::ListChunks { stream, after } => self.on_list_chunks(cx, stream, after),
            PeerBody::FetchBlocks { request, layer, blocks, commit } => {
                self.on_fetch(cx, from, term, request, layer, blocks, commit);
            }
            PeerBody::Release => {
                if let Some(home) = self.homes.get(&from) {
                    cx.context.leases.released(self.me.pg, home.server, incarnation);
                }
            }
            PeerBody::Tail { .. }
            | PeerBody::Refused { .. }
            | PeerBody::AskStream { .. }
            | PeerBody::Durable { .. }
            | PeerBody::ChunkVersions { .. }
            | PeerBody::Blocks { .. } => {}
        }
    }

    /// True if the map says that this is the primary, in this process, under this term, and nothing newer is promised.
    pub(crate) fn is_led_by(&self, from: DeviceId, incarnation: ProcessIncarnation, term: Term) -> bool {
        if mutants::is_on(Mutant::ForgetPromise) {
            return self.leader.is_none() && self.config.as_ref().is_some_and(|config| config.names(self.me.device));
        }
        self.leader.is_none()
            && term >= self.promised
            && self.config.as_ref().is_some_and(|config| {
                config.term == term
                    && config.primary == Some(from)
                    && config.primary_incarnation == incarnation
                    && config.names(self.me.device)
            })
    }

    fn on_activate(&mut self, cx: &mut Cx<'_>, ask: Ask) {
        if ask.ask <= self.follower.answered || self.follower.asked.is_some_and(|asked| asked.ask >= ask.ask) {
            return; // A copy of a question that is answered, or soon will be.
        }
        self.follower.stream = None;
        self.follower.awaited = None;
        self.follower.term = None;
        self.follower.asked = Some(ask);
        if self.promised < ask.term {
            self.promise(cx, ask.term);
        }
    }

    /// Answers the primary's question once the promise and everything else on its way is durable.
    fn answer_ask(&mut self, cx: &mut Cx<'_>) {
        let Some(ask) = self.follower.asked else { return };
        if self.promise_durable < ask.term || !self.log.is_settled() || self.follower.running.is_some() {
            return;
        }
        self.follower.asked = None;
        let Some(home) = self.homes.get(&ask.from) else { return };
        self.follower.answered = ask.ask;
        self.follower.awaited = Some(ask.ask);
        self.follower.term = Some(ask.term);
        // From this answer on, grants to that server cover this group.
        cx.context.leases.follow(self.me.pg, home.server, ask.incarnation);
        let tail = Tail {
            last: self.log.last().seq,
            committed: self.log.committed(),
            history: self.log.history().to_vec(),
            complete: self.complete,
            suspect: self.suspect,
            grant: cx.context.credits.share(self.me.device, ask.from),
        };
        assert_eq!(self.log.durable(), tail.last, "I8: a settled log is durable");
        self.send(cx, ask.from, ask.term, PeerBody::Tail { ask: ask.ask, tail });
    }

    fn start_stream(&mut self, id: u64, commit_heard: Seq) {
        self.follower.awaited = None;
        self.follower.stream = Some(Stream {
            id,
            next_number: 1,
            commit_heard,
            work: VecDeque::new(),
            operations: 0,
            told: None,
            listing: None,
            listing_asked: None,
        });
    }

    fn on_follow(&mut self, cx: &mut Cx<'_>, from: DeviceId, stream: u64, after: Seq, commit: Seq) {
        if self.follower.awaited != Some(stream) {
            return;
        }
        if after > self.log.last().seq || after < self.log.committed() || self.suspect || !self.complete {
            self.ask_stream(cx, from, stream);
            return;
        }
        if after < self.log.last().seq {
            // The tail that no primary will ever commit.
            self.log.truncate(after, &mut cx.context.retained);
            self.sessions.void(after);
            let token = self.store(cx, Purpose::Journal, StoreRequest::Void { pg: self.me.pg, after });
            self.log.journal(token, after);
        }
        self.start_stream(stream, commit);
    }

    fn on_reset(&mut self, cx: &mut Cx<'_>, from: DeviceId, stream: u64, through: Version, bytes: &[u8]) {
        let learner = self.config.as_ref().is_some_and(|config| config.learners.contains(&self.me.device));
        if self.follower.awaited != Some(stream) {
            return;
        }
        let saved = state::decode(bytes).filter(|saved| saved.through == through);
        let (Some(saved), true) = (saved, learner) else {
            // A map that still has this replica in the ISR, or a state that cannot be read: nothing is given up.
            self.ask_stream(cx, from, stream);
            return;
        };
        let pg = self.me.pg;
        let committed = self.log.committed().max(self.stored_committed);
        if through.seq < committed {
            // Only after an operator's override of the order: nothing here can be told from what is valid.
            self.store(cx, Purpose::Nothing, StoreRequest::ForgetPg { pg });
            self.store(cx, Purpose::Nothing, StoreRequest::Promise { pg, term: self.promised });
        } else if self.log.last().seq > committed || self.suspect {
            // Entries behind unfinished copies would give layers versions that their content does not have (I23). Of a
            // suspect store nobody knows how far its entries go: those that could not be read are not in this log.
            self.store(cx, Purpose::Nothing, StoreRequest::Void { pg, after: committed });
        }
        self.log.restart(through, saved.history, &mut cx.context.retained);
        self.sessions = saved.sessions;
        self.complete = false;
        let request = self.state_request();
        let token = self.store(cx, Purpose::Journal, request);
        self.log.journal(token, through.seq);
        self.start_stream(stream, through.seq);
    }

    /// True if this is the next message of the current stream.
    fn takes(&mut self, cx: &mut Cx<'_>, from: DeviceId, id: u64, number: u64) -> bool {
        match &mut self.follower.stream {
            Some(stream) if stream.id == id && stream.next_number == number => {
                stream.next_number += 1;
                return true;
            }
            Some(stream) if stream.id > id || (stream.id == id && stream.next_number > number) => return false,
            _ => {}
        }
        if self.follower.asked.is_none() {
            self.follower.stream = None;
            self.ask_stream(cx, from, id);
        }
        false
    }

    fn ask_stream(&self, cx: &mut Cx<'_>, from: DeviceId, stream: u64) {
        self.send(cx, from, self.promised, PeerBody::AskStream { stream });
    }

    fn on_entries(&mut self, cx: &mut Cx<'_>, from: DeviceId, commit: Seq, entries: Vec<Entry>) {
        let mut last = self.log.last();
        for entry in &entries {
            let follows = entry.pg == self.me.pg
                && entry.version.seq == last.seq.next()
                && entry.version.term >= last.term
                && entry.version.term <= self.promised;
            let intact = match &entry.body {
                EntryBody::Write { checksums, data, .. } => first_mismatch(data, checksums).is_none(), // I21
                _ => true,
            };
            if !follows || !intact {
                let stream = self.follower.stream.take().map_or(0, |stream| stream.id);
                self.ask_stream(cx, from, stream);
                return;
            }
            last = entry.version;
        }
        if let Some(stream) = &mut self.follower.stream {
            stream.commit_heard = stream.commit_heard.max(commit);
            if entries.is_empty() {
                stream.told = None; // the primary may want to know its grant
            }
        }
        if entries.is_empty() {
            return;
        }
        for entry in &entries {
            if let Some(identity) = &entry.identity {
                self.sessions.record(identity, entry.version.seq);
            }
            self.log.push(entry.clone(), &mut cx.context.retained);
        }
        let token = self.store(cx, Purpose::Journal, StoreRequest::Append { entries });
        self.log.journal(token, last.seq);
    }

    fn on_stream_work(&mut self, cx: &mut Cx<'_>, from: DeviceId, verified: bool, work: Work) {
        let position = self.log.last().seq;
        let Some(stream) = &mut self.follower.stream else { return };
        if verified && stream.work.len() < crate::limits::COPY_WINDOW as usize + 2 {
            stream.work.push_back(StreamWork { position, work });
            return;
        }
        let id = stream.id;
        self.follower.stream = None;
        self.ask_stream(cx, from, id);
    }

    fn run_stream_work(&mut self, cx: &mut Cx<'_>) {
        if self.follower.running.is_some() {
            return;
        }
        let Some(stream) = &self.follower.stream else { return };
        let Some(next) = stream.work.front() else { return };
        // A drop before the copy must not take the copy with it.
        if self.drop_is_open(next.position) {
            return;
        }
        let (id, position) = (stream.id, next.position);
        let pg = self.me.pg;
        let request = match next.work.clone() {
            Work::Patch(patch) => {
                let request = StoreRequest::Capture { layer: patch.layer };
                let token = self.store(cx, Purpose::PatchBase, request);
                (self.follower.running, self.follower.patch) = (Some((token, Some(id), position)), Some(patch));
                if let Some(stream) = &mut self.follower.stream {
                    stream.work.pop_front();
                }
                return;
            }
            Work::Install { layer, copy } => StoreRequest::Install { pg, layer, copy },
            Work::Remove { layers } => StoreRequest::RemoveLayers { pg, layers },
            Work::Complete => {
                (self.complete, self.suspect) = (true, false);
                self.follower.unread.clear();
                self.state_request()
            }
        };
        let token = self.store(cx, Purpose::StreamWork, request);
        self.follower.running = Some((token, Some(id), position));
        if let Some(stream) = &mut self.follower.stream {
            stream.work.pop_front();
        }
    }

    /// What a patch goes on is in hand: the whole is installed, as a copy would be (F29).
    pub(crate) fn patch_base_read(&mut self, cx: &mut Cx<'_>, token: Token, done: StoreDone) {
        let Some((_, id, position)) = self.follower.running.filter(|(running, ..)| *running == token) else { return };
        let Some(patch) = self.follower.patch.take() else { return };
        let is_wanted = self.follower.stream.as_ref().is_some_and(|stream| Some(stream.id) == id);
        let (pg, layer) = (self.me.pg, patch.layer);
        match done {
            StoreDone::Layer(Some(base)) if is_wanted && base.version == patch.base && base.verify() => {
                let copy = merge(&base, &patch.blocks, &patch.copy);
                let token = self.store(cx, Purpose::StreamWork, StoreRequest::Install { pg, layer, copy });
                self.follower.running = Some((token, id, position));
            }
            _ => {
                self.follower.running = None;
                let primary = self.config.as_ref().and_then(|config| config.primary);
                if let (true, Some(primary), Some(stream)) = (is_wanted, primary, id) {
                    self.follower.unread.insert(layer);
                    self.follower.stream = None;
                    self.ask_stream(cx, primary, stream);
                }
            }
        }
    }

    pub(crate) fn stream_work_done(&mut self, token: Token) {
        if let Some((running, id, _)) = self.follower.running {
            if running != token {
                return;
            }
            self.follower.running = None;
            if let Some(stream) = self.follower.stream.as_mut().filter(|stream| Some(stream.id) == id) {
                stream.operations += 1;
            }
        }
    }

    fn on_list_chunks(&mut self, cx: &mut Cx<'_>, id: u64, after: Option<LayerKey>) {
        let Some(stream) = self.follower.stream.as_mut().filter(|stream| stream.id == id) else { return };
        let fresh = stream.listing.is_none() && stream.listing_asked.is_none();
        stream.listing_asked = Some(after);
        if fresh {
            self.store(cx, Purpose::Listing, StoreRequest::ListChunks { pg: self.me.pg });
        } else {
            self.hand_over_listing(cx);
        }
    }

    pub(crate) fn listing_done(&mut self, cx: &mut Cx<'_>, done: StoreDone) {
        let (StoreDone::Chunks(mut chunks), Some(stream)) = (done, &mut self.follower.stream) else { return };
        if self.suspect {
            // F18: a layer whose page is lost comes back from the journal with the newest version and a part of its content.
            // Nothing here is known to be what its version says, so all of it is to be copied.
            chunks.iter_mut().for_each(|(_, version)| *version = Version::default());
        }
        let unread = &self.follower.unread;
        chunks
            .iter_mut()
            .filter(|(layer, _)| unread.contains(layer))
            .for_each(|(_, version)| *version = Version::default());
        if stream.listing_asked.is_some() {
            stream.listing = Some(chunks);
            self.hand_over_listing(cx);
        }
    }

    fn hand_over_listing(&mut self, cx: &mut Cx<'_>) {
        let primary = self.config.as_ref().and_then(|config| config.primary);
        let (Some(stream), Some(primary)) = (&mut self.follower.stream, primary) else { return };
        let (Some(after), Some(listing)) = (stream.listing_asked, &stream.listing) else { return };
        let start = after.map_or(0, |after| listing.partition_point(|(layer, _)| *layer <= after));
        let end = listing.len().min(start + LAYERS_PER_MESSAGE_MAX);
        let layers = listing[start..end].to_vec();
        let last = end == listing.len();
        let body = PeerBody::ChunkVersions { stream: stream.id, after, layers, last };
        stream.listing_asked = None;
        if last {
            stream.listing = None;
        }
        self.send(cx, primary, self.promised, body);
    }

    fn on_fetch(
        &mut self,
        cx: &mut Cx<'_>,
        from: DeviceId,
        term: Term,
        request: u64,
        layer: LayerKey,
        blocks: BlockRange,
        commit: Seq,
    ) {
        // F15: as of the primary's committed entry, which an in-sync replica has; without it there is no good copy here.
        let limit = self.follower.commit_limit();
        if !self.complete || self.suspect || commit > self.log.durable() || commit > limit {
            self.send(cx, from, term, PeerBody::Blocks { request, content: None });
            return;
        }
        self.commit_to(cx, commit.max(self.log.committed()));
        self.read_blocks_for(cx, (from, term), request, (layer, blocks));
    }

    /// Reads blocks for somebody who asked for them.
    pub(crate) fn read_blocks_for(
        &mut self,
        cx: &mut Cx<'_>,
        (to, term): (DeviceId, Term),
        request: u64,
        (layer, blocks): (LayerKey, BlockRange),
    ) {
        let purpose = Purpose::Fetch { to, term, request, count: blocks.count() };
        self.store(cx, purpose, StoreRequest::Read { layer, blocks });
    }

    pub(crate) fn fetch_done(
        &mut self,
        cx: &mut Cx<'_>,
        to: DeviceId,
        term: Term,
        request: u64,
        count: u16,
        done: StoreDone,
    ) {
        let content = match done {
            StoreDone::Blocks(content) if content.verify(usize::from(count)) => Some(content),
            _ => None,
        };
        self.send(cx, to, term, PeerBody::Blocks { request, content });
    }

    /// After every event: commit what may be committed, go on with copies, answer and acknowledge.
    pub(crate) fn settle_follower(&mut self, cx: &mut Cx<'_>) {
        if let Some(stream) = &self.follower.stream {
            let heard =
                if mutants::is_on(Mutant::ApplyBeforeCommit) { self.log.durable() } else { stream.commit_heard };
            let through = heard.min(self.log.durable()).min(self.follower.commit_limit());
            if through > self.log.committed() {
                self.commit_to(cx, through); // I10
            }
        }
        self.run_stream_work(cx);
        self.answer_ask(cx);
        self.acknowledge(cx);
        self.log.trim(Seq(u64::MAX), &mut cx.context.retained);
    }

    /// True while a primary feeds it.
    pub(crate) fn is_fed(&self) -> bool {
        self.follower.stream.is_some()
    }

    fn acknowledge(&mut self, cx: &mut Cx<'_>) {
        let primary = self.config.as_ref().and_then(|config| config.primary);
        let (Some(stream), Some(primary)) = (&mut self.follower.stream, primary) else { return };
        let through =
            if mutants::is_on(Mutant::AcknowledgeBeforeDurable) { self.log.last().seq } else { self.log.durable() };
        let news = (through, stream.operations);
        if stream.told == Some(news) {
            return;
        }
        stream.told = Some(news);
        let grant = cx.context.credits.share(self.me.device, primary);
        let body = PeerBody::Durable { stream: stream.id, through: news.0, operations: news.1, grant };
        self.send(cx, primary, self.promised, body);
    }
}
