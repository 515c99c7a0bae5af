//! One greeted TLS connection to an MDM.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::control::{self, CONTROL_VERSION, CONTROL_VERSION_MIN, ControlMessage, MdmAddress, PeerRole};
use crate::error::CommandError;
use crate::frame::{self, FRONT_BYTES, FrameBounds, FrameKind, Front};
use crate::ids::{MdmId, SystemId};
use crate::limits::{CONTROL_FRAME_BYTES_MAX, GREETING_BYTES_MAX};

/// How long a connection may take to be made and greeted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there, or the connection broke.
    #[error("{address}: {source}")]
    Io {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("{0}: no answer within 3 s")]
    TimedOut(String),
    /// It answered, and said no.
    #[error("{address}: {error}")]
    Refused {
        /// Where.
        address: String,
        /// Its words.
        error: CommandError,
    },
    /// It speaks something else.
    #[error("{0}: not an Ashlar metadata manager")]
    NotAnMdm(String),
}

/// Settings that every TCP connection of the product has: no delay, and a dead peer is noticed within about 3 s.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(3)))
}

/// Reads control frames.
pub struct FramedReader<R> {
    reader: R,
    bytes_max: usize,
}

impl<R: AsyncRead + Unpin> FramedReader<R> {
    /// Starts with the bound for peers that have not been greeted.
    pub fn new(reader: R) -> Self {
        Self { reader, bytes_max: GREETING_BYTES_MAX }
    }

    /// The peer has said who it is.
    pub fn trust(&mut self) {
        self.bytes_max = CONTROL_FRAME_BYTES_MAX;
    }

    /// Accepts frames of up to so many bytes: a server knows better than `trust` what a caller of one role has to say.
    pub fn bound(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// The next frame's kind and bytes; `None` at a clean end. Cancelling loses the place: do not select on this; give the
    /// reader a task of its own.
    pub async fn next_frame(&mut self) -> io::Result<Option<(FrameKind, Vec<u8>)>> {
        let mut front = [0; FRONT_BYTES];
        match self.reader.read(&mut front[..1]).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            // A TLS peer that is killed does not say goodbye; between frames nothing is lost.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        self.reader.read_exact(&mut front[1..]).await?;
        let bounds = FrameBounds { header_bytes_max: self.bytes_max, payload_bytes_max: 0 };
        let front = Front::decode(&front, bounds).map_err(invalid)?;
        let mut header = vec![0; front.header_bytes];
        self.reader.read_exact(&mut header).await?;
        front.check_header(&header).map_err(invalid)?;
        Ok(Some((front.kind, header)))
    }

    /// The next control message; `None` at a clean end.
    pub async fn next(&mut self) -> io::Result<Option<ControlMessage>> {
        match self.next_frame().await? {
            None => Ok(None),
            Some((FrameKind::Control, bytes)) => control::decode(&bytes).map(Some).map_err(invalid),
            Some((kind, _)) => Err(invalid(format!("a frame of kind {kind:?} on a control connection"))),
        }
    }
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Writes control frames.
pub struct FramedWriter<W> {
    writer: W,
}

impl<W: AsyncWrite + Unpin> FramedWriter<W> {
    /// Over anything that can be written to.
    pub fn new(writer: W) -> Self {
        Self { writer }
    }

    /// Sends one message.
    pub async fn send(&mut self, message: &ControlMessage) -> io::Result<()> {
        self.send_frame(FrameKind::Control, &control::encode(message)).await
    }

    /// Sends one frame.
    pub async fn send_frame(&mut self, kind: FrameKind, header: &[u8]) -> io::Result<()> {
        self.writer.write_all(&frame::encode(kind, header)).await?;
        self.writer.flush().await
    }

    /// Ends the stream in good order.
    pub async fn close(&mut self) -> io::Result<()> {
        self.writer.shutdown().await
    }
}

/// A greeted connection, in two halves for two tasks.
pub struct Connection {
    /// From the MDM.
    pub reader: FramedReader<ReadHalf<TlsStream<TcpStream>>>,
    /// To the MDM.
    pub writer: FramedWriter<WriteHalf<TlsStream<TcpStream>>>,
    /// Which member it is.
    pub mdm: MdmId,
    /// Its system.
    pub system: SystemId,
    /// The leader that it knows.
    pub leader: Option<MdmAddress>,
}

/// Makes connections in one role.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
    role: PeerRole,
    system: Option<SystemId>,
}

impl Connector {
    /// `tls` by [`super::pki::client_config`]; `system` is left out only by a tool that knows nothing but an address.
    pub fn new(tls: Arc<ClientConfig>, role: PeerRole, system: Option<SystemId>) -> Self {
        Self { tls, role, system }
    }

    /// Connects and greets.
    pub async fn connect(&self, address: &str) -> Result<Connection, ConnectError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.connect_slowly(address)).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::TimedOut(address.to_owned())),
        }
    }

    async fn connect_slowly(&self, address: &str) -> Result<Connection, ConnectError> {
        let io = |source| ConnectError::Io { address: address.to_owned(), source };
        let stream = TcpStream::connect(address).await.map_err(io)?;
        tune(&stream).map_err(io)?;
        let name = ServerName::try_from("mdm.ashlar").expect("a constant that is a host name");
        let stream = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await.map_err(io)?;
        let (reader, writer) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FramedReader::new(reader), FramedWriter::new(writer));
        let hello = ControlMessage::Hello {
            version_min: CONTROL_VERSION_MIN,
            version_max: CONTROL_VERSION,
            system: self.system,
            role: self.role,
        };
        writer.send(&hello).await.map_err(io)?;
        match reader.next().await.map_err(io)? {
            Some(ControlMessage::Welcome { system, mdm, leader, .. }) => {
                reader.trust();
                Ok(Connection { reader, writer, mdm, system, leader })
            }
            Some(ControlMessage::Refused { error }) => {
                Err(ConnectError::Refused { address: address.to_owned(), error })
            }
            _ => Err(ConnectError::NotAnMdm(address.to_owned())),
        }
    }
}
