//! What a client needs of the metadata manager: the map as it changes, and the right to open volumes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use mdm_api::epoch::AttachGeneration;
use mdm_api::error::CommandError;
use mdm_api::ids::VolumeId;
use mdm_api::map::ClusterMap;
use mdm_api::ticket::Credential;
use tokio::sync::watch;

/// A mapping that was opened for this client.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Its generation, the name of the session; older ones are fenced (I17).
    pub generation: AttachGeneration,
    /// The ticket and its secret.
    pub credential: Credential,
    /// Who opened it: names this session towards the metadata manager, for a new ticket.
    pub opener: u64,
}

/// An answer that takes its time.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, CommandError>> + Send>>;

/// The metadata manager, as a client sees it. The daemon implements it over its control connections; tests and tools have
/// their own.
pub trait Cluster: Send + Sync + 'static {
    /// The newest map that is held here. Revisions only grow.
    fn map(&self) -> watch::Receiver<Arc<ClusterMap>>;

    /// Opens the mapping under an opener that nobody used before (`DaemonCommand::OpenMapping`, then
    /// `Request::Credential`, both with that opener), waiting out metadata managers that are away. Every call gives another
    /// generation: a session numbers its requests from the beginning, and servers take a number that they know for a
    /// request that was carried out (I16).
    fn open(&self, volume: VolumeId) -> Answer<Opening>;

    /// A new ticket for what `opener` opened: the same generation, unless somebody has opened the mapping since.
    fn renew(&self, volume: VolumeId, opener: u64) -> Answer<Opening>;
}

impl fmt::Debug for dyn Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cluster")
    }
}
