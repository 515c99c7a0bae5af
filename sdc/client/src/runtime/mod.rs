//! The imperative shell: connections to data servers, the clock, and handles for users.
//!
//! One task, the engine, owns every session of the client and does all of its socket I/O: no locks and no hand-over between
//! tasks on the way of an I/O but one from the user to the engine and one back.

mod answer;
mod clock;
mod cluster;
mod connect;
mod engine;
pub mod framed;
mod link;
#[cfg(test)]
mod tests;
mod volume;

use std::sync::Arc;
use std::time::Duration;

use mdm_api::error::CommandError;
use mdm_api::ids::{SdcId, SystemId, VolumeId};
use tokio::sync::{mpsc, oneshot};

pub use clock::now;
pub use cluster::{Answer, Cluster, Opening};
pub use volume::{Volume, VolumeState};

use crate::io::IoError;
use crate::session::Policy;
use engine::{Command, Engine};

/// Commands on their way to the engine; the room of volumes bounds what can wait behind them.
const COMMANDS_MAX: usize = 1024;
/// How long an opened mapping may take to show in the map.
const MAP_PATIENCE: Duration = Duration::from_secs(30);

/// Why a volume could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The metadata manager says no.
    #[error(transparent)]
    Refused(#[from] CommandError),
    /// There is nothing to open, or no way to.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The mapping is open, but the map that is followed here does not show it.
    #[error("the map does not show the mapping after 30 s: is a metadata manager reachable?")]
    MapBehind,
}

/// The data client of a host: opens volumes. Cheap to clone; it ends when it and all its volumes are dropped.
#[derive(Clone, Debug)]
pub struct Client {
    cluster: Arc<dyn Cluster>,
    sdc: SdcId,
    commands: mpsc::Sender<Command>,
}

impl Client {
    /// Starts the engine on the present tokio runtime, which needs I/O and time enabled.
    pub fn start(cluster: Arc<dyn Cluster>, system: SystemId, sdc: SdcId) -> Self {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(Engine::new(Arc::clone(&cluster), system, sdc).run(receiver));
        Self { cluster, sdc, commands }
    }

    /// Opens a volume that is mapped to this client: a new session, which fences older ones of this client.
    pub async fn open(&self, volume: VolumeId, policy: Policy) -> Result<Volume, OpenError> {
        let opening = self.cluster.open(volume).await?;
        let mut map = self.cluster.map();
        let shown = map.wait_for(|map| {
            map.volume(volume).is_some()
                && map.mapping(volume, self.sdc).is_some_and(|mapping| mapping.generation >= opening.generation)
        });
        tokio::time::timeout(MAP_PATIENCE, shown)
            .await
            .map_err(|_| OpenError::MapBehind)?
            .map_err(|_| OpenError::Io(IoError::Closed))?;
        let (answer, answered) = oneshot::channel();
        let command = Command::Open { volume, opening, policy, answer };
        self.commands.send(command).await.map_err(|_| IoError::Closed)?;
        let (lane, state) = answered.await.map_err(|_| IoError::Closed)??;
        let give_up = policy.give_up_ms.map(Duration::from_millis);
        Ok(Volume::new(volume, lane, self.commands.clone(), state, give_up))
    }
}
