//! Which volumes this host has, and what tools ask about them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mdm_api::epoch::AttachGeneration;
use mdm_api::ids::{Guid, SdcId, SystemId, VolumeId};
use mdm_api::map::ClusterMap;
use mdm_api::model::AccessMode;
use sdc_api::{LocalAnswer, LocalError, LocalErrorCode, LocalRequest, LocalStatus, LocalSystem, LocalVolume};
use sdc_client::runtime::{Client, Cluster};
use sdc_nbd::attach::{AttachConfig, AttachError, Attached, Attacher};
use sdc_nbd::export::Exports;
use sdc_nbd::serve::Server;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;
use crate::export::VolumeExport;
use crate::keeper;
use crate::link::SystemLink;
use crate::metrics::Metrics;

/// How long a tool's request to attach may take.
const ATTACH_PATIENCE: Duration = Duration::from_secs(30);
/// How often a waiting request looks whether the device is there.
const ATTACH_PAUSE: Duration = Duration::from_millis(5);

/// One mapped volume.
struct Slot {
    name: String,
    /// The mapping that it belongs to.
    under: AttachGeneration,
    export: Option<Arc<VolumeExport>>,
    device: Option<Attached>,
    wanted: bool,
    problem: Option<String>,
    asked: Arc<Notify>,
    /// A tool took the device away by force: nothing that is under way may land any more.
    fence: bool,
}

/// The volumes by id; what the NBD server looks names up in.
#[derive(Clone, Default)]
pub struct Table {
    slots: Arc<Mutex<BTreeMap<VolumeId, Slot>>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exports for Table {
    type Export = VolumeExport;

    async fn list(&self) -> Vec<String> {
        self.lock().values().filter(|slot| slot.export.is_some()).map(|slot| slot.name.clone()).collect()
    }

    async fn open(&self, name: &str) -> Option<Arc<VolumeExport>> {
        let slots = self.lock();
        let by_id = name.parse().ok().and_then(|id: VolumeId| slots.get(&id));
        by_id.or_else(|| slots.values().find(|slot| slot.name == name)).and_then(|slot| slot.export.clone())
    }
}

/// Everything that the daemon's tasks share.
pub struct Manager {
    config: Config,
    guid: Guid,
    system: SystemId,
    link: Arc<SystemLink>,
    client: Client,
    metrics: Metrics,
    table: Table,
    server: Arc<Server<Table>>,
    attach_config: AttachConfig,
    attacher: OnceLock<Attacher>,
}

impl Manager {
    /// Wires the parts together.
    pub fn new(
        config: Config,
        guid: Guid,
        system: SystemId,
        link: Arc<SystemLink>,
        client: Client,
        metrics: Metrics,
        attach_config: AttachConfig,
    ) -> Self {
        let table = Table::default();
        let server = Arc::new(Server::new(table.clone(), sdc_nbd::limits::Limits::default()));
        let attacher = OnceLock::new();
        Self { config, guid, system, link, client, metrics, table, server, attach_config, attacher }
    }

    /// The NBD server.
    pub fn server(&self) -> &Arc<Server<Table>> {
        &self.server
    }

    /// The metadata manager.
    pub fn link(&self) -> &Arc<SystemLink> {
        &self.link
    }

    /// Volume I/O.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Figures.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Who this client is.
    pub fn sdc(&self) -> SdcId {
        self.link.sdc
    }

    /// What makes devices: one for all, found out anew until there is one, since a module may be loaded or a package
    /// installed meanwhile.
    pub fn attacher(&self) -> Result<Attacher, AttachError> {
        if let Some(attacher) = self.attacher.get() {
            return Ok(attacher.clone());
        }
        let made = Attacher::new(self.attach_config.clone())?;
        Ok(self.attacher.get_or_init(|| made).clone())
    }

    /// Follows the map: starts a keeper for each mapping that appears.
    pub async fn follow(self: Arc<Self>, adopted: Vec<Attached>) {
        let mut adopted: BTreeMap<u64, Attached> =
            adopted.into_iter().map(|device| (device.volume.id, device)).collect();
        let mut map = self.link.map();
        loop {
            let now = map.borrow_and_update().clone();
            self.metrics.map_revision.set(i64::try_from(now.revision().0).unwrap_or(i64::MAX));
            if now.system().is_some() {
                self.start_keepers(&now, &mut adopted);
                // What an earlier daemon attached and nobody has mapped to this host any more.
                for (_, device) in std::mem::take(&mut adopted) {
                    self.clone().discard(device);
                }
            }
            if map.changed().await.is_err() {
                return;
            }
        }
    }

    fn start_keepers(self: &Arc<Self>, map: &Arc<ClusterMap>, adopted: &mut BTreeMap<u64, Attached>) {
        let volumes: Vec<VolumeId> = map.mappings().filter(|m| m.sdc == self.sdc()).map(|m| m.volume).collect();
        for volume in volumes {
            let Some((mapping, record)) = keeper::mapped(map, volume, self) else { continue };
            let mut slots = self.table.lock();
            if slots.contains_key(&volume) {
                continue; // its keeper sees for itself; a mapping made anew gets its own once the old one's has ended
            }
            let device = match adopted.remove(&volume.0) {
                Some(device) if device.volume.generation == mapping.mapped.0 => Some(device),
                Some(device) => {
                    self.clone().discard(device);
                    None
                }
                None => None,
            };
            let wanted = device.is_some() || self.config.attaches(&record.name);
            let (name, under) = (record.name.clone(), mapping.mapped);
            let asked = Arc::new(Notify::new());
            let slot = Slot { name, under, export: None, device, wanted, problem: None, asked, fence: false };
            slots.insert(volume, slot);
            drop(slots);
            tokio::spawn(keeper::keep(self.clone(), volume, under));
        }
        self.count();
    }

    /// Takes a device away that belongs to no mapping of today.
    fn discard(self: Arc<Self>, device: Attached) {
        tokio::spawn(async move {
            let name = device.volume.name.clone();
            let detached = match self.attacher() {
                Ok(attacher) => attacher.detach(&name, true).await,
                Err(error) => Err(error),
            };
            match detached {
                Ok(()) => tracing::info!(volume = %name, "a device of an older mapping was taken away"),
                Err(error) => {
                    tracing::error!(volume = %name, %error, "a device of an older mapping cannot be taken away")
                }
            }
        });
    }

    fn count(&self) {
        let slots = self.table.lock();
        self.metrics.volumes.set(i64::try_from(slots.len()).unwrap_or(i64::MAX));
        let attached = slots.values().filter(|slot| slot.device.is_some()).count();
        self.metrics.attached.set(i64::try_from(attached).unwrap_or(i64::MAX));
    }

    fn with<T>(&self, volume: VolumeId, change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.table.lock().get_mut(&volume).map(change)
    }

    /// The volume is open: the NBD server may serve it.
    pub fn serve(&self, volume: VolumeId, name: &str, export: &Arc<VolumeExport>) {
        self.with(volume, |slot| {
            slot.export = Some(export.clone());
            slot.problem = None;
            name.clone_into(&mut slot.name);
        });
    }

    /// The volume is not served any more. The names under which it was.
    pub fn unserve(&self, volume: VolumeId) -> Vec<String> {
        let name = self.with(volume, |slot| {
            slot.export = None;
            slot.name.clone()
        });
        name.into_iter().chain([volume.to_string()]).collect()
    }

    /// The volume has a new name.
    pub fn rename(&self, volume: VolumeId, name: &str) {
        self.with(volume, |slot| name.clone_into(&mut slot.name));
    }

    /// Why the volume is not as it should be.
    pub fn set_problem(&self, volume: VolumeId, problem: Option<String>) {
        self.with(volume, |slot| slot.problem = problem);
    }

    /// The volume's device.
    pub fn device(&self, volume: VolumeId) -> Option<Attached> {
        self.with(volume, |slot| slot.device.clone()).flatten()
    }

    /// The volume's device has changed.
    pub fn set_device(&self, volume: VolumeId, device: Option<Attached>) {
        self.with(volume, |slot| slot.device = device);
        self.count();
    }

    /// True if the volume should be a device.
    pub fn wants_device(&self, volume: VolumeId) -> bool {
        self.with(volume, |slot| slot.wanted).unwrap_or(false)
    }

    /// Ends when a tool has asked for something of this volume.
    pub async fn asked(&self, volume: VolumeId) {
        match self.with(volume, |slot| slot.asked.clone()) {
            Some(asked) => asked.notified().await,
            None => std::future::pending().await,
        }
    }

    /// The keeper is done. A mapping that was made anew meanwhile gets a keeper of its own.
    pub fn forget(self: &Arc<Self>, volume: VolumeId) {
        self.table.lock().remove(&volume);
        self.metrics.of_volume(volume).forget();
        let map = self.link.map().borrow().clone();
        self.start_keepers(&map, &mut BTreeMap::new());
    }

    /// Answers a tool.
    pub async fn answer(self: Arc<Self>, request: LocalRequest) -> LocalAnswer {
        match request {
            LocalRequest::Status => LocalAnswer::Status(Box::new(self.status())),
            LocalRequest::Attach { volume, revision } => self.attach(&volume, revision).await,
            LocalRequest::Detach { volume, force } => self.detach(&volume, force).await,
            // The map is pushed as it changes; to look anew is to make sure that all that is in it was acted on.
            LocalRequest::Rescan => {
                self.start_keepers(&self.link.map().borrow().clone(), &mut BTreeMap::new());
                self.table.lock().values().for_each(|slot| slot.asked.notify_one());
                LocalAnswer::Done
            }
        }
    }

    fn status(&self) -> LocalStatus {
        let map = self.link.map().borrow().clone();
        let system = LocalSystem {
            system: self.system,
            sdc: self.sdc(),
            mdms: self.link.members.addresses(),
            connected: map.system().is_some(),
        };
        let slots = self.table.lock();
        let volumes = slots.iter().map(|(volume, slot)| self.local_volume(&map, *volume, slot)).collect();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        LocalStatus { guid: self.guid, systems: vec![system], volumes, version }
    }

    fn local_volume(&self, map: &ClusterMap, volume: VolumeId, slot: &Slot) -> LocalVolume {
        let size = slot.export.as_ref().map(|export| export.volume().size_bytes());
        let problem = match (&slot.problem, &slot.export) {
            (Some(problem), _) => Some(problem.clone()),
            (None, None) => Some("it is being opened".to_owned()),
            (None, Some(_)) => None,
        };
        LocalVolume {
            system: self.system,
            volume,
            name: slot.name.clone(),
            size_bytes: size.or_else(|| map.volume(volume).map(|v| v.size_bytes)).unwrap_or(0),
            access: map.mapping(volume, self.sdc()).map_or(AccessMode::ReadWrite, |mapping| mapping.access),
            nbd_uri: format!("nbd+unix:///{}?socket={}", slot.name, self.config.nbd_socket.display()),
            device: slot.device.as_ref().map(|device| device.device.display().to_string()),
            mechanism: slot.device.as_ref().map(|device| device.mechanism.name().to_owned()),
            problem,
        }
    }

    fn find(&self, wanted: &str) -> Result<VolumeId, LocalError> {
        let slots = self.table.lock();
        let by_id = wanted.parse().ok().filter(|id: &VolumeId| slots.contains_key(id));
        by_id.or_else(|| slots.iter().find(|(_, slot)| slot.name == wanted).map(|(id, _)| *id)).ok_or_else(|| {
            LocalError {
                code: LocalErrorCode::NotMapped,
                message: format!("volume '{wanted}' is not mapped to this host"),
                remedy: format!("map it with 'scli volume map {wanted} --sdc {}'", self.sdc()),
            }
        })
    }

    /// The volume, once the map is at `revision` and what belonged to an earlier mapping of the volume has gone.
    async fn find_current(&self, wanted: &str, revision: u64, deadline: Instant) -> Result<VolumeId, LocalError> {
        let mut map = self.link.map();
        // A map that does not come in time is as good as one without the mapping.
        let heard = tokio::time::timeout_at(deadline, map.wait_for(|map| map.revision().0 >= revision)).await.is_ok();
        tracing::debug!(%wanted, revision, heard, "a device is wanted");
        loop {
            let now = self.link.map().borrow().clone();
            let is_mapped = |volume| keeper::mapped(&now, volume, self).map(|(mapping, _)| mapping.mapped);
            let found = self.find(wanted);
            let is_current = match &found {
                Ok(volume) => self.with(*volume, |slot| slot.under) == is_mapped(*volume),
                // The keeper of a mapping that the map holds is about to start.
                Err(_) => !self.is_in(&now, wanted),
            };
            if is_current || Instant::now() > deadline {
                return found;
            }
            tokio::time::sleep(ATTACH_PAUSE).await;
        }
    }

    /// True if the map has a mapping of the volume to this client.
    fn is_in(&self, map: &ClusterMap, wanted: &str) -> bool {
        let mut own = map.mappings().filter(|mapping| mapping.sdc == self.sdc()).map(|mapping| mapping.volume);
        own.any(|volume| {
            keeper::mapped(map, volume, self)
                .is_some_and(|(_, record)| record.name == wanted || volume.to_string() == wanted)
        })
    }

    async fn attach(self: &Arc<Self>, wanted: &str, revision: u64) -> LocalAnswer {
        let deadline = Instant::now() + ATTACH_PATIENCE;
        let volume = match self.find_current(wanted, revision, deadline).await {
            Ok(volume) => volume,
            Err(refused) => return LocalAnswer::Refused(refused),
        };
        self.with(volume, |slot| {
            slot.wanted = true;
            slot.problem = None;
            slot.asked.notify_one();
        });
        loop {
            let map = self.link.map().borrow().clone();
            let now = self.with(volume, |slot| (slot.device.is_some(), self.local_volume(&map, volume, slot)));
            match now {
                Some((true, local)) => return LocalAnswer::Attached(local),
                Some((false, local)) if Instant::now() > deadline => {
                    return LocalAnswer::Refused(LocalError {
                        code: LocalErrorCode::Failed,
                        message: format!("volume '{wanted}' is not attached after {} s", ATTACH_PATIENCE.as_secs()),
                        remedy: local.problem.unwrap_or_else(|| "see the data client's log".to_owned()),
                    });
                }
                Some((false, local)) => {
                    // What cannot succeed by waiting is told at once.
                    if let Err(error @ AttachError::NoMechanism { .. }) = self.attacher() {
                        return LocalAnswer::Refused(LocalError {
                            code: LocalErrorCode::NoMechanism,
                            message: error.to_string(),
                            remedy: format!("or use {} directly", local.nbd_uri),
                        });
                    }
                    tokio::time::sleep(ATTACH_PAUSE).await;
                }
                None => {
                    return self.find(wanted).err().map_or(LocalAnswer::Done, LocalAnswer::Refused);
                }
            }
        }
    }

    async fn detach(self: &Arc<Self>, wanted: &str, force: bool) -> LocalAnswer {
        let volume = match self.find(wanted) {
            Ok(volume) => volume,
            Err(refused) => return LocalAnswer::Refused(refused),
        };
        let Some(attached) = self.device(volume) else { return LocalAnswer::Done };
        // From here on its keeper makes no new one.
        let wanted = self.with(volume, |slot| std::mem::take(&mut slot.wanted)).unwrap_or_default();
        let detached = match self.attacher() {
            Ok(attacher) => attacher.detach(&attached.volume.name, force).await,
            Err(error) => Err(error),
        };
        if detached.is_err() {
            self.with(volume, |slot| slot.wanted |= wanted);
        }
        match detached {
            Ok(()) | Err(AttachError::NotAttached(_)) => {
                self.with(volume, |slot| slot.device = None);
                self.count();
                if force { self.fence(volume).await } else { LocalAnswer::Done }
            }
            Err(error @ AttachError::Busy { .. }) => LocalAnswer::Refused(LocalError {
                code: LocalErrorCode::InUse,
                message: error.to_string(),
                remedy: "unmount it first".to_owned(),
            }),
            Err(error) => LocalAnswer::Refused(LocalError {
                code: LocalErrorCode::Failed,
                message: error.to_string(),
                remedy: "see the data client's log".to_owned(),
            }),
        }
    }

    /// Opens the volume under a new generation, which fences the one before: what the users of a device that was taken
    /// away had under way cannot land any more (I17).
    async fn fence(self: &Arc<Self>, volume: VolumeId) -> LocalAnswer {
        let deadline = tokio::time::Instant::now() + ATTACH_PATIENCE;
        let before = self.with(volume, |slot| {
            slot.fence = true;
            slot.asked.notify_one();
            slot.export.clone()
        });
        let Some(Some(before)) = before else { return LocalAnswer::Done };
        let generation = |slot: &mut Slot| slot.export.as_ref().is_some_and(|now| !Arc::ptr_eq(now, &before));
        loop {
            match self.with(volume, generation) {
                Some(true) | None => return LocalAnswer::Done,
                Some(false) if tokio::time::Instant::now() > deadline => {
                    return LocalAnswer::Refused(LocalError {
                        code: LocalErrorCode::Unavailable,
                        message: "the device is gone, but what its users had under way may still land".to_owned(),
                        remedy: "it is fenced once the metadata managers answer: see 'scli system show'".to_owned(),
                    });
                }
                Some(false) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// True once after a device was taken away by force.
    pub fn takes_fence(&self, volume: VolumeId) -> bool {
        self.with(volume, |slot| std::mem::take(&mut slot.fence)).unwrap_or_default()
    }

    /// Where the NBD socket is.
    pub fn nbd_socket(&self) -> PathBuf {
        self.config.nbd_socket.clone()
    }
}
