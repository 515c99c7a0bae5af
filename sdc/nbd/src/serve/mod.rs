//! The server: its exports, its connections, its budget.
//!
//! A connection lives here from accept to the last reply:
//!
//! ```text
//! admitted ─▶ handshake ─▶ serving ─┬─ client leaves, fails, or speaks garbage ─▶ requests in flight end ─▶ gone
//!                                   ├─ Ending::Resume: nothing more is read ────────────────┘
//!                                   └─ Ending::Refuse: what comes is answered ESHUTDOWN ────┘
//! ```
//!
//! Always true: a connection is gone from the registry only when its last request has ended or was dropped.

mod check;
mod connection;
mod reply;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::export::Exports;
use crate::limits::Limits;
use crate::negotiate::{Agreed, HandshakeError, Outcome, Security, greet, negotiate};
use crate::source::Source;
use connection::Connection;

/// How the server ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// For a restart: requests in flight are answered, later ones are not even read, the socket closes. A client that
    /// reconnects (kernel nbd, the holder) sends them again and notices a pause.
    Resume,
    /// For good: requests in flight are answered, later ones get ESHUTDOWN until the client leaves.
    Refuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serve,
    Refuse,
    Drain,
}

/// Why a connection ended other than by the client's good-bye.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Before an export was chosen.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The handshake took too long.
    #[error("no handshake within {0:?}")]
    HandshakeTimeout(Duration),
    /// Too many connections, or the server is ending.
    #[error("no connection is accepted now")]
    Refused,
    /// The socket failed, or ended within a request.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Bytes that are no request, or a payload of absurd length.
    #[error("the client broke the protocol: {0}")]
    Garbage(String),
    /// The client neither reads nor sends what it began.
    #[error("the client made no progress for {0:?}")]
    Stalled(Duration),
    /// A reply could not be sent, see the log.
    #[error("a reply could not be sent")]
    Broken,
}

/// Figures of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Unique in this server.
    pub id: u64,
    /// Name of the export.
    pub export: String,
}

/// Serves `X` to any number of connections. Clones share everything.
pub struct Server<X> {
    shared: Arc<Shared<X>>,
}

impl<X> Clone for Server<X> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<X> {
    exports: X,
    limits: Limits,
    /// Bytes in flight on all connections.
    budget: Arc<Semaphore>,
    registry: Mutex<Registry>,
    /// Connections, those in their handshake too.
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Registry {
    next_id: u64,
    ending: bool,
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    /// Empty until the handshake is over.
    export: Option<String>,
    phase: watch::Sender<Phase>,
}

/// One admitted connection; leaves the registry when dropped.
struct Slot<X> {
    shared: Arc<Shared<X>>,
    id: u64,
    phase: watch::Receiver<Phase>,
}

impl<X> Drop for Slot<X> {
    fn drop(&mut self) {
        let mut registry = self.shared.registry();
        registry.entries.remove(&self.id);
        self.shared.count.send_replace(registry.entries.len());
    }
}

impl<X> Shared<X> {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        // The registry is consistent between any two statements that hold it.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<X: Exports> Server<X> {
    /// A server without connections.
    pub fn new(exports: X, limits: Limits) -> Self {
        let limits = limits.at_least_workable();
        let budget = Arc::new(Semaphore::new(limits.bytes_in_all.min(Semaphore::MAX_PERMITS)));
        let (count, _) = watch::channel(0);
        Self { shared: Arc::new(Shared { exports, limits, budget, registry: Mutex::default(), count }) }
    }

    /// What is served.
    pub fn exports(&self) -> &X {
        &self.shared.exports
    }

    /// Serves one connection to its end, as one that needs no more protection (a unix socket). Run it as a task of its own.
    pub async fn serve<R, W>(&self, reader: R, mut writer: W) -> Result<(), ConnectionError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut slot = self.admit().ok_or(ConnectionError::Refused)?;
        let mut source = Source::new(reader);
        let handshake = async {
            let no_zeroes = greet(&mut source, &mut writer).await?;
            negotiate(&self.shared.exports, &mut source, &mut writer, Security::Local, no_zeroes).await
        };
        match self.in_time(&mut slot, handshake).await? {
            Outcome::Agreed(agreed) => self.transmit(slot, agreed, source, writer).await,
            Outcome::Left | Outcome::StartTls => Ok(()),
        }
    }

    /// Serves one connection over a network to its end: nothing is served before TLS, with a client whose certificate
    /// `acceptor` has verified. Run it as a task of its own.
    pub async fn serve_tls<S>(&self, stream: S, acceptor: &TlsAcceptor) -> Result<(), ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut slot = self.admit().ok_or(ConnectionError::Refused)?;
        let exports = &self.shared.exports;
        let handshake = async {
            let (reader, mut writer) = tokio::io::split(stream);
            let mut source = Source::new(reader);
            let no_zeroes = greet(&mut source, &mut writer).await?;
            let plain = negotiate(exports, &mut source, &mut writer, Security::Required, no_zeroes).await?;
            let Outcome::StartTls = plain else { return Ok(None) };
            // Bytes that came with STARTTLS were sent by nobody knows whom; they must not pass for what TLS protects.
            let early = HandshakeError::Garbage("data between STARTTLS and its answer");
            let stream = source.into_inner().ok_or(early)?.unsplit(writer);
            let (reader, mut writer) = tokio::io::split(acceptor.accept(stream).await.map_err(HandshakeError::Tls)?);
            let mut source = Source::new(reader);
            let outcome = negotiate(exports, &mut source, &mut writer, Security::Established, no_zeroes).await?;
            Ok(Some((outcome, source, writer)))
        };
        match self.in_time(&mut slot, handshake).await? {
            Some((Outcome::Agreed(agreed), source, writer)) => self.transmit(slot, agreed, source, writer).await,
            Some((Outcome::Left | Outcome::StartTls, ..)) | None => Ok(()),
        }
    }

    /// Bounds a handshake by time, and by the end of the server.
    async fn in_time<T>(
        &self,
        slot: &mut Slot<X>,
        handshake: impl Future<Output = Result<T, HandshakeError>>,
    ) -> Result<T, ConnectionError> {
        let limit = self.shared.limits.handshake;
        tokio::select! {
            biased;
            _ = slot.phase.wait_for(|phase| *phase != Phase::Serve) => Err(ConnectionError::Refused),
            done = tokio::time::timeout(limit, handshake) => {
                Ok(done.map_err(|_| ConnectionError::HandshakeTimeout(limit))??)
            }
        }
    }

    /// From the choice of an export to the last reply.
    async fn transmit<R, W>(
        &self,
        mut slot: Slot<X>,
        agreed: Agreed<X::Export>,
        source: Source<R>,
        writer: W,
    ) -> Result<(), ConnectionError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        if let Some(entry) = self.shared.registry().entries.get_mut(&slot.id) {
            entry.export = Some(agreed.name.clone());
        }
        // Withdrawn between choosing and registering? From here on `evict` sees this connection.
        if self.shared.exports.open(&agreed.name).await.is_none() {
            return Err(ConnectionError::Refused);
        }
        tracing::debug!(connection = slot.id, export = agreed.name, "serving");
        let budget = Arc::clone(&self.shared.budget);
        Connection::new(agreed, writer, budget, &self.shared.limits).run(source, &mut slot.phase).await
    }

    fn admit(&self) -> Option<Slot<X>> {
        let mut registry = self.shared.registry();
        if registry.ending || registry.entries.len() >= self.shared.limits.connections {
            return None;
        }
        let id = registry.next_id;
        registry.next_id += 1;
        let (sender, phase) = watch::channel(Phase::Serve);
        registry.entries.insert(id, Entry { export: None, phase: sender });
        self.shared.count.send_replace(registry.entries.len());
        Some(Slot { shared: Arc::clone(&self.shared), id, phase })
    }

    /// The connections that have chosen an export.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let registry = self.shared.registry();
        let known = |(id, entry): (&u64, &Entry)| Some(ConnectionInfo { id: *id, export: entry.export.clone()? });
        registry.entries.iter().filter_map(known).collect()
    }

    /// Ends the connections of one export. Returns how many are left after `grace`: 0 means that no request of them is
    /// running any more. The caller stops offering the export first.
    pub async fn evict(&self, export: &str, ending: Ending, grace: Duration) -> usize {
        let of_export = |entry: &Entry| entry.export.as_deref() == Some(export);
        self.end(ending, grace, of_export).await
    }

    /// Accepts no more and ends all connections. Returns how many are left after `grace`.
    pub async fn shutdown(&self, ending: Ending, grace: Duration) -> usize {
        self.shared.registry().ending = true;
        self.end(ending, grace, |_| true).await
    }

    async fn end(&self, ending: Ending, grace: Duration, chosen: impl Fn(&Entry) -> bool) -> usize {
        let tell = |phase: Phase| {
            let registry = self.shared.registry();
            for entry in registry.entries.values().filter(|entry| chosen(entry)) {
                entry.phase.send_replace(phase);
            }
        };
        let left = || self.shared.registry().entries.values().filter(|entry| chosen(entry)).count();
        let mut count = self.shared.count.subscribe();
        tell(match ending {
            Ending::Resume => Phase::Drain,
            Ending::Refuse => Phase::Refuse,
        });
        let gone = async { while left() > 0 && count.changed().await.is_ok() {} };
        if tokio::time::timeout(grace, gone).await.is_err() {
            // The client did not take the hint; what it sends from now on is not read.
            tell(Phase::Drain);
        }
        left()
    }
}
