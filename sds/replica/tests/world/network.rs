//! Connections: in order while they last, silent when cut, and now and then a copy of a message that comes much later.

use bytes::Bytes;
use sds_api::peer::{LeaseMessage, PeerFrame};
use sds_replica::Event;

use super::{Happening, MS, World, device};

impl World {
    pub fn connect(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        let is_cut = |world: &Self, from, to| world.cut.get(&(from, to)).copied().unwrap_or(false);
        let possible = self.nodes[a].up && self.nodes[b].up && !self.connections.contains_key(&pair);
        if !possible || is_cut(self, a, b) || is_cut(self, b, a) {
            return;
        }
        self.next_connection += 1;
        self.connections.insert(pair, self.next_connection);
        for (node, peer) in [(a, b), (b, a)] {
            let incarnation = self.nodes[peer].incarnation;
            self.step(node, Event::PeerConnected { device: device(peer), incarnation });
        }
    }

    /// Nothing arrives in this direction for a while; then the connection is torn down and made anew.
    pub fn cut(&mut self, from: usize, to: usize, ms: u64) {
        self.note(|| format!("cut {from} -> {to} for {ms} ms"));
        self.cut.insert((from, to), true);
        let pair = (from.min(to), from.max(to));
        let connection = self.connections.get(&pair).copied().unwrap_or(0);
        self.at(ms * MS, Happening::EndOfCut { a: from, b: to, connection });
    }

    /// The connection of a pair; 0 for none.
    pub fn connection(&self, a: usize, b: usize) -> u64 {
        self.connections.get(&(a.min(b), a.max(b))).copied().unwrap_or(0)
    }

    pub fn end_cut(&mut self, a: usize, b: usize, connection: u64) {
        self.cut.remove(&(a, b));
        let pair = (a.min(b), a.max(b));
        if self.connections.get(&pair) == Some(&connection) {
            self.connections.remove(&pair);
            for (node, peer) in [(a, b), (b, a)] {
                self.at(0, Happening::Lost { node, peer, connection, reset: false });
            }
        }
        let delay = self.rng.between(1, 20) * MS;
        self.at(delay, Happening::Connect { a, b });
    }

    pub fn transmit(&mut self, from: usize, to: usize, frame: &PeerFrame) {
        let pair = (from.min(to), from.max(to));
        let Some(connection) = self.connections.get(&pair).copied() else { return };
        if self.cut.get(&(from, to)).copied().unwrap_or(false) {
            return;
        }
        let encoded = frame.encode();
        let payload = Bytes::from(encoded.payload.concat());
        let mut delay = self.rng.between(MS / 20, MS / 2);
        if self.options.slow_network && self.rng.chance(2) {
            delay += self.rng.below(60 * MS);
        }
        let arrives = (self.now + delay).max(self.last_delivery.get(&(from, to)).copied().unwrap_or(0));
        self.last_delivery.insert((from, to), arrives);
        let header = encoded.header;
        if self.options.late_duplicates && self.rng.chance(2) {
            let late = self.rng.below(800 * MS);
            let (header, payload) = (header.clone(), payload.clone());
            self.at(arrives - self.now + late, Happening::Deliver { from, to, connection: 0, header, payload });
        }
        self.at(arrives - self.now, Happening::Deliver { from, to, connection, header, payload });
    }

    pub fn deliver(&mut self, from: usize, to: usize, connection: u64, header: &[u8], payload: Bytes) {
        let pair = (from.min(to), from.max(to));
        let current = connection == 0 || self.connections.get(&pair) == Some(&connection);
        if !self.nodes[to].up || !current || self.cut.get(&(from, to)).copied().unwrap_or(false) {
            return;
        }
        match PeerFrame::decode(header, payload).expect("what was encoded decodes") {
            PeerFrame::Replica(message) => self.step(to, Event::Peer(message)),
            PeerFrame::Lease(message) => {
                let now = self.local(to);
                let grant = matches!(message, LeaseMessage::Grant { .. });
                if let Some(answer) = self.nodes[to].context.leases.receive(now, &message) {
                    self.transmit(to, from, &PeerFrame::Lease(answer));
                }
                if grant {
                    self.step(to, Event::Tick);
                }
            }
        }
    }
}
