//! Following the map, from whichever member answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::connection::Connector;
use crate::control::{ControlMessage, MdmAddress};
use crate::epoch::Revision;
use crate::map::{MapDelta, MapObject, MapView};

/// Pause before the next member is tried.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Where the members are; learnt from the configuration at first and from the map later. Shared and cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Members {
    list: Arc<Mutex<Vec<String>>>,
}

impl Members {
    /// Starts from configured addresses.
    pub fn new(addresses: Vec<String>) -> Self {
        Self { list: Arc::new(Mutex::new(addresses)) }
    }

    /// All addresses.
    pub fn addresses(&self) -> Vec<String> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the members' addresses from the map in place of what was known, if there are any.
    pub fn replace(&self, addresses: Vec<String>) {
        if !addresses.is_empty() {
            *self.list.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        }
    }

    /// Adds where somebody says a member is.
    pub fn add(&self, member: &MdmAddress) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if !list.contains(&member.address) {
            list.push(member.address.clone());
        }
    }
}

/// Follows the map in a task of its own, which ends when the receiver is dropped. Deltas arrive in order, each following on
/// the one before; the channel is bounded, a slow consumer slows the member's pushes and gets larger steps.
pub fn follow(connector: Connector, members: Members, view: MapView, have: Revision) -> mpsc::Receiver<MapDelta> {
    let (deltas, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut have = have;
        let mut turn = 0;
        while !deltas.is_closed() {
            let addresses = members.addresses();
            if let Some(address) = addresses.get(turn % addresses.len().max(1))
                && let Err(error) = follow_one(&connector, address, &members, view, &mut have, &deltas).await
            {
                tracing::debug!(%address, %error, "the map is followed elsewhere");
            }
            turn += 1;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    });
    receiver
}

async fn follow_one(
    connector: &Connector,
    address: &str,
    members: &Members,
    view: MapView,
    have: &mut Revision,
    deltas: &mpsc::Sender<MapDelta>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut connection = connector.connect(address).await?;
    connection.writer.send(&ControlMessage::Follow { view, have: *have }).await?;
    while let Some(message) = connection.reader.next().await? {
        let ControlMessage::Push(delta) = message else { continue };
        // A member that lags behind another one sends what is held already.
        if delta.to <= *have {
            continue;
        }
        if delta.from != *have && delta.from != Revision(0) {
            return Err(format!("a step from revision {} where {} is held", delta.from, have).into());
        }
        learn_members(members, &delta);
        *have = delta.to;
        if deltas.send(delta).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn learn_members(members: &Members, delta: &MapDelta) {
    let addresses = |delta: &MapDelta| -> Vec<MdmAddress> {
        let mdms = delta.changed.iter().filter_map(|object| match object {
            MapObject::Mdm(mdm) => Some(MdmAddress { id: mdm.id, address: mdm.address.clone() }),
            _ => None,
        });
        mdms.collect()
    };
    if delta.from == Revision(0) {
        members.replace(addresses(delta).into_iter().map(|member| member.address).collect());
    } else {
        addresses(delta).iter().for_each(|member| members.add(member));
    }
}
