//! Read-repair: a bad block is answered from an in-sync peer and rewritten in place (F15, F16).
//!
//! The blocks are held exclusively, after all writes to them have committed, so the peer's copy as of the primary's
//! committed entry is the block's content and nothing changes it until the good copy is in place. The checksum decides
//! which copy is good, never its position.

use std::collections::{BTreeSet, VecDeque};

use mdm_api::epoch::Nanos;
use mdm_api::ids::DeviceId;
use sds_api::block::{BlockRange, LayerKey};
use sds_api::peer::{BlocksData, PeerBody};

use crate::action::{Action, StoreRequest};
use crate::limits::FETCH_TIMEOUT_MS;
use crate::overlap::Mode;
use crate::replica::{Cx, Purpose, Replica};

/// Who waits for the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// A client's request.
    Request(u64),
    /// A copy for a learner.
    Copy { learner: DeviceId, stream: u64 },
    /// Nobody: a scrub found it.
    Scrub { block: u16 },
}

/// The repair of some blocks of one layer, one after the other.
#[derive(Debug)]
pub(crate) struct Repair {
    whom: For,
    layer: LayerKey,
    blocks: VecDeque<u16>,
    /// True if it holds the blocks itself; else whoever waits does.
    locked: bool,
    tried: BTreeSet<DeviceId>,
    /// Who was asked, under which number, and when.
    asked: Option<(DeviceId, u64, Nanos)>,
}

impl Replica {
    /// Starts the repair of `blocks`. `lock`: the blocks to hold meanwhile, unless whoever waits holds them already.
    pub(crate) fn start_repair(
        &mut self,
        cx: &mut Cx<'_>,
        whom: For,
        layer: LayerKey,
        blocks: Vec<u16>,
        lock: Option<BlockRange>,
    ) {
        let id = self.number();
        let repair =
            Repair { whom, layer, blocks: blocks.into(), locked: lock.is_some(), tried: BTreeSet::new(), asked: None };
        self.lead().repairs.insert(id, repair);
        let free = lock.is_none_or(|range| self.lead().overlaps.claim(layer.chunk, id, range, Mode::Exclusive));
        if free {
            self.fetch_next(cx, id);
        }
    }

    /// Asks the next peer for the next block; ends when there is no block left, or nobody to ask.
    pub(crate) fn fetch_next(&mut self, cx: &mut Cx<'_>, id: u64) {
        let peers = self.in_sync_peers();
        let (now, commit, number) = (self.now, self.log.committed(), self.number());
        let leader = self.lead();
        let term = leader.term;
        let Some(repair) = leader.repairs.get_mut(&id) else { return };
        let Some(block) = repair.blocks.front().copied() else {
            self.end_repair(cx, id, true);
            return;
        };
        let Some(peer) = peers.into_iter().find(|peer| !repair.tried.contains(peer)) else {
            cx.out.push(Action::BadBlock { layer: repair.layer, block, repaired: false }); // F16
            self.end_repair(cx, id, false);
            return;
        };
        let Some(blocks) = BlockRange::new(block, 1) else {
            self.end_repair(cx, id, false);
            return;
        };
        repair.tried.insert(peer);
        repair.asked = Some((peer, number, now));
        let layer = repair.layer;
        self.send(cx, peer, term, PeerBody::FetchBlocks { request: number, layer, blocks, commit });
    }

    pub(crate) fn on_fetched(&mut self, cx: &mut Cx<'_>, from: DeviceId, request: u64, content: Option<BlocksData>) {
        let repairs = &mut self.lead().repairs;
        let found = repairs
            .iter_mut()
            .find(|(_, repair)| matches!(repair.asked, Some((peer, number, _)) if peer == from && number == request));
        let Some((id, repair)) = found.map(|(id, repair)| (*id, repair)) else { return };
        repair.asked = None;
        let good = content.filter(|content| content.verify(1)); // I21
        let (Some(content), Some(block)) = (good, repair.blocks.front().copied()) else {
            self.fetch_next(cx, id);
            return;
        };
        let layer = repair.layer;
        self.write_good_copy(cx, Purpose::Repair(id), layer, block, &content);
    }

    /// Puts a block that was verified in the place of a bad one.
    pub(crate) fn write_good_copy(
        &mut self,
        cx: &mut Cx<'_>,
        purpose: Purpose,
        layer: LayerKey,
        block: u16,
        content: &BlocksData,
    ) {
        let (pg, checksum, data) = (self.me.pg, content.checksums[0], bytes::Bytes::from(content.data.concat()));
        self.store(cx, purpose, StoreRequest::Repair { pg, layer, block, checksum, data });
    }

    /// The good copy is in place.
    pub(crate) fn block_repaired(&mut self, cx: &mut Cx<'_>, id: u64) {
        let Some(repair) = self.lead().repairs.get_mut(&id) else { return };
        if let Some(block) = repair.blocks.pop_front() {
            cx.out.push(Action::BadBlock { layer: repair.layer, block, repaired: true });
        }
        repair.tried.clear();
        self.fetch_next(cx, id);
    }

    /// A request is answered otherwise: a repair under its lock must not go on without the lock.
    pub(crate) fn cancel_request_repairs(&mut self, request: u64) {
        self.lead().repairs.retain(|_, repair| repair.locked || repair.whom != For::Request(request));
    }

    /// The same for a copy whose stream is over.
    pub(crate) fn cancel_copy_repairs(&mut self, learner: DeviceId, stream: u64) {
        self.lead().repairs.retain(|_, repair| repair.whom != For::Copy { learner, stream });
    }

    fn end_repair(&mut self, cx: &mut Cx<'_>, id: u64, good: bool) {
        let Some(repair) = self.lead().repairs.remove(&id) else { return };
        if repair.locked {
            let granted = self.lead().overlaps.release(repair.layer.chunk, id);
            self.entered(cx, granted);
        }
        match repair.whom {
            For::Request(request) => self.request_repaired(cx, request, good),
            For::Copy { learner, stream } => self.copy_repaired(cx, learner, stream, good),
            For::Scrub { block } => self.mended_as_primary(repair.layer, block),
        }
    }

    /// The peer is gone: whoever asked it asks the next.
    pub(crate) fn fetch_lost(&mut self, cx: &mut Cx<'_>, device: DeviceId) {
        self.drop_fetches(cx, |peer, _| peer == device);
    }

    /// A peer that does not answer is passed over.
    pub(crate) fn retry_fetches(&mut self, cx: &mut Cx<'_>) {
        let now = self.now;
        self.drop_fetches(cx, |_, at| now.ms_since(at) >= FETCH_TIMEOUT_MS);
    }

    fn drop_fetches(&mut self, cx: &mut Cx<'_>, lost: impl Fn(DeviceId, Nanos) -> bool) {
        let repairs = self.lead().repairs.iter();
        let ids: Vec<u64> = repairs
            .filter(|(_, repair)| repair.asked.is_some_and(|(peer, _, at)| lost(peer, at)))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(repair) = self.lead().repairs.get_mut(&id) {
                repair.asked = None;
            }
            self.fetch_next(cx, id);
        }
    }
}
