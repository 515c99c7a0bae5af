//! The journal: one ring of frames, written in order, several in flight, grouped.
//!
//! Owns positions and space of the ring, the frames being filled, those in flight, and for every frame in the ring how many
//! things still need it. What the records mean is not known here.
//!
//! Always true: `tail <= durable <= head <= tail + ring`; a frame counts as durable when it and all before it are; a byte of the
//! ring is written once per lap; the tail passes a frame only when nothing needs it and a checkpoint says so (I20).

pub mod frame;
pub mod record;
pub mod scan;

use std::collections::VecDeque;

use bytes::Bytes;

use crate::journal::frame::{FRAME_VERSION, FrameHead, header_area};
use crate::journal::scan::JournalEnd;
use crate::limits::{
    CARRY_KEEPS, CONTROL_KEEPS, DATA_KEEPS, FRAME_PAYLOAD_TARGET, FRAME_RECORDS_TARGET, FRAMES_IN_FLIGHT, PAGE_BYTES,
    STATE_KEEPS,
};
use crate::request::Token;

/// Who asks for room in the ring. Each may go on where the one before must stop, so that what frees the tail always fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Data of clients: everything but the reserves.
    Data,
    /// Promises, voids, deletes, copies.
    Control,
    /// What the store writes again at the head to free the tail.
    Carry,
    /// States: they let entries go.
    State,
    /// A commit mark on which the tail hangs.
    Mark,
}

/// Where the tail could be, and what the frame there chains to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The position.
    pub lsn: u64,
    /// CRC of the frame before.
    pub chain: u32,
    /// Open count of the frame before.
    pub incarnation: u64,
}

struct FrameInfo {
    mark: Mark,
    end: u64,
    needed: u32,
}

/// A frame being filled. `I` is what the owner remembers of each record.
struct Building<I> {
    records: Vec<u8>,
    record_count: u32,
    payload: Vec<Bytes>,
    payload_bytes: usize,
    items: Vec<I>,
    tokens: Vec<Token>,
    cost: u64,
}

/// A frame that is to be written now.
pub struct Cut<I> {
    /// Its position.
    pub lsn: u64,
    /// Position of its payload.
    pub payload_lsn: u64,
    /// Bytes of all.
    pub bytes: u64,
    /// Header area and payload.
    pub buffers: Vec<Bytes>,
    /// What its records were.
    pub items: Vec<I>,
    /// Who waits for it.
    pub tokens: Vec<Token>,
}

/// A frame that has become durable.
pub struct Durable<I> {
    /// Its position.
    pub lsn: u64,
    /// What its records were.
    pub items: Vec<I>,
    /// Who waited for it.
    pub tokens: Vec<Token>,
}

struct InFlight<I> {
    end: u64,
    writes_left: u8,
    done: Durable<I>,
}

/// The ring.
pub struct Journal<I> {
    ring_bytes: u64,
    salt: u64,
    incarnation: u64,
    tail: u64,
    durable: u64,
    head: Mark,
    frames: VecDeque<FrameInfo>,
    /// Frames before this one are durable and not needed.
    first_needed: usize,
    building: VecDeque<Building<I>>,
    in_flight: VecDeque<InFlight<I>>,
    queued: u64,
    /// Who waits, for frames being filled and in flight.
    open_tokens: usize,
}

impl<I> Journal<I> {
    /// An empty journal that begins at the tail. Frames found by the scan are added with [`Journal::replay`].
    pub fn new(ring_bytes: u64, salt: u64, incarnation: u64, tail: Mark) -> Self {
        Self {
            ring_bytes,
            salt,
            incarnation,
            tail: tail.lsn,
            durable: tail.lsn,
            head: tail,
            frames: VecDeque::new(),
            first_needed: 0,
            building: VecDeque::new(),
            in_flight: VecDeque::new(),
            queued: 0,
            open_tokens: 0,
        }
    }

    /// Notes a frame that was found in the ring.
    pub fn replay(&mut self, head: &FrameHead) {
        assert_eq!(head.lsn, self.head.lsn, "frames are found in order");
        let end = head.lsn + head.total_bytes();
        self.frames.push_back(FrameInfo { mark: self.head, end, needed: 0 });
        self.head = Mark { lsn: end, chain: head.crc, incarnation: head.incarnation };
        self.durable = end;
    }

    /// Checks that the frames handed in are what the scan found, and goes on with a new incarnation.
    pub fn resume(&mut self, end: &JournalEnd, incarnation: u64) {
        assert_eq!((self.head.lsn, self.head.chain), (end.lsn, end.chain), "all scanned frames were replayed");
        self.incarnation = incarnation;
    }

    /// Position after the last frame handed out.
    pub fn head(&self) -> u64 {
        self.head.lsn
    }

    /// Everything before is durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Bytes of the ring that are taken.
    pub fn used(&self) -> u64 {
        self.head.lsn - self.tail
    }

    /// Bytes of the ring.
    pub fn ring_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// Bytes that a purpose may still take.
    pub fn room(&self, purpose: Purpose) -> u64 {
        let (share, pages) = match purpose {
            Purpose::Data => DATA_KEEPS,
            Purpose::Control => CONTROL_KEEPS,
            Purpose::State => STATE_KEEPS,
            Purpose::Carry => CARRY_KEEPS,
            Purpose::Mark => (u64::MAX, 0),
        };
        let kept = (self.ring_bytes / share).max(pages * PAGE_BYTES as u64);
        self.ring_bytes.saturating_sub(self.used() + self.queued + kept)
    }

    /// The most that a record with so many bytes and so much payload takes: a frame of its own.
    pub fn cost(record_bytes: usize, payload_bytes: usize) -> u64 {
        (header_area(record_bytes) + payload_bytes) as u64
    }

    /// Keeps room for a record that will be added later. False if there is not enough.
    pub fn reserve(&mut self, cost: u64, purpose: Purpose) -> bool {
        let enough = cost <= self.room(purpose);
        if enough {
            self.queued += cost;
        }
        enough
    }

    /// Keeps room that was asked for already.
    pub fn keep(&mut self, cost: u64) {
        self.queued += cost;
    }

    /// No record added so far, or room kept for, lies beyond.
    pub fn bound(&self) -> u64 {
        self.head.lsn + self.queued
    }

    /// Gives kept room back, or to the record that is now added.
    pub fn unreserve(&mut self, cost: u64) {
        self.queued = self.queued.checked_sub(cost).expect("only what was kept is given back");
    }

    /// Adds a record to the frame being filled, or to a new one. The room has been asked for.
    pub fn add(&mut self, payload: Bytes, item: I, record_bytes_max: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        let payload_target = FRAME_PAYLOAD_TARGET.min((self.ring_bytes / 16) as usize);
        let records_target = FRAME_RECORDS_TARGET.min((self.ring_bytes / 16) as usize);
        let fits = self.building.back().is_some_and(|building| {
            building.payload_bytes + payload.len() <= payload_target
                && building.records.len() + record_bytes_max <= records_target
        });
        if !fits {
            self.building.push_back(Building {
                records: Vec::with_capacity(512),
                record_count: 0,
                payload: Vec::new(),
                payload_bytes: 0,
                items: Vec::new(),
                tokens: Vec::new(),
                cost: 0,
            });
        }
        let building = self.building.back_mut().expect("one was just made sure of");
        let before = building.records.len();
        encode(&mut building.records);
        assert!(building.records.len() - before <= record_bytes_max, "the room asked for covers the record");
        let cost = Self::cost(record_bytes_max, payload.len());
        building.record_count += 1;
        building.payload_bytes += payload.len();
        building.items.push(item);
        building.cost += cost;
        self.queued += cost;
        if !payload.is_empty() {
            building.payload.push(payload);
        }
    }

    /// The token is answered when everything added so far is durable.
    pub fn wait(&mut self, token: Token) {
        let building = self.building.back_mut().expect("something was added before anybody waits");
        building.tokens.push(token);
        self.open_tokens += 1;
    }

    /// True if frames wait to be written or are being written.
    pub fn is_busy(&self) -> bool {
        !self.building.is_empty() || !self.in_flight.is_empty()
    }

    /// While frames are under way, the next one is worth its write when it carries its share of all who wait: else many
    /// small frames would be in flight, and those who wait would be served by few.
    fn waits_for_company(&self) -> bool {
        let [only] = self.building.as_slices().0 else { return false };
        let is_alone = self.building.len() == 1 && !self.in_flight.is_empty();
        is_alone && only.tokens.len() * FRAMES_IN_FLIGHT < self.open_tokens
    }

    /// Takes the next frame to write, if there is one and not too many are in flight. `fill` may add small records up to the
    /// number of bytes that the header area has left.
    pub fn cut(&mut self, fill: impl FnOnce(usize, &mut Vec<u8>, &mut Vec<I>) -> u32) -> Option<Cut<I>> {
        if self.in_flight.len() >= FRAMES_IN_FLIGHT || self.waits_for_company() {
            return None;
        }
        let mut building = self.building.pop_front()?;
        self.queued -= building.cost;
        let area = header_area(building.records.len());
        let left = area - frame::FRAME_HEAD_BYTES - building.records.len();
        building.record_count += fill(left, &mut building.records, &mut building.items);
        assert_eq!(header_area(building.records.len()), area, "what fills a header does not lengthen it");
        let mut head = FrameHead {
            version: FRAME_VERSION,
            salt: self.salt,
            incarnation: self.incarnation,
            lsn: self.head.lsn,
            durable_through: self.durable,
            previous_crc: self.head.chain,
            record_count: building.record_count,
            header_bytes: 0,
            record_bytes: 0,
            payload_bytes: building.payload_bytes as u32,
            crc: 0,
        };
        let mut buffers = Vec::with_capacity(1 + building.payload.len());
        buffers.push(head.encode(&building.records));
        buffers.append(&mut building.payload);
        let (lsn, end) = (head.lsn, head.lsn + head.total_bytes());
        assert!(end - self.tail <= self.ring_bytes, "I20: the ring never runs over its tail");
        self.frames.push_back(FrameInfo { mark: self.head, end, needed: 0 });
        self.head = Mark { lsn: end, chain: head.crc, incarnation: self.incarnation };
        Some(Cut {
            lsn,
            payload_lsn: lsn + u64::from(head.header_bytes),
            bytes: end - lsn,
            buffers,
            items: building.items,
            tokens: building.tokens,
        })
    }

    /// Notes that a cut frame is on its way in so many writes.
    pub fn launched(&mut self, lsn: u64, bytes: u64, writes: u8, items: Vec<I>, tokens: Vec<Token>) {
        let done = Durable { lsn, items, tokens };
        self.in_flight.push_back(InFlight { end: lsn + bytes, writes_left: writes, done });
    }

    /// A write of the frame at `lsn` succeeded. Returns the next frame that is durable with all before it, if any; to be
    /// called again with `None` until it returns nothing.
    pub fn written(&mut self, lsn: Option<u64>) -> Option<Durable<I>> {
        if let Some(lsn) = lsn {
            let frame = self.in_flight.iter_mut().find(|frame| frame.done.lsn == lsn);
            frame.expect("a frame stays until it is written").writes_left -= 1;
        }
        let front = self.in_flight.front()?;
        if front.writes_left > 0 {
            return None;
        }
        self.durable = front.end;
        let done = self.in_flight.pop_front().map(|frame| frame.done)?;
        self.open_tokens -= done.tokens.len();
        self.pass_unneeded();
        Some(done)
    }

    fn is_passed(&self, frame: &FrameInfo) -> bool {
        frame.needed == 0 && frame.end <= self.durable
    }

    fn pass_unneeded(&mut self) {
        while self.frames.get(self.first_needed).is_some_and(|frame| self.is_passed(frame)) {
            self.first_needed += 1;
        }
    }

    fn place_of(&self, lsn: u64) -> usize {
        let index = self.frames.partition_point(|frame| frame.mark.lsn < lsn);
        let found = self.frames.get(index).is_some_and(|frame| frame.mark.lsn == lsn);
        assert!(found, "what is needed is in the ring");
        index
    }

    /// Something needs the frame at `lsn`.
    pub fn need(&mut self, lsn: u64) {
        let index = self.place_of(lsn);
        self.frames[index].needed += 1;
        self.first_needed = self.first_needed.min(index);
    }

    /// It is no longer needed by one thing.
    pub fn release(&mut self, lsn: u64) {
        let index = self.place_of(lsn);
        let frame = &mut self.frames[index];
        frame.needed = frame.needed.checked_sub(1).expect("released as often as needed");
        if index == self.first_needed {
            self.pass_unneeded();
        }
    }

    /// The first position that is still needed: where a checkpoint taken now may put the tail.
    pub fn tail_candidate(&self) -> Mark {
        let first = self.frames.range(self.first_needed..).find(|frame| !self.is_passed(frame));
        first.map_or(self.head, |frame| frame.mark)
    }

    /// The first durable frame from a position on: where it begins and what it chains to, and where it ends.
    pub fn frame_from(&self, lsn: u64) -> Option<(Mark, u64)> {
        let index = self.frames.partition_point(|frame| frame.mark.lsn < lsn);
        self.frames.get(index).filter(|frame| frame.end <= self.durable).map(|frame| (frame.mark, frame.end))
    }

    /// A checkpoint with this tail is durable: the room before it is free.
    pub fn advance_tail(&mut self, lsn: u64) {
        while self.frames.front().is_some_and(|frame| frame.mark.lsn < lsn) {
            let frame = self.frames.pop_front().expect("it was just looked at");
            assert!(frame.needed == 0 && frame.end <= lsn, "I20: the tail passes nothing that is needed");
            self.first_needed = self.first_needed.saturating_sub(1);
        }
        self.tail = self.tail.max(lsn);
    }

    /// The tail of the last checkpoint.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Everybody who waits for a frame, for the end after a failure.
    pub fn abandon(&mut self) -> Vec<Token> {
        self.open_tokens = 0;
        let in_flight = self.in_flight.drain(..).flat_map(|frame| frame.done.tokens);
        let building = self.building.drain(..).flat_map(|frame| frame.tokens);
        in_flight.chain(building).collect()
    }
}
