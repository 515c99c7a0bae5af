//! The control runtime's part: following the map, asking the leader, and heartbeats to every MDM.

use std::collections::BTreeMap;
use std::time::Duration;

use mdm_api::client::{Connector, MdmClient, Members, follow};
use mdm_api::command::DaemonCommand;
use mdm_api::control::{ControlMessage, Heartbeat, Request, Response};
use mdm_api::epoch::Revision;
use mdm_api::ids::SdsId;
use mdm_api::map::MapView;
use sds_node::{CommandFailure, CommandId, Event};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::clock;

/// Commands that wait; the node bounds its own below this.
pub(crate) const COMMANDS_MAX: usize = 1024;
/// How long a command is tried before its outcome counts as unknown and the node decides anew.
const COMMAND_PATIENCE: Duration = Duration::from_secs(3);
/// How often the list of MDMs is looked at.
const MEMBERS_EVERY: Duration = Duration::from_millis(250);
/// Pause before an MDM is connected to again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What the shard thread wants of the control runtime.
pub(crate) enum Wanted {
    Command(CommandId, DaemonCommand),
    FollowAnew,
}

/// Runs until the shard thread is gone.
pub(crate) async fn run(
    connector: Connector,
    members: Members,
    sds: SdsId,
    mut wanted: mpsc::Receiver<Wanted>,
    events: mpsc::Sender<Event>,
    heartbeats: watch::Receiver<Option<Heartbeat>>,
) {
    let client = MdmClient::start(connector.clone(), members.clone(), None);
    let mut deltas = follow(connector.clone(), members.clone(), MapView::Sds(sds), Revision(0));
    let mut senders: BTreeMap<String, AbortHandle> = BTreeMap::new();
    let mut look = tokio::time::interval(MEMBERS_EVERY);
    loop {
        tokio::select! {
            delta = deltas.recv() => match delta {
                Some(delta) => if events.send(Event::Delta(delta)).await.is_err() {
                    return;
                },
                None => deltas = follow(connector.clone(), members.clone(), MapView::Sds(sds), Revision(0)),
            },
            wanted = wanted.recv() => match wanted {
                Some(Wanted::Command(id, command)) => {
                    tokio::spawn(ask(client.clone(), id, command, events.clone()));
                }
                Some(Wanted::FollowAnew) => {
                    deltas = follow(connector.clone(), members.clone(), MapView::Sds(sds), Revision(0));
                }
                None => return,
            },
            _ = look.tick() => {
                let addresses = members.addresses();
                senders.retain(|address, sender| {
                    let stays = addresses.contains(address);
                    if !stays {
                        sender.abort();
                    }
                    stays
                });
                for address in addresses {
                    senders.entry(address.clone()).or_insert_with(|| {
                        let reporting = report(connector.clone(), members.clone(), address, heartbeats.clone());
                        tokio::spawn(reporting).abort_handle()
                    });
                }
            }
        }
    }
}

/// One command. Repeated by the client under one id until somebody answers, so it takes effect once.
async fn ask(client: MdmClient, id: CommandId, command: DaemonCommand, events: mpsc::Sender<Event>) {
    let result = match clock::random::<16>() {
        Ok(bytes) => {
            let request = Request::Daemon { request_id: u128::from_le_bytes(bytes), command };
            match client.request(request, COMMAND_PATIENCE).await {
                Ok(Response::Command(answer)) => Ok(answer),
                Ok(_) => Err(CommandFailure::Unknown),
                Err(mdm_api::client::ClientError::Refused(error)) => {
                    tracing::debug!(%error, "a command was refused");
                    Err(CommandFailure::Refused(error))
                }
                Err(error) => {
                    tracing::warn!(%error, "a command has no answer yet");
                    Err(CommandFailure::Unknown)
                }
            }
        }
        Err(error) => {
            tracing::error!(%error, "a command was not sent");
            Err(CommandFailure::Unknown)
        }
    };
    // The shard thread is gone only when the process ends.
    let _ = events.send(Event::CommandDone { id, result }).await;
}

/// Heartbeats to one MDM, each as soon as the shard thread has made it.
async fn report(
    connector: Connector,
    members: Members,
    address: String,
    mut heartbeats: watch::Receiver<Option<Heartbeat>>,
) {
    loop {
        match connector.connect(&address).await {
            Ok(connection) => {
                let mdm_api::client::Connection { mut reader, mut writer, .. } = connection;
                let members = members.clone();
                // Who leads is heard here first, from those that are not cut off.
                let acknowledgements = tokio::spawn(async move {
                    while let Ok(Some(message)) = reader.next().await {
                        if let ControlMessage::HeartbeatAck { leader: Some(leader), .. } = message {
                            members.led_by(leader);
                        }
                    }
                });
                loop {
                    if acknowledgements.is_finished() || heartbeats.changed().await.is_err() {
                        break;
                    }
                    let heartbeat = heartbeats.borrow_and_update().clone();
                    let Some(heartbeat) = heartbeat else { continue };
                    if let Err(error) = writer.send(&ControlMessage::Heartbeat(Box::new(heartbeat))).await {
                        tracing::debug!(%address, %error, "a heartbeat was not sent");
                        break;
                    }
                }
                acknowledgements.abort();
            }
            Err(error) => tracing::debug!(%address, %error, "no connection for heartbeats"),
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}
