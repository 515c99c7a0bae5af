//! Making a data connection: TCP, challenge, greeting; and the proofs of opening a volume on it.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use mdm_api::frame::FrameKind;
use mdm_api::ids::{SdcId, SdsId, SystemId};
use mdm_api::ticket::{Credential, Nonce, client_proof, equal, server_proof};
use sds_api::open::{OPEN_BOUNDS, OpenMessage, common_version};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::framed::{FrameReader, FrameWriter};

/// How long one address may take to connect and greet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long data may stay unacknowledged by the peer's kernel before the connection counts as dead.
const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is probed this often; three silent probes end it.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within 2 s")]
    TimedOut,
    #[error("the server has no address in the map")]
    NoAddress,
    #[error("the server refused: {0}")]
    Refused(String),
    #[error("not the server that was meant to be there: {0}")]
    OtherServer(String),
    #[error("it speaks data protocol versions {0} to {1}: upgrade the older side")]
    Version(u16, u16),
    #[error("the server broke the protocol of the opening")]
    Protocol,
}

/// A greeted connection.
pub(super) struct Wire {
    pub stream: TcpStream,
    pub reader: FrameReader,
    pub writer: FrameWriter,
    sds: SdsId,
    server_nonce: Nonce,
    client_nonce: Nonce,
}

/// Connects to the first address that answers as the server that is meant.
pub(super) async fn connect(
    addresses: Vec<String>,
    system: SystemId,
    sds: SdsId,
    sdc: SdcId,
) -> Result<Wire, ConnectError> {
    let mut last = ConnectError::NoAddress;
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, greet(&address, system, sds, sdc)).await {
            Ok(Ok(wire)) => return Ok(wire),
            Ok(Err(error)) => last = error,
            Err(_) => last = ConnectError::TimedOut,
        }
        tracing::debug!(%address, %sds, error = %last, "no data connection");
    }
    Err(last)
}

async fn greet(address: &str, system: SystemId, sds: SdsId, sdc: SdcId) -> Result<Wire, ConnectError> {
    let stream = TcpStream::connect(address).await?;
    tune(&stream)?;
    let (mut reader, mut writer) = (FrameReader::default(), FrameWriter::default());
    let frame = poll_fn(|cx| reader.poll_frame(cx, &stream, OPEN_BOUNDS)).await?;
    if !matches!(frame, Some((FrameKind::DataOpen, _))) {
        return Err(ConnectError::Protocol);
    }
    let challenge = match OpenMessage::decode(reader.header()) {
        Ok(OpenMessage::Challenge { version_min, version_max, system, sds, nonce, .. }) => {
            (version_min, version_max, system, sds, nonce)
        }
        Ok(OpenMessage::Refused { text }) => return Err(ConnectError::Refused(text)),
        _ => return Err(ConnectError::Protocol),
    };
    let (version_min, version_max, its_system, its_sds, server_nonce) = challenge;
    let version = common_version(version_min, version_max).ok_or(ConnectError::Version(version_min, version_max))?;
    if (its_system, its_sds) != (system, sds) {
        return Err(ConnectError::OtherServer(format!("server {its_sds} of system {its_system}")));
    }
    let mut client_nonce = [0; 32];
    getrandom::fill(&mut client_nonce).map_err(io::Error::other)?;
    let hello = OpenMessage::ClientHello { version, system, sdc, nonce: client_nonce };
    writer.push(FrameKind::DataOpen, &hello.encode(), []);
    poll_fn(|cx| writer.poll_flush(cx, &stream)).await?;
    Ok(Wire { stream, reader, writer, sds, server_nonce, client_nonce })
}

/// Settings of every data connection: no delay; a dead host is noticed, idle or not.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

impl Wire {
    /// Asks to open a volume.
    pub fn push_open(&mut self, request: u32, credential: &Credential) {
        let (ticket, secret) = (&credential.ticket, &credential.secret);
        let proof = client_proof(secret, ticket, self.sds, &self.server_nonce, &self.client_nonce);
        let open = OpenMessage::Open { request, ticket: ticket.clone(), proof };
        self.writer.push(FrameKind::DataOpen, &open.encode(), []);
    }

    /// True if the server has shown that it could derive the ticket's secret.
    pub fn proves(&self, credential: &Credential, proof: &[u8; 32]) -> bool {
        let (ticket, secret) = (&credential.ticket, &credential.secret);
        equal(&server_proof(secret, ticket, self.sds, &self.server_nonce, &self.client_nonce), proof)
    }
}
