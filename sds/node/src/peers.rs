//! Other servers: connections to them, and the leases that are exchanged over these.

use std::collections::BTreeMap;

use mdm_api::epoch::Nanos;
use mdm_api::ids::{ProcessIncarnation, SdsId};
use sds_api::peer::{LeaseMessage, PeerFrame};
use sds_replica::Event as ReplicaEvent;

use crate::action::Action;
use crate::limits::UNREACHABLE_MS;
use crate::shard::{Shard, Work};

struct Peer {
    addresses: Vec<String>,
    up: Option<ProcessIncarnation>,
    /// When the connection was wanted or lost.
    down_since: Nanos,
    /// It was reset or refused since it was last up.
    was_reset: bool,
    next_ask: Nanos,
    last_lease: Option<Nanos>,
}

/// The servers that share groups with this one.
#[derive(Default)]
pub(crate) struct Peers {
    all: BTreeMap<SdsId, Peer>,
}

impl Peers {
    pub(crate) fn is_up(&self, sds: SdsId) -> bool {
        self.process(sds).is_some()
    }

    /// The process at the other end of the connection.
    pub(crate) fn process(&self, sds: SdsId) -> Option<ProcessIncarnation> {
        self.all.get(&sds)?.up
    }

    /// When the next question for a lease is due.
    pub(crate) fn deadline(&self) -> Nanos {
        self.all.values().filter(|peer| peer.up.is_some()).map(|peer| peer.next_ask).min().unwrap_or(Nanos::NEVER)
    }

    pub(crate) fn up_count(&self) -> usize {
        self.all.values().filter(|peer| peer.up.is_some()).count()
    }

    /// Servers that cannot be reached, or reset the connection.
    pub(crate) fn unreachable(&self, now: Nanos) -> Vec<SdsId> {
        let is_lost =
            |peer: &Peer| peer.up.is_none() && (peer.was_reset || now.ms_since(peer.down_since) >= UNREACHABLE_MS);
        self.all.iter().filter(|(_, peer)| is_lost(peer)).map(|(sds, _)| *sds).collect()
    }

    /// Servers with which leases were exchanged within the last span.
    pub(crate) fn leases_with(&self, now: Nanos, lease_ms: u64) -> Vec<SdsId> {
        let is_recent = |peer: &Peer| peer.last_lease.is_some_and(|at| now.ms_since(at) < lease_ms);
        self.all.iter().filter(|(_, peer)| is_recent(peer)).map(|(sds, _)| *sds).collect()
    }
}

impl Shard {
    /// Compares the connections with those that are needed.
    pub(crate) fn choose_peers(&mut self, out: &mut Vec<Action>) {
        let wanted = self.sharing_servers();
        let gone: Vec<SdsId> = self.peers.all.keys().filter(|sds| !wanted.contains_key(sds)).copied().collect();
        for sds in gone {
            self.peers.all.remove(&sds);
            out.push(Action::DisconnectPeer { sds });
            self.tell_lost(sds, false);
        }
        let now = self.now;
        for (sds, addresses) in wanted {
            if self.peers.all.get(&sds).is_some_and(|peer| peer.addresses == addresses) {
                continue;
            }
            let peer = self.peers.all.entry(sds).or_insert(Peer {
                addresses: Vec::new(),
                up: None,
                down_since: now,
                was_reset: false,
                next_ask: now,
                last_lease: None,
            });
            peer.addresses = addresses.clone();
            out.push(Action::ConnectPeer { sds, addresses });
        }
    }

    pub(crate) fn peer_up(&mut self, sds: SdsId, incarnation: ProcessIncarnation, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(peer) = self.peers.all.get_mut(&sds) else { return };
        if peer.up.is_some() {
            // A new connection without the end of the old one: what was sent over that is lost.
            self.peer_down(sds, false);
        }
        let Some(peer) = self.peers.all.get_mut(&sds) else { return };
        (peer.up, peer.was_reset, peer.next_ask) = (Some(incarnation), false, now);
        self.ask_leases(out);
        for (pg, device) in self.groups.keys() {
            self.tell_connections(pg, device);
        }
    }

    pub(crate) fn peer_down(&mut self, sds: SdsId, reset: bool) {
        let now = self.now;
        let Some(peer) = self.peers.all.get_mut(&sds) else { return };
        peer.was_reset |= reset;
        if peer.up.take().is_some() {
            peer.down_since = now;
        }
        self.tell_lost(sds, reset);
    }

    fn tell_lost(&mut self, sds: SdsId, reset: bool) {
        for (pg, device) in self.groups.keys() {
            let Some(group) = self.groups.get_mut(pg, device) else { continue };
            let Some(told) = &group.told else { continue };
            let members = told.homes.iter().filter(|home| home.server == sds).map(|home| home.device);
            for member in members.collect::<Vec<_>>() {
                group.connected.remove(&member);
                self.work.push_back(Work::Replica {
                    pg,
                    device,
                    event: ReplicaEvent::PeerLost { device: member, reset },
                });
            }
        }
    }

    /// Asks for leases where that is due.
    pub(crate) fn ask_leases(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let renew_ms = self.settings.timing.lease_renew_ms;
        let Some(context) = &self.context else { return };
        for (sds, peer) in self.peers.all.iter_mut().filter(|(_, peer)| peer.up.is_some() && peer.next_ask <= now) {
            peer.next_ask = now.plus_ms(renew_ms);
            out.push(Action::SendPeer { sds: *sds, frame: PeerFrame::Lease(context.leases.ask(now, *sds)) });
        }
    }

    pub(crate) fn peer_frame(
        &mut self,
        sds: SdsId,
        incarnation: ProcessIncarnation,
        frame: PeerFrame,
        out: &mut Vec<Action>,
    ) {
        if self.peers.process(sds) != Some(incarnation) {
            return; // of a connection that is not there any more
        }
        match frame {
            PeerFrame::Lease(message) => self.lease_message(sds, incarnation, &message, out),
            PeerFrame::Replica(message) => {
                let is_theirs = self.map.device(message.from).is_some_and(|device| device.sds == sds);
                if !is_theirs || message.incarnation != incarnation {
                    self.counters.strange_messages += 1;
                    return;
                }
                let (pg, device) = (message.pg, message.to);
                self.work.push_back(Work::Replica { pg, device, event: ReplicaEvent::Peer(message) });
            }
        }
    }

    fn lease_message(
        &mut self,
        sds: SdsId,
        incarnation: ProcessIncarnation,
        message: &LeaseMessage,
        out: &mut Vec<Action>,
    ) {
        let (LeaseMessage::Ask { from, incarnation: of, .. } | LeaseMessage::Grant { from, incarnation: of, .. }) =
            message;
        if (*from, *of) != (sds, incarnation) {
            self.counters.strange_messages += 1;
            return;
        }
        let now = self.now;
        let Some(context) = self.context.as_mut() else { return };
        let answer = context.leases.receive(now, message);
        if let Some(peer) = self.peers.all.get_mut(&sds) {
            peer.last_lease = Some(now);
        }
        if let Some(answer) = answer {
            out.push(Action::SendPeer { sds, frame: PeerFrame::Lease(answer) });
        }
    }
}
