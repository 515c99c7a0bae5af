//! From an I/O to requests on paths: cutting, numbering, routing, sending; and what makes a request go again.

use std::collections::BTreeSet;

use mdm_api::epoch::SnapSeq;
use mdm_api::ids::{PgId, SdsId};
use sds_api::block::ChunkId;
use sds_api::client::ClientRequest;
use sds_api::client_codec::piece_checksums;
use sds_api::open::OpenRefusal;

use super::operation::backoff_ms;
use super::piece::{Piece, Slot, State, Work};
use super::{Action, Path, Ready, Session, Step};
use crate::io::{IoError, IoId, IoRequest};
use crate::limits::{PIECES_PER_OPERATION_MAX, SILENCE_CHECK_MS};
use crate::route::{newest, route};
use crate::split::first_part;

/// Bits of a tag below the lane.
pub(super) const LANE_SHIFT: u32 = 48;

impl Session {
    /// Cuts the next pieces of an I/O, as many as may be under way.
    pub(super) fn feed(&mut self, id: IoId) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        while operation.live < PIECES_PER_OPERATION_MAX && operation.has_more() {
            let Some(part) = first_part(operation.next, operation.end) else { break };
            let work = match &operation.request {
                IoRequest::Read { .. } => Work::Read,
                IoRequest::Status { .. } => Work::Status,
                IoRequest::Zero { .. } => Work::Zero,
                IoRequest::Write { offset, data } => {
                    let start = (operation.next - offset) as usize;
                    let data = data.slice(start..start + part.length as usize);
                    Work::Write { checksums: piece_checksums(part.offset, [&data]), data }
                }
                IoRequest::Flush => return,
            };
            let slot = self.pieces.insert(Piece {
                io: id,
                index: operation.cut,
                chunk: part.chunk,
                group: self.geometry.pg(part.chunk).index,
                offset: part.offset,
                length: part.length,
                work,
                number: None,
                uncertain: false,
                was_sent: false,
                state: State::Ready,
                attempts: 0,
                resends: 0,
                damaged: 0,
                out_of_range_since: None,
            });
            operation.cut += 1;
            operation.live += 1;
            operation.next += u64::from(part.length);
            self.ready.push_back(Ready::Piece(slot));
        }
    }

    /// Takes a ready piece as far as it goes: to its server, or to what it has to wait for.
    pub(super) fn dispatch(&mut self, step: &mut Step<'_>, slot: Slot) {
        let Some(piece) = self.pieces.get_mut(slot).filter(|piece| piece.state == State::Ready) else { return };
        let group = self.groups.entry(piece.group).or_default();
        if piece.changes() {
            if piece.number.is_none() {
                piece.number = if group.queue.is_empty() { group.admit() } else { None };
            }
            if piece.number.is_none() {
                piece.state = State::Queued;
                group.queue.push_back(slot);
                return;
            }
            // I18: nothing goes out under the new sequence before all of the old is answered, and nothing new under the old.
            if self.switching.is_some() && !piece.uncertain {
                piece.state = State::Held;
                return;
            }
        }
        let pg = PgId { pool: self.geometry.pool, index: piece.group };
        group.route = newest(step.map, pg, group.told.as_ref()).and_then(|config| route(step.map, config));
        let Some(route) = group.route else { return self.back_off(step, slot) };
        match self.paths.get(&route.sds).copied() {
            Some(Path::Open { handle, .. }) => self.send(step, slot, route.sds, handle),
            Some(Path::Opening { .. }) => piece.state = State::Parked(route.sds),
            Some(Path::Closed { retry_at, .. }) if retry_at > step.now => self.wait(slot, retry_at),
            closed => {
                let attempts = if let Some(Path::Closed { attempts, .. }) = closed { attempts } else { 0 };
                piece.state = State::Parked(route.sds);
                self.paths.insert(route.sds, Path::Opening { attempts });
                step.out.push(Action::Open(route.sds));
            }
        }
    }

    fn send(&mut self, step: &mut Step<'_>, slot: Slot, sds: SdsId, handle: u32) {
        let (Some(piece), lane) = (self.pieces.get_mut(slot), self.identity.lane) else { return };
        let group = self.groups.entry(piece.group).or_default();
        self.last_tag += 1;
        assert!(self.last_tag < 1 << LANE_SHIFT, "2^48 requests take centuries");
        let tag = (u64::from(lane) << LANE_SHIFT) | self.last_tag;
        self.stats.requests += 1;
        self.stats.retries += u64::from(piece.was_sent);
        if piece.changes() && !piece.uncertain {
            piece.uncertain = true;
            self.uncertain += 1;
        }
        piece.was_sent = true;
        piece.state = State::Sent { sds, tag, at: step.now, handle };
        self.sent.insert(tag, slot);
        self.next_check = self.next_check.min(step.now.plus_ms(SILENCE_CHECK_MS));
        let request = ClientRequest {
            tag,
            handle,
            pg: PgId { pool: self.geometry.pool, index: piece.group },
            epoch: group.route.map(|route| route.epoch).unwrap_or_default(),
            chunk: ChunkId { vtree: self.geometry.vtree, index: piece.chunk },
            snap_seq: self.snap_seq,
            operation: piece.operation(group.oldest_unacked()),
        };
        step.out.push(Action::Send(sds, request));
    }

    /// Takes a piece out of the structure that its state names.
    pub(super) fn unlink(&mut self, slot: Slot) {
        let Some(piece) = self.pieces.get(slot) else { return };
        match piece.state {
            State::Ready | State::Held | State::Parked(_) => {}
            State::Queued => {
                if let Some(group) = self.groups.get_mut(&piece.group) {
                    group.queue.retain(|queued| *queued != slot);
                }
            }
            State::Waiting(at) => {
                self.waiting.remove(&(at, slot));
            }
            State::Sent { tag, .. } => {
                self.sent.remove(&tag);
            }
        }
    }

    fn put(&mut self, slot: Slot, state: State) {
        self.unlink(slot);
        if let Some(piece) = self.pieces.get_mut(slot) {
            piece.state = state;
        }
    }

    /// The piece is dispatched in this step.
    pub(super) fn make_ready(&mut self, slot: Slot) {
        self.put(slot, State::Ready);
        self.ready.push_back(Ready::Piece(slot));
    }

    /// The piece is dispatched at that moment, or before if its group changes.
    pub(super) fn wait(&mut self, slot: Slot, until: mdm_api::epoch::Nanos) {
        self.put(slot, State::Waiting(until));
        self.waiting.insert((until, slot));
    }

    /// The piece goes again after a wait that grows.
    pub(super) fn back_off(&mut self, step: &Step<'_>, slot: Slot) {
        let Some(piece) = self.pieces.get_mut(slot) else { return };
        let until = step.now.plus_ms(backoff_ms(piece.attempts));
        piece.attempts = piece.attempts.saturating_add(1);
        self.wait(slot, until);
    }

    /// The piece waits for the switch to a newer snapshot sequence.
    pub(super) fn hold(&mut self, slot: Slot) {
        self.put(slot, State::Held);
    }

    fn make_ready_all(&mut self, which: impl Fn(&Piece) -> bool) {
        let slots: Vec<Slot> = self.pieces.iter().filter(|(_, piece)| which(piece)).map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.make_ready(slot));
    }

    /// Lets changes in that wait for room in the group's window.
    pub(super) fn pump(&mut self, index: u32) {
        let Some(group) = self.groups.get_mut(&index) else { return };
        while let Some(slot) = group.queue.front().copied() {
            let Some(number) = group.admit() else { return };
            group.queue.pop_front();
            let piece = self.pieces.get_mut(slot).expect("a queued piece is unlinked before it is removed");
            piece.number = Some(number);
            piece.state = State::Ready;
            self.ready.push_back(Ready::Piece(slot));
        }
    }

    pub(super) fn on_opened(&mut self, sds: SdsId, handle: u32) {
        if self.failed.is_some() {
            return;
        }
        let attempts = match self.paths.get(&sds) {
            Some(Path::Opening { attempts }) => *attempts,
            _ => 0,
        };
        self.paths.insert(sds, Path::Open { handle, attempts });
        self.make_ready_all(|piece| piece.state == State::Parked(sds));
    }

    pub(super) fn on_open_refused(&mut self, step: &mut Step<'_>, sds: SdsId, code: OpenRefusal) {
        match code {
            OpenRefusal::Fenced => return self.fail(step, IoError::Revoked),
            OpenRefusal::Ticket => step.out.push(Action::RenewCredential),
            OpenRefusal::Retry | OpenRefusal::Other => {}
        }
        self.close_path(step, sds);
    }

    pub(super) fn on_down(&mut self, step: &Step<'_>, sds: SdsId) {
        self.stats.connections_lost += u64::from(matches!(self.paths.get(&sds), Some(Path::Open { .. })));
        self.close_path(step, sds);
    }

    /// No answer comes over the path any more: what was sent over it goes again, under the same identity.
    fn close_path(&mut self, step: &Step<'_>, sds: SdsId) {
        let attempts = match self.paths.get(&sds) {
            Some(Path::Opening { attempts } | Path::Open { attempts, .. }) => *attempts,
            Some(Path::Closed { .. }) | None => return,
        };
        let retry_at = step.now.plus_ms(backoff_ms(attempts));
        self.paths.insert(sds, Path::Closed { retry_at, attempts: attempts.saturating_add(1) });
        self.make_ready_all(|piece| match piece.state {
            State::Parked(on) | State::Sent { sds: on, .. } => on == sds,
            _ => false,
        });
    }

    /// The map has changed: whatever waits for, or was sent to, a primary that is not one any more goes again at once.
    pub(super) fn follow_groups(&mut self, step: &Step<'_>) {
        let groups: BTreeSet<u32> = self.pieces.iter().map(|(_, piece)| piece.group).collect();
        groups.into_iter().for_each(|group| self.follow_group(step, group));
    }

    /// As `follow_groups`, for one.
    pub(super) fn follow_group(&mut self, step: &Step<'_>, index: u32) {
        let pg = PgId { pool: self.geometry.pool, index };
        let Some(group) = self.groups.get_mut(&index) else { return };
        let config = newest(step.map, pg, group.told.as_ref());
        let new = config.and_then(|config| route(step.map, config));
        if step.map.pg(pg).is_some_and(|held| group.told.as_ref().is_some_and(|told| told.epoch <= held.epoch)) {
            group.told = None;
        }
        let leads = |route: crate::route::Route| (route.sds, route.term);
        let changed = group.route.map(leads) != new.map(leads);
        group.route = new;
        let Some(new) = new.filter(|_| changed) else { return };
        if let Some(Path::Closed { retry_at, .. }) = self.paths.get_mut(&new.sds) {
            *retry_at = step.now;
        }
        let slots: Vec<Slot> = self
            .pieces
            .iter()
            .filter(|(_, piece)| piece.group == index)
            .filter(|(_, piece)| matches!(piece.state, State::Waiting(_) | State::Parked(_) | State::Sent { .. }))
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            if let Some(piece) = self.pieces.get_mut(slot) {
                piece.attempts = 0;
            }
            self.make_ready(slot);
        }
    }

    /// A newer snapshot sequence exists: hold new changes until those under way are answered.
    pub(super) fn learn_snap_seq(&mut self, seq: SnapSeq) {
        if seq > self.snap_seq {
            self.switching = self.switching.max(Some(seq));
        }
    }

    /// Switches to the newer snapshot sequence once no change may be ordered under the old one.
    pub(super) fn switch_if_drained(&mut self) {
        if self.uncertain == 0
            && let Some(seq) = self.switching.take()
        {
            self.snap_seq = seq;
            self.stats.snapshot_switches += 1;
            self.make_ready_all(|piece| piece.state == State::Held);
        }
    }
}
