//! This host: its data client, and what is mounted here.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mdm_api::ids::{SdcId, VolumeId};
use sdc_api::{LocalAnswer, LocalErrorCode, LocalRequest, LocalStatus, LocalVolume, client};

use crate::core::facts::Device;
use crate::core::machine::Failure;
use crate::tools::{blocking, definite, device_number, passing};

/// How long the data client may take for what needs no other host.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to attach or detach: longer than its own patience.
const DEVICE_PATIENCE: Duration = Duration::from_secs(45);

/// The data client of this host.
pub struct Host {
    socket: PathBuf,
    mounts: PathBuf,
    /// Who this host is in the system, once that has been heard.
    sdc: Mutex<Option<SdcId>>,
}

impl Host {
    /// `mounts`: where volumes are mounted.
    pub fn new(socket: PathBuf, mounts: PathBuf) -> Self {
        Self { socket, mounts, sdc: Mutex::new(None) }
    }

    /// Where a volume is mounted.
    pub fn mount_point(&self, name: &str) -> PathBuf {
        self.mounts.join(name)
    }

    /// Where a volume is mounted while its file system is made.
    pub fn staging(&self, name: &str) -> PathBuf {
        // No name of a volume begins with a dot.
        self.mounts.join(".making").join(name)
    }

    /// The directory of all mount points.
    pub fn mounts(&self) -> &Path {
        &self.mounts
    }

    async fn ask(&self, request: LocalRequest, patience: Duration) -> Result<LocalAnswer, Failure> {
        let socket = self.socket.clone();
        blocking(move || match client::ask(&socket, &request, patience) {
            Ok(LocalAnswer::Refused(error)) => Err(match error.code {
                LocalErrorCode::NoMechanism | LocalErrorCode::BadRequest => definite(error.to_string()),
                _ => passing(error.to_string()),
            }),
            Ok(answer) => Ok(answer),
            Err(error) => {
                Err(passing(format!("the data client of this host does not answer at {}: {error}", socket.display())))
            }
        })
        .await
    }

    /// What it serves.
    pub async fn status(&self) -> Result<LocalStatus, Failure> {
        match self.ask(LocalRequest::Status, STATUS_PATIENCE).await? {
            LocalAnswer::Status(status) => {
                if let Some(system) = status.systems.first() {
                    *self.sdc.lock().unwrap_or_else(PoisonError::into_inner) = Some(system.sdc);
                }
                Ok(*status)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Who this host is in the system, if that was ever heard.
    pub fn known_sdc(&self) -> Option<SdcId> {
        *self.sdc.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who this host is in the system.
    pub async fn sdc(&self) -> Result<SdcId, Failure> {
        match self.known_sdc() {
            Some(sdc) => Ok(sdc),
            None => {
                self.status().await?;
                self.known_sdc().ok_or_else(|| definite("the data client of this host has joined no system"))
            }
        }
    }

    /// Makes a mapped volume a block device.
    pub async fn attach(&self, volume: VolumeId, revision: u64) -> Result<Device, Failure> {
        let request = LocalRequest::Attach { volume: volume.to_string(), revision };
        match self.ask(request, DEVICE_PATIENCE).await? {
            LocalAnswer::Attached(volume) => device_of(&volume)?.ok_or_else(|| passing("the volume is not attached")),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes the block device away. One that is gone already is success.
    pub async fn detach(&self, volume: VolumeId) -> Result<(), Failure> {
        let socket = self.socket.clone();
        let request = LocalRequest::Detach { volume: volume.to_string(), force: false };
        blocking(move || match client::ask(&socket, &request, DEVICE_PATIENCE) {
            Ok(LocalAnswer::Done) => Ok(()),
            Ok(LocalAnswer::Refused(error)) if error.code == LocalErrorCode::NotMapped => Ok(()),
            Ok(LocalAnswer::Refused(error)) => Err(passing(error.to_string())),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(passing(format!("the data client of this host does not answer: {error}"))),
        })
        .await
    }
}

fn unexpected(answer: &LocalAnswer) -> Failure {
    passing(format!("unexpected answer of the data client: {answer:?}"))
}

/// A volume's block device, if it has one.
pub fn device_of(volume: &LocalVolume) -> Result<Option<Device>, Failure> {
    let Some(path) = &volume.device else { return Ok(None) };
    let number = device_number(path).map_err(|error| passing(format!("cannot look at {path}: {error}")))?;
    Ok(Some(Device { path: path.clone(), number, size_bytes: volume.size_bytes }))
}
