//! The TCP port where the server is found by other hosts: TLS only, for clients with a certificate of one authority.
//!
//! Always true: a client whose certificate does not verify learns nothing, not even the names of the exports. Certificates
//! are read anew when their files change, so that they can be rotated while connections last.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::export::Exports;
use crate::serve::{ConnectionError, Server};

/// Between two probes of a client that says nothing, so that one whose host died does not keep its place for ever.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority whose clients are served.
    pub authority: PathBuf,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A file does not read, or is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate, key and authority do not fit together.
    #[error("the certificate and its key do not serve for TLS: {0}")]
    Tls(String),
    /// The port cannot be had.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

fn refused(path: &Path) -> impl Fn(rustls_pki_types::pem::Error) -> NetworkError {
    move |error| NetworkError::File { path: path.to_owned(), reason: error.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NetworkError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(refused(path))?.collect();
    let read = read.map_err(refused(path))?;
    if read.is_empty() {
        return Err(NetworkError::File { path: path.to_owned(), reason: "it holds no certificate".to_owned() });
    }
    Ok(read)
}

/// When each file changed last.
type Changes = [Option<SystemTime>; 3];

impl TlsFiles {
    fn paths(&self) -> [&Path; 3] {
        [&self.certificate, &self.key, &self.authority]
    }

    /// When each of them changed last; `None` where that cannot be said.
    fn changed(&self) -> Changes {
        self.paths().map(|path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
    }

    fn acceptor(&self) -> Result<TlsAcceptor, NetworkError> {
        let unfit = |error: &dyn std::fmt::Display| NetworkError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.authority)? {
            roots.add(root).map_err(|error| unfit(&error))?;
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(refused(&self.key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(|error| unfit(&error))?
            .with_client_cert_verifier(verifier.map_err(|error| unfit(&error))?)
            .with_single_cert(certificates(&self.certificate)?, key)
            .map_err(|error| unfit(&error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// A listening port.
pub struct NetworkListener {
    listener: TcpListener,
    files: TlsFiles,
    /// What the files gave, and when they had changed before that.
    loaded: (TlsAcceptor, Changes),
}

impl NetworkListener {
    /// Binds the port and makes sure that the files serve. Must run inside a tokio runtime.
    pub async fn bind(address: SocketAddr, files: TlsFiles) -> Result<Self, NetworkError> {
        // Asked before they are read: a change in between shows later.
        let changes = files.changed();
        let loaded = (files.acceptor()?, changes);
        let listener = TcpListener::bind(address).await.map_err(|error| NetworkError::Listen { address, error })?;
        Ok(Self { listener, files, loaded })
    }

    /// Where it listens.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts and serves until the future is dropped; connections go on.
    pub async fn run<X: Exports>(&self, server: &Server<X>) {
        let (mut acceptor, mut changed) = self.loaded.clone();
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly. Accepting again at once would only spin.
                    tracing::warn!(%error, "cannot accept an nbd connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let now = self.files.changed();
            if now != changed {
                match self.files.acceptor() {
                    Ok(fresh) => (acceptor, changed) = (fresh, now),
                    Err(error) => tracing::error!(%error, "the changed certificates do not serve; the former go on"),
                }
            }
            if let Err(error) = prepare(&stream) {
                tracing::debug!(%peer, %error, "nbd connection");
                continue;
            }
            let (server, acceptor) = (server.clone(), acceptor.clone());
            tokio::spawn(async move {
                match server.serve_tls(stream, &acceptor).await {
                    Ok(()) => {}
                    Err(error @ ConnectionError::Io(_)) => tracing::debug!(%peer, %error, "nbd connection"),
                    Err(error) => tracing::info!(%peer, %error, "nbd connection"),
                }
            });
        }
    }
}

fn prepare(stream: &tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    Ok(rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE)?)
}
