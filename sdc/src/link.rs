//! The metadata manager, as this daemon uses it: the map that it follows, and the opening of mappings.

use std::sync::Arc;
use std::time::Duration;

use mdm_api::client::{ClientError, Connector, MdmClient, Members, follow, pki};
use mdm_api::command::{CommandAnswer, DaemonCommand};
use mdm_api::control::{PeerRole, Request, Response};
use mdm_api::epoch::Revision;
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{Guid, SdcId, VolumeId};
use mdm_api::map::{ClusterMap, MapDelta, MapView};
use sdc_client::runtime::{Answer, Cluster, Opening};
use tokio::sync::{mpsc, watch};

use crate::identity::Membership;

/// How long one attempt to ask may take before it is made anew.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the leader is told that this client is there: often enough that a few lost ones mean nothing.
const PRESENT_PAUSE: Duration = Duration::from_secs(1);
/// How long one telling may take.
const PRESENT_PATIENCE: Duration = Duration::from_secs(3);

/// The metadata manager of one system.
pub struct SystemLink {
    client: MdmClient,
    map: watch::Receiver<Arc<ClusterMap>>,
    /// Who this client is there.
    pub sdc: SdcId,
    /// Where its members are, as last known.
    pub members: Members,
    /// Names this start of the daemon.
    start: u64,
}

impl SystemLink {
    /// Reaches the system that this host has joined, and follows its map. Must run inside a tokio runtime.
    pub fn connect(membership: &Membership) -> anyhow::Result<Self> {
        let identity = membership.identity();
        let tls = pki::client_config(&identity.authority_pem, Some(&identity))?;
        let connector = Connector::new(tls, PeerRole::Sdc(membership.sdc), Some(membership.system));
        let members = Members::new(membership.members.clone());
        let client = MdmClient::start(connector.clone(), members.clone(), None);
        let deltas = follow(connector, members.clone(), MapView::Sdc(membership.sdc), Revision(0));
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        Ok(Self::start(client, members, membership.sdc, u64::from_le_bytes(random), deltas))
    }

    /// Keeps the map that `deltas` carry.
    fn start(client: MdmClient, members: Members, sdc: SdcId, start: u64, deltas: mpsc::Receiver<MapDelta>) -> Self {
        let (sender, map) = watch::channel(Arc::new(ClusterMap::default()));
        tokio::spawn(keep_map(deltas, sender));
        Self { client, map, sdc, members, start }
    }

    /// Tells the system that this client is there, until it has been heard.
    pub async fn register(&self, guid: Guid, name: Option<String>, address: String) -> Result<(), CommandError> {
        let command = DaemonCommand::RegisterSdc { guid, name, address };
        self.ask(self.daemon_request(command, 0)).await.map(drop)
    }

    /// Shows the leader again and again that this client is there; for ever.
    pub async fn keep_present(&self) {
        loop {
            if let Err(error) = self.client.request(Request::Present, PRESENT_PATIENCE).await {
                tracing::debug!(%error, "the leader was not told that this client is there");
            }
            tokio::time::sleep(PRESENT_PAUSE).await;
        }
    }

    /// A request that takes effect once however often it is asked: the id is made of this start and of what it is about.
    fn daemon_request(&self, command: DaemonCommand, about: u64) -> Request {
        let request_id = u128::from(self.start) << 64 | u128::from(about);
        Request::Daemon { request_id, command }
    }

    /// Asks until somebody answers.
    async fn ask(&self, request: Request) -> Result<Response, CommandError> {
        loop {
            match self.client.request(request.clone(), PATIENCE).await {
                Ok(response) => return Ok(response),
                Err(ClientError::Refused(error)) if error.code == ErrorCode::Unavailable => {
                    tracing::debug!(%error, "asking again");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(ClientError::Refused(error)) => return Err(error),
                Err(error @ ClientError::Unavailable(_)) => tracing::warn!(%error, "asking again"),
            }
        }
    }

    async fn open_mapping(&self, volume: VolumeId, opener: u64) -> Result<Opening, CommandError> {
        let open = DaemonCommand::OpenMapping { volume, sdc: self.sdc, opener };
        // Not the same id again: a mapping that was taken away and given back is opened anew by the same daemon.
        let answer = self.ask(self.daemon_request(open, random()?)).await?;
        let Response::Command(CommandAnswer::Opened { generation, .. }) = answer else {
            return Err(internal(format!("unexpected answer to an opening: {answer:?}")));
        };
        match self.ask(Request::Credential { volume, opener }).await? {
            Response::Credential(credential) => Ok(Opening { generation, credential, opener }),
            other => Err(internal(format!("unexpected answer to a request for a credential: {other:?}"))),
        }
    }

    /// A handle that can be moved into tasks.
    fn handle(&self) -> Self {
        Self {
            client: self.client.clone(),
            map: self.map.clone(),
            sdc: self.sdc,
            members: self.members.clone(),
            start: self.start,
        }
    }
}

fn random() -> Result<u64, CommandError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| internal(format!("no random numbers from the kernel: {error}")))?;
    Ok(u64::from_le_bytes(random))
}

fn internal(message: String) -> CommandError {
    CommandError::new(ErrorCode::Internal, message, "see the daemon's log")
}

impl Cluster for SystemLink {
    fn map(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.map.clone()
    }

    fn open(&self, volume: VolumeId) -> Answer<Opening> {
        let link = self.handle();
        // Zero means that nobody has opened a mapping.
        Box::pin(async move { link.open_mapping(volume, random()? | 1).await })
    }

    fn renew(&self, volume: VolumeId, opener: u64) -> Answer<Opening> {
        let link = self.handle();
        Box::pin(async move { link.open_mapping(volume, opener).await })
    }
}

async fn keep_map(mut deltas: mpsc::Receiver<MapDelta>, sender: watch::Sender<Arc<ClusterMap>>) {
    let mut map = ClusterMap::default();
    while let Some(delta) = deltas.recv().await {
        match map.apply(&delta) {
            Ok(true) => drop(sender.send_replace(Arc::new(map.clone()))),
            Ok(false) => {}
            // The follower delivers deltas that follow on each other; anything else is a fault of this program.
            Err(error) => tracing::error!(%error, "a map delta was lost"),
        }
    }
}
