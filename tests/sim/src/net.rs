//! The network: connections that behave like TCP under every kind of trouble.
//!
//! Within one direction of one living connection bytes keep their order and none is lost; between connections nothing is
//! ordered. A cut (one-way or both ways) is silent: what was sent waits in the sender's kernel, and after some seconds both
//! ends give up by themselves. A dead process resets its connections; a host without power says nothing, and resets what
//! it no longer knows when it is back. A paused process takes nothing, and what is sent to it piles up.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use mdm_api::control::PeerRole;
use mdm_api::frame::{FRONT_BYTES, FrameBounds, FrameKind, Front, encode_front};
use mdm_api::limits::CONTROL_FRAME_BYTES_MAX;
use sds_api::buf::AlignedBuf;

use crate::clock::{MS, Time};
use crate::rng::Rng;

/// A host with its one process.
pub type NodeId = usize;

/// A connection, never numbered twice in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// Between members of the metadata manager.
    Raft,
    /// The metadata manager's control port; the purpose tells a caller's connections apart.
    Control,
    /// A data server's port.
    Data,
}

/// Bytes on their way, as they would stand on the wire.
#[derive(Clone, Debug)]
pub struct Frame {
    front: [u8; FRONT_BYTES],
    header: Bytes,
    payload: Bytes,
    /// The sender wants to know when it has left.
    pub wants_written: bool,
}

const BOUNDS: FrameBounds = FrameBounds { header_bytes_max: CONTROL_FRAME_BYTES_MAX, payload_bytes_max: 64 << 20 };

impl Frame {
    /// A frame of that kind.
    pub fn new(kind: FrameKind, header: Vec<u8>, payload: Bytes) -> Self {
        let front = encode_front(kind, &header, payload.len());
        Self { front, header: header.into(), payload, wants_written: false }
    }

    /// Reads it as a receiver does.
    pub fn open(self) -> Option<(FrameKind, Bytes, Bytes)> {
        let front = Front::decode(&self.front, BOUNDS).ok()?;
        front.check_header(&self.header).ok()?;
        (front.payload_bytes == self.payload.len()).then_some((front.kind, self.header, self.payload))
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        FRONT_BYTES + self.header.len() + self.payload.len()
    }

    /// True if nothing is in it, which no frame is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The checksum of the front, which stands for the frame in the trace.
    pub fn digest(&self) -> u64 {
        let word = |at: usize| {
            u64::from(u32::from_le_bytes([self.front[at], self.front[at + 1], self.front[at + 2], self.front[at + 3]]))
        };
        word(20) | word(16) << 32
    }

    /// Flips a bit of header or payload, as a bad cable would.
    pub fn damage(&mut self, rng: &mut Rng) {
        if !self.payload.is_empty() && rng.one_in(2) {
            let mut payload = AlignedBuf::copy_of(&self.payload);
            let at = rng.index(payload.len());
            payload[at] ^= 1 << rng.below(8);
            self.payload = payload.freeze();
            return;
        }
        let mut header = self.header.to_vec();
        let at = rng.index(header.len().max(1));
        if let Some(byte) = header.get_mut(at) {
            *byte ^= 1 << rng.below(8);
        }
        self.header = header.into();
    }
}

/// What a process hears of a connection.
#[derive(Clone, Debug)]
pub enum Signal {
    /// Somebody called.
    Accepted {
        /// What was called.
        port: Port,
        /// Who, as its certificate says.
        caller: PeerRole,
    },
    /// The call was taken.
    Connected,
    /// Bytes came.
    Frame(Frame),
    /// A frame that wanted it has left.
    Written,
    /// The connection is over; before `Connected`: it was not made.
    Lost {
        /// Reset or refused, rather than silent or closed in good order.
        reset: bool,
    },
}

enum Item {
    Dial,
    Accept,
    Frame(Frame),
    End { reset: bool },
}

#[derive(Default)]
struct Pipe {
    queue: VecDeque<(Time, Item)>,
    bytes: usize,
    scheduled: bool,
    last_ready: Time,
}

struct Conn {
    ends: [NodeId; 2],
    port: Port,
    caller: PeerRole,
    open: [bool; 2],
    established: [bool; 2],
    /// `pipes[i]` goes from `ends[i]`.
    pipes: [Pipe; 2],
}

/// One direction between two hosts.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    /// Counts the cuts.
    cuts: u32,
    /// Times that everything takes.
    pub slowness: u64,
    /// How many of a million frames are sent again after a fifth of a second or more.
    pub loss_ppm: u64,
}

/// What is to happen later.
#[derive(Clone, Copy, Debug)]
pub enum Later {
    /// The head of a direction arrives.
    Deliver(ConnId, usize),
    /// A call that was not taken is given up.
    DialTimeout(ConnId),
    /// Ends that hear nothing give up, if the link is still as it was.
    GiveUp(ConnId, u32),
}

/// A host as the network sees it.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// It has power.
    pub powered: bool,
    /// Its process runs.
    pub running: bool,
    /// Its process is stopped.
    pub paused: bool,
}

/// What comes of a step.
#[derive(Default)]
pub struct Effects {
    /// To be delivered now.
    pub signals: Vec<(NodeId, ConnId, Signal)>,
    /// To be scheduled.
    pub later: Vec<(Time, Later)>,
}

/// Bytes that wait in one direction before the sender ends the connection: what every shell bounds.
const PIPE_BYTES_MAX: usize = 48 << 20;
/// Time after which a call that is not taken is given up.
const DIAL_MS: Time = 1000;

/// All connections and links.
pub struct Net {
    conns: Vec<Option<Conn>>,
    by_node: Vec<BTreeSet<ConnId>>,
    links: Vec<Link>,
    nodes: usize,
    rng: Rng,
    /// Mean of the random part of a frame's way, in microseconds.
    pub jitter_us: u64,
    /// Frames delivered.
    pub frames: u64,
    /// Bytes delivered.
    pub bytes: u64,
    /// Frames that had to be sent again.
    pub resent: u64,
    /// Bits to flip in the next frames.
    pub flips: u32,
}

impl Net {
    /// A network of so many hosts without trouble.
    pub fn new(nodes: usize, rng: Rng) -> Self {
        let link = Link { cut: false, cuts: 0, slowness: 1, loss_ppm: 0 };
        Self {
            conns: Vec::new(),
            by_node: vec![BTreeSet::new(); nodes],
            links: vec![link; nodes * nodes],
            nodes,
            rng,
            jitter_us: 60,
            frames: 0,
            bytes: 0,
            resent: 0,
            flips: 0,
        }
    }

    /// The link from one host to another.
    pub fn link(&mut self, from: NodeId, to: NodeId) -> &mut Link {
        &mut self.links[from * self.nodes + to]
    }

    /// True if nothing passes.
    pub fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.links[from * self.nodes + to].cut
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.0 as usize)?.as_mut()
    }

    /// True while that end has not heard of an end of the connection.
    pub fn is_open(&self, id: ConnId, node: NodeId) -> bool {
        let conn = self.conns.get(id.0 as usize).and_then(Option::as_ref);
        conn.is_some_and(|conn| conn.open[usize::from(conn.ends[1] == node)])
    }

    /// The open connections of a host.
    pub fn conns_of(&self, node: NodeId) -> Vec<ConnId> {
        self.by_node[node].iter().copied().collect()
    }

    /// Who is at the other end.
    pub fn other_end(&mut self, id: ConnId, node: NodeId) -> Option<NodeId> {
        self.conn(id).map(|conn| conn.ends[usize::from(conn.ends[0] == node)])
    }

    /// Calls a host.
    pub fn dial(
        &mut self,
        now: Time,
        from: NodeId,
        to: NodeId,
        port: Port,
        caller: PeerRole,
        out: &mut Effects,
    ) -> ConnId {
        let id = ConnId(self.conns.len() as u64);
        self.conns.push(Some(Conn {
            ends: [from, to],
            port,
            caller,
            open: [true, true],
            established: [false, false],
            pipes: [Pipe::default(), Pipe::default()],
        }));
        self.by_node[from].insert(id);
        self.push(now, id, 0, Item::Dial, out);
        out.later.push((now + DIAL_MS * MS, Later::DialTimeout(id)));
        id
    }

    /// Sends over a connection; into the void if it is over.
    pub fn send(&mut self, now: Time, id: ConnId, from: NodeId, frame: Frame, out: &mut Effects) {
        let Some(conn) = self.conn(id) else { return };
        let side = usize::from(conn.ends[1] == from);
        if !conn.open[side] {
            return;
        }
        if conn.pipes[side].bytes > PIPE_BYTES_MAX {
            self.end(id, side);
            out.signals.push((from, id, Signal::Lost { reset: false }));
            return;
        }
        self.push(now, id, side, Item::Frame(frame), out);
    }

    /// Ends a connection in good order.
    pub fn close(&mut self, now: Time, id: ConnId, from: NodeId, out: &mut Effects) {
        let Some(conn) = self.conn(id) else { return };
        let side = usize::from(conn.ends[1] == from);
        if conn.open[side] {
            self.end(id, side);
            self.push(now, id, side, Item::End { reset: false }, out);
        }
    }

    /// An end gives a connection up: what it has sent goes its way, and the end of the connection behind it.
    pub fn abandon(&mut self, now: Time, id: ConnId, node: NodeId, out: &mut Effects) {
        if self.is_open(id, node) {
            self.close(now, id, node, out);
            out.signals.push((node, id, Signal::Lost { reset: false }));
        }
    }

    fn push(&mut self, now: Time, id: ConnId, side: usize, item: Item, out: &mut Effects) {
        let Some(conn) = self.conn(id) else { return };
        let (from, to) = (conn.ends[side], conn.ends[1 - side]);
        let link = self.links[from * self.nodes + to];
        let mut item = item;
        let bytes = match &mut item {
            Item::Frame(frame) => {
                if self.flips > 0 {
                    self.flips -= 1;
                    frame.damage(&mut self.rng);
                }
                frame.len()
            }
            _ => 0,
        };
        // Ten gigabits a second.
        let mut way = (30_000 + self.rng.around(self.jitter_us * 1000) + bytes as u64) * link.slowness;
        if self.rng.ppm(link.loss_ppm) {
            // A kernel's pause before it sends again; a slow link with losses would else take minutes for a frame.
            way += (200 * MS) << self.rng.below(3);
            self.resent += 1;
        }
        let Some(conn) = self.conn(id) else { return };
        let pipe = &mut conn.pipes[side];
        let ready = (now + way).max(pipe.last_ready);
        pipe.last_ready = ready;
        pipe.bytes += bytes;
        pipe.queue.push_back((ready, item));
        if !pipe.scheduled && pipe.queue.len() == 1 {
            pipe.scheduled = true;
            out.later.push((ready, Later::Deliver(id, side)));
        }
    }

    /// One end is over.
    fn end(&mut self, id: ConnId, side: usize) {
        let Some(conn) = self.conn(id) else { return };
        conn.open[side] = false;
        let node = conn.ends[side];
        let over = conn.open == [false, false];
        self.by_node[node].remove(&id);
        if over {
            self.sweep(id);
        }
    }

    /// Forgets a connection of which both ends are over once nothing of it is on its way.
    fn sweep(&mut self, id: ConnId) {
        if self.conn(id).is_some_and(|conn| conn.open == [false, false]) {
            self.conns[id.0 as usize] = None;
        }
    }

    /// Something is due.
    pub fn happen(&mut self, now: Time, later: Later, reach: &[Reach], out: &mut Effects) {
        match later {
            Later::Deliver(id, side) => self.deliver(now, id, side, reach, out),
            Later::DialTimeout(id) => {
                let Some(conn) = self.conn(id) else { return };
                let node = conn.ends[0];
                if conn.open[0] && !conn.established[0] {
                    conn.open[1] &= conn.established[1];
                    self.end(id, 0);
                    out.signals.push((node, id, Signal::Lost { reset: false }));
                    out.later.push((now + 3000 * MS, Later::GiveUp(id, 0)));
                }
            }
            Later::GiveUp(id, cuts) => self.give_up(id, cuts, out),
        }
    }

    fn deliver(&mut self, now: Time, id: ConnId, side: usize, reach: &[Reach], out: &mut Effects) {
        let Some(conn) = self.conn(id) else { return };
        let (from, to) = (conn.ends[side], conn.ends[1 - side]);
        conn.pipes[side].scheduled = false;
        if self.links[from * self.nodes + to].cut || !reach[to].powered || reach[to].paused {
            return; // goes on when that ends
        }
        let Some(conn) = self.conn(id) else { return };
        let Some((_, item)) = conn.pipes[side].queue.pop_front() else { return };
        if let Some((ready, _)) = conn.pipes[side].queue.front() {
            out.later.push(((*ready).max(now), Later::Deliver(id, side)));
            conn.pipes[side].scheduled = true;
        }
        let is_open = conn.open[1 - side];
        match item {
            Item::End { reset } if is_open => {
                self.end(id, 1 - side);
                out.signals.push((to, id, Signal::Lost { reset }));
            }
            Item::End { .. } => {}
            Item::Dial if !reach[to].running => {
                conn.open[1] = false;
                self.push(now, id, 1 - side, Item::End { reset: true }, out);
            }
            Item::Dial if is_open => {
                conn.established[1] = true;
                let (port, caller) = (conn.port, conn.caller);
                self.by_node[to].insert(id);
                self.push(now, id, 1, Item::Accept, out);
                out.signals.push((to, id, Signal::Accepted { port, caller }));
            }
            Item::Accept if is_open => {
                conn.established[0] = true;
                out.signals.push((to, id, Signal::Connected));
            }
            Item::Frame(frame) if is_open => {
                conn.pipes[side].bytes -= frame.len();
                self.frames += 1;
                self.bytes += frame.len() as u64;
                let wants_written = frame.wants_written;
                out.signals.push((to, id, Signal::Frame(frame)));
                if wants_written {
                    out.signals.push((from, id, Signal::Written));
                }
            }
            // Nobody is there any more: the kernel says so.
            Item::Dial | Item::Accept | Item::Frame(_) => self.push(now, id, 1 - side, Item::End { reset: true }, out),
        }
    }

    fn give_up(&mut self, id: ConnId, cuts: u32, out: &mut Effects) {
        let Some(conn) = self.conn(id) else { return };
        let (ends, open) = (conn.ends, conn.open);
        let same = |a: NodeId, b: NodeId, links: &[Link]| {
            links[a * self.nodes + b].cut && links[a * self.nodes + b].cuts == cuts
        };
        let is_cut = same(ends[0], ends[1], &self.links) || same(ends[1], ends[0], &self.links);
        if !is_cut && open == [true, true] {
            return;
        }
        for side in 0..2 {
            if open[side] && self.conn(id).is_some_and(|conn| conn.established[side]) {
                self.end(id, side);
                out.signals.push((ends[side], id, Signal::Lost { reset: false }));
            }
        }
    }

    /// Lets nothing pass from one host to another.
    pub fn cut(&mut self, now: Time, from: NodeId, to: NodeId, out: &mut Effects) {
        let link = self.link(from, to);
        if link.cut {
            return;
        }
        link.cut = true;
        link.cuts += 1;
        let cuts = link.cuts;
        for id in self.conns_of(from) {
            if self.other_end(id, from) == Some(to) {
                let patience = self.rng.between(2000, 9000) * MS;
                out.later.push((now + patience, Later::GiveUp(id, cuts)));
            }
        }
    }

    /// Lets it pass again; what waited goes on its way.
    pub fn heal(&mut self, now: Time, from: NodeId, to: NodeId, out: &mut Effects) {
        self.link(from, to).cut = false;
        self.pump(now, |ends| ends == [from, to], out);
    }

    /// The host takes frames again (power, end of a pause).
    pub fn resumed(&mut self, now: Time, node: NodeId, out: &mut Effects) {
        self.pump(now, |ends| ends[1] == node, out);
    }

    /// Sets directions going again that stood still. `which` is told the ends, from and to.
    fn pump(&mut self, now: Time, which: impl Fn([NodeId; 2]) -> bool, out: &mut Effects) {
        for (at, conn) in self.conns.iter_mut().enumerate() {
            let Some(conn) = conn else { continue };
            for side in 0..2 {
                let pipe = &mut conn.pipes[side];
                if which([conn.ends[side], conn.ends[1 - side]])
                    && !pipe.scheduled
                    && let Some((ready, _)) = pipe.queue.front()
                {
                    pipe.scheduled = true;
                    // What was not acknowledged is sent again at growing intervals.
                    let again = now + self.rng.below(300 * MS);
                    out.later.push(((*ready).max(again), Later::Deliver(ConnId(at as u64), side)));
                }
            }
        }
    }

    /// The process of a host has ended. With power its kernel resets all; without, nobody hears anything.
    pub fn process_ended(&mut self, now: Time, node: NodeId, powered: bool, out: &mut Effects) {
        for id in self.conns_of(node) {
            let Some(conn) = self.conn(id) else { continue };
            let side = usize::from(conn.ends[1] == node);
            let other = conn.ends[1 - side];
            // Of what was handed to the kernel any beginning may have left.
            let length = conn.pipes[side].queue.len();
            let keep = self.rng.below(length as u64 + 1) as usize;
            let Some(conn) = self.conn(id) else { continue };
            conn.pipes[side].queue.truncate(keep);
            if powered {
                self.push(now, id, side, Item::End { reset: true }, out);
            }
            self.end(id, side);
            let patience = self.rng.between(2000, 9000) * MS;
            if self.is_open(id, other) {
                out.later.push((now + patience, Later::GiveUp(id, 0)));
            }
        }
    }

    /// A host is back: connections of its earlier life are unknown to it.
    pub fn powered_on(&mut self, now: Time, node: NodeId, out: &mut Effects) {
        let all = (0..self.conns.len()).map(|at| ConnId(at as u64)).collect::<Vec<_>>();
        for id in all {
            let Some(conn) = self.conn(id) else { continue };
            for side in 0..2 {
                if conn.ends[side] == node && !conn.open[side] && conn.open[1 - side] {
                    self.push(now, id, side, Item::End { reset: true }, out);
                    break;
                }
            }
        }
        self.resumed(now, node, out);
    }

    /// A middle box resets a connection, or forgets it at one end only.
    pub fn disturb(&mut self, now: Time, id: ConnId, half: bool, out: &mut Effects) {
        let Some(conn) = self.conn(id) else { return };
        let (ends, open) = (conn.ends, conn.open);
        if open != [true, true] || conn.established != [true, true] {
            return;
        }
        let first = self.rng.index(2);
        for side in [first, 1 - first] {
            self.end(id, side);
            out.signals.push((ends[side], id, Signal::Lost { reset: true }));
            if half {
                out.later.push((now + self.rng.between(1000, 9000) * MS, Later::GiveUp(id, 0)));
                return;
            }
        }
    }
}
