//! Which layers differ: the primary's list against the learner's, page by page.

use mdm_api::epoch::Version;
use mdm_api::ids::DeviceId;
use sds_api::block::LayerKey;
use sds_api::peer::PeerBody;

use super::Phase;
use crate::event::StoreDone;
use crate::replica::{Cx, Replica};

impl Replica {
    /// The own store has listed its layers.
    pub(crate) fn own_listing_done(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64, done: StoreDone) {
        let (StoreDone::Chunks(chunks), Some(resync)) = (done, self.resync(learner, stream)) else { return };
        resync.own = chunks.into_iter().collect();
        resync.phase = Phase::PeerList { after: None };
        self.ask_page(cx, learner, stream, None);
    }

    fn ask_page(&mut self, cx: &mut Cx<'_>, learner: DeviceId, stream: u64, after: Option<LayerKey>) {
        let term = self.lead().term;
        self.send(cx, learner, term, PeerBody::ListChunks { stream, after });
    }

    /// A page of the learner's list.
    pub(crate) fn on_chunk_versions(
        &mut self,
        cx: &mut Cx<'_>,
        learner: DeviceId,
        stream: u64,
        after: Option<LayerKey>,
        layers: &[(LayerKey, Version)],
        last: bool,
    ) {
        let Some(resync) = self.resync(learner, stream) else { return };
        if resync.phase != (Phase::PeerList { after }) {
            return;
        }
        for (layer, version) in layers {
            resync.bases.insert(*layer, *version);
            match resync.own.get(layer) {
                // I23: equal versions, equal content.
                Some(own) if own == version => {
                    resync.own.remove(layer);
                }
                Some(_) => {}
                None => {
                    resync.removing.insert(*layer);
                }
            }
        }
        if !last {
            let Some((next, _)) = layers.last() else {
                self.restart_member(cx, learner); // A page without layers that is not the last: no list.
                return;
            };
            resync.phase = Phase::PeerList { after: Some(*next) };
            self.ask_page(cx, learner, stream, Some(*next));
            return;
        }
        resync.pending = std::mem::take(&mut resync.own).into_keys().collect();
        resync.pending.append(&mut resync.touched);
        resync.layers_total = resync.pending.len() as u64;
        resync.phase = Phase::Copying;
    }
}
