//! `mdm run`: opens the member of a data directory and serves until it is told to stop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, anyhow};
use mdm_api::client::{Connector, LOCK_PATIENCE, pki};
use mdm_api::control::PeerRole;
use mdm_node::Node;
use mdm_raft::{Settings, StoreId};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::directory::{Directory, MemberFile};
use crate::disk::Disk;
use crate::greet::{Greeter, Port};
use crate::listen;
use crate::metrics::Metrics;
use crate::moment;
use crate::owner::{INBOX, Owner, PEER_INBOX};
use crate::password::Checker;
use crate::peers::{AddressBook, Peers};

/// Runs the member until SIGTERM or SIGINT, or until it must not go on.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = Config::read(config_path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(&config))
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let directory = Directory::open(&config.data_directory, false, LOCK_PATIENCE)?;
    let member = directory.member()?;
    let identity = directory.identity()?;
    // The ports first: one that is in use is found before anything is written.
    let control = bind(config.listen, "listen").await?;
    let peer = bind(config.peer_listen, "peer_listen").await?;
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(bind(address, "metrics_listen").await?),
        None => None,
    };

    let metrics = Metrics::new()?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (inbox, inbox_receiver) = mpsc::channel(INBOX);
    let (peer_events, peer_inbox) = mpsc::channel(PEER_INBOX);
    let (stop, stopped) = watch::channel(false);
    let leader = watch::Sender::new(None);
    let (id, system) = (member.mdm()?, member.system()?);
    let greeter =
        Greeter { tls: TlsAcceptor::from(pki::server_config(&identity)?), system, mdm: id, leader: leader.subscribe() };
    let connector =
        Connector::new(pki::client_config(&identity.authority_pem, Some(&identity))?, PeerRole::Mdm(id), Some(system));
    let book: AddressBook = member.peers()?.into_iter().collect();
    let parts = OwnerParts {
        inbox: inbox_receiver,
        self_inbox: inbox.clone(),
        peer_inbox,
        peers: Peers::new(connector, book, peer_events.clone()),
        leader,
        stop: stopped,
        metrics: metrics.clone(),
    };
    let mut owner = start_owner(directory, member, parts)?;

    tokio::spawn(listen::accept(control, Port::Control, greeter.clone(), inbox.clone(), peer_events.clone()));
    tokio::spawn(listen::accept(peer, Port::Peers, greeter, inbox, peer_events));
    if let Some(listener) = metrics_listener {
        tokio::spawn(metrics.serve(listener));
    }
    tracing::info!(%id, %system, listen = %config.listen, peer_listen = %config.peer_listen, "metadata manager started");

    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut owner => Some(ended),
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            tracing::info!("told to stop");
            stop.send_replace(true);
            owner.await
        }
    };
    ended.map_err(|_| anyhow!("the member's thread ended without a word: this is a defect, see the log"))?
}

struct OwnerParts {
    inbox: mpsc::Receiver<crate::owner::Input>,
    self_inbox: mpsc::Sender<crate::owner::Input>,
    peer_inbox: mpsc::Receiver<mdm_node::Event>,
    peers: Peers,
    leader: watch::Sender<Option<mdm_api::control::MdmAddress>>,
    stop: watch::Receiver<bool>,
    metrics: Metrics,
}

/// Opens the member and starts its thread. Ends with what ended it.
fn start_owner(
    directory: Directory,
    member: MemberFile,
    parts: OwnerParts,
) -> anyhow::Result<tokio::sync::oneshot::Receiver<anyhow::Result<()>>> {
    let log = directory.log()?;
    let mut first = Vec::new();
    let node = open(&log.read().context("cannot read the log")?, &member, &mut first)?;
    let (disk, disk_events) = Disk::start(log)?;
    let owner = Owner {
        node,
        system: member.system()?,
        disk,
        disk_events,
        peers: parts.peers,
        inbox: parts.inbox,
        self_inbox: parts.self_inbox,
        peer_inbox: parts.peer_inbox,
        leader: parts.leader,
        stop: parts.stop,
        checker: Checker::new()?,
        metrics: parts.metrics,
        connections: BTreeMap::new(),
    };
    let (ended, receiver) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("cannot start the runtime")?;
    let run = move || {
        let result = runtime.block_on(owner.run(first));
        // The directory is given back only when nothing writes in it any more.
        drop(directory);
        if ended.send(result).is_err() {
            tracing::debug!("nobody waits for the end of the member");
        }
    };
    std::thread::Builder::new().name("member".to_owned()).spawn(run).context("cannot start a thread")?;
    Ok(receiver)
}

fn open(
    files: &BTreeMap<mdm_raft::FileName, bytes::Bytes>,
    member: &MemberFile,
    first: &mut Vec<mdm_node::Action>,
) -> anyhow::Result<Node> {
    let settings = settings(member)?;
    let moment = moment::now()?;
    match mdm_raft::recover(files)? {
        Some(recovered) => {
            if recovered.store() != StoreId(member.store()?) {
                return Err(anyhow!(
                    "the log in the data directory is not this member's ({} instead of {}): remove the member with \
                     `scli mdm remove`, empty its data directory and join it again with `mdm join`",
                    recovered.store(),
                    member.store
                ));
            }
            Ok(Node::open(settings, recovered, moment, first)?)
        }
        // Creation and joining make the log before the member is written: a missing one was lost.
        None => Err(anyhow!(
            "the log of this member is gone from its data directory: remove the member with `scli mdm remove`, empty its \
             data directory and join it again with `mdm join`"
        )),
    }
}

/// How the member runs. Seeds are new at each start.
pub(crate) fn settings(member: &MemberFile) -> anyhow::Result<Settings> {
    Ok(Settings::new(member.mdm()?, member.system()?, moment::random_id()?, moment::random_id()?))
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("{address} is in use: stop what listens there, or set another {key} in the configuration")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow!("{address} is no address of this host: set another {key} in the configuration")
        }
        _ => anyhow!("cannot listen on {address}: {error}: set another {key} in the configuration"),
    })
}
