//! The greeting of data connections, from both sides (see `sds_api::open`).

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use mdm_api::frame::FrameKind;
use mdm_api::ids::{KeyId, ProcessIncarnation, SdsId, SystemId};
use mdm_api::ticket::{Nonce, equal, peer_proof};
use sds_api::open::{OPEN_BOUNDS, OPEN_VERSION, OPEN_VERSION_MIN, OpenMessage, PeerLink, common_version};
use tokio::net::{TcpListener, TcpStream};

use super::hub::Hub;
use super::socket::{self, FrameReader, Socket};
use super::{client, links};
use crate::clock;

/// How long a greeting may take.
const GREETING: Duration = Duration::from_secs(3);
/// How long a connection may take to be made: longer than a lost packet, shorter than what the dead are counted by.
const CONNECT: Duration = Duration::from_secs(1);
/// Connections at a time; each costs two descriptors' worth of memory at most until it is greeted.
const CONNECTIONS_MAX: usize = 8192;
/// Pause before another server is called again.
const REDIAL: Duration = Duration::from_millis(50);
/// Pause after a failed accept, which comes of too few descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the process ends.
pub(crate) async fn listen(hub: Rc<Hub>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                if hub.connections.get() >= CONNECTIONS_MAX {
                    tracing::warn!(%address, "too many connections: this one is closed");
                    continue;
                }
                let hub = hub.clone();
                hub.connections.set(hub.connections.get() + 1);
                tokio::task::spawn_local(async move {
                    if let Err(error) = accepted(&hub, stream).await {
                        tracing::debug!(%address, error = %format!("{error:#}"), "a connection was refused");
                    }
                    hub.connections.set(hub.connections.get() - 1);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn say(socket: &Socket, message: &OpenMessage) {
    socket.queue(FrameKind::DataOpen, &message.encode(), &[]);
    socket.flush();
}

/// One clear word, then the end.
fn refuse(socket: &Socket, text: String) -> anyhow::Error {
    say(socket, &OpenMessage::Refused { text: text.clone() });
    socket.close();
    anyhow::anyhow!(text)
}

async fn hear(socket: &Socket, reader: &mut FrameReader) -> anyhow::Result<OpenMessage> {
    let heard = tokio::time::timeout(GREETING, reader.next(OPEN_BOUNDS)).await;
    let frame = match heard {
        Err(_) => return Err(refuse(socket, "no greeting within 3 s".to_owned())),
        Ok(Ok(Some(frame))) => frame,
        Ok(Ok(None)) => {
            // It may have closed only its own half.
            socket.close();
            bail!("closed during the greeting")
        }
        Ok(Err(error)) if error.is_ours() => return Err(refuse(socket, error.to_string())),
        Ok(Err(error)) => {
            socket.close();
            return Err(error.into());
        }
    };
    if frame.kind != FrameKind::DataOpen {
        return Err(refuse(socket, format!("a frame of kind {:?} in place of a greeting", frame.kind)));
    }
    OpenMessage::decode(&frame.header).map_err(|error| refuse(socket, error.to_string()))
}

async fn accepted(hub: &Rc<Hub>, stream: TcpStream) -> anyhow::Result<()> {
    let (socket, mut reader) = socket::open(stream)?;
    let nonce: Nonce = clock::random()?;
    let incarnation = {
        let shard = hub.shard.borrow();
        shard.incarnation().filter(|_| shard.is_current())
    };
    let Some(incarnation) = incarnation else {
        return Err(refuse(&socket, "this data server is still starting: try again shortly".to_owned()));
    };
    let (system, sds) = (hub.system, hub.sds);
    let challenge = OpenMessage::Challenge {
        version_min: OPEN_VERSION_MIN,
        version_max: OPEN_VERSION,
        system,
        sds,
        incarnation,
        nonce,
    };
    say(&socket, &challenge);
    match hear(&socket, &mut reader).await? {
        OpenMessage::ClientHello { version, system, sdc, nonce: theirs } => {
            check(hub, &socket, version, system)?;
            client::serve(hub, socket, reader, sdc, (nonce, theirs)).await;
            Ok(())
        }
        OpenMessage::PeerHello { version, system, sds: peer, incarnation: of, link, nonce: theirs, key, proof } => {
            check(hub, &socket, version, system)?;
            let answer = welcome(hub, (peer, of), (nonce, theirs), incarnation, key, &proof);
            let answer = answer.map_err(|error| refuse(&socket, error.to_string()))?;
            let greeted = (peer, of, link);
            let told = |socket: &Socket| say(socket, &OpenMessage::PeerWelcome { proof: answer });
            if !links::serve(hub, greeted, socket.clone(), reader, told).await {
                return Err(refuse(&socket, format!("no group is shared with server {peer} as far as is known here")));
            }
            Ok(())
        }
        _ => Err(refuse(&socket, "not a greeting".to_owned())),
    }
}

fn check(hub: &Hub, socket: &Socket, version: u16, system: SystemId) -> anyhow::Result<()> {
    if system != hub.system {
        return Err(refuse(socket, format!("this data server is of system {}, not of {system}", hub.system)));
    }
    if common_version(version, version) != Some(version) {
        let text =
            format!("version {version} of the data protocol is not spoken here ({OPEN_VERSION_MIN} to {OPEN_VERSION})");
        return Err(refuse(socket, text));
    }
    Ok(())
}

/// Checks another server's proof; this one's, if it holds.
fn welcome(
    hub: &Hub,
    peer: (SdsId, ProcessIncarnation),
    (ours, theirs): (Nonce, Nonce),
    incarnation: ProcessIncarnation,
    key: KeyId,
    proof: &[u8; 32],
) -> anyhow::Result<[u8; 32]> {
    let shard = hub.shard.borrow();
    let Some(key) = shard.domain_key(key) else { bail!("key {key} is not held here") };
    let domain = shard.map().sds(peer.0).map(|record| record.protection_domain);
    if domain != Some(key.protection_domain) {
        bail!("server {} is not of the protection domain of key {}", peer.0, key.id);
    }
    if !equal(&peer_proof(key, peer, hub.sds, &ours, &theirs), proof) {
        bail!("the proof of server {} is wrong", peer.0);
    }
    if peer.0 >= hub.sds {
        bail!("server {} is to be called, not to call", peer.0);
    }
    Ok(peer_proof(key, (hub.sds, incarnation), peer.0, &theirs, &ours))
}

/// Calls another server until its links are dropped.
pub(crate) async fn dial(hub: Rc<Hub>, peer: SdsId, link: PeerLink) {
    let mut turn = 0;
    loop {
        let addresses = hub.links.borrow().get(&peer).map(|links| links.addresses.clone()).unwrap_or_default();
        if let Some(address) = addresses.get(turn % addresses.len().max(1)) {
            match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
                Err(_) => links::not_reached(&hub, peer, false),
                Ok(Err(error)) => {
                    let reset = error.kind() == std::io::ErrorKind::ConnectionRefused;
                    links::not_reached(&hub, peer, reset);
                }
                Ok(Ok(stream)) => {
                    if let Err(error) = called(&hub, peer, link, stream).await {
                        tracing::debug!(%peer, %address, error = %format!("{error:#}"), "a call came to nothing");
                    }
                }
            }
        }
        turn += 1;
        tokio::time::sleep(REDIAL).await;
    }
}

async fn called(hub: &Rc<Hub>, peer: SdsId, link: PeerLink, stream: TcpStream) -> anyhow::Result<()> {
    let (socket, mut reader) = socket::open(stream)?;
    let result = greet(hub, peer, link, &socket, &mut reader).await;
    match result {
        Ok(incarnation) => {
            links::serve(hub, (peer, incarnation, link), socket, reader, |_| {}).await;
            Ok(())
        }
        Err(error) => {
            socket.close();
            Err(error)
        }
    }
}

async fn greet(
    hub: &Hub,
    peer: SdsId,
    link: PeerLink,
    socket: &Socket,
    reader: &mut FrameReader,
) -> anyhow::Result<ProcessIncarnation> {
    let (incarnation, theirs) = match hear(socket, reader).await? {
        OpenMessage::Challenge { version_min, version_max, system, sds, incarnation, nonce } => {
            if (system, sds) != (hub.system, peer) {
                bail!("server {sds} of system {system} answers in its place");
            }
            common_version(version_min, version_max).context("no version of the data protocol in common")?;
            (incarnation, nonce)
        }
        OpenMessage::Refused { text } => bail!(text),
        _ => bail!("not a challenge"),
    };
    let ours: Nonce = clock::random()?;
    let (key, me) = {
        let shard = hub.shard.borrow();
        let key = shard.peer_key(peer).context("no key of the protection domain is held yet")?.clone();
        (key, shard.incarnation().context("not registered yet")?)
    };
    let proof = peer_proof(&key, (hub.sds, me), peer, &theirs, &ours);
    let (system, sds) = (hub.system, hub.sds);
    let hello = OpenMessage::PeerHello {
        version: OPEN_VERSION,
        system,
        sds,
        incarnation: me,
        link,
        nonce: ours,
        key: key.id,
        proof,
    };
    say(socket, &hello);
    match hear(socket, reader).await? {
        OpenMessage::PeerWelcome { proof } => {
            if !equal(&peer_proof(&key, (peer, incarnation), sds, &ours, &theirs), &proof) {
                bail!("its proof is wrong");
            }
            Ok(incarnation)
        }
        OpenMessage::Refused { text } => bail!(text),
        _ => bail!("not a welcome"),
    }
}
