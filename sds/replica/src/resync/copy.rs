//! One layer after the other: hold the chunk, drain it, capture, send, let go; from then on the layer is live.

use mdm_api::epoch::{Nanos, Seq};
use mdm_api::ids::DeviceId;
use mdm_api::mutants::{self, Mutant};
use sds_api::block::{BlockRange, LayerKey};
use sds_api::peer::{LAYERS_PER_MESSAGE_MAX, LayerCopy, PeerBody};

use super::patch::cut;
use super::{Current, Phase};
use crate::action::StoreRequest;
use crate::event::StoreDone;
use crate::leader::Stage;
use crate::limits::{COPY_WINDOW, STUCK_AGAIN_MS};
use crate::overlap::Mode;
use crate::repair::For;
use crate::replica::{Cx, Purpose, Replica};

impl Replica {
    /// Goes on with every learner as far as window and budget allow.
    pub(crate) fn feed_resync(&mut self, cx: &mut Cx<'_>) {
        let members = self.lead().members.iter();
        let learners: Vec<(DeviceId, u64)> = members
            .filter(|(_, member)| member.stage == Stage::Streaming)
            .filter_map(|(device, member)| Some((*device, member.resync.as_ref()?.stream)))
            .collect();
        for (learner, stream) in learners {
            self.return_slots(cx, learner, stream);
            self.send_removals(cx, learner, stream);
            self.start_copy(cx, learner, stream);
            self.complete(cx, learner, stream);
        }
    }

    /// Gives back the slots of operations that are done.
    fn return_slots(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64) {
        let Some(member) = self.lead().members.get_mut(&learner) else { return };
        let (done, sent) = (member.operations_done, member.sent);
        let Some(resync) = self.resync(learner, stream) else { return };
        while resync.slots.front().is_some_and(|operation| *operation <= done) {
            resync.slots.pop_front();
            cx.context.resync.in_use -= 1;
        }
        resync.copied.retain(|_, covered| *covered > sent);
    }

    /// True if the learner may get one more operation.
    fn has_window(&mut self, learner: DeviceId) -> bool {
        let member = self.lead().members.get(&learner);
        member.is_some_and(|member| member.operations_sent - member.operations_done < COPY_WINDOW)
    }

    /// Numbers the next operation of the stream; returns (number in the stream, number of the operation).
    fn next_operation(&mut self, learner: DeviceId) -> Option<(u64, u64)> {
        let member = self.lead().members.get_mut(&learner)?;
        member.operations_sent += 1;
        if member.operations_sent == member.operations_done + 1 {
            member.progress_at = member.progress_at.max(member.enrolled_at);
        }
        Some((member.next_number(), member.operations_sent))
    }

    /// Removals come before all copies, so that none takes a copy away.
    fn send_removals(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64) {
        while self.has_window(learner) {
            let term = self.lead().term;
            let Some(resync) = self.resync(learner, stream) else { return };
            if resync.phase != Phase::Copying || resync.removing.is_empty() {
                return;
            }
            let layers: Vec<LayerKey> = resync.removing.iter().take(LAYERS_PER_MESSAGE_MAX).copied().collect();
            for layer in &layers {
                resync.removing.remove(layer);
            }
            let Some((number, _)) = self.next_operation(learner) else { return };
            self.send(cx, learner, term, PeerBody::RemoveLayers { stream, number, layers });
        }
    }

    fn start_copy(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64) {
        let budget = &cx.context.resync;
        if !self.has_window(learner) || !budget.is_open || budget.in_use >= budget.slots {
            return;
        }
        let (lock, now) = (self.number(), self.now);
        let Some(resync) = self.resync(learner, stream) else { return };
        if resync.phase != Phase::Copying || resync.current.is_some() || !resync.removing.is_empty() {
            return;
        }
        if resync.pending.is_empty() && now >= resync.stuck_again {
            resync.pending = std::mem::take(&mut resync.stuck);
            resync.stuck_again = Nanos::NEVER;
        }
        let Some(layer) = resync.pending.first().copied() else { return };
        resync.current = Some(Current { layer, lock, capturing: false });
        cx.context.resync.in_use += 1;
        if mutants::is_on(Mutant::CopyWithoutDrain)
            || self.lead().overlaps.claim(layer.chunk, lock, BlockRange::WHOLE, Mode::Exclusive)
        {
            self.chunk_locked(cx, lock);
        }
    }

    /// The chunk is held and every write to it committed.
    pub(crate) fn chunk_locked(&mut self, cx: &mut Cx<'_>, lock: u64) {
        let members = self.lead().members.iter_mut();
        let mut resyncs = members.filter_map(|(device, member)| Some((*device, member.resync.as_mut()?)));
        let found = resyncs.find_map(|(device, resync)| {
            let stream = resync.stream;
            let current = resync.current.as_mut().filter(|current| current.lock == lock && !current.capturing)?;
            current.capturing = true;
            Some((device, stream, current.layer))
        });
        if let Some((learner, stream, layer)) = found {
            self.store(cx, Purpose::Capture { learner, stream }, StoreRequest::Capture { layer });
        }
    }

    pub(crate) fn captured(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64, done: StoreDone) {
        let Some(current) = self.resync(learner, stream).and_then(|resync| resync.current) else { return };
        match done {
            StoreDone::Layer(copy) => self.send_copy(cx, learner, stream, current, copy),
            StoreDone::BadBlocks(blocks) => {
                let whom = For::Copy { learner, stream };
                self.start_repair(cx, whom, current.layer, blocks, None);
            }
            _ => {}
        }
    }

    fn send_copy(
        &mut self,
        cx: &mut Cx<'_>,
        learner: DeviceId,
        stream: u64,
        current: Current,
        copy: Option<LayerCopy>,
    ) {
        let covered = self.log.last().seq;
        let term = self.lead().term;
        let layer = current.layer;
        let part = copy.as_ref().and_then(|_| self.blocks_to_send(learner, stream, layer));
        let Some((number, operation)) = self.next_operation(learner) else { return };
        let Some(resync) = self.resync(learner, stream) else { return };
        resync.pending.remove(&layer);
        resync.copied.insert(layer, covered);
        resync.slots.push_back(operation);
        let body = match copy {
            Some(whole) => {
                let copy = part.map_or_else(|| whole.clone(), |(_, blocks)| cut(&whole, &blocks));
                let bytes: usize = copy.data.iter().map(bytes::Bytes::len).sum();
                resync.bytes_copied += bytes as u64;
                cx.context.resync.copied += bytes as u64;
                match part {
                    Some((base, blocks)) => PeerBody::Patch { stream, number, layer, base, blocks, copy },
                    None => PeerBody::Copy { stream, number, layer, copy },
                }
            }
            // Dropped since the lists were compared.
            None => PeerBody::RemoveLayers { stream, number, layers: vec![layer] },
        };
        self.send(cx, learner, term, body);
        self.let_go(cx, learner, stream, current);
    }

    fn let_go(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64, current: Current) {
        if let Some(resync) = self.resync(learner, stream) {
            resync.current = None;
        }
        let granted = self.lead().overlaps.release(current.layer.chunk, current.lock);
        self.entered(cx, granted);
    }

    /// The repair of blocks that stood in the way of a copy has ended.
    pub(crate) fn copy_repaired(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64, good: bool) {
        let again = self.now.plus_ms(STUCK_AGAIN_MS);
        let Some(resync) = self.resync(learner, stream) else { return };
        let Some(current) = resync.current else { return };
        if good {
            self.store(cx, Purpose::Capture { learner, stream }, StoreRequest::Capture { layer: current.layer });
            return;
        }
        resync.pending.remove(&current.layer);
        resync.stuck.insert(current.layer);
        resync.stuck_again = again;
        cx.context.resync.in_use -= 1;
        self.let_go(cx, learner, stream, current);
    }

    /// Everything is live, durable and sent: says so, and ends when the learner has recorded it.
    fn complete(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64) {
        let term = self.lead().term;
        let Some(member) = self.lead().members.get(&learner) else { return };
        let (done, sent) = (member.operations_done == member.operations_sent, member.sent);
        let Some(resync) = self.resync(learner, stream) else { return };
        let idle = resync.removing.is_empty() && resync.pending.is_empty() && resync.stuck.is_empty();
        let covered = resync.copied.values().copied().max().unwrap_or(Seq(0)) <= sent;
        if !done || !idle || resync.current.is_some() || !covered {
            return;
        }
        match resync.phase {
            Phase::Copying => {
                resync.phase = Phase::Completing;
                let Some((number, _)) = self.next_operation(learner) else { return };
                self.send(cx, learner, term, PeerBody::Complete { stream, number });
            }
            Phase::Completing => self.end_resync(cx, learner),
            Phase::OwnList | Phase::PeerList { .. } => {}
        }
    }
}
