//! A client's connection after the greeting.
//!
//! What a client may have under way is bounded: beyond that its socket is simply not read, and it waits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use mdm_api::frame::{FrameBounds, FrameKind};
use mdm_api::ids::SdcId;
use mdm_api::ticket::Nonce;
use sds_api::client::{ClientReply, ClientRequest};
use sds_api::client_codec::CLIENT_BOUNDS;
use sds_api::open::{OPEN_BYTES_MAX, OpenMessage};
use sds_node::{ClientOpen, Event};

use super::hub::Hub;
use super::socket::{Frame, FrameReader, Socket};
use crate::clock;

/// Bytes of data under way for one client: thirty-two whole chunks.
const BYTES_MAX: usize = 32 << 20;
/// Requests under way for one client.
const REQUESTS_MAX: usize = 1024;

const BOUNDS: FrameBounds = FrameBounds {
    header_bytes_max: if OPEN_BYTES_MAX > CLIENT_BOUNDS.header_bytes_max {
        OPEN_BYTES_MAX
    } else {
        CLIENT_BOUNDS.header_bytes_max
    },
    payload_bytes_max: CLIENT_BOUNDS.payload_bytes_max,
};

/// A client's connection.
pub(crate) struct Client {
    socket: Rc<Socket>,
    under_way: RefCell<BTreeMap<u64, usize>>,
    bytes: Cell<usize>,
}

impl Client {
    /// Sends an answer.
    pub(crate) fn reply(&self, hub: &Hub, reply: &ClientReply) {
        let mut header = Vec::with_capacity(64);
        reply.encode_header(&mut header);
        self.socket.queue(FrameKind::ClientReply, &header, reply.payload());
        if let Some(bytes) = self.under_way.borrow_mut().remove(&reply.tag) {
            self.bytes.set(self.bytes.get().saturating_sub(bytes));
            self.socket.made_room();
        }
        hub.touch(&self.socket);
    }

    /// Sends a word of the opening.
    pub(crate) fn say(&self, hub: &Hub, message: &OpenMessage) {
        self.socket.queue(FrameKind::DataOpen, &message.encode(), &[]);
        hub.touch(&self.socket);
    }

    /// Ends the connection with a word.
    pub(crate) fn refuse(&self, text: String) {
        self.socket.queue(FrameKind::DataOpen, &OpenMessage::Refused { text }.encode(), &[]);
        self.socket.flush();
        self.socket.close();
    }

    fn is_full(&self) -> bool {
        self.bytes.get() >= BYTES_MAX
            || self.under_way.borrow().len() >= REQUESTS_MAX
            || self.socket.out_bytes() >= BYTES_MAX
    }

    fn began(&self, request: &ClientRequest) {
        let (_, length) = request.operation.range();
        if self.under_way.borrow_mut().insert(request.tag, length as usize).is_none() {
            self.bytes.set(self.bytes.get() + length as usize);
        }
    }
}

/// Serves a client that was greeted as `sdc`, until the connection ends.
pub(crate) async fn serve(
    hub: &Rc<Hub>,
    socket: Rc<Socket>,
    mut reader: FrameReader,
    sdc: SdcId,
    nonces: (Nonce, Nonce),
) {
    let connection = hub.next_connection.get();
    hub.next_connection.set(connection + 1);
    let client = Rc::new(Client { socket, under_way: RefCell::default(), bytes: Cell::new(0) });
    hub.clients.borrow_mut().insert(connection, client.clone());
    loop {
        while client.is_full() && !client.socket.is_closed() {
            client.socket.room().await;
        }
        match reader.next(BOUNDS).await {
            Ok(Some(frame)) => match event(connection, sdc, &nonces, frame) {
                Ok(event) => {
                    if let Event::ClientRequest { request, .. } = &event {
                        client.began(request);
                    }
                    hub.push_slowly(event).await;
                }
                Err(text) => {
                    tracing::warn!(%sdc, text, "a client does not keep to the protocol");
                    client.refuse(text);
                    break;
                }
            },
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%sdc, %error, "a client's connection broke");
                if error.is_ours() {
                    client.refuse(error.to_string());
                }
                break;
            }
        }
    }
    client.socket.close();
    hub.clients.borrow_mut().remove(&connection);
    hub.push(Event::ClientGone { connection });
}

fn event(connection: u64, sdc: SdcId, nonces: &(Nonce, Nonce), frame: Frame) -> Result<Event, String> {
    match frame.kind {
        FrameKind::ClientRequest => {
            let request = ClientRequest::decode(&frame.header, frame.payload).map_err(|error| error.to_string())?;
            Ok(Event::ClientRequest { connection, request })
        }
        FrameKind::DataOpen => match OpenMessage::decode(&frame.header).map_err(|error| error.to_string())? {
            OpenMessage::Open { request, ticket, proof } => Ok(Event::ClientOpen(ClientOpen {
                connection,
                sdc,
                request,
                ticket,
                proof,
                server_nonce: nonces.0,
                client_nonce: nonces.1,
                now_s: clock::wall_s(),
            })),
            OpenMessage::Close { handle } => Ok(Event::ClientClose { connection, handle }),
            _ => Err("a word of the opening that does not belong here".to_owned()),
        },
        other => Err(format!("a frame of kind {other:?} from a client")),
    }
}
