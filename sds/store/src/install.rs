//! A whole layer comes in as a copy: data to fresh units, durable, then one journal record that claims them.
//!
//! Until the record is durable nothing refers to the units; a crash leaves the old layer. From the request on nothing is
//! applied to the layer: entries beyond the copy's version go on top of it, never under it.

use bytes::Bytes;
use mdm_api::ids::PgId;
use sds_api::block::{AU_BLOCKS, BLOCK_BYTES, CHUNK_AUS, CHUNK_BLOCKS, LayerKey};
use sds_api::buf::aligned;
use sds_api::checksum::crc32c;

use crate::append::{Accepted, split_buffers};
use crate::blockmap::BlockMap;
use crate::error::StoreError;
use crate::io::{DiskOp, IoClass};
use crate::journal::record::{InstallRecord, NO_AU, Record};
use crate::journal::{Journal, Purpose};
use crate::request::{Answer, LayerContent, Output, Token};
use crate::store::{Item, Owner, Store};

/// Bytes of the longest record of a copy.
const RECORD_BYTES_MAX: usize = 256 + 4 * CHUNK_BLOCKS as usize;

/// A copy on its way in.
pub(crate) struct Install {
    pub(crate) token: Token,
    pub(crate) pg: PgId,
    /// Its group is being forgotten: it comes to nothing.
    pub(crate) cancelled: bool,
    record: InstallRecord,
    writes_left: usize,
}

/// True if the parts of a content fit together and every block is what its checksum says (I21).
fn is_sound(content: &LayerContent) -> bool {
    let count = usize::from(content.present.count());
    let lengths_fit = content.checksums.len() == count
        && content.data.iter().all(|piece| piece.len().is_multiple_of(BLOCK_BYTES))
        && content.data.iter().map(Bytes::len).sum::<usize>() == count * BLOCK_BYTES;
    lengths_fit
        && !content.present.intersects(&content.zeroed)
        && content
            .data
            .iter()
            .flat_map(|piece| piece.chunks_exact(BLOCK_BYTES))
            .zip(&content.checksums)
            .all(|(block, sum)| crc32c(block) == *sum)
}

impl Store {
    pub(crate) fn install(
        &mut self,
        token: Token,
        pg: PgId,
        key: LayerKey,
        content: LayerContent,
        out: &mut Vec<Output>,
    ) -> Accepted {
        if !is_sound(&content) || self.layers.get(&key).is_some_and(|layer| layer.pg() != pg) {
            return Err(StoreError::Malformed);
        }
        if self.pgs.get(&pg).is_some_and(|pg| pg.forgetting) {
            return Err(StoreError::OutOfOrder);
        }
        if self.layers.get(&key).is_some_and(|layer| layer.version.seq > content.version.seq) {
            return Err(StoreError::Committed);
        }
        let units = (0..CHUNK_AUS).filter(|au| content.present.touches_au(*au)).count() as u64;
        if self.units.available() < units || (self.layers.get(&key).is_none() && self.layers.free_slots() == 0) {
            return Err(StoreError::NoSpace);
        }
        // The room for the claim is kept from here on: a copy that was begun does not fail for want of it.
        if !self.journal.reserve(Journal::<Item>::cost(RECORD_BYTES_MAX, 0), Purpose::Control) {
            return Err(StoreError::NoJournalSpace);
        }
        let mut aus = [NO_AU; CHUNK_AUS];
        for (au, unit) in aus.iter_mut().enumerate().filter(|(au, _)| content.present.touches_au(*au)) {
            *unit = self.units.allocate().unwrap_or_else(|| unreachable!("unit {au} of {units} available ones"));
        }
        self.layer_or_new(pg, key).expect("a slot was seen to be free").active_mut().holds += 1;
        let record = InstallRecord {
            pg,
            layer: key,
            version: content.version,
            present: content.present,
            zeroed: content.zeroed,
            aus,
            checksums: content.checksums,
        };
        let writes = self.data_writes(&record, content.data);
        let id = self.fresh_id();
        let writes_left = writes.len();
        self.installs.insert(id, Install { token, pg, cancelled: false, record, writes_left });
        for (offset, buffers) in writes {
            let op = DiskOp::Write { offset, buffers, durable: true };
            self.submit(Owner::Install(id), IoClass::Background, op, out);
        }
        if writes_left == 0 {
            self.claim(id, out);
        }
        Ok(None)
    }

    /// Runs of present blocks that lie together on the device, with their data.
    fn data_writes(&self, record: &InstallRecord, data: Vec<Bytes>) -> Vec<(u64, Vec<Bytes>)> {
        let geometry = &self.super_block.geometry;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for block in record.present.iter() {
            let unit = record.aus[usize::from(block / AU_BLOCKS)];
            let offset = geometry.au_block(unit, block % AU_BLOCKS);
            match runs.last_mut() {
                Some((start, length)) if *start + *length == offset => *length += BLOCK_BYTES as u64,
                _ => runs.push((offset, BLOCK_BYTES as u64)),
            }
        }
        let mut rest: Vec<Bytes> = data.into_iter().map(aligned).collect();
        let mut writes = Vec::with_capacity(runs.len());
        for (offset, length) in runs {
            let (now, later) = split_buffers(rest, length);
            writes.push((offset, now));
            rest = later;
        }
        writes
    }

    pub(crate) fn install_written(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(install) = self.installs.get_mut(&id) else { return };
        install.writes_left -= 1;
        if install.writes_left == 0 {
            self.claim(id, out);
        }
    }

    /// The data is durable: the record that claims its units goes to the journal.
    fn claim(&mut self, id: u64, out: &mut Vec<Output>) {
        let install = &self.installs[&id];
        let (key, token) = (install.record.layer, install.token);
        self.journal.unreserve(Journal::<Item>::cost(RECORD_BYTES_MAX, 0));
        if install.cancelled {
            let result = Err(StoreError::NotFound);
            let install = self.installs.remove(&id).expect("it was just there");
            install.record.aus.iter().filter(|au| **au != NO_AU).for_each(|au| self.units.give_back(*au));
            self.release_hold(key);
            out.push(Output::Done { token, result });
            return;
        }
        let record = Record::Install(install.record.clone());
        self.add_install(record, RECORD_BYTES_MAX, id, key);
    }

    fn release_hold(&mut self, key: LayerKey) {
        if let Some(layer) = self.layers.get_mut(&key) {
            layer.active_mut().holds -= 1;
        }
        self.drop_if_unused(key);
    }

    /// The claim is durable: the layer is replaced.
    pub(crate) fn install_durable(&mut self, id: u64, lsn: u64, out: &mut Vec<Output>) {
        let Some(install) = self.installs.remove(&id) else { return };
        let key = install.record.layer;
        let version = install.record.version;
        self.replace_record(&install.record, lsn);
        let active = self.layers.get_mut(&key).expect("a held layer stays").active_mut();
        let pending = active.pending.iter().map(|pending| pending.seq);
        let under: Vec<_> = pending.take_while(|seq| *seq <= version.seq).collect();
        active.pending.drain(..under.len());
        if !active.pending.is_empty() {
            self.queue_layer(key);
        }
        for seq in under {
            self.mark_applied(install.pg, seq);
        }
        self.refresh_reservation(key);
        self.release_hold(key);
        out.push(Output::Done { token: install.token, result: Ok(Answer::Done) });
    }

    /// Puts a copied record in the place of the layer's, whose units are free once the tail has passed `lsn`.
    pub(crate) fn replace_record(&mut self, install: &InstallRecord, lsn: u64) {
        let layer = self.layers.get_mut(&install.layer).expect("the layer was made for the copy");
        layer.units().for_each(|au| self.units.quarantine(au, lsn + 1));
        let slot = layer.slot;
        layer.clear();
        // One past: a record that was made just before the claim, with the head there, is older than the claim.
        (layer.base, layer.recorded) = (lsn + 1, true);
        (layer.version, layer.present, layer.aus) = (install.version, install.present, install.aus);
        layer.set_zeroed(install.zeroed);
        let active = layer.active_mut();
        active.pinned.clear();
        for mend in std::mem::take(&mut active.mends) {
            self.journal.release(mend.lsn);
        }
        let mut sums = Box::new([0; CHUNK_BLOCKS as usize]);
        for (block, sum) in install.present.iter().zip(&install.checksums) {
            sums[usize::from(block)] = *sum;
        }
        self.touch(slot);
        self.sums.set(slot, sums, BlockMap::EMPTY);
    }
}
