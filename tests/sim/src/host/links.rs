//! A data server's connections: greetings, other servers (one connection for leases, one for data), clients.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use mdm_api::frame::FrameKind;
use mdm_api::ids::{ProcessIncarnation, SdcId, SdsId, SystemId};
use mdm_api::ticket::{Nonce, equal, peer_proof};
use sds_api::buf::AlignedBuf;
use sds_api::client::ClientRequest;
use sds_api::open::{OPEN_VERSION, OPEN_VERSION_MIN, OpenMessage, PeerLink};
use sds_api::peer::{LeaseMessage, PeerFrame};
use sds_node::{ClientOpen, Event, Shard};

use crate::clock::SECOND;
use crate::core::Core;
use crate::host::mdm::WALL_S;
use crate::net::{ConnId, Frame, NodeId, Port, Signal};
use mdm_api::control::PeerRole;
use mdm_api::epoch::Nanos;

const REDIAL_MS: u64 = 150;

/// Joins pieces into one aligned buffer, as a receiver reads them.
pub fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            let length = many.iter().map(Bytes::len).sum();
            if length == 0 {
                return Bytes::new();
            }
            let mut buffer = AlignedBuf::zeroed(length);
            let mut at = 0;
            for piece in many {
                buffer[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            }
            buffer.freeze()
        }
    }
}

/// A frame of the opening.
pub fn opening(message: &OpenMessage) -> Frame {
    Frame::new(FrameKind::DataOpen, message.encode(), Bytes::new())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Called by us; the challenge is awaited.
    Dialling { sds: SdsId, link: PeerLink },
    /// We have answered the challenge.
    Proving { sds: SdsId, link: PeerLink, incarnation: ProcessIncarnation, expected: [u8; 32] },
    /// We have challenged the caller.
    Challenged { nonce: Nonce },
    /// A client that has greeted.
    Client { sdc: SdcId, server: Nonce, client: Nonce },
    /// A greeted connection to another server.
    Peer { sds: SdsId, incarnation: ProcessIncarnation },
}

#[derive(Default)]
struct Peer {
    wanted: bool,
    conns: BTreeMap<PeerLink, ConnId>,
    ready: BTreeMap<PeerLink, ProcessIncarnation>,
    is_up: bool,
    redial: Nanos,
    held: Vec<PeerFrame>,
}

/// See the module.
pub struct Links {
    node: NodeId,
    system: SystemId,
    own: SdsId,
    stages: BTreeMap<ConnId, Stage>,
    peers: BTreeMap<SdsId, Peer>,
}

impl Links {
    /// No connections.
    pub fn new(node: NodeId, system: SystemId, own: SdsId) -> Self {
        Self { node, system, own, stages: BTreeMap::new(), peers: BTreeMap::new() }
    }

    /// A connection to that server is wanted.
    pub fn want(&mut self, core: &mut Core, shard: &Shard, sds: SdsId, out: &mut Vec<Event>) {
        let peer = self.peers.entry(sds).or_default();
        peer.wanted = true;
        if peer.is_up
            && let Some(incarnation) = peer.ready.values().next()
        {
            out.push(Event::PeerUp { sds, incarnation: *incarnation });
        }
        self.dial(core, shard);
    }

    /// It is not wanted any more.
    pub fn unwant(&mut self, core: &mut Core, sds: SdsId) {
        self.tear(core, sds, None);
        self.peers.remove(&sds);
    }

    /// Calls whom it is ours to call: of two servers the one with the lower id does.
    pub fn dial(&mut self, core: &mut Core, shard: &Shard) {
        let now = core.local(self.node);
        if shard.incarnation().is_none() {
            return;
        }
        for (sds, peer) in &mut self.peers {
            if !peer.wanted || *sds < self.own || peer.redial > now {
                continue;
            }
            let Some(node) = core.directory.sds_ids.get(sds).copied() else { continue };
            for link in [PeerLink::Control, PeerLink::Bulk] {
                if let Entry::Vacant(place) = peer.conns.entry(link) {
                    let conn = core.dial(self.node, node, Port::Data, PeerRole::Sds(self.own));
                    place.insert(conn);
                    self.stages.insert(conn, Stage::Dialling { sds: *sds, link });
                }
            }
        }
    }

    /// When [`Links::dial`] is due.
    pub fn deadline(&self, now: Nanos) -> Nanos {
        self.peers.values().map(|peer| peer.redial).filter(|at| *at > now).min().unwrap_or(Nanos::NEVER)
    }

    /// Both connections to a server end, if one does.
    fn tear(&mut self, core: &mut Core, sds: SdsId, lost: Option<(ConnId, bool)>) -> Option<Event> {
        let now = core.local(self.node);
        let peer = self.peers.get_mut(&sds)?;
        for (_, conn) in std::mem::take(&mut peer.conns) {
            self.stages.remove(&conn);
            if lost.is_none_or(|(lost, _)| lost != conn) {
                core.close(conn, self.node);
            }
        }
        peer.ready.clear();
        peer.held.clear();
        peer.redial = now.plus_ms(REDIAL_MS);
        core.arm(self.node, peer.redial);
        let was_up = std::mem::take(&mut peer.is_up);
        let reset = lost.is_some_and(|(_, reset)| reset);
        (was_up || peer.wanted).then_some(Event::PeerDown { sds, reset })
    }

    /// Sends a frame to another server.
    pub fn send_peer(&self, core: &mut Core, sds: SdsId, frame: &PeerFrame) {
        let link = match frame {
            PeerFrame::Lease(_) => PeerLink::Control,
            PeerFrame::Replica(_) => PeerLink::Bulk,
        };
        let Some(conn) = self.peers.get(&sds).filter(|peer| peer.is_up).and_then(|peer| peer.conns.get(&link)) else {
            return;
        };
        if matches!(frame, PeerFrame::Lease(LeaseMessage::Grant { exclude, .. }) if !exclude.is_empty()) {
            core.marks.hit("I15");
        }
        let encoded = frame.encode();
        core.send(*conn, self.node, Frame::new(FrameKind::Peer, encoded.header, joined(&encoded.payload)));
    }

    /// Something came.
    pub fn signal(&mut self, core: &mut Core, shard: &Shard, conn: ConnId, signal: Signal, out: &mut Vec<Event>) {
        match signal {
            Signal::Accepted { .. } => {
                let Some(incarnation) = shard.incarnation() else { return core.close(conn, self.node) };
                let nonce = core.rng.bytes32();
                self.stages.insert(conn, Stage::Challenged { nonce });
                let challenge = OpenMessage::Challenge {
                    version_min: OPEN_VERSION_MIN,
                    version_max: OPEN_VERSION,
                    system: self.system,
                    sds: self.own,
                    incarnation,
                    nonce,
                };
                core.send(conn, self.node, opening(&challenge));
            }
            Signal::Connected | Signal::Written => {}
            Signal::Lost { reset } => self.lost(core, conn, reset, out),
            Signal::Frame(frame) => {
                if self.frame(core, shard, conn, frame, out).is_none() {
                    core.close(conn, self.node);
                    self.lost(core, conn, false, out);
                }
            }
        }
    }

    /// The shell, or the server, ends a client's connection.
    pub fn close_client(&mut self, core: &mut Core, conn: ConnId, out: &mut Vec<Event>) {
        core.close(conn, self.node);
        self.lost(core, conn, false, out);
    }

    fn lost(&mut self, core: &mut Core, conn: ConnId, reset: bool, out: &mut Vec<Event>) {
        match self.stages.remove(&conn) {
            Some(Stage::Client { .. }) => out.push(Event::ClientGone { connection: conn.0 }),
            Some(Stage::Dialling { sds, .. } | Stage::Proving { sds, .. } | Stage::Peer { sds, .. }) => {
                out.extend(self.tear(core, sds, Some((conn, reset))));
            }
            Some(Stage::Challenged { .. }) | None => {}
        }
    }

    /// `None`: it makes no sense here.
    fn frame(
        &mut self,
        core: &mut Core,
        shard: &Shard,
        conn: ConnId,
        frame: Frame,
        out: &mut Vec<Event>,
    ) -> Option<()> {
        let (kind, header, payload) = frame.open()?;
        let stage = *self.stages.get(&conn)?;
        match (stage, kind) {
            (Stage::Peer { sds, incarnation }, FrameKind::Peer) => {
                let frame = PeerFrame::decode(&header, payload).ok()?;
                let peer = self.peers.get_mut(&sds)?;
                if peer.is_up {
                    out.push(Event::PeerFrame { sds, incarnation, frame });
                } else {
                    peer.held.push(frame);
                }
                Some(())
            }
            (Stage::Client { .. }, FrameKind::ClientRequest) => {
                let request = ClientRequest::decode(&header, payload).ok()?;
                self.mark(core, shard, conn, &request);
                out.push(Event::ClientRequest { connection: conn.0, request });
                Some(())
            }
            (stage, FrameKind::DataOpen) => {
                self.greeting(core, shard, conn, stage, OpenMessage::decode(&header).ok()?, out)
            }
            _ => None,
        }
    }

    /// Rows that a request is an example of: its connection is over for the client that sent it, or what it wants was
    /// committed before.
    fn mark(&self, core: &mut Core, shard: &Shard, conn: ConnId, request: &ClientRequest) {
        let Some(identity) = shard.identity_of(conn.0, request) else { return };
        let client = core.net.other_end(conn, self.node);
        let is_late = client.is_some_and(|client| core.reach[client].running && !core.net.is_open(conn, client));
        core.marks.hit_if("F24", is_late);
        core.marks.hit_if("I16", core.watch.protocol.is_committed(request.pg, &identity));
    }

    fn greeting(
        &mut self,
        core: &mut Core,
        shard: &Shard,
        conn: ConnId,
        stage: Stage,
        message: OpenMessage,
        out: &mut Vec<Event>,
    ) -> Option<()> {
        match (stage, message) {
            (Stage::Dialling { sds, link }, OpenMessage::Challenge { sds: there, incarnation, nonce, .. }) => {
                let (own, key) = (shard.incarnation()?, shard.peer_key(sds)?);
                if there != sds {
                    return None;
                }
                let ours = core.rng.bytes32();
                let proof = peer_proof(key, (self.own, own), sds, &nonce, &ours);
                let expected = peer_proof(key, (sds, incarnation), self.own, &ours, &nonce);
                let hello = OpenMessage::PeerHello {
                    version: OPEN_VERSION,
                    system: self.system,
                    sds: self.own,
                    incarnation: own,
                    link,
                    nonce: ours,
                    key: key.id,
                    proof,
                };
                core.send(conn, self.node, opening(&hello));
                self.stages.insert(conn, Stage::Proving { sds, link, incarnation, expected });
                Some(())
            }
            (
                Stage::Challenged { nonce },
                OpenMessage::PeerHello { sds, incarnation, link, nonce: theirs, key, proof, .. },
            ) => {
                let (own, key) = (shard.incarnation()?, shard.domain_key(key)?);
                if !equal(&peer_proof(key, (sds, incarnation), self.own, &nonce, &theirs), &proof) {
                    return None;
                }
                let proof = peer_proof(key, (self.own, own), sds, &theirs, &nonce);
                core.send(conn, self.node, opening(&OpenMessage::PeerWelcome { proof }));
                self.greeted(core, conn, sds, link, incarnation, out);
                Some(())
            }
            (Stage::Proving { sds, link, incarnation, expected }, OpenMessage::PeerWelcome { proof }) => {
                if !equal(&expected, &proof) {
                    return None;
                }
                self.greeted(core, conn, sds, link, incarnation, out);
                Some(())
            }
            (Stage::Challenged { nonce }, OpenMessage::ClientHello { sdc, nonce: client, .. }) => {
                self.stages.insert(conn, Stage::Client { sdc, server: nonce, client });
                Some(())
            }
            (Stage::Client { sdc, server, client }, OpenMessage::Open { request, ticket, proof }) => {
                out.push(Event::ClientOpen(ClientOpen {
                    connection: conn.0,
                    sdc,
                    request,
                    ticket,
                    proof,
                    server_nonce: server,
                    client_nonce: client,
                    now_s: WALL_S + core.now / SECOND,
                }));
                Some(())
            }
            (Stage::Client { .. }, OpenMessage::Close { handle }) => {
                out.push(Event::ClientClose { connection: conn.0, handle });
                Some(())
            }
            _ => None,
        }
    }

    fn greeted(
        &mut self,
        core: &mut Core,
        conn: ConnId,
        sds: SdsId,
        link: PeerLink,
        incarnation: ProcessIncarnation,
        out: &mut Vec<Event>,
    ) {
        let peer = self.peers.entry(sds).or_default();
        let is_other = peer.conns.get(&link).is_some_and(|old| *old != conn);
        let is_newer = peer.ready.values().any(|ready| *ready != incarnation);
        if is_other || is_newer {
            self.stages.remove(&conn);
            out.extend(self.tear(core, sds, None));
        }
        self.stages.insert(conn, Stage::Peer { sds, incarnation });
        let peer = self.peers.entry(sds).or_default();
        peer.conns.insert(link, conn);
        peer.ready.insert(link, incarnation);
        if peer.ready.len() == 2 && !peer.is_up {
            peer.is_up = true;
            out.push(Event::PeerUp { sds, incarnation });
            let held = std::mem::take(&mut peer.held);
            out.extend(held.into_iter().map(|frame| Event::PeerFrame { sds, incarnation, frame }));
        }
    }
}
