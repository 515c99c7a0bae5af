//! What a replica that leads has on its hands: its members, requests, locks and proposals. Made at appointment, gone with
//! the term.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mdm_api::config::PgChangeKind;
use mdm_api::epoch::{AttachGeneration, Epoch, Nanos, RequestNumber, Seq, Term};
use mdm_api::ids::{DeviceId, ProcessIncarnation, SdcId, VolumeId, VtreeId};
use sds_api::client::{ClientAnswer, ClientError};
use sds_api::entry::{Entry, EntryBody};
use sds_api::peer::{CreditGrant, PeerBody, REPLICATE_ENTRIES_MAX};

use crate::action::{Action, ResyncProgress};
use crate::event::ClientRef;
use crate::fence::PendingFence;
use crate::limits::{BATCH_BYTES, COMMIT_HEARTBEAT_MS, WINDOW_BYTES};
use crate::overlap::Overlaps;
use crate::primary::Request;
use crate::repair::Repair;
use crate::replica::{Cx, Replica};
use crate::resync::Resync;
use crate::resync::patch::Dirty;

/// How a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not asked, or to be asked again not before this.
    Away { again: Nanos },
    /// Asked for its tail.
    Asked { ask: u64, at: Nanos },
    /// Follows the stream.
    Streaming,
    /// Its tail does not fit the order: only removal helps.
    Diverged,
}

/// Another replica of the group, as its primary sees it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) stage: Stage,
    /// The process that promised this term; its server's grants cover the group.
    pub(crate) enrolled: Option<ProcessIncarnation>,
    pub(crate) enrolled_at: Nanos,
    pub(crate) stream: u64,
    /// Number of the last message in the stream.
    number: u64,
    pub(crate) sent: Seq,
    pub(crate) acked: Seq,
    /// The most it ever acknowledged under this term: it may not come back with less.
    pub(crate) acked_most: Seq,
    commit_sent: Seq,
    sent_at: Nanos,
    /// Something waits for a larger grant: it is to be asked what it grants now.
    pub(crate) wants_grant: bool,
    /// When it last did what was asked of it, or nothing was.
    pub(crate) progress_at: Nanos,
    /// Sent and not durable there: the last entry and the payload of each message.
    window: VecDeque<(Seq, usize)>,
    /// Space reserved for it, by entry (I24).
    pub(crate) reserved: VecDeque<(Seq, CreditGrant)>,
    pub(crate) operations_sent: u64,
    pub(crate) operations_done: u64,
    pub(crate) resync: Option<Resync>,
}

impl Member {
    pub(crate) fn new(now: Nanos) -> Self {
        Self {
            stage: Stage::Away { again: now },
            enrolled: None,
            enrolled_at: now,
            stream: 0,
            number: 0,
            sent: Seq(0),
            acked: Seq(0),
            acked_most: Seq(0),
            commit_sent: Seq(0),
            sent_at: now,
            wants_grant: false,
            progress_at: now,
            window: VecDeque::new(),
            reserved: VecDeque::new(),
            operations_sent: 0,
            operations_done: 0,
            resync: None,
        }
    }

    /// A new stream begins after `after`, which is durable there.
    pub(crate) fn start_stream(&mut self, stream: u64, after: Seq, now: Nanos) {
        self.stage = Stage::Streaming;
        self.stream = stream;
        (self.number, self.operations_sent, self.operations_done) = (0, 0, 0);
        (self.sent, self.acked, self.commit_sent) = (after, after, Seq(0));
        self.acked_most = self.acked_most.max(after);
        self.window.clear();
        (self.sent_at, self.progress_at) = (now, now);
    }

    pub(crate) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub(crate) fn acknowledged(&mut self, through: Seq, operations: u64, now: Nanos) {
        if through > self.acked || operations > self.operations_done {
            self.progress_at = now;
        }
        self.acked = self.acked.max(through.min(self.sent));
        self.acked_most = self.acked_most.max(self.acked);
        self.operations_done = self.operations_done.max(operations.min(self.operations_sent));
        while self.window.front().is_some_and(|(seq, _)| *seq <= self.acked) {
            self.window.pop_front();
        }
    }

    fn follows(&self, stream: u64) -> bool {
        self.stage == Stage::Streaming && self.stream == stream
    }

    /// True if it was told of the last commit.
    pub(crate) fn has_heard(&self, commit: Seq) -> bool {
        self.commit_sent >= commit
    }

    fn window_bytes(&self) -> usize {
        self.window.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Where a planned move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moving {
    No,
    /// Nothing is admitted any more.
    Draining,
    /// Nothing will be served under this term again.
    Released,
}

/// A proposal whose outcome is unknown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proposed {
    pub(crate) kind: PgChangeKind,
    pub(crate) epoch: Epoch,
    pub(crate) at: Nanos,
}

/// The session and number of a request that is not ordered yet.
pub(crate) type RequestKey = (VolumeId, SdcId, AttachGeneration, RequestNumber);

/// A term's state.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) term: Term,
    pub(crate) members: BTreeMap<DeviceId, Member>,
    /// The learner that is required although the outcome of its `AddIsr` at this epoch is unknown (I5, I9).
    pub(crate) adding: Option<(DeviceId, Epoch)>,
    pub(crate) proposed: Option<Proposed>,
    /// How often each member was dropped, and from when on it may come back.
    pub(crate) flaps: BTreeMap<DeviceId, (u32, Nanos)>,
    /// Handed to the own store.
    appended: Seq,
    pub(crate) own_reserved: VecDeque<(Seq, CreditGrant)>,
    pub(crate) epoch_start: Option<Seq>,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) request_bytes: usize,
    /// Requests that are held, or wait for a commit or a lease.
    pub(crate) waiting: BTreeSet<u64>,
    pub(crate) by_identity: BTreeMap<RequestKey, u64>,
    pub(crate) ready: VecDeque<u64>,
    pub(crate) overlaps: Overlaps,
    pub(crate) replies: BTreeMap<Seq, Vec<ClientRef>>,
    pub(crate) fences: Vec<PendingFence>,
    pub(crate) drops: VecDeque<VtreeId>,
    pub(crate) repairs: BTreeMap<u64, Repair>,
    pub(crate) moving: Moving,
    /// What was written while the group has a learner.
    pub(crate) dirty: Option<Dirty>,
    /// It is not known, until there is no learner any more.
    pub(crate) dirty_is_lost: bool,
}

impl Leader {
    pub(crate) fn new(term: Term, appended: Seq) -> Self {
        Self {
            term,
            members: BTreeMap::new(),
            adding: None,
            proposed: None,
            flaps: BTreeMap::new(),
            appended,
            own_reserved: VecDeque::new(),
            epoch_start: None,
            requests: BTreeMap::new(),
            request_bytes: 0,
            waiting: BTreeSet::new(),
            by_identity: BTreeMap::new(),
            ready: VecDeque::new(),
            overlaps: Overlaps::default(),
            replies: BTreeMap::new(),
            fences: Vec::new(),
            drops: VecDeque::new(),
            repairs: BTreeMap::new(),
            moving: Moving::No,
            dirty: None,
            dirty_is_lost: false,
        }
    }

    pub(crate) fn open_requests(&self) -> usize {
        self.requests.len() + self.replies.len()
    }

    pub(crate) fn progress(&self) -> Vec<ResyncProgress> {
        let members = self.members.iter();
        members.filter_map(|(device, member)| Some(member.resync.as_ref()?.progress(*device))).collect()
    }
}

impl Replica {
    /// The leader's state; only called while the role leads.
    pub(crate) fn lead(&mut self) -> &mut Leader {
        self.leader.as_mut().expect("the role leads")
    }

    /// A message that only members send.
    pub(crate) fn on_member_says(&mut self, cx: &mut Cx<'_>, message: sds_api::peer::PeerMessage) {
        let (from, known) = (message.from, self.epoch());
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.term == message.term) else { return };
        let current =
            self.peers.get(&from).is_some_and(|peer| peer.connected && peer.incarnation == message.incarnation);
        let Some(member) = leader.members.get_mut(&from).filter(|_| current) else { return };
        match message.body {
            PeerBody::Tail { ask, tail } => self.on_tail(cx, from, message.incarnation, ask, tail),
            PeerBody::Refused { promised, epoch } if promised > message.term || epoch > known => {
                self.want_map(cx, epoch);
            }
            PeerBody::AskStream { stream } if member.follows(stream) => self.restart_member(cx, from),
            PeerBody::Durable { stream, through, operations, grant } if member.follows(stream) => {
                member.acknowledged(through, operations, self.now);
                let acked = member.acked;
                cx.context.credits.granted(self.me.device, from, grant);
                settle_reserved(cx, self.me.device, from, &mut member.reserved, acked);
            }
            PeerBody::ChunkVersions { stream, after, layers, last } => {
                self.on_chunk_versions(cx, from, stream, after, &layers, last);
            }
            PeerBody::Blocks { request, content } => self.on_fetched(cx, from, request, content),
            _ => {}
        }
    }

    /// The member lost its place: ask it anew, but not at the speed of the network.
    pub(crate) fn restart_member(&mut self, cx: &mut Cx<'_>, device: DeviceId) {
        let again = self.now.plus_ms(crate::limits::ACTIVATE_AGAIN_MS);
        self.end_resync(cx, device);
        if let Some(member) = self.lead().members.get_mut(&device) {
            member.stage = Stage::Away { again };
        }
        self.fetch_lost(cx, device);
    }

    pub(crate) fn member_connected(&mut self, cx: &mut Cx<'_>, device: DeviceId) {
        if self.leader.is_none() {
            return;
        }
        let now = self.now;
        self.end_resync(cx, device);
        let incarnation = self.peers.get(&device).map(|peer| peer.incarnation);
        if let Some(member) = self.lead().members.get_mut(&device) {
            if member.stage != Stage::Diverged {
                member.stage = Stage::Away { again: now };
            }
            if member.enrolled != incarnation {
                member.enrolled = None; // F31: the new process knows nothing of what the old one granted.
            }
        }
        self.fetch_lost(cx, device);
    }

    pub(crate) fn member_lost(&mut self, cx: &mut Cx<'_>, device: DeviceId) {
        if self.leader.is_none() {
            return;
        }
        let now = self.now;
        self.end_resync(cx, device);
        let member = self.lead().members.get_mut(&device);
        if let Some(member) = member.filter(|member| member.stage != Stage::Diverged) {
            member.stage = Stage::Away { again: now };
        }
        self.fetch_lost(cx, device);
    }

    /// Hands new entries to the own store.
    fn append_own(&mut self, cx: &mut Cx<'_>) {
        let last = self.log.last().seq;
        let appended = self.lead().appended;
        if appended == last {
            return;
        }
        let entries: Vec<Entry> = self.log.range(appended, last).cloned().collect();
        let token = self.store(cx, crate::replica::Purpose::Journal, crate::action::StoreRequest::Append { entries });
        self.log.journal(token, last);
        self.lead().appended = last;
    }

    /// Sends each member what it has not got, within its window.
    fn feed_members(&mut self, cx: &mut Cx<'_>) {
        let devices: Vec<DeviceId> = self.lead().members.keys().copied().collect();
        for device in devices {
            while self.send_entries(cx, device) {}
            self.send_commit(cx, device);
        }
    }

    /// One message of entries. True if there may be more to send.
    fn send_entries(&mut self, cx: &mut Cx<'_>, device: DeviceId) -> bool {
        let (last, commit, now) = (self.log.last().seq, self.log.committed(), self.now);
        let Some(leader) = self.leader.as_mut() else { return false };
        let term = leader.term;
        let Some(member) = leader.members.get_mut(&device) else { return false };
        if member.stage != Stage::Streaming || member.sent >= last || member.window_bytes() >= WINDOW_BYTES {
            return false;
        }
        if !self.log.holds_from(member.sent) {
            // A learner that fell too far behind: its next comparison starts from scratch.
            self.restart_member(cx, device);
            return false;
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in self.log.range(member.sent, last).take(REPLICATE_ENTRIES_MAX) {
            if bytes >= BATCH_BYTES {
                break;
            }
            let entry = member.resync.as_ref().map_or_else(|| entry.clone(), |resync| resync.entry_for_learner(entry));
            bytes += entry.payload_bytes();
            entries.push(entry);
        }
        let through = entries.last().map_or(member.sent, |entry| entry.version.seq);
        member.sent = through;
        member.window.push_back((through, bytes));
        (member.commit_sent, member.sent_at) = (commit, now);
        let (stream, number) = (member.stream, member.next_number());
        self.send(cx, device, term, PeerBody::Replicate { stream, number, commit, entries });
        true
    }

    /// Lets an idle member know of the last commit; or asks it for its grant, since it tells that with acknowledgements
    /// alone, and one who waits for a grant sends nothing that would be acknowledged (I24).
    fn send_commit(&mut self, cx: &mut Cx<'_>, device: DeviceId) {
        let (commit, now) = (self.log.committed(), self.now);
        let Some(leader) = self.leader.as_mut() else { return };
        let term = leader.term;
        let Some(member) = leader.members.get_mut(&device) else { return };
        let due = now.ms_since(member.sent_at) >= COMMIT_HEARTBEAT_MS;
        let is_wanted = member.commit_sent < commit || member.wants_grant;
        if member.stage == Stage::Streaming && is_wanted && due {
            (member.commit_sent, member.sent_at, member.wants_grant) = (commit, now, false);
            let (stream, number) = (member.stream, member.next_number());
            self.send(cx, device, term, PeerBody::Replicate { stream, number, commit, entries: vec![] });
        }
    }

    /// Everything that an event may have made possible.
    pub(crate) fn settle_leader(&mut self, cx: &mut Cx<'_>) {
        let durable = self.log.durable();
        let own = self.me.device;
        settle_reserved(cx, own, own, &mut self.lead().own_reserved, durable);
        self.ask_members(cx);
        self.advance_activation(cx);
        self.advance_commit(cx);
        self.answer_committed(cx);
        self.resume_waiting(cx);
        self.order_ready(cx);
        self.order_drops(cx);
        self.feed_resync(cx);
        self.feed_members(cx);
        self.append_own(cx);
        self.advance_commit(cx);
        self.answer_committed(cx);
        self.settle_fences(cx);
        self.settle_move(cx);
        self.retry_fetches(cx);
        self.watch_members(cx);
        let streaming = self.lead().members.values().filter(|member| member.stage == Stage::Streaming);
        let needed = streaming.map(|member| member.sent).min().unwrap_or(Seq(u64::MAX));
        self.log.trim(needed, &mut cx.context.retained);
    }

    /// The term is over here: everybody who waits gets `answer`; writes in flight may or may not take effect, and a retry
    /// under the same identity finds out (F23).
    pub(crate) fn end_leader(&mut self, cx: &mut Cx<'_>, answer: &Result<ClientAnswer, ClientError>) {
        if self.leader.is_none() {
            return;
        }
        let devices: Vec<DeviceId> = self.lead().members.keys().copied().collect();
        for device in devices {
            self.drop_member(cx, device);
        }
        // Entries that were ordered in this step are in the log, so they go to the store like all others.
        self.append_own(cx);
        let Some(mut leader) = self.leader.take() else { return };
        let own = self.me.device;
        settle_reserved(cx, own, own, &mut leader.own_reserved, Seq(u64::MAX));
        let waiting = leader.requests.into_values().flat_map(|request| request.clients);
        for client in leader.replies.into_values().flatten().chain(waiting) {
            cx.out.push(Action::Reply { client, result: answer.clone() });
        }
        for fence in leader.fences {
            cx.out.push(Action::Fenced { fence: fence.fence, term: None });
        }
        self.tokens.retain(|_, purpose| purpose.outlives_leader());
        self.found.leads_no_more();
    }

    /// Forgets a member, with all that was kept for it.
    pub(crate) fn drop_member(&mut self, cx: &mut Cx<'_>, device: DeviceId) {
        self.end_resync(cx, device);
        self.fetch_lost(cx, device);
        let own = self.me.device;
        if let Some(mut member) = self.lead().members.remove(&device) {
            settle_reserved(cx, own, device, &mut member.reserved, Seq(u64::MAX));
        }
    }

    /// Blocks in flight of entries that an earlier term ordered.
    pub(crate) fn inherit_in_flight(&mut self) {
        let Some(leader) = self.leader.as_mut() else { return };
        for entry in self.log.range(self.log.committed(), self.log.last().seq) {
            if let EntryBody::Write { layer, blocks, .. } | EntryBody::Zero { layer, blocks } = &entry.body {
                leader.overlaps.inherit(layer.chunk, entry.version.seq, *blocks);
            }
        }
    }
}

/// Returns what was reserved for entries through `through`.
pub(crate) fn settle_reserved(
    cx: &mut Cx<'_>,
    primary: DeviceId,
    member: DeviceId,
    reserved: &mut VecDeque<(Seq, CreditGrant)>,
    through: Seq,
) {
    while let Some((seq, cost)) = reserved.front().copied() {
        if seq > through {
            break;
        }
        cx.context.credits.settle(primary, member, cost);
        reserved.pop_front();
    }
}
