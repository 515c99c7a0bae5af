//! Accepting callers on both ports, so many at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mdm_api::control::PeerRole;
use mdm_api::frame::FrameKind;
use mdm_node::Event;
use mdm_raft::limits::MAX_MESSAGE_BYTES;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use crate::connection;
use crate::greet::{Caller, Greeter, Port};
use crate::owner::Input;

/// Control connections at a time: three for each of 1,024 servers and clients, and people.
const CONTROL_CONNECTIONS_MAX: usize = 4096;
/// Connections of other members at a time: two for each of nine, and those that are being replaced.
const PEER_CONNECTIONS_MAX: usize = 64;

/// Accepts callers until the process ends.
pub(crate) async fn accept(
    listener: TcpListener,
    port: Port,
    greeter: Greeter,
    inbox: mpsc::Sender<Input>,
    peers: mpsc::Sender<Event>,
) {
    let permits = Arc::new(Semaphore::new(match port {
        Port::Control => CONTROL_CONNECTIONS_MAX,
        Port::Peers => PEER_CONNECTIONS_MAX,
    }));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: those who are connected go on, and some will leave.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            tracing::warn!(%address, "too many connections; this one is closed");
            continue;
        };
        let (greeter, inbox, peers) = (greeter.clone(), inbox.clone(), peers.clone());
        tokio::spawn(async move {
            let _permit = permit;
            serve(stream, port, &greeter, inbox, peers).await.unwrap_or_else(|error| {
                tracing::info!(%address, error = %format!("{error:#}"), "caller refused");
            });
        });
    }
}

async fn serve(
    stream: TcpStream,
    port: Port,
    greeter: &Greeter,
    inbox: mpsc::Sender<Input>,
    peers: mpsc::Sender<Event>,
) -> anyhow::Result<()> {
    let caller = greeter.greet(stream, port).await?;
    match port {
        Port::Control => connection::serve(caller, inbox).await,
        Port::Peers => hear_peer(caller, &peers).await?,
    }
    Ok(())
}

/// Messages of another member, one way.
async fn hear_peer(caller: Caller, peers: &mpsc::Sender<Event>) -> anyhow::Result<()> {
    let Caller { role, mut reader, writer: _writer } = caller;
    let PeerRole::Mdm(from) = role else { return Ok(()) };
    reader.bound(MAX_MESSAGE_BYTES + 1024);
    while let Some((kind, bytes)) = reader.next_frame().await? {
        if kind != FrameKind::Raft {
            anyhow::bail!("a frame of kind {kind:?} between metadata managers");
        }
        if peers.send(Event::PeerMessage { from, bytes: Bytes::from(bytes) }).await.is_err() {
            break;
        }
    }
    Ok(())
}
