//! Changes that are not entries: voids, removals, mends, forgotten groups, dropped trees; and what follows for the entries.
//!
//! A control takes effect in memory only once its record is durable, in the order of the journal, and not while a layer that
//! it touches is being applied.

use bytes::Bytes;
use mdm_api::epoch::Seq;
use mdm_api::ids::{PgId, VtreeId};
use sds_api::block::{BLOCK_BYTES, CHUNK_BLOCKS, LayerKey};
use sds_api::checksum::crc32c;
use sds_api::entry::EntryBody;

use crate::append::{Accepted, effect};
use crate::error::StoreError;
use crate::journal::record::Record;
use crate::journal::{Journal, Purpose};
use crate::layer::{Mend, units_of};
use crate::limits::REMOVE_LAYERS_MAX;
use crate::request::{Answer, Output, Token};
use crate::store::{Item, Store};

/// A change that waits to be durable, then to be carried out.
pub(crate) enum Control {
    /// Layers go, with the entries up to `through`.
    Remove { token: Token, pg: PgId, through: Seq, layers: Vec<LayerKey> },
    /// A group goes.
    Forget { token: Token, pg: PgId },
    /// A tree goes, by the committed entry `seq`.
    DropVtree { pg: PgId, vtree: VtreeId, seq: Seq },
    /// A copy claims its units.
    Install { id: u64, layer: LayerKey },
    /// A block is to be rewritten.
    Mend { token: Token, layer: LayerKey, block: u16, checksum: u32, data: Bytes },
}

impl Control {
    /// Who waits for it.
    pub(crate) fn token(&self) -> Option<Token> {
        match self {
            Self::Remove { token, .. } | Self::Forget { token, .. } | Self::Mend { token, .. } => Some(*token),
            Self::DropVtree { .. } | Self::Install { .. } => None,
        }
    }

    /// Bytes of payload that it has in its frame.
    pub(crate) fn payload_bytes(&self) -> u64 {
        if matches!(self, Self::Mend { .. }) { BLOCK_BYTES as u64 } else { 0 }
    }
}

impl Store {
    pub(crate) fn void(&mut self, token: Token, pg_id: PgId, after: Seq) -> Accepted {
        self.admit_control(pg_id, 32, Purpose::Control)?;
        let pg = self.pgs.entry(pg_id).or_default();
        let first_gone = pg.log.range(after.next()..).next().map(|(seq, _)| *seq);
        if after < pg.state_asked || first_gone.is_some_and(|seq| seq <= pg.committed) {
            return Err(StoreError::Committed);
        }
        self.void_in_memory(pg_id, after);
        if self.is_deferring(pg_id) {
            self.defer_void(pg_id, after, token, 32);
        } else {
            let record = Record::Void { pg: pg_id, after };
            self.journal.add(Bytes::new(), Item::Void, 32, |out| record.encode(out));
            self.journal.wait(token);
        }
        // The tail must not pass voided entries while their void can still be lost: they would come back with gaps.
        self.unsettled += 1;
        Ok(None)
    }

    /// Takes the entries beyond `after` out of memory.
    pub(crate) fn void_in_memory(&mut self, pg_id: PgId, after: Seq) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let gone = pg.log.split_off(&after.next());
        pg.last = pg.last.min(after);
        pg.durable = pg.durable.min(after);
        pg.ripe = pg.ripe.min(after);
        pg.drops.retain(|(seq, _)| *seq <= after);
        for log in gone.into_values() {
            let changed = effect(&log.entry).map(|(key, ..)| key);
            self.dispose(pg_id, log);
            if let Some(key) = changed {
                if let Some(layer) = self.layers.get_mut(&key) {
                    layer.active_mut().pending.retain(|pending| pending.seq <= after);
                }
                self.refresh_reservation(key);
                self.drop_if_unused(key);
            }
        }
    }

    /// Promises to a layer exactly the units that its pending writes still need.
    pub(crate) fn refresh_reservation(&mut self, key: LayerKey) {
        let Some(layer) = self.layers.get_mut(&key) else { return };
        let Some(pg) = self.pgs.get(&layer.pg()) else { return };
        let held = layer.units_held();
        let Some(active) = layer.active() else { return };
        let needs_room = |seq: &Seq| pg.log.get(seq).is_some_and(|log| log.staged.is_none());
        let writes = active.pending.iter().filter(|pending| !pending.is_zero && needs_room(&pending.seq));
        let wanted = writes.fold(0, |mask, pending| mask | units_of(pending.blocks)) & !held;
        let active = layer.active_mut();
        self.units.unreserve(u64::from(active.reserved.count_ones()));
        self.units.reserve(u64::from(wanted.count_ones()));
        active.reserved = wanted;
    }

    pub(crate) fn add_control(&mut self, payload: Bytes, bytes: usize, record: &Record, control: Control) {
        self.unsettled += 1;
        self.journal.add(payload, Item::Control(Box::new(control)), bytes, |out| record.encode(out));
    }

    pub(crate) fn remove_layers(&mut self, token: Token, pg: PgId, layers: Vec<LayerKey>) -> Accepted {
        if layers.len() > REMOVE_LAYERS_MAX {
            return Err(StoreError::Malformed);
        }
        let bytes = 64 + 24 * layers.len();
        self.admit_control(pg, bytes, Purpose::Control)?;
        let through = self.pgs.get(&pg).map_or(Seq(0), |pg| pg.committed);
        let record = Record::RemoveLayers { pg, through, layers: layers.clone() };
        self.add_control(Bytes::new(), bytes, &record, Control::Remove { token, pg, through, layers });
        Ok(None)
    }

    pub(crate) fn forget_pg(&mut self, token: Token, pg_id: PgId) -> Accepted {
        self.admit_control(pg_id, 32, Purpose::Control)?;
        self.pgs.entry(pg_id).or_default().forgetting = true;
        self.commit_dirty.remove(&pg_id);
        for install in self.installs.values_mut().filter(|install| install.pg == pg_id) {
            install.cancelled = true;
        }
        if self.is_deferring(pg_id) {
            self.defer_forget(pg_id, token, 32);
        } else {
            let record = Record::ForgetPg { pg: pg_id };
            self.add_control(Bytes::new(), 32, &record, Control::Forget { token, pg: pg_id });
        }
        Ok(None)
    }

    pub(crate) fn repair(&mut self, token: Token, layer: LayerKey, block: u16, checksum: u32, data: Bytes) -> Accepted {
        if block >= CHUNK_BLOCKS || data.len() != BLOCK_BYTES || crc32c(&data) != checksum {
            return Err(StoreError::Malformed);
        }
        let slot = self.layers.get(&layer).ok_or(StoreError::NotFound)?.slot;
        if !self.is_mend_due(slot, block, checksum) {
            return Err(StoreError::Changed);
        }
        if Journal::<Item>::cost(64, BLOCK_BYTES) > self.journal.room(Purpose::Data) {
            return Err(StoreError::NoJournalSpace);
        }
        let data = sds_api::buf::aligned(data);
        let record = Record::Repair { layer, block, checksum };
        let control = Control::Mend { token, layer, block, checksum, data: data.clone() };
        self.add_control(data, 64, &record, control);
        Ok(None)
    }

    pub(crate) fn add_install(&mut self, record: Record, bytes: usize, id: u64, layer: LayerKey) {
        self.add_control(Bytes::new(), bytes, &record, Control::Install { id, layer });
    }

    /// Carries out what is durable, in order, as far as no job is in the way.
    pub(crate) fn run_controls(&mut self, out: &mut Vec<Output>) {
        while let Some((lsn, control)) = self.controls.pop_front() {
            if self.is_blocked(&control) {
                self.controls.push_front((lsn, control));
                return;
            }
            let token = control.token();
            let result = self.carry_out(lsn, *control, out);
            self.journal.release(lsn);
            self.unsettled -= 1;
            if let Some(token) = token {
                out.push(Output::Done { token, result });
            }
        }
    }

    fn is_blocked(&self, control: &Control) -> bool {
        let busy = |key: &LayerKey| self.layers.get(key).is_some_and(|layer| layer.is_busy());
        match control {
            Control::Remove { layers, .. } => layers.iter().any(busy),
            Control::Forget { pg, .. } => self.jobs.values().any(|job| job.pg() == *pg),
            Control::DropVtree { pg, vtree, .. } => {
                self.jobs.values().any(|job| job.pg() == *pg && job.key().chunk.vtree == *vtree)
            }
            Control::Install { layer, .. } => busy(layer),
            Control::Mend { .. } => false,
        }
    }

    fn carry_out(&mut self, lsn: u64, control: Control, out: &mut Vec<Output>) -> Result<Answer, StoreError> {
        match control {
            Control::Remove { pg, through, layers, .. } => {
                for key in layers {
                    self.remove_layer(pg, key, through, lsn);
                }
            }
            Control::Forget { pg, .. } => self.forget_in_memory(pg, lsn),
            Control::DropVtree { pg, vtree, seq } => self.drop_tree(pg, vtree, seq),
            Control::Install { id, .. } => self.install_durable(id, lsn, out),
            Control::Mend { layer, block, checksum, data, .. } => {
                self.counters.repairs += 1;
                return self.mend(lsn, layer, block, checksum, data);
            }
        }
        Ok(Answer::Done)
    }

    /// Removes what a layer has at home and takes its effect from its entries up to `through`.
    pub(crate) fn remove_layer(&mut self, pg_id: PgId, key: LayerKey, through: Seq, lsn: u64) {
        let Some(layer) = self.layers.get_mut(&key).filter(|layer| layer.pg() == pg_id) else { return };
        let slot = layer.slot;
        let active = layer.active_mut();
        let void: Vec<Seq> =
            active.pending.iter().map(|pending| pending.seq).take_while(|seq| *seq <= through).collect();
        active.pending.drain(..void.len());
        active.pinned.clear();
        for mend in std::mem::take(&mut active.mends) {
            self.journal.release(mend.lsn);
        }
        if layer.recorded {
            for au in layer.units() {
                self.units.quarantine(au, lsn + 1);
            }
            layer.clear();
            self.sums.clear(slot);
            self.touch(slot);
        }
        for seq in void {
            self.mark_applied(pg_id, seq);
        }
        self.refresh_reservation(key);
        self.drop_if_unused(key);
    }

    fn drop_tree(&mut self, pg_id: PgId, vtree: VtreeId, seq: Seq) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        pg.drops.retain(|(drop, _)| *drop != seq);
        let keys = self.keys_where(pg_id, |layer| layer.key.chunk.vtree == vtree);
        // The units wait for the tail to pass this moment: that is past every record that speaks of them.
        let lsn = self.journal.head();
        for key in keys {
            self.remove_layer(pg_id, key, seq, lsn);
        }
        self.mark_applied(pg_id, seq);
    }

    pub(crate) fn forget_in_memory(&mut self, pg_id: PgId, lsn: u64) {
        for key in self.keys_of(pg_id) {
            self.remove_layer(pg_id, key, Seq(u64::MAX), lsn);
        }
        // Layers stay only for copies on their way in, which come to nothing: they go with the copy.
        self.forget_log(pg_id);
    }

    /// Lets go of everything of a group that is not in layers.
    pub(crate) fn forget_log(&mut self, pg_id: PgId) {
        self.unpark(pg_id);
        let Some(pg) = self.pgs.remove(&pg_id) else { return };
        for log in pg.log.into_values() {
            self.dispose(pg_id, log);
        }
        let promise = pg.promise.as_ref().map(|kept| kept.lsn);
        let commit = pg.commit_durable.as_ref().map(|kept| kept.lsn);
        let state = pg.state.as_ref().map(|kept| kept.lsn);
        for lsn in [promise, commit, state].into_iter().flatten() {
            self.journal.release(lsn);
        }
        self.state_bytes -= pg.state.as_ref().map_or(0, |kept| kept.value.1.len() as u64);
        self.commit_dirty.remove(&pg_id);
    }

    /// Notes the block for the next job on the layer, if it is still the same.
    pub(crate) fn mend(
        &mut self,
        lsn: u64,
        key: LayerKey,
        block: u16,
        checksum: u32,
        data: Bytes,
    ) -> Result<Answer, StoreError> {
        let slot = self.layers.get(&key).ok_or(StoreError::Changed)?.slot;
        if !self.is_mend_due(slot, block, checksum) {
            return Err(StoreError::Changed);
        }
        self.journal.need(lsn);
        let layer = self.layers.at_mut(slot).ok_or(StoreError::Changed)?;
        layer.active_mut().mends.push(Mend { lsn, block, checksum, data });
        self.queue_layer(key);
        Ok(Answer::Done)
    }

    /// An entry has had its effect: its data goes; it stays in the log only until the replica's state covers it.
    pub(crate) fn mark_applied(&mut self, pg_id: PgId, seq: Seq) {
        self.give_up_staged(pg_id, seq);
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let covered = seq <= pg.through();
        let Some(log) = pg.log.get_mut(&seq) else { return };
        log.applied = true;
        self.resident -= std::mem::take(&mut log.resident);
        if let EntryBody::Write { data, .. } = &mut log.entry.body {
            *data = Bytes::new();
        }
        if covered
            && log.lsn.is_some()
            && let Some(log) = pg.log.remove(&seq)
        {
            self.dispose(pg_id, log);
        }
    }

    /// Lets entries go that are applied and covered by a new state.
    pub(crate) fn shed(&mut self, pg_id: PgId) {
        let Some(pg) = self.pgs.get_mut(&pg_id) else { return };
        let covered = pg.log.range(..=pg.through()).filter(|(_, log)| log.applied);
        for seq in covered.map(|(seq, _)| *seq).collect::<Vec<_>>() {
            let log = self.pgs.get_mut(&pg_id).and_then(|pg| pg.log.remove(&seq));
            if let Some(log) = log {
                self.dispose(pg_id, log);
            }
        }
        self.unpark(pg_id);
    }

    /// Layers that waited for a state are tried again.
    pub(crate) fn unpark(&mut self, pg_id: PgId) {
        let parked = self.pgs.get_mut(&pg_id).map(|pg| std::mem::take(&mut pg.parked)).unwrap_or_default();
        self.parked -= parked.len();
        self.ripe.extend(parked);
    }

    /// What waits for states waits no longer when room is needed now.
    pub(crate) fn unpark_all(&mut self) {
        let ids: Vec<PgId> = self.pgs.iter().filter(|(_, pg)| !pg.parked.is_empty()).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.unpark(id));
    }

    /// Hands entries that are now committed for certain to the apply queue.
    pub(crate) fn ripen(&mut self, pg_id: PgId) {
        let Some(pg) = self.pgs.get_mut(&pg_id).filter(|pg| !pg.forgetting) else { return };
        let through = pg.committed_durably().min(pg.durable);
        let mut effectless = Vec::new();
        for (seq, log) in pg.log.range(pg.ripe.next()..) {
            if *seq > through {
                break;
            }
            pg.ripe = *seq;
            match &log.entry.body {
                _ if log.applied => {}
                EntryBody::Write { layer: key, .. } | EntryBody::Zero { layer: key, .. } => {
                    let layer = self.layers.get_mut(key).expect("a pending entry keeps its layer");
                    let active = layer.active_mut();
                    if !active.queued {
                        active.queued = true;
                        self.ripe.push_back(*key);
                    }
                }
                EntryBody::DropVtree { vtree } => {
                    let lsn = log.lsn.expect("it is durable");
                    self.journal.need(lsn);
                    self.unsettled += 1;
                    let control = Control::DropVtree { pg: pg_id, vtree: *vtree, seq: *seq };
                    self.controls.push_back((lsn, Box::new(control)));
                }
                EntryBody::EpochStart { .. } | EntryBody::Elsewhere { .. } => effectless.push(*seq),
            }
        }
        for seq in effectless {
            self.mark_applied(pg_id, seq);
        }
    }

    /// True if freed units should be made usable before anything else asks for a checkpoint.
    pub(crate) fn units_are_short(&self) -> bool {
        let quarantined = self.units.quarantined();
        let available = self.units.available();
        let is_much = available < self.units.total() / 8 || quarantined > available / 2;
        quarantined > 0 && (is_much || self.is_idle() || self.is_draining())
    }
}
