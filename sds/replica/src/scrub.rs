//! What a scrub of the store found: bad blocks are fetched from a good copy and rewritten in place (F15, F16).
//!
//! A primary repairs them as it repairs what a read finds, under the lock of the block. A secondary asks its primary for the
//! block as of what it has committed itself. It needs no lock: the store takes a copy only if it is exactly what its own
//! checksum says was there, or if that checksum is lost, and then every committed content is right, since what is committed
//! later lies on top of it.
//!
//! What was found is kept until it is repaired, over changes of role, up to [`FOUND_MAX`] blocks; what is beyond is found by the
//! next pass.

use std::collections::BTreeMap;

use mdm_api::epoch::{Nanos, Seq, Term};
use mdm_api::ids::DeviceId;
use sds_api::block::{BlockRange, LayerKey};
use sds_api::peer::{BlocksData, PeerBody};

use crate::action::Action;
use crate::limits::{FETCH_TIMEOUT_MS, FOUND_MAX, MEND_TRIES_MAX, MENDS_AT_ONCE};
use crate::repair::For;
use crate::replica::{Cx, Purpose, Replica};
use crate::role::Role;

/// How far the repair of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mending {
    /// Nobody was asked.
    Waiting,
    /// The primary that this replica is repairs it.
    Leading,
    /// The primary was asked, under this number.
    Asked { number: u64, at: Nanos },
    /// The good copy is being written.
    Writing,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    mending: Mending,
    /// Answers without a good copy.
    refused: u8,
}

/// The bad blocks that a scrub found.
#[derive(Debug, Default)]
pub(crate) struct FoundBlocks(BTreeMap<(LayerKey, u16), Found>);

impl FoundBlocks {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// This replica leads no more: what it repaired as a primary begins anew.
    pub(crate) fn leads_no_more(&mut self) {
        let led = self.0.values_mut().filter(|found| found.mending == Mending::Leading);
        led.for_each(|found| found.mending = Mending::Waiting);
    }

    /// The next blocks to begin with, as many as may be under way beside those that are.
    fn next(&self) -> Vec<(LayerKey, u16)> {
        let open = self.0.values().filter(|found| found.mending != Mending::Waiting).count();
        let waiting = self.0.iter().filter(|(_, found)| found.mending == Mending::Waiting);
        waiting.map(|(key, _)| *key).take(MENDS_AT_ONCE.saturating_sub(open)).collect()
    }
}

impl Replica {
    /// The store found a block bad.
    pub(crate) fn on_bad_block(&mut self, layer: LayerKey, block: u16) {
        if self.found.0.len() < FOUND_MAX {
            self.found.0.entry((layer, block)).or_insert(Found { mending: Mending::Waiting, refused: 0 });
        }
    }

    /// Goes on with what was found, in whatever role.
    pub(crate) fn mend_found(&mut self, cx: &mut Cx<'_>) {
        if self.found.is_empty() {
            return;
        }
        let now = self.now;
        for found in self.found.0.values_mut() {
            if matches!(found.mending, Mending::Asked { at, .. } if now.ms_since(at) >= FETCH_TIMEOUT_MS) {
                found.mending = Mending::Waiting;
            }
        }
        if self.leader.is_some() {
            self.mend_as_primary(cx);
        } else {
            self.mend_as_secondary(cx);
        }
    }

    fn mend_as_primary(&mut self, cx: &mut Cx<'_>) {
        if self.role != Role::Primary || self.in_sync_peers().is_empty() {
            return;
        }
        for (layer, block) in self.found.next() {
            let Some(found) = self.found.0.get_mut(&(layer, block)) else { continue };
            found.mending = Mending::Leading;
            self.start_repair(cx, For::Scrub { block }, layer, vec![block], BlockRange::new(block, 1));
        }
    }

    /// A primary has done what it could.
    pub(crate) fn mended_as_primary(&mut self, layer: LayerKey, block: u16) {
        self.found.0.remove(&(layer, block));
    }

    fn mend_as_secondary(&mut self, cx: &mut Cx<'_>) {
        let primary = self.config.as_ref().and_then(|config| config.primary);
        let (Some(primary), Some(term)) = (primary, self.follower.term()) else { return };
        if self.role != Role::Secondary || !self.complete || self.suspect || !self.is_fed() {
            return;
        }
        for (layer, block) in self.found.next() {
            let (number, now, commit) = (self.number(), self.now, self.log.committed());
            let (Some(found), Some(blocks)) = (self.found.0.get_mut(&(layer, block)), BlockRange::new(block, 1)) else {
                continue;
            };
            found.mending = Mending::Asked { number, at: now };
            self.send(cx, primary, term, PeerBody::FetchBlocks { request: number, layer, blocks, commit });
        }
    }

    /// A secondary asks this primary for a good copy.
    pub(crate) fn on_member_fetches(
        &mut self,
        cx: &mut Cx<'_>,
        (from, term): (DeviceId, Term),
        request: u64,
        (layer, blocks): (LayerKey, BlockRange),
        commit: Seq,
    ) {
        let leads = self.role == Role::Primary && self.leader.as_ref().is_some_and(|leader| leader.term == term);
        if !leads || commit > self.log.committed() {
            return; // it asks again, or another
        }
        self.read_blocks_for(cx, (from, term), request, (layer, blocks));
    }

    /// The primary's answer.
    pub(crate) fn on_primary_hands_over(&mut self, cx: &mut Cx<'_>, request: u64, content: Option<BlocksData>) {
        let asked = |found: &Found| matches!(found.mending, Mending::Asked { number, .. } if number == request);
        let Some((key, found)) = self.found.0.iter_mut().find(|(_, found)| asked(found)) else { return };
        let (layer, block) = *key;
        let Some(content) = content.filter(|content| content.verify(1)) else {
            (found.mending, found.refused) = (Mending::Waiting, found.refused + 1);
            if found.refused >= MEND_TRIES_MAX {
                self.found.0.remove(&(layer, block));
                cx.out.push(Action::BadBlock { layer, block, repaired: false }); // F16
            }
            return;
        };
        found.mending = Mending::Writing;
        self.write_good_copy(cx, Purpose::Mend { layer, block }, layer, block, &content);
    }

    /// The good copy is in place.
    pub(crate) fn mended(&mut self, cx: &mut Cx<'_>, layer: LayerKey, block: u16) {
        self.found.0.remove(&(layer, block));
        cx.out.push(Action::BadBlock { layer, block, repaired: true });
    }
}
