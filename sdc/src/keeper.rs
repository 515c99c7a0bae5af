//! One mapped volume's life on this host.
//!
//! ```text
//!   mapped ──▶ opening ──▶ served ──▶ attached (by policy or by request)
//!                ▲            │ the session is over (fenced, or its device was taken away by force), still mapped
//!                └────────────┘
//!   unmapped, or mapped anew ──▶ connections ended, device taken away, volume closed
//! ```
//!
//! Always true: a volume is served only under the mapping that is in the map; a device outlives neither its mapping nor
//! (except over a restart of this daemon) its volume.

use std::sync::Arc;
use std::time::Duration;

use mdm_api::epoch::AttachGeneration;
use mdm_api::ids::VolumeId;
use mdm_api::map::ClusterMap;
use mdm_api::model::{AccessMode, Mapping, Volume as VolumeRecord};
use sdc_client::runtime::Cluster;
use sdc_client::session::Policy;
use sdc_nbd::attach::{AttachError, VolumeSpec};
use sdc_nbd::serve::Ending;
use tokio::sync::watch;

use crate::export::VolumeExport;
use crate::manager::Manager;

/// How long connections of a volume that was taken away may finish what they have.
const EVICT_GRACE: Duration = Duration::from_secs(1);
/// Pause before something that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The mapping of this client, if the volume is there and the mapping not taken away.
pub fn mapped(map: &ClusterMap, volume: VolumeId, manager: &Manager) -> Option<(Mapping, VolumeRecord)> {
    let mapping = map.mapping(volume, manager.sdc()).filter(|mapping| !mapping.revoked)?;
    let record = map.volume(volume).filter(|record| !record.removing)?;
    Some((mapping.clone(), record.clone()))
}

/// Keeps one volume under one mapping until the mapping is gone.
pub async fn keep(manager: Arc<Manager>, volume: VolumeId, under: AttachGeneration) {
    let mut map = manager.link().map();
    loop {
        let still = |map: &ClusterMap| mapped(map, volume, &manager).filter(|(mapping, _)| mapping.mapped == under);
        let Some((mapping, record)) = still(&map.borrow_and_update()) else { break };
        let opened = tokio::select! {
            opened = manager.client().open(volume, Policy::default()) => opened,
            () = gone(&manager, &mut map, volume, under) => break,
        };
        match opened {
            Ok(opened) => {
                let metrics = manager.metrics().of_volume(volume);
                let export = Arc::new(VolumeExport::new(opened, mapping.limits, metrics));
                manager.serve(volume, &record.name, &export);
                serve_until_over(&manager, &mut map, volume, under, &export).await;
                // Connections hold on to the session that is over; their clients come back for the next one.
                for name in manager.unserve(volume) {
                    manager.server().evict(&name, Ending::Resume, EVICT_GRACE).await;
                }
            }
            Err(error) => {
                tracing::warn!(volume = %record.name, %error, "the volume cannot be opened");
                manager.set_problem(volume, Some(error.to_string()));
                tokio::select! {
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                    () = gone(&manager, &mut map, volume, under) => break,
                }
            }
        }
    }
    take_away(&manager, volume).await;
}

/// Ends when the mapping is not the one any more.
async fn gone(
    manager: &Manager,
    map: &mut watch::Receiver<Arc<ClusterMap>>,
    volume: VolumeId,
    under: AttachGeneration,
) {
    let changed = map.wait_for(|map| mapped(map, volume, manager).is_none_or(|(mapping, _)| mapping.mapped != under));
    if changed.await.is_err() {
        // The map is not followed any more: the daemon ends, and this task with it.
        std::future::pending::<()>().await;
    }
}

/// Attaches if wanted, follows size and limits; returns when the mapping is gone or the session is over.
async fn serve_until_over(
    manager: &Arc<Manager>,
    map: &mut watch::Receiver<Arc<ClusterMap>>,
    volume: VolumeId,
    under: AttachGeneration,
    export: &Arc<VolumeExport>,
) {
    let mut state = export.volume().watch();
    loop {
        let size_bytes = state.borrow_and_update().size_bytes;
        let failed = bring_device_in_line(manager, map, volume, under, size_bytes).await.is_err();
        tokio::select! {
            changed = map.changed() => {
                if changed.is_err() { return; }
                let Some((mapping, record)) = mapped(&map.borrow_and_update(), volume, manager) else { return };
                if mapping.mapped != under { return; }
                export.set_limits(mapping.limits);
                manager.rename(volume, &record.name);
            }
            changed = state.changed() => {
                if changed.is_err() { return; }
                if let Some(error) = state.borrow().failed.clone() {
                    tracing::warn!(%volume, %error, "the session is over");
                    manager.set_problem(volume, Some(error.to_string()));
                    return;
                }
            }
            () = manager.asked(volume) => if manager.takes_fence(volume) { return; },
            () = tokio::time::sleep(RETRY_PAUSE), if failed => {}
        }
    }
}

/// Makes the device if it is wanted and not there, and lets it grow if the volume has.
async fn bring_device_in_line(
    manager: &Arc<Manager>,
    map: &watch::Receiver<Arc<ClusterMap>>,
    volume: VolumeId,
    under: AttachGeneration,
    size_bytes: u64,
) -> Result<(), AttachError> {
    if manager.wants_device(volume) {
        attach(manager, map, volume, under).await?;
    }
    resize(manager, volume, size_bytes).await
}

/// Makes the volume a block device, if it is none.
async fn attach(
    manager: &Arc<Manager>,
    map: &watch::Receiver<Arc<ClusterMap>>,
    volume: VolumeId,
    under: AttachGeneration,
) -> Result<(), AttachError> {
    if manager.device(volume).is_some() {
        return Ok(());
    }
    let Some((mapping, record)) = mapped(&map.borrow(), volume, manager) else { return Ok(()) };
    let spec = VolumeSpec {
        name: record.name.clone(),
        id: volume.0,
        generation: under.0,
        // By id: the name of the export outlives a renaming.
        export: volume.to_string(),
        size_bytes: record.size_bytes,
        read_only: mapping.access == AccessMode::ReadOnly,
    };
    let attached = match manager.attacher() {
        Ok(attacher) => attacher.attach(spec).await,
        Err(error) => Err(error),
    };
    match attached {
        Ok(attached) => {
            tracing::info!(volume = %record.name, device = %attached.device.display(), "attached");
            manager.set_problem(volume, None);
            manager.set_device(volume, Some(attached));
            Ok(())
        }
        Err(error) => {
            tracing::warn!(volume = %record.name, %error, "the volume cannot be attached");
            manager.set_problem(volume, Some(error.to_string()));
            Err(error)
        }
    }
}

/// Lets the device grow with the volume.
async fn resize(manager: &Arc<Manager>, volume: VolumeId, size_bytes: u64) -> Result<(), AttachError> {
    let Some(mut attached) = manager.device(volume) else { return Ok(()) };
    if attached.volume.size_bytes >= size_bytes {
        return Ok(());
    }
    let result = manager.attacher()?.resize(&attached.volume.name, size_bytes).await;
    match &result {
        Ok(()) => {
            tracing::info!(volume = %attached.volume.name, size_bytes, "the device has grown");
            attached.volume.size_bytes = size_bytes;
            manager.set_device(volume, Some(attached));
        }
        Err(error) => {
            tracing::warn!(volume = %attached.volume.name, %error, "the device cannot grow");
            manager.set_problem(volume, Some(error.to_string()));
        }
    }
    result
}

/// Nothing of the volume is left on this host afterwards.
async fn take_away(manager: &Arc<Manager>, volume: VolumeId) {
    let names = manager.unserve(volume);
    for name in names {
        manager.server().evict(&name, Ending::Refuse, EVICT_GRACE).await;
    }
    while let Some(attached) = manager.device(volume) {
        let detached = match manager.attacher() {
            // By force: the mapping is gone, nothing that its users still write would be accepted (P8).
            Ok(attacher) => attacher.detach(&attached.volume.name, true).await,
            Err(error) => Err(error),
        };
        match detached {
            Ok(()) | Err(AttachError::NotAttached(_)) => manager.set_device(volume, None),
            Err(error) => {
                tracing::warn!(volume = %attached.volume.name, %error, "the device cannot be taken away");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
    manager.forget(volume);
    tracing::info!(%volume, "the volume is no longer here");
}
