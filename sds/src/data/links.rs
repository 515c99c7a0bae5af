//! Connections to other servers: one for leases and one for data to each, made by the server with the lower id.
//!
//! The two live and die together: only when both lead to the same process is the peer up, and when one breaks both go.

use std::rc::Rc;

use mdm_api::frame::{FrameBounds, FrameKind};
use mdm_api::ids::{ProcessIncarnation, SdsId};
use sds_api::open::PeerLink;
use sds_api::peer::{PEER_HEADER_BYTES_MAX, PEER_PAYLOAD_BYTES_MAX, PeerFrame};
use sds_node::Event;
use tokio::task::AbortHandle;

use super::hub::Hub;
use super::socket::{FrameReader, Socket};

/// What a peer may be sent and not have taken. The protocol bounds what is under way far below this; a peer that gets
/// here does not read at all.
const OUT_BYTES_MAX: usize = 1 << 30;

const BOUNDS: FrameBounds =
    FrameBounds { header_bytes_max: PEER_HEADER_BYTES_MAX, payload_bytes_max: PEER_PAYLOAD_BYTES_MAX };

/// The connections to one server.
#[derive(Default)]
pub(crate) struct Links {
    pub(crate) addresses: Vec<String>,
    incarnation: Option<ProcessIncarnation>,
    control: Option<Rc<Socket>>,
    bulk: Option<Rc<Socket>>,
    is_up: bool,
    /// It was said that the peer cannot be reached, and it has not been up since.
    was_reported: bool,
    pub(crate) dialers: Vec<AbortHandle>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.dialers.iter().for_each(AbortHandle::abort);
        self.close();
    }
}

impl Links {
    fn close(&mut self) {
        for socket in [self.control.take(), self.bulk.take()].into_iter().flatten() {
            socket.close();
        }
        self.incarnation = None;
    }

    fn slot(&mut self, link: PeerLink) -> &mut Option<Rc<Socket>> {
        match link {
            PeerLink::Control => &mut self.control,
            PeerLink::Bulk => &mut self.bulk,
        }
    }

    fn holds(&self, socket: &Rc<Socket>) -> bool {
        [&self.control, &self.bulk].into_iter().flatten().any(|held| Rc::ptr_eq(held, socket))
    }

    /// Queues a frame on the connection that it belongs to.
    pub(crate) fn send(&self, hub: &Hub, frame: &PeerFrame) {
        let socket = match frame {
            PeerFrame::Lease(_) => &self.control,
            PeerFrame::Replica(_) => &self.bulk,
        };
        let Some(socket) = socket.as_ref().filter(|_| self.is_up) else { return };
        let encoded = frame.encode();
        socket.queue(FrameKind::Peer, &encoded.header, &encoded.payload);
        if socket.out_bytes() > OUT_BYTES_MAX {
            tracing::warn!("another server takes nothing of what it is sent: the connection is closed");
            socket.close();
        }
        hub.touch(socket);
    }
}

/// A connection has been greeted. `false`: no connection with that server is wanted.
fn link_up(hub: &Hub, sds: SdsId, incarnation: ProcessIncarnation, link: PeerLink, socket: &Rc<Socket>) -> bool {
    let mut all = hub.links.borrow_mut();
    let Some(links) = all.get_mut(&sds) else { return false };
    if links.incarnation.is_some_and(|known| known != incarnation) || links.slot(link).is_some() {
        links.close();
        if std::mem::take(&mut links.is_up) {
            hub.push(Event::PeerDown { sds, reset: true });
        }
    }
    links.incarnation = Some(incarnation);
    *links.slot(link) = Some(socket.clone());
    if links.control.is_some() && links.bulk.is_some() {
        (links.is_up, links.was_reported) = (true, false);
        tracing::info!(%sds, %incarnation, "connected");
        hub.push(Event::PeerUp { sds, incarnation });
    }
    true
}

fn link_down(hub: &Hub, sds: SdsId, socket: &Rc<Socket>, reset: bool) {
    let mut all = hub.links.borrow_mut();
    let Some(links) = all.get_mut(&sds).filter(|links| links.holds(socket)) else { return };
    links.close();
    if std::mem::take(&mut links.is_up) {
        tracing::info!(%sds, reset, "connection lost");
        links.was_reported = true;
        hub.push(Event::PeerDown { sds, reset });
    }
}

/// The peer cannot be reached; said once until it has been up.
pub(crate) fn not_reached(hub: &Hub, sds: SdsId, reset: bool) {
    if let Some(links) = hub.links.borrow_mut().get_mut(&sds)
        && !std::mem::replace(&mut links.was_reported, true)
    {
        hub.push(Event::PeerDown { sds, reset });
    }
}

/// Serves a greeted connection until it ends. `welcome` is called once it counts, before anything is read. `false`: it is
/// not wanted.
pub(crate) async fn serve(
    hub: &Rc<Hub>,
    (sds, incarnation, link): (SdsId, ProcessIncarnation, PeerLink),
    socket: Rc<Socket>,
    mut reader: FrameReader,
    welcome: impl FnOnce(&Socket),
) -> bool {
    if !link_up(hub, sds, incarnation, link, &socket) {
        return false;
    }
    welcome(&socket);
    let reset = loop {
        match reader.next(BOUNDS).await {
            Ok(Some(frame)) if frame.kind == FrameKind::Peer => match PeerFrame::decode(&frame.header, frame.payload) {
                Ok(frame) => hub.push_slowly(Event::PeerFrame { sds, incarnation, frame }).await,
                Err(error) => {
                    tracing::warn!(%sds, %error, "another server does not keep to the protocol");
                    break true;
                }
            },
            Ok(Some(frame)) => {
                tracing::warn!(%sds, kind = ?frame.kind, "another server does not keep to the protocol");
                break true;
            }
            Ok(None) => break true,
            Err(error) => {
                tracing::debug!(%sds, %error, "a connection to another server broke");
                break error.is_reset();
            }
        }
    };
    link_down(hub, sds, &socket, reset);
    socket.close();
    true
}
