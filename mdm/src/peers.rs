//! Sending to the other members: one connection for all that is small, another for snapshots, so that no heartbeat waits
//! behind hundreds of megabytes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mdm_api::client::{Connection, Connector};
use mdm_api::frame::FrameKind;
use mdm_api::ids::MdmId;
use mdm_node::Event;
use tokio::sync::{mpsc, watch};

use crate::mailbox::Mailbox;

/// Messages to one peer that wait: some seconds of a busy group.
const MESSAGES_MAX: usize = 1024;
/// Bytes of messages to one peer that wait: a few full appends.
const BYTES_MAX: usize = 64 << 20;
/// Snapshots that wait: the newest is enough.
const SNAPSHOTS_MAX: usize = 1;
/// A peer that cannot be reached is tried again after this, doubling...
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// ...up to this: an election takes as long.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a small message may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a snapshot may take.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(120);

/// Where members are.
pub(crate) type AddressBook = BTreeMap<MdmId, Vec<String>>;

/// The ways to all other members.
pub(crate) struct Peers {
    connector: Connector,
    addresses: watch::Sender<AddressBook>,
    events: mpsc::Sender<Event>,
    lanes: BTreeMap<MdmId, (Mailbox, Mailbox)>,
}

impl Peers {
    /// `book`: where they were when this member joined; what the group says later counts more.
    pub(crate) fn new(connector: Connector, book: AddressBook, events: mpsc::Sender<Event>) -> Self {
        Self { connector, addresses: watch::Sender::new(book), events, lanes: BTreeMap::new() }
    }

    /// What the group says about where its members are. Ways to those who left are closed.
    pub(crate) fn set_addresses(&mut self, peers: Vec<(MdmId, Vec<String>)>) {
        let book: AddressBook = peers.into_iter().collect();
        self.lanes.retain(|id, lanes| {
            let stays = book.contains_key(id);
            if !stays {
                lanes.0.close();
                lanes.1.close();
            }
            stays
        });
        self.addresses.send_replace(book);
    }

    /// Sends, or drops.
    pub(crate) fn send(&mut self, to: MdmId, bytes: Bytes, is_snapshot: bool) {
        if !self.addresses.borrow().contains_key(&to) {
            tracing::debug!(peer = %to, "no address is known of a metadata manager");
            return;
        }
        let (small, snapshots) = self.lanes.entry(to).or_insert_with(|| {
            let (small, snapshots) = (Mailbox::new(MESSAGES_MAX, BYTES_MAX), Mailbox::new(SNAPSHOTS_MAX, usize::MAX));
            for (mailbox, is_snapshot) in [(small.clone(), false), (snapshots.clone(), true)] {
                let lane = Lane {
                    peer: to,
                    is_snapshot,
                    mailbox,
                    connector: self.connector.clone(),
                    addresses: self.addresses.subscribe(),
                    events: self.events.clone(),
                };
                tokio::spawn(lane.run());
            }
            (small, snapshots)
        });
        let dropped = if is_snapshot { snapshots.put(bytes) } else { small.put(bytes) };
        if dropped > 0 {
            tracing::debug!(peer = %to, dropped, "messages to a slow metadata manager were dropped");
        }
    }
}

struct Lane {
    peer: MdmId,
    is_snapshot: bool,
    mailbox: Mailbox,
    connector: Connector,
    addresses: watch::Receiver<AddressBook>,
    events: mpsc::Sender<Event>,
}

impl Lane {
    async fn run(self) {
        let mut pause = PAUSE_MIN;
        let mut turn = 0;
        while let Some(first) = self.mailbox.next().await {
            match self.connect(turn).await {
                Ok(connection) => {
                    pause = PAUSE_MIN;
                    if self.is_snapshot {
                        self.send_snapshot(connection, &first).await;
                        continue;
                    }
                    if let Err(error) = self.send_all(connection, first).await {
                        tracing::debug!(peer = %self.peer, %error, "the connection to a metadata manager broke");
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = %self.peer, error = %format!("{error:#}"), "a metadata manager cannot be reached");
                    turn += 1;
                    if self.is_snapshot {
                        self.tell(Event::SnapshotSent { to: self.peer, ok: false }).await;
                    }
                }
            }
            if self.mailbox.is_closed() {
                return;
            }
            self.tell(Event::PeerLost(self.peer)).await;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            // What waited meanwhile is old; the newest words come by themselves.
            self.mailbox.clear();
        }
    }

    async fn tell(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            self.mailbox.close();
        }
    }

    async fn connect(&self, turn: usize) -> anyhow::Result<Connection> {
        let address = {
            let book = self.addresses.borrow();
            let all = book.get(&self.peer).map(Vec::as_slice).unwrap_or_default();
            all.get(turn % all.len().max(1)).cloned()
        };
        let address = address.ok_or_else(|| anyhow::anyhow!("no address is known"))?;
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, self.connector.connect(&address)).await??;
        anyhow::ensure!(connection.mdm == self.peer, "{address} is {}, not {}", connection.mdm, self.peer);
        Ok(connection)
    }

    async fn send_all(&self, connection: Connection, first: Bytes) -> anyhow::Result<()> {
        let Connection { mut reader, mut writer, .. } = connection;
        // The peer says nothing on this connection: whatever comes is its end.
        let ended = reader.next_frame();
        tokio::pin!(ended);
        let mut message = first;
        loop {
            tokio::time::timeout(WRITE_TIMEOUT, writer.send_frame(FrameKind::Raft, &message)).await??;
            message = tokio::select! {
                next = self.mailbox.next() => match next {
                    Some(next) => next,
                    None => return Ok(()),
                },
                _ = &mut ended => anyhow::bail!("closed by the peer"),
            };
        }
    }

    async fn send_snapshot(&self, connection: Connection, snapshot: &[u8]) {
        let Connection { mut writer, .. } = connection;
        let sent = tokio::time::timeout(SNAPSHOT_TIMEOUT, async {
            writer.send_frame(FrameKind::Raft, snapshot).await?;
            writer.close().await
        });
        let ok = matches!(sent.await, Ok(Ok(())));
        self.tell(Event::SnapshotSent { to: self.peer, ok }).await;
    }
}
