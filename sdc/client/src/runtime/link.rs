//! The connection to one data server, shared by all volumes of the client: being made, or up.
//!
//! Always true: a lane has an opening under way, or a handle, or neither; when a link is dropped, none of its answers is
//! delivered afterwards.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use mdm_api::epoch::Nanos;
use mdm_api::frame::FrameKind;
use mdm_api::ticket::Credential;
use sds_api::client::{ClientReply, ClientRequest};
use sds_api::client_codec::CLIENT_BOUNDS;
use sds_api::open::{OpenMessage, OpenRefusal};

use super::connect::{ConnectError, Wire};

/// Answers that one link delivers before others have their turn.
const FRAMES_PER_TURN: usize = 64;
/// Frames that may wait to be written: what all sessions can have under way, and some. Beyond, the link is stuck.
const FRAMES_MAX: usize = 1 << 16;

/// What a link brings.
pub(super) enum LinkEvent {
    /// It is up: what waits for it can be opened.
    Up,
    /// An answer.
    Reply(ClientReply),
    /// A volume is open.
    Opened { lane: u16, handle: u32 },
    /// A volume is not.
    OpenRefused { lane: u16, code: OpenRefusal, text: String },
    /// It is lost, or could not be made.
    Lost(ConnectError),
}

struct OpeningUnderWay {
    lane: u16,
    credential: Credential,
    at: Nanos,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Wire, ConnectError>> + Send>>;

enum State {
    Connecting(Connecting),
    Up(Box<Wire>),
}

pub(super) struct Link {
    state: State,
    /// Lanes that wait for the link to come up.
    pub wanted: Vec<u16>,
    openings: BTreeMap<u32, OpeningUnderWay>,
    next_request: u32,
    handles: BTreeMap<u16, u32>,
    pub last_heard: Nanos,
    header: Vec<u8>,
}

impl Link {
    pub fn new(connecting: Connecting, now: Nanos) -> Self {
        Self {
            state: State::Connecting(connecting),
            wanted: Vec::new(),
            openings: BTreeMap::new(),
            next_request: 0,
            handles: BTreeMap::new(),
            last_heard: now,
            header: Vec::new(),
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// True if no volume uses it.
    pub fn is_unused(&self) -> bool {
        self.wanted.is_empty() && self.openings.is_empty() && self.handles.is_empty()
    }

    /// The oldest opening that is not answered.
    pub fn oldest_opening(&self) -> Option<Nanos> {
        self.openings.values().map(|opening| opening.at).min()
    }

    /// Asks the server to open a volume. The link must be up.
    pub fn open(&mut self, lane: u16, credential: Credential, now: Nanos) {
        let State::Up(wire) = &mut self.state else { return };
        self.next_request += 1;
        wire.push_open(self.next_request, &credential);
        self.handles.remove(&lane);
        self.openings.insert(self.next_request, OpeningUnderWay { lane, credential, at: now });
    }

    /// Queues a request. Dropped while the link is not up: its sender hears of that anyway.
    pub fn send(&mut self, request: &ClientRequest) {
        let State::Up(wire) = &mut self.state else { return };
        self.header.clear();
        request.encode_header(&mut self.header);
        wire.writer.push(FrameKind::ClientRequest, &self.header, [request.payload()]);
    }

    /// The lane is done with the server.
    pub fn close(&mut self, lane: u16) {
        self.wanted.retain(|wanted| *wanted != lane);
        self.openings.retain(|_, opening| opening.lane != lane);
        if let (Some(handle), State::Up(wire)) = (self.handles.remove(&lane), &mut self.state) {
            wire.writer.push(FrameKind::DataOpen, &OpenMessage::Close { handle }.encode(), []);
        }
    }

    /// Writes what is queued, as far as the socket takes it.
    pub fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectError> {
        let State::Up(wire) = &mut self.state else { return Ok(()) };
        if wire.writer.frames() > FRAMES_MAX {
            return Err(ConnectError::Io(io::ErrorKind::TimedOut.into()));
        }
        match wire.writer.poll_flush(cx, &wire.stream) {
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Collects what has come, at most one turn's worth. `Pending` once there is nothing more at the moment.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Nanos, out: &mut Vec<LinkEvent>) -> Poll<()> {
        if let State::Connecting(connecting) = &mut self.state {
            match connecting.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(wire)) => {
                    self.last_heard = now;
                    self.state = State::Up(Box::new(wire));
                    out.push(LinkEvent::Up);
                }
                Poll::Ready(Err(error)) => out.push(LinkEvent::Lost(error)),
            }
            return Poll::Ready(());
        }
        for _ in 0..FRAMES_PER_TURN {
            match self.poll_event(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(event)) => {
                    self.last_heard = now;
                    out.extend(event);
                }
                Poll::Ready(Err(error)) => {
                    out.push(LinkEvent::Lost(error));
                    break;
                }
            }
        }
        Poll::Ready(())
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<LinkEvent>, ConnectError>> {
        let State::Up(wire) = &mut self.state else { return Poll::Pending };
        let frame = match wire.reader.poll_frame(cx, &wire.stream, CLIENT_BOUNDS) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(Some(frame))) => frame,
            Poll::Ready(Ok(None)) => return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionReset).into())),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
        };
        Poll::Ready(self.take_in(frame))
    }

    fn take_in(&mut self, (kind, payload): (FrameKind, Bytes)) -> Result<Option<LinkEvent>, ConnectError> {
        let State::Up(wire) = &mut self.state else { return Ok(None) };
        match kind {
            FrameKind::ClientReply => {
                let reply = ClientReply::decode(wire.reader.header(), payload).map_err(io::Error::other)?;
                Ok(Some(LinkEvent::Reply(reply)))
            }
            FrameKind::DataOpen => {
                let message = OpenMessage::decode(wire.reader.header()).map_err(io::Error::other)?;
                self.take_in_opening(message)
            }
            _ => Err(ConnectError::Protocol),
        }
    }

    fn take_in_opening(&mut self, message: OpenMessage) -> Result<Option<LinkEvent>, ConnectError> {
        match message {
            OpenMessage::Opened { request, handle, proof } => {
                // An answer to an opening that was closed meanwhile is nobody's; the handle is given back.
                let State::Up(wire) = &mut self.state else { return Ok(None) };
                let Some(opening) = self.openings.remove(&request) else {
                    wire.writer.push(FrameKind::DataOpen, &OpenMessage::Close { handle }.encode(), []);
                    return Ok(None);
                };
                if !wire.proves(&opening.credential, &proof) {
                    return Err(ConnectError::OtherServer("it does not hold the domain's key".to_owned()));
                }
                self.handles.insert(opening.lane, handle);
                Ok(Some(LinkEvent::Opened { lane: opening.lane, handle }))
            }
            OpenMessage::OpenRefused { request, code, text } => {
                let opening = self.openings.remove(&request);
                Ok(opening.map(|opening| LinkEvent::OpenRefused { lane: opening.lane, code, text }))
            }
            OpenMessage::Refused { text } => Err(ConnectError::Refused(text)),
            _ => Err(ConnectError::Protocol),
        }
    }
}
