//! The shard thread: one turn after the other. A turn takes everything that has happened, steps the shard with it, carries
//! out what it wants, and writes everything that is to be written.

mod client;
mod greet;
mod hub;
mod links;
mod socket;

use std::rc::Rc;
use std::time::Duration;

use mdm_api::control::Heartbeat;
use mdm_api::epoch::Nanos;
use sds_api::open::{OpenMessage, PeerLink};
use sds_node::{Action, CommandFailure, CommandId, Event, Figures, KnownDevice, Severity, Shard};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use self::hub::Hub;
use crate::clock;
use crate::control::Wanted;
use crate::disks::{Disks, Opened};
use crate::inbox::Inbox;

/// How often figures for metrics are made.
const FIGURES_MS: u64 = 1000;
/// How long an orderly stop may take to empty the journals; the rest is read again at the next start.
const DRAIN_MS: u64 = 3000;

/// What the shard thread is wired to.
pub(crate) struct Wiring {
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) wanted: mpsc::Sender<Wanted>,
    pub(crate) heartbeats: watch::Sender<Option<Heartbeat>>,
    pub(crate) figures: watch::Sender<Option<Figures>>,
    pub(crate) devices: watch::Sender<Vec<KnownDevice>>,
    pub(crate) heartbeat_ms: u64,
}

/// The shard thread's state.
pub(crate) struct Turns {
    hub: Rc<Hub>,
    disks: Disks,
    opened: mpsc::Receiver<Opened>,
    inbox: Inbox,
    wiring: Wiring,
    actions: Vec<Action>,
    next_heartbeat: Nanos,
    next_figures: Nanos,
    stopped: Option<String>,
}

impl Turns {
    pub(crate) fn new(
        settings: sds_node::Settings,
        disks: Disks,
        opened: mpsc::Receiver<Opened>,
        inbox: Inbox,
        wiring: Wiring,
    ) -> Self {
        let hub = Hub::new(settings.system, settings.sds, Shard::new(settings));
        let (next_heartbeat, next_figures) = (Nanos(0), Nanos(0));
        Self { hub, disks, opened, inbox, wiring, actions: Vec::new(), next_heartbeat, next_figures, stopped: None }
    }

    /// Runs until told to stop, or until the node itself says that it must end: then the error says why.
    pub(crate) async fn run(
        mut self,
        listener: TcpListener,
        known: Vec<KnownDevice>,
        mut stop: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        tokio::task::spawn_local(greet::listen(self.hub.clone(), listener));
        self.step(Event::Boot { devices: known });
        let mut drain_until = None;
        loop {
            self.turn();
            if let Some(reason) = self.stopped.take() {
                self.disks.close_all().await;
                anyhow::bail!(reason);
            }
            if let Some(until) = drain_until
                && (self.hub.shard.borrow().is_drained() || clock::now() >= until)
            {
                self.disks.close_all().await;
                return Ok(());
            }
            // Sockets are looked at even when there is always something else to do.
            tokio::task::yield_now().await;
            if !self.hub.is_empty() {
                continue;
            }
            let deadline = self.hub.shard.borrow().next_deadline().min(self.next_heartbeat).min(self.next_figures);
            let rest = Duration::from_nanos(deadline.0.saturating_sub(clock::now().0)).min(Duration::from_secs(1));
            tokio::select! {
                biased;
                () = self.inbox.filled() => {}
                () = self.hub.arrived() => {}
                event = self.wiring.events.recv() => match event {
                    Some(event) => self.step(event),
                    None => anyhow::bail!("the control threads have ended"),
                },
                Some(opened) = self.opened.recv() => {
                    if let Some(event) = self.disks.opened(opened) {
                        self.step(event);
                    }
                }
                () = tokio::time::sleep(rest) => {}
                _ = &mut stop, if drain_until.is_none() => {
                    drain_until = Some(clock::now().plus_ms(DRAIN_MS));
                    self.step(Event::Drain);
                }
            }
        }
    }

    fn turn(&mut self) {
        for completions in self.inbox.take() {
            if let Some((event, gone)) = self.disks.completed(completions) {
                self.step(event);
                if let Some(event) = gone {
                    self.step(event);
                }
            }
        }
        for event in self.hub.take() {
            self.step(event);
        }
        let now = clock::now();
        let due = self.hub.shard.borrow().next_deadline() <= now;
        if due {
            self.step(Event::Tick);
        }
        if self.next_heartbeat <= now {
            self.next_heartbeat = now.plus_ms(self.wiring.heartbeat_ms);
            let heartbeat = self.hub.shard.borrow().heartbeat(now);
            self.wiring.heartbeats.send_replace(Some(heartbeat));
        }
        if self.next_figures <= now {
            self.next_figures = now.plus_ms(FIGURES_MS);
            let figures = self.hub.shard.borrow().figures();
            self.wiring.figures.send_replace(Some(figures));
        }
        self.hub.flush();
    }

    /// The time is taken anew for every event: what a lease covers is judged by when it is judged (I13).
    fn step(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.hub.shard.borrow_mut().step(clock::now(), event, &mut actions);
        for action in actions.drain(..) {
            self.carry_out(action);
        }
        self.actions = actions;
    }

    fn carry_out(&mut self, action: Action) {
        let hub = &self.hub;
        match action {
            Action::OpenDevice { device, path } => self.disks.open(device, path),
            Action::CloseDevice { device } => self.disks.close(device),
            Action::Disk { device, requests } => {
                if let Some(event) = self.disks.submit(device, requests) {
                    hub.push(event);
                }
            }
            Action::RememberDevices(list) => {
                self.wiring.devices.send_replace(list);
            }
            Action::Command { id, command } => {
                if self.wiring.wanted.try_send(Wanted::Command(id, command)).is_err() {
                    hub.push(unanswered(id));
                }
            }
            Action::FollowAnew => {
                if self.wiring.wanted.try_send(Wanted::FollowAnew).is_err() {
                    tracing::error!("the map could not be followed anew: the control threads are too busy");
                }
            }
            Action::ConnectPeer { sds, addresses } => connect(hub, sds, addresses),
            Action::DisconnectPeer { sds } => {
                let links = hub.links.borrow_mut().remove(&sds);
                drop(links); // closes its connections, which look for it
            }
            Action::SendPeer { sds, frame } => {
                if let Some(links) = hub.links.borrow().get(&sds) {
                    links.send(hub, &frame);
                }
            }
            Action::Opened { connection, request, handle, proof } => {
                self.say(connection, &OpenMessage::Opened { request, handle, proof });
            }
            Action::OpenRefused { connection, request, code, text } => {
                self.say(connection, &OpenMessage::OpenRefused { request, code, text });
            }
            Action::Reply { connection, reply } => {
                if let Some(client) = hub.clients.borrow().get(&connection) {
                    client.reply(hub, &reply);
                }
            }
            Action::CloseClient { connection, text } => {
                tracing::warn!(connection, text, "a client's connection is closed");
                if let Some(client) = hub.clients.borrow().get(&connection) {
                    client.refuse(text);
                }
            }
            Action::Notice(notice) => match notice.severity {
                Severity::Information => tracing::info!("{notice}"),
                Severity::Warning => tracing::warn!("{notice}"),
                Severity::Error => tracing::error!("{notice}"),
            },
            Action::Stop { reason } => self.stopped = Some(reason),
        }
    }

    fn say(&self, connection: u64, message: &OpenMessage) {
        if let Some(client) = self.hub.clients.borrow().get(&connection) {
            client.say(&self.hub, message);
        }
    }
}

fn unanswered(id: CommandId) -> Event {
    Event::CommandDone { id, result: Err(CommandFailure::Unknown) }
}

/// Keeps connections to another server from here on: the server with the lower id calls.
fn connect(hub: &Rc<Hub>, sds: mdm_api::ids::SdsId, addresses: Vec<String>) {
    let mut all = hub.links.borrow_mut();
    let links = all.entry(sds).or_default();
    links.addresses = addresses;
    if hub.sds < sds && links.dialers.is_empty() {
        for link in [PeerLink::Control, PeerLink::Bulk] {
            let dialer = tokio::task::spawn_local(greet::dial(hub.clone(), sds, link));
            links.dialers.push(dialer.abort_handle());
        }
    }
}
