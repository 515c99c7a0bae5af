//! A control connection after its greeting: requests in, answers and steps of the map out.
//!
//! Bounded on all sides: so many requests in flight, so many messages waiting to be written, so long for a caller to read
//! one. A caller that goes beyond loses its connection, and nothing else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mdm_api::client::{FramedReader, FramedWriter};
use mdm_api::control::{ControlMessage, PeerRole};
use mdm_api::error::CommandError;
use mdm_api::limits::GREETING_BYTES_MAX;
use mdm_api::map::MapDelta;
use mdm_node::{ConnectionId, Event, RequestKey};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};

use crate::greet::Caller;
use crate::owner::Input;

/// Requests of one connection that are not answered yet.
const IN_FLIGHT_MAX: usize = 256;
/// Messages that wait to be written: all answers, one step of the map, and acknowledgements.
const WAITING_MAX: usize = IN_FLIGHT_MAX + 64;
/// How long one message may take to be written; a full map to a slow host takes seconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a tool or a joiner may say nothing; longer than the longest answer takes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest message of a data server: reports on all groups of a large system.
const SDS_BYTES_MAX: usize = 16 << 20;

/// A message on its way out.
pub(crate) enum Outgoing {
    /// Any message but an answer or a step.
    Message(ControlMessage),
    /// An answer: one request less in flight.
    Answer(ControlMessage),
    /// A step of the map: its writing is reported.
    Push(MapDelta),
    /// The last message.
    Close(CommandError),
}

/// Numbers connections of this process.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Serves one caller to the end.
pub(crate) async fn serve(caller: Caller, inbox: mpsc::Sender<Input>) {
    let Caller { role, mut reader, mut writer } = caller;
    let id = ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed));
    let (out, outgoing) = mpsc::channel(WAITING_MAX);
    if inbox.send(Input::Opened { connection: id, peer: role, out }).await.is_err() {
        return;
    }
    reader.bound(match role {
        PeerRole::Sds(_) => SDS_BYTES_MAX,
        _ => GREETING_BYTES_MAX,
    });
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    // Each future runs to its end or is dropped with the connection, so no frame is ever resumed half-way.
    let by_peer = tokio::select! {
        () = read(id, role, &mut reader, &inbox, &in_flight) => true,
        () = write(id, &mut writer, outgoing, &inbox, &in_flight) => false,
    };
    let event = Event::Disconnected { connection: id, was_reset: by_peer };
    if inbox.send(Input::Event(event)).await.is_err() {
        tracing::debug!("the member stopped before its connection");
    }
}

async fn read<R: AsyncRead + Unpin>(
    id: ConnectionId,
    role: PeerRole,
    reader: &mut FramedReader<R>,
    inbox: &mpsc::Sender<Input>,
    in_flight: &Semaphore,
) {
    let idle = match role {
        PeerRole::Tool | PeerRole::Joiner => IDLE_TIMEOUT,
        _ => Duration::MAX,
    };
    loop {
        let message = match tokio::time::timeout(idle, reader.next()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::info!(?role, %error, "connection closed");
                return;
            }
            Err(_) => {
                tracing::debug!(?role, "idle connection closed");
                return;
            }
        };
        let event = match message {
            ControlMessage::Request { id: number, request } => {
                let Ok(permit) = in_flight.acquire().await else { return };
                // Given back when the answer is written.
                permit.forget();
                Event::Request { key: RequestKey { connection: id, id: number }, request: *request }
            }
            ControlMessage::Follow { view, have } => Event::Follow { connection: id, view, have },
            ControlMessage::Heartbeat(heartbeat) => Event::Heartbeat { connection: id, heartbeat },
            _ => {
                tracing::info!(?role, "a message that only a metadata manager sends; connection closed");
                return;
            }
        };
        if inbox.send(Input::Event(event)).await.is_err() {
            return;
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(
    id: ConnectionId,
    writer: &mut FramedWriter<W>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    inbox: &mpsc::Sender<Input>,
    in_flight: &Semaphore,
) {
    while let Some(next) = outgoing.recv().await {
        let (is_answer, is_push, is_last) = match &next {
            Outgoing::Message(_) => (false, false, false),
            Outgoing::Answer(_) => (true, false, false),
            Outgoing::Push(_) => (false, true, false),
            Outgoing::Close(_) => (false, false, true),
        };
        let message = match next {
            Outgoing::Message(message) | Outgoing::Answer(message) => message,
            Outgoing::Push(delta) => ControlMessage::Push(delta),
            Outgoing::Close(error) => ControlMessage::Refused { error },
        };
        match tokio::time::timeout(WRITE_TIMEOUT, writer.send(&message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "connection lost");
                return;
            }
            Err(_) => {
                tracing::warn!("a caller does not read what it is sent; its connection is closed");
                return;
            }
        }
        if is_answer {
            in_flight.add_permits(1);
        }
        if is_push && inbox.send(Input::Event(Event::PushWritten(id))).await.is_err() {
            return;
        }
        if is_last {
            if let Err(error) = writer.close().await {
                tracing::debug!(%error, "connection lost while it was closed");
            }
            return;
        }
    }
}
