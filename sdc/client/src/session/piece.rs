//! Pieces: the parts of I/Os that go to one primary each, and where each of them stands.
//!
//! ```text
//!            window full                  snapshot switch pending
//!   Queued <------------- Ready --------------------------------> Held
//!      |                  ^ | \  \
//!      +------------------+ |  \  +--> Waiting(until)  no route, path closed, told to retry
//!            room           |   +----> Parked          its path is being opened
//!                           v
//!                         Sent --> settled, or Ready / Waiting / Held again
//! ```
//!
//! Always true: a piece is in the one structure that its state names; a change that was ever sent keeps its number until
//! it is answered (I16).

use bytes::Bytes;
use mdm_api::epoch::{Nanos, RequestNumber};
use mdm_api::ids::SdsId;
use sds_api::client::{Checksums, ClientOperation, RequestIdentity};

use crate::io::IoId;

/// Place of a piece in the slab.
pub(super) type Slot = usize;

/// What a piece does.
#[derive(Debug)]
pub(super) enum Work {
    Read,
    Write { data: Bytes, checksums: Checksums },
    Zero,
    Status,
}

/// Where a piece stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be dispatched in this step.
    Ready,
    /// Its group's window is full.
    Queued,
    /// A change that waits for the switch to a newer snapshot sequence.
    Held,
    /// The volume is being opened on this server.
    Parked(SdsId),
    /// To be dispatched at this moment.
    Waiting(Nanos),
    /// On its way.
    Sent { sds: SdsId, tag: u64, at: Nanos, handle: u32 },
}

#[derive(Debug)]
pub(super) struct Piece {
    pub io: IoId,
    /// Its place in the I/O's answer.
    pub index: usize,
    pub chunk: u64,
    /// The group's index in the pool.
    pub group: u32,
    pub offset: u32,
    pub length: u32,
    pub work: Work,
    /// A change's number in its group, once it has one.
    pub number: Option<RequestNumber>,
    /// It may have been ordered under the present snapshot sequence: it was sent and not answered.
    pub uncertain: bool,
    /// It was sent before.
    pub was_sent: bool,
    pub state: State,
    /// Times it was told to come again, since it last looked better.
    pub attempts: u32,
    /// Times it was sent again because no answer came, though its connection lived.
    pub resends: u32,
    /// Answers to it that were damaged.
    pub damaged: u32,
    /// Since when a server says that it is out of range.
    pub out_of_range_since: Option<Nanos>,
}

impl Piece {
    /// True if it changes the volume.
    pub fn changes(&self) -> bool {
        matches!(self.work, Work::Write { .. } | Work::Zero)
    }

    /// What to ask of the server.
    ///
    /// # Panics
    /// If it is a change without a number.
    pub fn operation(&self, oldest_unacked: RequestNumber) -> ClientOperation {
        let (offset, length) = (self.offset, self.length);
        let identity = || RequestIdentity { request: self.number.expect("I16: a change has a number"), oldest_unacked };
        match &self.work {
            Work::Read => ClientOperation::Read { offset, length },
            Work::Status => ClientOperation::Status { offset, length },
            Work::Zero => ClientOperation::Zero { identity: identity(), offset, length },
            Work::Write { data, checksums } => ClientOperation::Write {
                identity: identity(),
                offset,
                checksums: checksums.clone(),
                data: data.clone(),
            },
        }
    }
}

/// All pieces under way; slots are reused.
#[derive(Debug, Default)]
pub(super) struct Slab {
    pieces: Vec<Option<Piece>>,
    free: Vec<Slot>,
}

impl Slab {
    pub fn insert(&mut self, piece: Piece) -> Slot {
        match self.free.pop() {
            Some(slot) => {
                self.pieces[slot] = Some(piece);
                slot
            }
            None => {
                self.pieces.push(Some(piece));
                self.pieces.len() - 1
            }
        }
    }

    pub fn remove(&mut self, slot: Slot) -> Option<Piece> {
        let piece = self.pieces.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(piece)
    }

    pub fn get(&self, slot: Slot) -> Option<&Piece> {
        self.pieces.get(slot)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Piece> {
        self.pieces.get_mut(slot)?.as_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Piece)> {
        self.pieces.iter().enumerate().filter_map(|(slot, piece)| piece.as_ref().map(|piece| (slot, piece)))
    }

    pub fn clear(&mut self) {
        self.pieces.clear();
        self.free.clear();
    }
}
