//! A session: one mapping of one volume in one generation, as a pure state machine.
//!
//! ```text
//! Submit --> [order: overlapping changes] --> cut into pieces --> [window of the group] --> route --> path --> Send
//! Reply  --> settle a piece, or send it again under the same identity --> Complete, Released
//! ```
//!
//! It owns the I/Os that were submitted and not settled, the request numbers of the session in every placement group, and
//! what it knows of where to send. It decides nothing about connections: a *path* is the volume opened on a server, and
//! whoever drives the session says when one opens or is lost.
//!
//! Always true:
//! * I16: a change keeps its number through every retry, so it takes effect once; see `group`.
//! * Of two overlapping changes the later one is first sent after the earlier one was answered; see `order`.
//! * No changes of two snapshot sequences are under way together: hold, drain, switch.
//! * Nothing fails but for the reasons in [`IoError`]; whatever else happens is retried, from a deadline, never in a loop.
//! * Every I/O gets one `Complete` (none if it was cancelled), then one `Released` when nothing of it is under way.

mod dispatch;
mod group;
mod operation;
mod piece;
mod reply;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mdm_api::epoch::{AttachGeneration, Nanos, SnapSeq};
use mdm_api::ids::{SdcId, SdsId, VolumeId};
use mdm_api::map::ClusterMap;
use mdm_api::model::AccessMode;
use sds_api::client::{ClientReply, ClientRequest};
use sds_api::open::OpenRefusal;

use crate::io::{IoError, IoId, IoOutput, IoRequest};
use crate::limits::{
    BYTES_MAX, IO_BYTES_MAX, OPERATIONS_MAX, RESEND_DOUBLINGS_MAX, RESEND_MS, SILENCE_CHECK_MS, SILENCE_MS,
    STATUS_BYTES_MAX,
};
use crate::order::Order;
use crate::route::{Geometry, access};
use crate::stats::Stats;

use group::Group;
pub use operation::{NoSpacePolicy, Policy};
use operation::{Operation, Operations};
use piece::{Slab, Slot, State};

/// Whose session it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume.
    pub volume: VolumeId,
    /// This client.
    pub sdc: SdcId,
    /// The mapping's generation that was opened for this session: its name at the servers (I17).
    pub generation: AttachGeneration,
    /// The upper 16 bits of all its tags: tells the sessions that share a connection apart.
    pub lane: u16,
    /// Tags count on from here: whoever gives a lane out again starts above the last session's
    /// [`Session::last_tag`], so that no answer to that one is taken for one to this.
    pub first_tag: u64,
}

/// What happens to a session.
#[derive(Clone, Debug)]
pub enum Event {
    /// Somebody wants an I/O. Ids grow.
    Submit(IoId, IoRequest),
    /// Nobody waits for this I/O any more. What was sent of a change still takes effect.
    Cancel(IoId),
    /// The map that is given along has changed.
    Map,
    /// An answer came from this server, over the connection on which the path is open.
    Reply(SdsId, ClientReply),
    /// The volume is open there, under this handle.
    Opened(SdsId, u32),
    /// It is not, and why.
    OpenRefused(SdsId, OpenRefusal),
    /// The connection is lost, or could not be made: no answer comes over it from here on.
    Down(SdsId),
    /// Time has passed; due at [`Session::next_deadline`].
    Tick,
}

/// What a session wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open the volume on this server, connecting first if need be. Answered by one of `Opened`, `OpenRefused`, `Down`, in
    /// bounded time.
    Open(SdsId),
    /// Send this over the path.
    Send(SdsId, ClientRequest),
    /// An I/O has come to its end for its user.
    Complete(IoId, Result<IoOutput, IoError>),
    /// Nothing of the I/O is under way any more: its room is free.
    Released(IoId),
    /// A request has been unanswered for [`SILENCE_MS`]: if nothing at all came over that connection for so long, it is
    /// dead; drop it.
    Suspect(SdsId),
    /// The ticket is not accepted: the next `Open` needs a new one.
    RenewCredential,
}

/// The volume opened on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Closed {
        retry_at: Nanos,
        attempts: u32,
    },
    Opening {
        attempts: u32,
    },
    /// `attempts` is forgotten with the first answer, so that a server that opens and falls is not hammered.
    Open {
        handle: u32,
        attempts: u32,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    identity: Identity,
    policy: Policy,
    geometry: Geometry,
    access: AccessMode,
    /// What changes are sent under, and what to switch to once none is under way.
    snap_seq: SnapSeq,
    switching: Option<SnapSeq>,
    /// Changes that may be ordered under `snap_seq` without our knowing.
    uncertain: usize,
    operations: Operations,
    last_id: IoId,
    payload_bytes: usize,
    order: Order,
    /// Flushes and the changes before them, oldest first.
    flushes: VecDeque<IoId>,
    pieces: Slab,
    /// Requests on their way, by tag.
    sent: BTreeMap<u64, Slot>,
    last_tag: u64,
    groups: BTreeMap<u32, Group>,
    paths: BTreeMap<SdsId, Path>,
    /// Pieces in state `Waiting`.
    waiting: BTreeSet<(Nanos, Slot)>,
    deadlines: BTreeSet<(Nanos, IoId)>,
    next_check: Nanos,
    /// Work of the present step.
    ready: VecDeque<Ready>,
    failed: Option<IoError>,
    stats: Stats,
}

/// What a step has yet to do.
#[derive(Clone, Copy, Debug)]
enum Ready {
    /// Cut the next pieces of an I/O.
    Feed(IoId),
    /// Dispatch a piece, if it is still ready.
    Piece(Slot),
}

/// What a step works with.
struct Step<'a> {
    now: Nanos,
    map: &'a ClusterMap,
    out: &'a mut Vec<Action>,
}

impl Session {
    /// A session for a mapping that was opened under `identity.generation`. The map must hold the volume and the mapping
    /// already; the errors are [`IoError::VolumeGone`], [`IoError::Revoked`] and [`IoError::UnknownPlacement`].
    pub fn new(identity: Identity, policy: Policy, map: &ClusterMap) -> Result<Self, IoError> {
        let geometry = Geometry::of(map, identity.volume)?;
        let access = access(map, identity.volume, identity.sdc).ok_or(IoError::Revoked)?;
        Ok(Self {
            identity,
            policy,
            geometry,
            access,
            snap_seq: geometry.snap_seq,
            switching: None,
            uncertain: 0,
            operations: Operations::new(),
            last_id: IoId(0),
            payload_bytes: 0,
            order: Order::default(),
            flushes: VecDeque::new(),
            pieces: Slab::default(),
            sent: BTreeMap::new(),
            last_tag: identity.first_tag,
            groups: BTreeMap::new(),
            paths: BTreeMap::new(),
            waiting: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            next_check: Nanos::NEVER,
            ready: VecDeque::new(),
            failed: None,
            stats: Stats::default(),
        })
    }

    /// Takes in one event; what is to be done is appended to `out`. `map` is the newest map that is held.
    pub fn step(&mut self, now: Nanos, map: &ClusterMap, event: Event, out: &mut Vec<Action>) {
        let mut step = Step { now, map, out };
        match event {
            Event::Submit(id, request) => self.submit(&mut step, id, request),
            Event::Cancel(id) => self.cancel(&mut step, id),
            Event::Map => self.on_map(&mut step),
            Event::Reply(sds, reply) => self.on_reply(&mut step, sds, reply),
            Event::Opened(sds, handle) => self.on_opened(sds, handle),
            Event::OpenRefused(sds, code) => self.on_open_refused(&mut step, sds, code),
            Event::Down(sds) => self.on_down(&step, sds),
            Event::Tick => self.on_tick(&mut step),
        }
        while let Some(ready) = self.ready.pop_front() {
            match ready {
                Ready::Feed(id) => self.feed(id),
                Ready::Piece(slot) => self.dispatch(&mut step, slot),
            }
        }
    }

    /// When `Tick` is due; [`Nanos::NEVER`] if nothing waits for time.
    pub fn next_deadline(&self) -> Nanos {
        let waiting = self.waiting.first().map_or(Nanos::NEVER, |(at, _)| *at);
        let deadline = self.deadlines.first().map_or(Nanos::NEVER, |(at, _)| *at);
        waiting.min(deadline).min(self.next_check)
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The volume's size, by the newest map.
    pub fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes
    }

    /// What the mapping allows, by the newest map.
    pub fn access(&self) -> AccessMode {
        self.access
    }

    /// The snapshot sequence that changes are sent under.
    pub fn snap_seq(&self) -> SnapSeq {
        self.snap_seq
    }

    /// Why the session is over, if it is.
    pub fn failed(&self) -> Option<&IoError> {
        self.failed.as_ref()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The lane of the session that gave out this tag.
    pub fn lane_of(tag: u64) -> u16 {
        (tag >> dispatch::LANE_SHIFT) as u16
    }

    /// The last tag that was used, without the lane.
    pub fn last_tag(&self) -> u64 {
        self.last_tag
    }

    /// I/Os that are not settled.
    pub fn operation_count(&self) -> usize {
        self.operations.len()
    }

    /// Servers on which the volume is open.
    pub fn open_on(&self) -> impl Iterator<Item = SdsId> {
        self.paths.iter().filter(|(_, path)| matches!(path, Path::Open { .. })).map(|(sds, _)| *sds)
    }

    fn submit(&mut self, step: &mut Step<'_>, id: IoId, request: IoRequest) {
        assert!(id > self.last_id, "ids of I/Os grow");
        self.last_id = id;
        if let Err(error) = self.admit(&request) {
            self.stats.refused_busy += u64::from(error == IoError::Busy);
            self.stats.errors += 1;
            step.out.push(Action::Complete(id, Err(error)));
            step.out.push(Action::Released(id));
            return;
        }
        let deadline = self.policy.give_up_ms.map_or(Nanos::NEVER, |ms| step.now.plus_ms(ms));
        if deadline < Nanos::NEVER {
            self.deadlines.insert((deadline, id));
        }
        self.payload_bytes += request.payload_bytes();
        let mut operation = Operation::new(request, deadline);
        if operation.request.changes() {
            operation.blockers = self.order.enter(id, operation.next, operation.end);
            self.stats.waited_for_order += u64::from(operation.blockers > 0);
        }
        let starts = operation.blockers == 0;
        let flush = operation.request == IoRequest::Flush;
        self.operations.insert(id, operation);
        if flush {
            self.flushes.push_back(id);
            self.finish_flushes(step);
        } else if starts {
            self.ready.push_back(Ready::Feed(id));
        }
    }

    fn admit(&self, request: &IoRequest) -> Result<(), IoError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let (offset, length) = request.range();
        if *request != IoRequest::Flush {
            let size = self.geometry.size_bytes;
            if length == 0 || offset >= size || length > size - offset {
                return Err(IoError::OutOfRange { offset, length, size });
            }
        }
        let length_max = match request {
            IoRequest::Read { .. } | IoRequest::Write { .. } => IO_BYTES_MAX as u64,
            IoRequest::Status { .. } => STATUS_BYTES_MAX,
            IoRequest::Zero { .. } | IoRequest::Flush => u64::MAX,
        };
        if length > length_max {
            return Err(IoError::TooLong(length));
        }
        if request.changes() && self.access == AccessMode::ReadOnly {
            return Err(IoError::ReadOnly);
        }
        if self.operations.len() >= OPERATIONS_MAX || self.payload_bytes + request.payload_bytes() > BYTES_MAX {
            return Err(IoError::Busy);
        }
        Ok(())
    }

    fn cancel(&mut self, step: &mut Step<'_>, id: IoId) {
        if self.operations.get(&id).is_some_and(|operation| !operation.abandoned) {
            self.stats.cancelled += 1;
            self.abandon(step, id);
        }
    }

    /// Nobody waits for the I/O any more. What was not sent is dropped; a change that was sent goes on until it is
    /// answered, because its number and its place in the order are taken.
    fn abandon(&mut self, step: &mut Step<'_>, id: IoId) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        operation.abandoned = true;
        self.deadlines.remove(&(operation.deadline, id));
        let dropped: Vec<Slot> = self
            .pieces
            .iter()
            .filter(|(_, piece)| piece.io == id && piece.number.is_none())
            .map(|(slot, _)| slot)
            .collect();
        let operation = self.operations.get_mut(&id).expect("looked up above");
        operation.live -= dropped.len() as u32;
        let settled = operation.live == 0;
        for slot in dropped {
            self.unlink(slot);
            self.pieces.remove(slot);
        }
        if settled {
            self.finish(step, id);
        }
    }

    fn on_tick(&mut self, step: &mut Step<'_>) {
        while let Some((at, slot)) = self.waiting.first().copied().filter(|(at, _)| *at <= step.now) {
            self.waiting.remove(&(at, slot));
            self.make_ready(slot);
        }
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= step.now) {
            self.deadlines.remove(&(at, id));
            self.stats.timed_out += 1;
            self.stats.errors += 1;
            step.out.push(Action::Complete(id, Err(IoError::TimedOut)));
            self.abandon(step, id);
        }
        if self.next_check <= step.now {
            self.suspect_silent_paths(step);
        }
    }

    fn suspect_silent_paths(&mut self, step: &mut Step<'_>) {
        self.next_check = if self.sent.is_empty() { Nanos::NEVER } else { step.now.plus_ms(SILENCE_CHECK_MS) };
        let (mut silent, mut forgotten) = (BTreeSet::new(), Vec::new());
        for (slot, piece) in self.pieces.iter() {
            let State::Sent { sds, at, .. } = piece.state else { continue };
            let unanswered_ms = step.now.ms_since(at);
            if unanswered_ms >= SILENCE_MS {
                silent.insert(sds);
            }
            if unanswered_ms >= RESEND_MS << piece.resends.min(RESEND_DOUBLINGS_MAX) {
                forgotten.push(slot);
            }
        }
        step.out.extend(silent.into_iter().map(Action::Suspect));
        // A server that lives and does not answer has long work to do, or has lost the request. Sent once more, under the
        // same identity, it takes effect once (I16).
        for slot in forgotten {
            if let Some(piece) = self.pieces.get_mut(slot) {
                piece.resends += 1;
            }
            self.make_ready(slot);
        }
    }

    fn on_map(&mut self, step: &mut Step<'_>) {
        if self.failed.is_some() {
            return;
        }
        let geometry = match Geometry::of(step.map, self.identity.volume) {
            Ok(geometry) => geometry,
            Err(error) => return self.fail(step, error),
        };
        let mapping = step.map.mapping(self.identity.volume, self.identity.sdc);
        match mapping.filter(|mapping| !mapping.revoked && mapping.generation <= self.identity.generation) {
            Some(mapping) => self.access = mapping.access,
            None => return self.fail(step, IoError::Revoked),
        }
        self.geometry = geometry;
        self.learn_snap_seq(geometry.snap_seq);
        self.switch_if_drained();
        self.follow_groups(step);
    }

    /// The session is over: everything fails, now and from here on.
    fn fail(&mut self, step: &mut Step<'_>, error: IoError) {
        let operations = std::mem::take(&mut self.operations);
        for (id, operation) in operations {
            if !operation.abandoned {
                self.stats.errors += 1;
                step.out.push(Action::Complete(id, Err(error.clone())));
            }
            step.out.push(Action::Released(id));
        }
        self.order = Order::default();
        self.payload_bytes = 0;
        self.uncertain = 0;
        self.flushes.clear();
        self.pieces.clear();
        self.sent.clear();
        self.groups.clear();
        self.waiting.clear();
        self.deadlines.clear();
        self.ready.clear();
        self.next_check = Nanos::NEVER;
        self.failed = Some(error);
    }

    /// All pieces of an I/O are settled.
    fn finish(&mut self, step: &mut Step<'_>, id: IoId) {
        let Some(operation) = self.operations.remove(&id) else { return };
        self.payload_bytes -= operation.request.payload_bytes();
        self.deadlines.remove(&(operation.deadline, id));
        let changes = operation.request.changes();
        if operation.request == IoRequest::Flush {
            self.flushes.retain(|flush| *flush != id);
        }
        if !operation.abandoned {
            let request = operation.request.clone();
            let result = operation.into_result();
            self.count(&request, result.is_ok());
            step.out.push(Action::Complete(id, result));
        }
        step.out.push(Action::Released(id));
        if changes {
            for dependent in self.order.leave(id) {
                let Some(operation) = self.operations.get_mut(&dependent) else { continue };
                operation.blockers -= 1;
                if operation.blockers == 0 {
                    self.ready.push_back(Ready::Feed(dependent));
                }
            }
            self.finish_flushes(step);
        }
    }

    /// Completes the flushes before which nothing is unanswered.
    fn finish_flushes(&mut self, step: &mut Step<'_>) {
        while let Some(flush) = self.flushes.front().copied() {
            if self.order.oldest().is_some_and(|oldest| oldest < flush) {
                return;
            }
            self.flushes.pop_front();
            self.finish(step, flush);
        }
    }

    fn count(&mut self, request: &IoRequest, good: bool) {
        let stats = &mut self.stats;
        let (_, length) = request.range();
        match request {
            _ if !good => stats.errors += 1,
            IoRequest::Read { .. } => (stats.reads, stats.bytes_read) = (stats.reads + 1, stats.bytes_read + length),
            IoRequest::Write { .. } => {
                (stats.writes, stats.bytes_written) = (stats.writes + 1, stats.bytes_written + length);
            }
            IoRequest::Zero { .. } => stats.zeros += 1,
            IoRequest::Status { .. } => stats.statuses += 1,
            IoRequest::Flush => stats.flushes += 1,
        }
    }
}
