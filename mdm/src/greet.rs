//! The greeting on both ports: TLS, then one `Hello` that is answered by `Welcome` or by one clear `Refused`.
//!
//! Always true: who is let in speaks our version, means this system, and holds the certificate of the role that it claims;
//! whoever is not is told why in one message, costs one connection for at most three seconds, and harms nothing else.

use std::time::Duration;

use anyhow::{anyhow, bail};
use mdm_api::client::{FramedReader, FramedWriter, pki, tune};
use mdm_api::control::{CONTROL_VERSION, CONTROL_VERSION_MIN, ControlMessage, MdmAddress, PeerRole};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{MdmId, SystemId};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a caller may take to be greeted.
const GREETING_TIMEOUT: Duration = Duration::from_secs(3);

/// Which port was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Tools, servers, clients, other members.
    Control,
    /// Other members only.
    Peers,
}

/// What a greeter knows of its own side.
#[derive(Clone)]
pub(crate) struct Greeter {
    pub(crate) tls: TlsAcceptor,
    pub(crate) system: SystemId,
    pub(crate) mdm: MdmId,
    pub(crate) leader: watch::Receiver<Option<MdmAddress>>,
}

/// A caller that was let in.
pub(crate) struct Caller {
    pub(crate) role: PeerRole,
    pub(crate) reader: FramedReader<ReadHalf<TlsStream<TcpStream>>>,
    pub(crate) writer: FramedWriter<WriteHalf<TlsStream<TcpStream>>>,
}

impl Greeter {
    /// Greets a caller within the time that it has.
    pub(crate) async fn greet(&self, stream: TcpStream, port: Port) -> anyhow::Result<Caller> {
        match tokio::time::timeout(GREETING_TIMEOUT, self.greet_slowly(stream, port)).await {
            Ok(result) => result,
            Err(_) => bail!("not greeted within {} s", GREETING_TIMEOUT.as_secs()),
        }
    }

    async fn greet_slowly(&self, stream: TcpStream, port: Port) -> anyhow::Result<Caller> {
        tune(&stream)?;
        let stream = self.tls.accept(stream).await?;
        let certified =
            stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|leaf| pki::certified(leaf));
        let (reader, writer) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FramedReader::new(reader), FramedWriter::new(writer));
        let hello = reader.next().await?.ok_or_else(|| anyhow!("left without a word"))?;
        match self.judge(&hello, certified, port) {
            Ok(role) => {
                let leader = self.leader.borrow().clone();
                let welcome =
                    ControlMessage::Welcome { version: CONTROL_VERSION, system: self.system, mdm: self.mdm, leader };
                writer.send(&welcome).await?;
                Ok(Caller { role, reader, writer })
            }
            Err(error) => {
                writer.send(&ControlMessage::Refused { error: error.clone() }).await?;
                writer.close().await?;
                Err(error.into())
            }
        }
    }

    fn judge(
        &self,
        hello: &ControlMessage,
        certified: Option<Option<(SystemId, PeerRole)>>,
        port: Port,
    ) -> Result<PeerRole, CommandError> {
        let ControlMessage::Hello { version_min, version_max, system, role } = hello else {
            return Err(CommandError::new(
                ErrorCode::InvalidArgument,
                "A connection opens with Hello",
                "use software of this release",
            ));
        };
        if *version_min > CONTROL_VERSION || *version_max < CONTROL_VERSION_MIN {
            return Err(CommandError::new(
                ErrorCode::InvalidArgument,
                format!(
                    "This metadata manager speaks versions {CONTROL_VERSION_MIN} to {CONTROL_VERSION} of the control \
                     conversation, the caller {version_min} to {version_max}"
                ),
                "upgrade the older side",
            ));
        }
        if system.is_some_and(|system| system != self.system) {
            return Err(CommandError::new(
                ErrorCode::PermissionDenied,
                format!("This is system {}, not the one that the caller belongs to", self.system),
                "check the addresses of the metadata managers",
            ));
        }
        self.judge_role(*role, certified, port)?;
        Ok(*role)
    }

    fn judge_role(
        &self,
        role: PeerRole,
        certified: Option<Option<(SystemId, PeerRole)>>,
        port: Port,
    ) -> Result<(), CommandError> {
        let denied =
            |message: String, remedy: &str| Err(CommandError::new(ErrorCode::PermissionDenied, message, remedy));
        let is_daemon = !matches!(role, PeerRole::Tool | PeerRole::Joiner);
        match (port, role) {
            (Port::Peers, PeerRole::Mdm(_)) | (Port::Control, _) => {}
            (Port::Peers, _) => {
                return denied("This port is for metadata managers only".to_owned(), "use the control port (6611)");
            }
        }
        match certified {
            None if is_daemon => denied(format!("{role:?} has shown no certificate"), "join the system first"),
            None => Ok(()),
            Some(Some((system, certified))) if system == self.system && certified == role => Ok(()),
            Some(_) if !is_daemon => Ok(()),
            Some(Some((_, certified))) => denied(
                format!("The certificate is that of {certified:?}, not of {role:?}"),
                "use the certificate that this daemon got when it joined",
            ),
            Some(None) => denied("The certificate names no role".to_owned(), "join the system again"),
        }
    }
}
