//! Start and end of the daemon.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sdc_client::runtime::Client;
use sdc_nbd::attach::AttachConfig;
use sdc_nbd::attach::links::Links;
use sdc_nbd::listen::{Access, Listener};
use sdc_nbd::network::{NetworkListener, TlsFiles};
use sdc_nbd::serve::Ending;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::identity::{self, Membership};
use crate::link::SystemLink;
use crate::local;
use crate::manager::Manager;
use crate::metrics::{self, Metrics};

/// Threads of a holder process, so requests in flight of one FUSE device.
const HOLDER_THREADS: usize = 16;
/// Connections of one kernel nbd device.
const NBD_CONNECTIONS: usize = 2;
/// Before kernel devices are watched anew, after an error or where there was no way to make them.
const DEVICE_WATCH_PAUSE: Duration = Duration::from_secs(2);
/// How long requests in flight may take to end when the daemon does.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// JSON objects for programs.
    Json,
}

/// Starts the log; `ASHLAR_LOG` filters it, `info` by default.
pub fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ASHLAR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Runs until told to end.
pub async fn run(config: Config) -> anyhow::Result<()> {
    raise_file_limit()?;
    let membership = Membership::load(&config.data_directory)?;
    let guid = identity::guid(&config.data_directory)?;
    let metrics = Metrics::new()?;
    if let Some(address) = &config.metrics_listen {
        metrics::serve(address, metrics.clone()).await?;
    }
    let control = local::listen(&config.control_socket)?;
    if let Some(parent) = config.nbd_socket.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let listener = Listener::bind(&config.nbd_socket, &Access { mode: config.nbd_mode, gid: None })?;

    let network = bind_network(&config).await?;

    let link = Arc::new(SystemLink::connect(&membership)?);
    let client = Client::start(link.clone(), membership.system, membership.sdc);
    let attach = attach_config(&config, &membership)?;
    let name = config.name.clone();
    let manager = Arc::new(Manager::new(config, guid, membership.system, link.clone(), client, metrics, attach));
    let serving = manager.clone();
    tokio::spawn(async move { listener.run(serving.server()).await });
    if let Some(network) = network {
        let serving = manager.clone();
        tokio::spawn(async move { network.run(serving.server()).await });
    }
    tokio::spawn(local::serve(control, manager.clone()));

    let adopted = adopt(&manager).await;
    tokio::spawn(manager.clone().follow(adopted));
    let reviving = manager.clone();
    tokio::spawn(async move { keep_devices_connected(&reviving).await });
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let registering = link.clone();
    tokio::spawn(async move {
        match registering.register(guid, name, host).await {
            Ok(()) => tracing::info!("the system knows this client"),
            Err(error) => tracing::error!(%error, "the system refuses this client"),
        }
    });
    let present = link.clone();
    tokio::spawn(async move { present.keep_present().await });
    tracing::info!(%guid, socket = %manager.nbd_socket().display(), "serving");
    wait_for_end().await?;
    tracing::info!("ending: requests in flight are finished, devices stay for the next start");
    manager.server().shutdown(Ending::Resume, SHUTDOWN_GRACE).await;
    Ok(())
}

async fn bind_network(config: &Config) -> anyhow::Result<Option<NetworkListener>> {
    let Some(network) = config.nbd_network.clone() else { return Ok(None) };
    let files = TlsFiles { certificate: network.certificate, key: network.key, authority: network.authority };
    let listener = NetworkListener::bind(network.listen, files).await.context("in nbd_network")?;
    tracing::info!(listen = %network.listen, "serving other hosts over TLS");
    Ok(Some(listener))
}

fn attach_config(config: &Config, membership: &Membership) -> anyhow::Result<AttachConfig> {
    let own = std::env::current_exe().context("cannot find this program")?;
    Ok(AttachConfig {
        run_dir: config.run_directory(),
        socket: std::path::absolute(&config.nbd_socket)?,
        holder: vec![own.into_os_string(), "hold".into()],
        holder_threads: HOLDER_THREADS,
        nbd_connections: NBD_CONNECTIONS,
        links: Links::of_system(membership.system.0),
    })
}

/// Devices that an earlier process left. A host that can attach nothing has none.
async fn adopt(manager: &Arc<Manager>) -> Vec<sdc_nbd::attach::Attached> {
    let adopted = match manager.attacher() {
        Ok(attacher) => attacher.adopt().await,
        Err(error) => {
            tracing::info!(%error, "volumes are served over NBD only");
            return Vec::new();
        }
    };
    match adopted {
        Ok(adopted) => {
            adopted.cleaned.iter().for_each(|name| tracing::info!(volume = %name, "a dead device was cleaned away"));
            for (name, error) in &adopted.broken {
                tracing::error!(volume = %name, %error, "a dead device cannot be cleaned away");
            }
            adopted.attached
        }
        Err(error) => {
            tracing::error!(%error, "devices of an earlier start cannot be taken over");
            Vec::new()
        }
    }
}

/// A thousand volumes need some thousand sockets: as many files as this process may have.
fn raise_file_limit() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")
}

async fn keep_devices_connected(manager: &Arc<Manager>) {
    loop {
        // Where there is no way to make devices there are none to watch; that may change while we run.
        if let Ok(attacher) = manager.attacher() {
            match attacher.keep_connected().await {
                Ok(()) => return,
                Err(error) => tracing::error!(%error, "kernel devices are not watched for a moment"),
            }
        }
        tokio::time::sleep(DEVICE_WATCH_PAUSE).await;
    }
}

async fn wait_for_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
