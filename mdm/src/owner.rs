//! The one owner of the member: feeds it events, one at a time, and carries out what it wants done.
//!
//! Runs on a thread of its own, so that no TLS handshake or password check delays a heartbeat of the group. It never waits
//! for anybody: what cannot be handed on at once is dropped (messages to members) or ends its connection (answers).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, anyhow};
use mdm_api::client::pki::Authority;
use mdm_api::client::token::JoinToken;
use mdm_api::client::{pki, token};
use mdm_api::control::{ControlMessage, MdmAddress, PeerRole, RequestError, Response};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::SystemId;
use mdm_node::{Action, ConnectionId, Event, Node, Notice, RequestKey, SignOrder};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::connection::Outgoing;
use crate::disk::{Disk, DiskEvent};
use crate::metrics::Metrics;
use crate::moment;
use crate::password::Checker;
use crate::peers::Peers;

/// Events that wait for the owner. Callers wait when it is full.
pub(crate) const INBOX: usize = 4096;
/// Messages of other members that wait, apart from callers'.
pub(crate) const PEER_INBOX: usize = 1024;
/// How often the member is told that time passes.
const TICK: Duration = Duration::from_millis(50);
/// Figures are taken every so many ticks: once a second.
const TICKS_PER_FIGURES: u64 = 20;
/// Events that are taken from a queue at a time before the others get their turn.
const BATCH: usize = 64;

/// What reaches the owner.
pub(crate) enum Input {
    /// A caller was greeted.
    Opened { connection: ConnectionId, peer: PeerRole, out: mpsc::Sender<Outgoing> },
    /// Anything else.
    Event(Event),
}

/// Everything that the owner holds.
pub(crate) struct Owner {
    pub(crate) node: Node,
    pub(crate) system: SystemId,
    pub(crate) disk: Disk,
    pub(crate) disk_events: mpsc::Receiver<DiskEvent>,
    pub(crate) peers: Peers,
    pub(crate) inbox: mpsc::Receiver<Input>,
    /// For the tasks that answer the owner.
    pub(crate) self_inbox: mpsc::Sender<Input>,
    pub(crate) peer_inbox: mpsc::Receiver<Event>,
    pub(crate) leader: watch::Sender<Option<MdmAddress>>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) checker: Checker,
    pub(crate) metrics: Metrics,
    pub(crate) connections: BTreeMap<ConnectionId, mpsc::Sender<Outgoing>>,
}

impl Owner {
    /// Runs until told to stop, or until the member must not go on. `first`: what the member wanted when it was opened.
    pub(crate) async fn run(mut self, first: Vec<Action>) -> anyhow::Result<()> {
        self.carry_out(first)?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u64;
        loop {
            tokio::select! {
                biased;
                _ = self.stop.changed() => return Ok(()),
                Some(event) = self.disk_events.recv() => match event {
                    DiskEvent::Persisted { id, took } => {
                        self.metrics.persisted(took);
                        self.step(Event::Persisted(id))?;
                    }
                    DiskEvent::Failed(error) => {
                        return Err(anyhow!(error).context("the log cannot be written: what is on the disk is read back at the next start"));
                    }
                },
                _ = ticks.tick() => {
                    self.step(Event::Tick)?;
                    count += 1;
                    if count.is_multiple_of(TICKS_PER_FIGURES) {
                        self.metrics.set(&self.node.figures());
                    }
                }
                Some(event) = self.peer_inbox.recv() => self.step(event)?,
                Some(input) = self.inbox.recv() => self.take(input)?,
            }
            // Both queues get their turn each time, whichever is never empty.
            for _ in 0..BATCH {
                let Ok(event) = self.peer_inbox.try_recv() else { break };
                self.step(event)?;
            }
            for _ in 0..BATCH {
                let Ok(input) = self.inbox.try_recv() else { break };
                self.take(input)?;
            }
        }
    }

    fn take(&mut self, input: Input) -> anyhow::Result<()> {
        match input {
            Input::Opened { connection, peer, out } => {
                self.connections.insert(connection, out);
                self.step(Event::Connected { connection, peer })
            }
            Input::Event(event) => {
                if let Event::Disconnected { connection, .. } = &event {
                    self.connections.remove(connection);
                }
                self.step(event)
            }
        }
    }

    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        let mut actions = Vec::new();
        self.node.step(moment::now()?, event, &mut actions);
        self.carry_out(actions)
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> anyhow::Result<()> {
        for action in actions {
            match action {
                Action::Persist { id, ops } => self.disk.persist(id, ops).context("the log's thread has stopped")?,
                Action::SendPeer { to, bytes, is_snapshot } => self.peers.send(to, bytes, is_snapshot),
                Action::Peers(peers) => self.peers.set_addresses(peers),
                Action::Respond { key, result } => self.respond(key, result),
                Action::HeartbeatAck { connection, revision, leader } => {
                    self.send(connection, Outgoing::Message(ControlMessage::HeartbeatAck { revision, leader }));
                }
                Action::Push { connection, delta } => self.send(connection, Outgoing::Push(delta)),
                Action::Close { connection, error } => self.send(connection, Outgoing::Close(error)),
                Action::CheckPassword { key, user, hash, password } => {
                    let (checker, inbox) = (self.checker.clone(), self.self_inbox.clone());
                    tokio::spawn(async move {
                        let right = checker.check(hash, password).await;
                        let event = Event::PasswordChecked { key, user, right };
                        if inbox.send(Input::Event(event)).await.is_err() {
                            tracing::debug!("stopped while a password was checked");
                        }
                    });
                }
                Action::Sign(order) => self.sign(*order),
                Action::JoinToken { key, secret, authority_certificate_pem, members } => {
                    let token = join_token(self.system, members, &authority_certificate_pem, secret);
                    self.respond(key, answer(token.map(|token| Response::JoinToken { token })));
                }
                Action::Notice(notice) => self.notice(notice),
                Action::Halt { reason } => return Err(anyhow!(reason)),
            }
        }
        Ok(())
    }

    fn respond(&mut self, key: RequestKey, result: Result<Box<Response>, RequestError>) {
        self.send(key.connection, Outgoing::Answer(ControlMessage::Response { id: key.id, result }));
    }

    /// Hands a message to a connection; one whose queue is full has a reader that is too slow, and is ended.
    fn send(&mut self, connection: ConnectionId, message: Outgoing) {
        let Some(out) = self.connections.get(&connection) else { return };
        if out.try_send(message).is_err() {
            tracing::info!("a caller does not take its answers; its connection is closed");
            self.connections.remove(&connection);
        }
    }

    /// Signs on a thread for blocking work and answers.
    fn sign(&mut self, order: SignOrder) {
        let Some(out) = self.connections.get(&order.key.connection).cloned() else { return };
        tokio::spawn(async move {
            let id = order.key.id;
            tracing::info!(role = ?order.role, "joined");
            let signed = tokio::task::spawn_blocking(move || sign(order)).await;
            let result = match signed {
                Ok(result) => answer(result),
                Err(error) => answer(Err(anyhow!(error))),
            };
            if out.send(Outgoing::Answer(ControlMessage::Response { id, result })).await.is_err() {
                tracing::debug!("who joined did not wait for its certificate");
            }
        });
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::LeaderChanged { leader, term, is_self } => {
                match leader {
                    Some(_) if is_self => tracing::info!(term, "this member leads"),
                    Some(leader) => tracing::info!(term, %leader, "another member leads"),
                    None => tracing::info!(term, "nobody leads"),
                }
                self.metrics.leader_changed();
                self.leader.send_replace(self.node.leader_address());
            }
            Notice::Applied { kind, refused } => {
                self.metrics.applied(kind, refused.is_some());
                match refused {
                    // What moves data is for every log.
                    None if matches!(kind, "sds_down" | "sds_up" | "device_failed" | "register_sds") => {
                        tracing::info!(kind, "applied");
                    }
                    None => tracing::debug!(kind, "applied"),
                    Some(error) => tracing::debug!(kind, %error, "refused"),
                }
                // Records of members may have changed.
                let leader = self.node.leader_address();
                if *self.leader.borrow() != leader {
                    self.leader.send_replace(leader);
                }
            }
            Notice::Told(text) => tracing::info!("{text}"),
            Notice::Warned(text) => tracing::warn!("{text}"),
        }
    }
}

fn sign(order: SignOrder) -> anyhow::Result<Response> {
    let authority = Authority { certificate_pem: order.authority_certificate_pem, key_pem: order.authority_key_pem };
    let certificate_pem = authority.sign(order.joined.system, order.role, &order.csr_pem).map_err(|error| {
        CommandError::new(
            ErrorCode::InvalidArgument,
            format!("The certificate request is not valid: {error}"),
            "let the daemon make a new one",
        )
    })?;
    Ok(Response::Joined(mdm_api::control::Joined { certificate_pem, ..order.joined }))
}

/// The one line that a new host needs.
pub(crate) fn join_token(
    system: SystemId,
    members: Vec<MdmAddress>,
    authority_certificate_pem: &str,
    secret: String,
) -> anyhow::Result<String> {
    let authority_der = pki::certificate_der(authority_certificate_pem)?;
    let token: JoinToken = token::JoinToken { system, members, authority_der, secret };
    Ok(token.to_text())
}

fn answer(result: anyhow::Result<Response>) -> Result<Box<Response>, RequestError> {
    result.map(Box::new).map_err(|error| {
        RequestError::Refused(error.downcast::<CommandError>().unwrap_or_else(|error| {
            CommandError::new(ErrorCode::Internal, format!("{error:#}"), "look at the log of the metadata manager")
        }))
    })
}
