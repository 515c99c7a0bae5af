//! Writes at the primary: partial blocks are merged, entries ordered, commits published.
//!
//! Always true:
//! - A request is ordered at most once (I16): it is looked up again at the moment it is ordered.
//! - What is merged is committed content that stands still until the merged write is ordered, so two clients that write
//!   different halves of a block both win (F25).
//! - A client hears "done" only of what is committed (I9).

use bytes::Bytes;
use mdm_api::epoch::{Seq, Version};
use mdm_api::ids::DeviceId;
use sds_api::block::{BLOCK_BYTES, BlockRange, CHUNK_BYTES};
use sds_api::buf::AlignedBuf;
use sds_api::checksum::crc32c;
use sds_api::client::{Checksums, ClientAnswer, ClientError};
use sds_api::entry::{Entry, EntryBody, WriteIdentity};
use sds_api::peer::CreditGrant;

use crate::action::{Action, StoreRequest};
use crate::credits::{Cover, cost, write_cost};
use crate::event::StoreDone;
use crate::leader::Moving;
use crate::limits::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_ENTRIES_MAX};
use crate::overlap::Mode;
use crate::primary::{At, Work};
use crate::replica::{Cx, Purpose, Replica};
use crate::role::{ActivationStep, Role};

/// What a changing request changes.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) identity: WriteIdentity,
    /// The bytes; empty for whole blocks of zeros.
    pub(crate) data: Bytes,
    /// One for each block-sized piece of `data`.
    checksums: Checksums,
    /// Blocks that are written in part, and what they hold.
    edges: Vec<(u16, Option<Bytes>)>,
}

/// The blocks at the ends of a byte range that it covers in part.
fn edges(offset: u32, length: u32) -> Vec<(u16, Option<Bytes>)> {
    let (start, end) = (offset as usize, offset as usize + length as usize);
    let mut edges = Vec::new();
    if !start.is_multiple_of(BLOCK_BYTES) {
        edges.push(((start / BLOCK_BYTES) as u16, None));
    }
    let last = (end / BLOCK_BYTES) as u16;
    if !end.is_multiple_of(BLOCK_BYTES) && edges.first().is_none_or(|(first, _)| *first != last) {
        edges.push((last, None));
    }
    edges
}

/// Cuts bytes that start at `offset` of a chunk at the chunk's block boundaries.
fn pieces(offset: u32, data: &Bytes) -> impl Iterator<Item = &[u8]> {
    let first = (BLOCK_BYTES - offset as usize % BLOCK_BYTES).min(data.len());
    let (head, rest) = data.split_at(first);
    std::iter::once(head).chain(rest.chunks(BLOCK_BYTES))
}

impl Change {
    /// Verifies the payload before anything else (P3).
    pub(crate) fn write(
        identity: WriteIdentity,
        offset: u32,
        checksums: Checksums,
        data: Bytes,
    ) -> Result<Self, ClientError> {
        let blocks = u32::try_from(data.len()).ok().and_then(|length| BlockRange::touching(offset, length));
        let blocks = blocks.ok_or(ClientError::OutOfRange)?;
        let intact = checksums.len() == usize::from(blocks.count())
            && pieces(offset, &data).zip(&checksums).all(|(piece, sum)| crc32c(piece) == *sum);
        if !intact {
            return Err(ClientError::Damaged);
        }
        let edges = edges(offset, data.len() as u32);
        Ok(Self { identity, data, checksums, edges })
    }

    /// Whole blocks become a `Zero` entry; a range with partial blocks is written as zeros.
    pub(crate) fn zero(identity: WriteIdentity, offset: u32, length: u32) -> Result<Self, ClientError> {
        if length as usize > CHUNK_BYTES || BlockRange::touching(offset, length).is_none() {
            return Err(ClientError::OutOfRange);
        }
        let edges = edges(offset, length);
        let data = if edges.is_empty() { Bytes::new() } else { AlignedBuf::zeroed(length as usize).freeze() };
        let checksums = pieces(offset, &data).filter(|piece| !piece.is_empty()).map(crc32c).collect();
        Ok(Self { identity, data, checksums, edges })
    }

    /// What to order, once the edges are there.
    fn body(&self, layer: sds_api::block::LayerKey, blocks: BlockRange, offset: u32) -> EntryBody {
        if self.data.is_empty() {
            return EntryBody::Zero { layer, blocks };
        }
        if self.edges.is_empty() {
            return EntryBody::Write { layer, blocks, checksums: self.checksums.to_vec(), data: self.data.clone() };
        }
        let base = usize::from(blocks.first()) * BLOCK_BYTES;
        let mut merged = AlignedBuf::zeroed(blocks.bytes());
        for (block, content) in &self.edges {
            let content = content.as_ref().expect("a change is ready when its edges are read");
            let at = usize::from(*block) * BLOCK_BYTES - base;
            merged[at..at + BLOCK_BYTES].copy_from_slice(content);
        }
        let at = offset as usize - base;
        merged[at..at + self.data.len()].copy_from_slice(&self.data);
        let mut checksums = self.checksums.to_vec();
        for (block, _) in &self.edges {
            let index = usize::from(block - blocks.first());
            checksums[index] = crc32c(&merged[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES]);
        }
        EntryBody::Write { layer, blocks, checksums, data: merged.freeze() }
    }
}

impl Replica {
    pub(crate) fn start_change(&mut self, cx: &mut Cx<'_>, id: u64) {
        let Some(leader) = self.leader.as_mut() else { return };
        let Some(request) = leader.requests.get_mut(&id) else { return };
        request.at = At::Blocks;
        leader.waiting.remove(&id);
        let (chunk, blocks) = (request.layer.chunk, request.blocks);
        let Work::Change(change) = &request.work else { return };
        let (identity, mode) = (change.identity, if change.edges.is_empty() { Mode::Enter } else { Mode::Exclusive });
        if self.is_new(cx, id, &identity) && self.lead().overlaps.claim(chunk, id, blocks, mode) {
            self.read_edges(cx, id);
        }
    }

    /// The owners have got their blocks.
    pub(crate) fn entered(&mut self, cx: &mut Cx<'_>, owners: Vec<u64>) {
        for owner in owners {
            if self.lead().requests.get(&owner).is_some_and(|request| request.at == At::Blocks) {
                self.read_edges(cx, owner);
            } else if self.lead().repairs.contains_key(&owner) {
                self.fetch_next(cx, owner);
            } else {
                self.chunk_locked(cx, owner);
            }
        }
    }

    /// Reads the next edge that is missing; with none, the write is ready to be ordered.
    pub(crate) fn read_edges(&mut self, cx: &mut Cx<'_>, id: u64) {
        let Some(request) = self.lead().requests.get_mut(&id) else { return };
        let Work::Change(change) = &request.work else { return };
        let missing = change.edges.iter().find(|(_, content)| content.is_none()).map(|(block, _)| *block);
        let Some(block) = missing else {
            request.at = At::Ready;
            self.lead().ready.push_back(id);
            if !self.has_min_isr() {
                self.park(cx);
            }
            return;
        };
        request.at = At::Store;
        let (layer, blocks) = (request.layer, BlockRange::new(block, 1).expect("a block of a chunk"));
        self.store(cx, Purpose::Edge { request: id, block }, StoreRequest::Read { layer, blocks });
    }

    /// Writes wait for the policy outside, without their blocks: the copies that bring a replica back need those.
    pub(crate) fn park(&mut self, cx: &mut Cx<'_>) {
        let ready = std::mem::take(&mut self.lead().ready);
        for id in ready {
            let leader = self.lead();
            let Some(request) = leader.requests.get_mut(&id) else { continue };
            request.at = At::Held;
            if let Work::Change(change) = &mut request.work {
                change.edges.iter_mut().for_each(|(_, content)| *content = None);
            }
            leader.waiting.insert(id);
            let granted = leader.overlaps.release(request.layer.chunk, id);
            self.entered(cx, granted);
        }
    }

    pub(crate) fn edge_read(&mut self, cx: &mut Cx<'_>, id: u64, block: u16, done: StoreDone) {
        let Some(request) = self.lead().requests.get_mut(&id) else { return };
        match done {
            StoreDone::BadBlocks(blocks) => {
                let layer = request.layer;
                self.begin_request_repair(cx, id, layer, blocks, None);
            }
            StoreDone::Blocks(content) => {
                let data = Bytes::from(content.data.concat());
                if let Work::Change(change) = &mut request.work {
                    let edge = change.edges.iter_mut().find(|(edge, _)| *edge == block);
                    if let Some((_, content)) = edge.filter(|_| data.len() == BLOCK_BYTES) {
                        *content = Some(data);
                    }
                }
                self.read_edges(cx, id);
            }
            _ => {}
        }
    }

    /// Orders what is ready, in order of arrival, as far as bounds, policy and credits allow.
    pub(crate) fn order_ready(&mut self, cx: &mut Cx<'_>) {
        if self.role != Role::Primary || !self.has_min_isr() {
            return;
        }
        while let Some(id) = self.lead().ready.front().copied() {
            let in_flight = self.log.last().seq.0 - self.log.committed().0;
            if in_flight >= IN_FLIGHT_ENTRIES_MAX || self.log.uncommitted_bytes() >= IN_FLIGHT_BYTES_MAX {
                return;
            }
            let Some(request) = self.lead().requests.get(&id) else {
                self.lead().ready.pop_front();
                continue;
            };
            let Work::Change(change) = &request.work else { return };
            let identity = change.identity;
            let cost = write_cost((!change.data.is_empty()).then_some(request.blocks));
            let (chunk, blocks) = (request.layer.chunk, request.blocks);
            if !self.is_new(cx, id, &identity) {
                continue;
            }
            let cover = self.covered(cx, cost);
            if cover != Cover::Covered {
                self.lead().members.values_mut().for_each(|member| member.wants_grant = true);
            }
            match cover {
                Cover::Covered => {}
                Cover::Wait => return,
                Cover::NoSpace => {
                    self.finish_request(cx, id, &Err(ClientError::NoSpace)); // F20
                    continue;
                }
            }
            let Some(request) = self.lead().requests.get(&id) else { continue };
            let Work::Change(change) = &request.work else { return };
            let body = change.body(request.layer, blocks, request.offset);
            let seq = self.order(cx, Some(identity), body);
            let request = self.take_request(id).expect("it was there");
            let granted = self.lead().overlaps.ordered(chunk, id, seq, blocks);
            self.lead().replies.insert(seq, request.clients);
            self.entered(cx, granted);
        }
    }

    fn next_entry(&self, identity: Option<WriteIdentity>, body: EntryBody) -> Entry {
        let term = self.leader.as_ref().expect("the role leads").term;
        let version = Version { term, seq: self.log.last().seq.next() };
        Entry { pg: self.me.pg, version, identity, body }
    }

    /// I24: accepted means that there is room on all in-sync replicas.
    fn covered(&self, cx: &Cx<'_>, cost: CreditGrant) -> Cover {
        let own = self.me.device;
        let mut worst = Cover::Covered;
        for member in self.required_others().into_iter().chain([own]) {
            match cx.context.credits.covers(own, member, cost) {
                Cover::NoSpace => return Cover::NoSpace,
                Cover::Wait => worst = Cover::Wait,
                Cover::Covered => {}
            }
        }
        worst
    }

    /// Puts an entry into the order (I6). It goes to the own store and to the members at the end of the step.
    pub(crate) fn order(&mut self, cx: &mut Cx<'_>, identity: Option<WriteIdentity>, body: EntryBody) -> Seq {
        let entry = self.next_entry(identity, body);
        let seq = entry.version.seq;
        if let Some(identity) = &entry.identity {
            self.sessions.record(identity, seq);
            // Entries of the primary itself live off the share of the journal that is kept for them.
            let (own, cost) = (self.me.device, cost(&entry));
            for member in self.required_others() {
                cx.context.credits.reserve(own, member, cost);
                if let Some(member) = self.lead().members.get_mut(&member) {
                    member.reserved.push_back((seq, cost));
                }
            }
            cx.context.credits.reserve(own, own, cost);
            self.lead().own_reserved.push_back((seq, cost));
        }
        for member in self.lead().members.values_mut() {
            if let Some(resync) = &mut member.resync {
                resync.note(&entry);
            }
        }
        self.note_dirty(&entry);
        self.log.push(entry, &mut cx.context.retained);
        seq
    }

    /// Commits what is durable on every member that is required (I9), and publishes it.
    pub(crate) fn advance_commit(&mut self, cx: &mut Cx<'_>) {
        let mut through = self.log.durable();
        for device in self.required_others() {
            through = through.min(self.lead().members.get(&device).map_or(Seq(0), |member| member.acked));
        }
        let before = self.log.committed();
        if through <= before {
            return;
        }
        self.commit_to(cx, through);
        let mut granted = Vec::new();
        let mut dropped = Vec::new();
        if let Some(leader) = self.leader.as_mut() {
            for entry in self.log.range(before, through) {
                match &entry.body {
                    EntryBody::Write { layer, .. } | EntryBody::Zero { layer, .. } => {
                        granted.extend(leader.overlaps.committed(layer.chunk, entry.version.seq));
                    }
                    EntryBody::DropVtree { vtree } => dropped.push(*vtree),
                    EntryBody::EpochStart { .. } | EntryBody::Elsewhere { .. } => {}
                }
            }
        }
        cx.out.extend(dropped.into_iter().map(|vtree| Action::Dropped { vtree }));
        let started = self.lead().epoch_start.is_some_and(|start| start <= through);
        if self.is_at(ActivationStep::CommitEpochStart) && started {
            self.become_role(Role::Primary); // I11
            let (pg, term) = (self.me.pg, self.lead().term);
            cx.context.leases.forget_exclusions(pg, term);
        }
        self.entered(cx, granted);
    }

    /// Answers the clients of what is committed. With fewer copies than the policy asks for, nothing is acknowledged: the
    /// answers wait until there are enough again.
    pub(crate) fn answer_committed(&mut self, cx: &mut Cx<'_>) {
        if !self.has_min_isr() || self.lead().replies.is_empty() {
            return;
        }
        let committed = self.log.committed();
        let open = self.lead().replies.split_off(&committed.next());
        let answered = std::mem::replace(&mut self.lead().replies, open);
        for client in answered.into_values().flatten() {
            cx.out.push(Action::Reply { client, result: Ok(ClientAnswer::Done) });
        }
    }

    /// The store must drop a tree; ordered when nobody holds its chunks.
    pub(crate) fn on_drop(&mut self, vtree: mdm_api::ids::VtreeId) {
        if self.role == Role::Primary {
            let drops = &mut self.lead().drops;
            if !drops.contains(&vtree) && drops.len() < crate::limits::REQUESTS_MAX {
                drops.push_back(vtree);
            }
        }
    }

    pub(crate) fn order_drops(&mut self, cx: &mut Cx<'_>) {
        if self.role != Role::Primary || self.lead().moving != Moving::No {
            return;
        }
        let leader = self.lead();
        let free: Vec<_> = leader.drops.iter().copied().filter(|vtree| !leader.overlaps.is_held(*vtree)).collect();
        leader.drops.retain(|vtree| !free.contains(vtree));
        for vtree in free {
            self.order(cx, None, EntryBody::DropVtree { vtree });
        }
    }

    /// The other members that have everything that is committed, for a good copy of a block.
    pub(crate) fn in_sync_peers(&self) -> Vec<DeviceId> {
        let committed = self.log.committed();
        let Some(leader) = &self.leader else { return Vec::new() };
        let in_sync = self.config.as_ref().map(|config| config.isr.as_slice()).unwrap_or_default();
        let members = leader.members.iter();
        members
            .filter(|(device, member)| {
                in_sync.contains(device)
                    && member.stage == crate::leader::Stage::Streaming
                    && member.acked >= committed
                    && self.peers.get(device).is_some_and(|peer| peer.connected)
            })
            .map(|(device, _)| *device)
            .collect()
    }
}
