//! Reads that failed are done again, block by block, before anybody hears of it.
//!
//! An error costs no more than the blocks that have it, and none if it does not come back: what is read for applying an entry
//! or for the checksums of a page is written again soon, and what could not be read then is lost for good, also where no
//! other copy is left. A read that a client waits for is tried less often: another copy is nearer than the fifth try.
//!
//! Always true: a block that stays unreadable among others is handed over as zeros, which its checksum refuses, or which are
//! what it says; everything that is read here is checked before it is used (I21). A read of which nothing came fails.

use bytes::Bytes;
use sds_api::block::BLOCK_BYTES;
use sds_api::buf::AlignedBuf;

use crate::io::{DiskError, DiskOp, IoClass};
use crate::limits::{READ_TRIES, READ_TRIES_FOREGROUND};
use crate::request::Output;
use crate::store::{Owner, Store};

/// Where a read is on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) class: IoClass,
}

struct Block {
    tries: u32,
    content: Option<Bytes>,
}

/// A read that failed and is being done again.
pub(crate) struct Reread {
    owner: Owner,
    place: Place,
    blocks: Vec<Block>,
    left: usize,
}

impl Place {
    /// The place of what is read again when it fails; the scrub has its own way, and what is written fails the device.
    pub(crate) fn of(owner: &Owner, class: IoClass, op: &DiskOp) -> Option<Self> {
        match (owner, op) {
            (Owner::Read(..) | Owner::JobRead(..) | Owner::Sums(_), DiskOp::Read { offset, length }) => {
                Some(Self { offset: *offset, length: *length, class })
            }
            _ => None,
        }
    }

    fn tries_max(&self) -> u32 {
        if self.class == IoClass::Foreground { READ_TRIES_FOREGROUND } else { READ_TRIES }
    }
}

impl Store {
    /// A read has failed.
    pub(crate) fn read_again(&mut self, owner: Owner, place: Place, out: &mut Vec<Output>) {
        let id = self.fresh_id();
        let count = place.length as usize / BLOCK_BYTES;
        // Of a single block this was the first try.
        let tries = u32::from(count == 1);
        let blocks = (0..count).map(|_| Block { tries, content: None }).collect();
        self.rereads.insert(id, Reread { owner, place, blocks, left: count });
        for index in 0..count {
            self.read_block(id, index, place, out);
        }
    }

    fn read_block(&mut self, id: u64, index: usize, place: Place, out: &mut Vec<Output>) {
        let offset = place.offset + (index * BLOCK_BYTES) as u64;
        let op = DiskOp::Read { offset, length: BLOCK_BYTES as u32 };
        self.submit(Owner::Reread(id, index), place.class, op, out);
    }

    /// One of its blocks.
    pub(crate) fn block_reread(
        &mut self,
        id: u64,
        index: usize,
        result: Result<Bytes, DiskError>,
        out: &mut Vec<Output>,
    ) {
        let Some(reread) = self.rereads.get_mut(&id) else { return };
        let (place, block) = (reread.place, &mut reread.blocks[index]);
        block.tries += 1;
        if result == Err(DiskError::Io) && block.tries < place.tries_max() {
            return self.read_block(id, index, place, out);
        }
        block.content = result.ok().filter(|bytes| bytes.len() == BLOCK_BYTES);
        reread.left -= 1;
        if reread.left == 0
            && let Some(reread) = self.rereads.remove(&id)
        {
            let result = reread.joined();
            self.disk_done(reread.owner, result, out);
        }
    }
}

impl Reread {
    fn joined(&self) -> Result<Bytes, DiskError> {
        if self.blocks.iter().all(|block| block.content.is_none()) {
            return Err(DiskError::Io);
        }
        let mut all = AlignedBuf::zeroed(self.place.length as usize);
        for (block, part) in self.blocks.iter().zip(all.chunks_exact_mut(BLOCK_BYTES)) {
            if let Some(content) = &block.content {
                part.copy_from_slice(content);
            }
        }
        Ok(all.freeze())
    }
}
