//! Where dockerd connects: the unix socket, and TLS with certificates on both sides.
//!
//! Always true: the socket is for root alone; no more connections than [`CONNECTIONS_MAX`] are held, each bounded in
//! memory and, until its request has come, in time.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::api::Api;
use crate::http;

/// Connections at a time: far more than dockerd makes.
const CONNECTIONS_MAX: usize = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Pause after the kernel could not accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the socket. A file that an ended daemon left is replaced, a living one's is not.
pub fn unix(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another plugin serves {}: stop it, or set `socket`", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?,
    }
    // Bound under another name, so that nobody connects before the mode is right.
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", fresh.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).with_context(|| format!("cannot listen on {}", fresh.display()))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {}", fresh.display()))?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot put {} in place", path.display()))?;
    Ok(listener)
}

/// Serves the socket for ever.
pub async fn serve_unix(listener: UnixListener, api: Arc<Api>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let api = api.clone();
                tokio::spawn(async move {
                    http::serve(stream, api).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What TLS needs: our certificate and key, and who signs those of the engines.
pub fn tls(certificate: &Path, key: &Path, client_ca: &Path) -> anyhow::Result<TlsAcceptor> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let certificates = |path: &Path| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
        let found = found.with_context(|| format!("{} is no certificate", path.display()))?;
        if found.is_empty() {
            bail!("{} holds no certificate", path.display());
        }
        Ok(found)
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(client_ca)? {
        roots.add(root).with_context(|| format!("{} is no authority", client_ca.display()))?;
    }
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).with_context(|| format!("{} is no key", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves TLS for ever.
pub async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor, api: Arc<Api>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (api, acceptor) = (api.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => http::serve(stream, api).await,
                        Ok(Err(error)) => tracing::warn!(%peer, %error, "refused"),
                        Err(_) => tracing::warn!(%peer, "refused: the handshake took too long"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
