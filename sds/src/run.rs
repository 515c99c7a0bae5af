//! `sds run`: threads, and what connects them.

use std::path::Path;

use anyhow::Context;
use mdm_api::client::{Connector, Members, pki};
use mdm_api::control::PeerRole;
use mdm_api::timing::Timing;
use sds_node::{Event, Settings};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Config;
use crate::control::{self, COMMANDS_MAX};
use crate::data::{Turns, Wiring};
use crate::disks::Disks;
use crate::identity::{self, Membership};
use crate::inbox::Inbox;
use crate::{clock, metrics, remembered};

/// Events of the control runtime that wait for the shard thread; beyond that it waits.
const EVENTS_MAX: usize = 1024;

/// Runs until SIGTERM or SIGINT, or until this process must not go on.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = Config::read(config_path)?;
    let _lock = identity::lock(&config.data_directory)?;
    let membership = Membership::load(&config.data_directory)?;
    let certificate = membership.identity();
    let tls = pki::client_config(&certificate.authority_pem, Some(&certificate))?;
    let connector = Connector::new(tls, PeerRole::Sds(membership.sds), Some(membership.system));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control threads")?;
    let (event_sender, events) = mpsc::channel::<Event>(EVENTS_MAX);
    let (wanted, wanted_receiver) = mpsc::channel(COMMANDS_MAX);
    let (heartbeats, heartbeat_receiver) = watch::channel(None);
    let (figures, figure_receiver) = watch::channel(None);
    let (devices, mut device_lists) = watch::channel(Vec::new());

    let timing = Timing::DEFAULT;
    let settings = Settings {
        system: membership.system,
        sds: membership.sds,
        nonce: clock::random_id()?,
        seed: clock::random_id()?,
        addresses: config.addresses(),
        journal_bytes: None,
        scrub_period_ms: config.scrub_period_s.saturating_mul(1000),
        retained_bytes: sds_node::limits::RETAINED_BYTES,
        timing,
    };
    let wiring = Wiring { events, wanted, heartbeats, figures, devices, heartbeat_ms: timing.heartbeat_ms };
    let listener = std::net::TcpListener::bind(config.listen).with_context(|| {
        format!("cannot listen on {}: stop what uses the port, or change 'listen' in the configuration", config.listen)
    })?;
    listener.set_nonblocking(true).context("cannot set up the listening socket")?;
    if let Some(address) = config.metrics_listen {
        let listener = runtime.block_on(TcpListener::bind(address)).with_context(|| {
            format!(
                "cannot listen on {address}: stop what uses the port, or change 'metrics_listen' in the configuration"
            )
        })?;
        runtime.spawn(metrics::serve(listener, figure_receiver));
    }
    let members = Members::new(membership.members.clone());
    runtime.spawn(control::run(connector, members, membership.sds, wanted_receiver, event_sender, heartbeat_receiver));
    let directory = config.data_directory.clone();
    runtime.spawn(async move {
        while device_lists.changed().await.is_ok() {
            let list = device_lists.borrow_and_update().clone();
            let directory = directory.clone();
            let written = tokio::task::spawn_blocking(move || remembered::save(&directory, &list)).await;
            if let Err(error) = written {
                tracing::error!(%error, "the list of devices was not written");
            }
        }
    });

    let (stop, stopping) = oneshot::channel();
    let known = remembered::load(&config.data_directory);
    let engine = config.disk_engine.into();
    let (ended_sender, ended) = oneshot::channel();
    let shard = std::thread::Builder::new()
        .name("shard".to_owned())
        .spawn(move || {
            let result = shard_thread(settings, engine, wiring, listener, known, stopping);
            // The waiting side is gone only if the process is ending anyhow.
            let _ = ended_sender.send(());
            result
        })
        .context("cannot start the shard thread")?;
    tracing::info!(sds = %membership.sds, system = %membership.system, listen = %config.listen, "started");
    runtime.block_on(wait(stop, ended))?;
    let result = shard.join().map_err(|_| anyhow::anyhow!("the shard thread has panicked; see above"))?;
    runtime.shutdown_background();
    result
}

/// Until a signal asks for the end, and then until it has come; or until the shard thread ends by itself.
async fn wait(stop: oneshot::Sender<()>, mut ended: oneshot::Receiver<()>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = &mut ended => return Ok(()),
    }
    tracing::info!("stopping");
    if stop.send(()).is_ok() {
        // An error here means that the thread has ended, which is what is waited for.
        let _ = ended.await;
    }
    Ok(())
}

fn shard_thread(
    settings: Settings,
    engine: sds_disk::EngineChoice,
    wiring: Wiring,
    listener: std::net::TcpListener,
    known: Vec<sds_node::KnownDevice>,
    stopping: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("shard thread")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let inbox = Inbox::default();
        let (disks, opened) = Disks::start(engine, inbox.clone());
        let listener = TcpListener::from_std(listener).context("listening socket")?;
        Turns::new(settings, disks, opened, inbox, wiring).run(listener, known, stopping).await
    })
}
