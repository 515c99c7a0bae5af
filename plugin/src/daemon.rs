//! Start and end of the daemon.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::mount::UnmountFlags;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{Api, Patience};
use crate::config::Config;
use crate::core::placement::Defaults;
use crate::create::NewVolume;
use crate::host::Host;
use crate::keeper::Means;
use crate::store::Store;
use crate::system::System;
use crate::volumes::Volumes;
use crate::{discovery, listen, sweep, tools};

/// Where the kernel says which start of the host this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Runs until told to end. What is under way is left as it is: the next start goes on from what it finds.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Before anything that takes time: an engine that starts waits for the socket.
    let socket = listen::unix(&config.socket)?;
    let means = Arc::new(means(&config)?);
    let boot = std::fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?.trim().to_owned();
    let (records, damaged) = means.store.all().context("cannot read the records")?;
    for what in &damaged {
        tracing::error!(%what, "a record is damaged: look what is mounted, and remove it");
    }
    end_stagings(&means.host).await?;
    let volumes = Volumes::start(means.clone(), config.policy()?, boot, records);
    let patience = Patience {
        mount: Duration::from_secs(config.mount_timeout_s),
        unmount: Duration::from_secs(config.unmount_timeout_s),
        hold: Duration::from_secs(config.hold_s),
    };
    let defaults = NewVolume {
        size_bytes: config.default_size_bytes()?,
        filesystem: config.default_fstype.clone(),
        place: Defaults {
            pool: config.default_pool.clone(),
            protection_domain: config.default_protection_domain.clone(),
        },
    };
    let api = Arc::new(Api::new(volumes.clone(), defaults, patience));
    tokio::spawn(learn_members(means));
    tokio::spawn(sweep::run(volumes));
    if let Some(address) = &config.tls_listen {
        serve_tls(&config, address, api.clone()).await?;
    }
    let _announced = discovery::announce(&config)?;
    tokio::spawn(listen::serve_unix(socket, api));
    tracing::info!(socket = %config.socket.display(), "serving");
    wait_for_end().await?;
    tracing::info!("ending: volumes stay mounted");
    match std::fs::remove_file(&config.socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot remove the socket"),
        _ => Ok(()),
    }
}

fn means(config: &Config) -> anyhow::Result<Means> {
    let ca = std::fs::read_to_string(&config.ca).with_context(|| {
        format!("cannot read {}: copy authority.pem from an MDM's data directory", config.ca.display())
    })?;
    let system = System::new(&ca, config.mdm.clone(), config.user.clone(), config.password_file.clone())?;
    let store = Store::open(&config.state_directory.join("records"))
        .with_context(|| format!("cannot use {}", config.state_directory.display()))?;
    std::fs::create_dir_all(&config.mount_directory)
        .with_context(|| format!("cannot make {}", config.mount_directory.display()))?;
    let release_unused = (config.release_unused_s > 0).then(|| Duration::from_secs(config.release_unused_s));
    let host = Host::new(config.sdc_socket.clone(), config.mount_directory.clone());
    Ok(Means { system, host, store, started: Instant::now(), release_unused })
}

/// A file system that was being made when the daemon was killed is still mounted where it was made.
async fn end_stagings(host: &Host) -> anyhow::Result<()> {
    let stagings = host.staging("");
    let entries = match std::fs::read_dir(&stagings) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", stagings.display())),
    };
    for entry in entries {
        let path = entry?.path();
        if let Err(failure) = tools::unmount_all(&path, UnmountFlags::DETACH).await {
            tracing::warn!(path = %path.display(), why = %failure.text, "cannot be unmounted");
        }
        if let Err(error) = std::fs::remove_dir(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot be removed");
        }
    }
    Ok(())
}

/// Where the metadata managers are, from the data client, where the configuration does not say.
async fn learn_members(means: Arc<Means>) {
    loop {
        if let Ok(status) = means.host.status().await
            && let Some(system) = status.systems.first()
        {
            means.system.learn_members(&system.mdms);
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn serve_tls(config: &Config, address: &str, api: Arc<Api>) -> anyhow::Result<()> {
    let file = |file: &Option<std::path::PathBuf>| file.clone().context("a file of TLS is not configured");
    let acceptor =
        listen::tls(&file(&config.tls_certificate)?, &file(&config.tls_key)?, &file(&config.tls_client_ca)?)?;
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    tokio::spawn(listen::serve_tls(listener, acceptor, api));
    Ok(())
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

/// Forgets mounts by hand, through the socket of the running daemon.
pub fn release(socket: &Path, volume: &str, id: Option<&str>) -> anyhow::Result<()> {
    use std::io::{Read, Write};
    let body = serde_json::json!({ "Name": volume, "ID": id.unwrap_or_default() }).to_string();
    let mut stream = std::os::unix::net::UnixStream::connect(socket)
        .with_context(|| format!("no plugin answers at {}", socket.display()))?;
    write!(stream, "POST /Ashlar.Release HTTP/1.1\r\nHost: plugin\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    let (_, object) = answer.split_once("\r\n\r\n").context("the plugin closed the connection")?;
    let object: serde_json::Value = serde_json::from_str(object.trim()).context("the plugin's answer is no JSON")?;
    match object["Err"].as_str() {
        Some("") => Ok(()),
        Some(why) => anyhow::bail!("{why}"),
        None => anyhow::bail!("unexpected answer {object}"),
    }
}
