//! Feeding a learner that has no complete content: one ordered stream of entries and copies (architecture 5.6).
//!
//! The primary's layers are the truth. Lists of (layer, version) are compared; equal versions mean equal content (I23), what
//! differs is copied, what the primary does not have is removed. A layer is *live* when writes to it go to the learner
//! whole; before, they go as `Elsewhere`, which keeps the order dense and the table of requests complete.
//!
//! Always true:
//! - A layer becomes live at a copy that was captured with its chunk held and every write to it committed, so no older copy
//!   lands on a newer write and no write is missing.
//! - `Complete` is sent when every layer is live, every copy is durable there, and every entry that one of the copies
//!   covers has been sent.

pub(crate) mod compare;
pub(crate) mod copy;
pub(crate) mod patch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mdm_api::epoch::{Nanos, Seq, Version};
use mdm_api::ids::DeviceId;
use sds_api::block::LayerKey;
use sds_api::entry::{Entry, EntryBody};

use crate::action::{ResyncProgress, StoreRequest};
use crate::replica::{Cx, Purpose, Replica};

/// Where the feeding of a learner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The own store lists its layers.
    OwnList,
    /// The learner hands over its list; the next page starts after this.
    PeerList { after: Option<LayerKey> },
    /// Removals, then copies.
    Copying,
    /// `Complete` is sent.
    Completing,
}

/// The layer that is being copied.
#[derive(Clone, Copy, Debug)]
struct Current {
    layer: LayerKey,
    /// Owner of the chunk's blocks.
    lock: u64,
    capturing: bool,
}

/// The state of one learner's feeding.
#[derive(Debug)]
pub(crate) struct Resync {
    stream: u64,
    phase: Phase,
    /// Layers here that are not matched yet.
    own: BTreeMap<LayerKey, Version>,
    /// The learner has all layers as of this entry at least.
    has: Seq,
    /// What the learner has of layers that are here too.
    bases: BTreeMap<LayerKey, Version>,
    /// Layers that were written while the lists were compared.
    touched: BTreeSet<LayerKey>,
    /// Layers that only the learner has, still to be removed.
    removing: BTreeSet<LayerKey>,
    /// Layers to copy.
    pending: BTreeSet<LayerKey>,
    /// Layers of which some block has no good copy (F16).
    stuck: BTreeSet<LayerKey>,
    /// When those are tried again: an overwrite may have healed them.
    stuck_again: Nanos,
    /// Layers whose copy covers entries that are not sent yet: through which entry.
    copied: BTreeMap<LayerKey, Seq>,
    current: Option<Current>,
    /// Operations under way that hold a slot of the budget.
    slots: VecDeque<u64>,
    layers_total: u64,
    bytes_copied: u64,
}

impl Resync {
    fn new(stream: u64, has: Seq) -> Self {
        Self {
            stream,
            has,
            phase: Phase::OwnList,
            own: BTreeMap::new(),
            bases: BTreeMap::new(),
            touched: BTreeSet::new(),
            removing: BTreeSet::new(),
            pending: BTreeSet::new(),
            stuck: BTreeSet::new(),
            stuck_again: Nanos::NEVER,
            copied: BTreeMap::new(),
            current: None,
            slots: VecDeque::new(),
            layers_total: 0,
            bytes_copied: 0,
        }
    }

    /// The layer whose content is being taken.
    pub(crate) fn captured(&self) -> Option<LayerKey> {
        self.current.filter(|current| current.capturing).map(|current| current.layer)
    }

    /// An entry was ordered.
    pub(crate) fn note(&mut self, entry: &Entry) {
        match &entry.body {
            EntryBody::Write { layer, .. } | EntryBody::Zero { layer, .. } => {
                if matches!(self.phase, Phase::OwnList | Phase::PeerList { .. }) {
                    self.touched.insert(*layer);
                } else if self.removing.contains(layer) && self.pending.insert(*layer) {
                    self.layers_total += 1; // Came back to life here before it was removed there.
                }
            }
            EntryBody::DropVtree { vtree } if self.phase == Phase::Copying => {
                // The learner drops the tree with the entry, whatever it had of it.
                self.pending.retain(|layer| layer.chunk.vtree != *vtree);
                self.stuck.retain(|layer| layer.chunk.vtree != *vtree);
            }
            _ => {}
        }
    }

    fn is_live(&self, layer: LayerKey, seq: Seq) -> bool {
        matches!(self.phase, Phase::Copying | Phase::Completing)
            && !self.pending.contains(&layer)
            && !self.stuck.contains(&layer)
            && self.copied.get(&layer).is_none_or(|covered| seq > *covered)
    }

    /// What the learner gets for an entry.
    pub(crate) fn entry_for_learner(&self, entry: &Entry) -> Entry {
        let elsewhere = match &entry.body {
            EntryBody::Write { layer, .. } | EntryBody::Zero { layer, .. }
                if !self.is_live(*layer, entry.version.seq) =>
            {
                Some(*layer)
            }
            _ => None,
        };
        match elsewhere {
            Some(layer) => Entry { body: EntryBody::Elsewhere { layer }, ..entry.clone() },
            None => entry.clone(),
        }
    }

    /// How far it is.
    pub(crate) fn progress(&self, device: DeviceId) -> ResyncProgress {
        ResyncProgress {
            device,
            layers_total: self.layers_total,
            layers_left: (self.pending.len() + self.stuck.len()) as u64,
            bytes_copied: self.bytes_copied,
            layers_stuck: self.stuck.len() as u64,
        }
    }
}

impl Replica {
    /// A stream that begins with a `Reset` has been started.
    pub(crate) fn start_resync(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64, has: Seq) {
        let mut resync = Resync::new(stream, has);
        for entry in self.log.range(self.log.committed(), self.log.last().seq) {
            resync.note(entry);
        }
        if let Some(member) = self.lead().members.get_mut(&learner) {
            member.resync = Some(resync);
        }
        let request = StoreRequest::ListChunks { pg: self.me.pg };
        self.store(cx, Purpose::OwnListing { learner, stream }, request);
    }

    /// The feeding is over, done or not: what it holds is given back.
    pub(crate) fn end_resync(&mut self, cx: &mut Cx<'_>, learner: DeviceId) {
        let resync = self.lead().members.get_mut(&learner).and_then(|member| member.resync.take());
        let Some(resync) = resync else { return };
        cx.context.resync.in_use -= resync.slots.len() as u32 + u32::from(resync.current.is_some());
        self.cancel_copy_repairs(learner, resync.stream);
        if let Some(current) = resync.current {
            let granted = self.lead().overlaps.release(current.layer.chunk, current.lock);
            self.entered(cx, granted);
        }
    }

    /// The feeding of a learner, if it belongs to this stream.
    fn resync(&mut self, learner: DeviceId, stream: u64) -> Option<&mut Resync> {
        let member = self.leader.as_mut()?.members.get_mut(&learner)?;
        member.resync.as_mut().filter(|resync| resync.stream == stream)
    }
}
