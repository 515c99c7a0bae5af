//! Volumes as block devices of this host.
//!
//! Two mechanisms, chosen once at start:
//!
//! - **kernel nbd** (`nbd`), where the kernel has it: the sockets belong to the kernel, nobody of us has to stay. After
//!   a restart the daemon offers new sockets and the kernel sends its requests again.
//! - **FUSE and loop** (`fuse_loop`) elsewhere: a loop device on a file that a holder process serves ([`crate::hold`]).
//!   The holder outlives the daemon and does the same.
//!
//! Each device has a record ([`state`]) in the run directory, written before the device is announced and removed after
//! it is gone. [`Attacher::adopt`] compares records with what is really there after a start: what lives is taken over,
//! what is dead is cleaned away, and a dead device that somebody still holds is named.
//!
//! Always true: one operation on a volume at a time; a device in use is never taken away unless forced; links exist
//! only for devices that were ready and are removed before the device.

pub mod fuse_loop;
pub mod links;
mod loop_device;
pub mod nbd;
pub mod netlink;
pub mod state;
#[cfg(test)]
mod tests;
pub mod users;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::client::ClientError;
use links::Links;
use state::{Mechanism, Record, Records};

/// What is to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// For links and messages: letters, digits and `._+-:@`, at most 127 bytes.
    pub name: String,
    /// Never changes.
    pub id: u64,
    /// Attach generation of the mapping: a device of another generation is not the same device.
    pub generation: u64,
    /// Name by which the NBD server knows it. Choose one that outlives a rename of the volume: the holder asks for it
    /// for as long as the device exists.
    pub export: String,
    /// Bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// The device refuses writes.
    pub read_only: bool,
}

/// Where things are and how to do them.
#[derive(Debug, Clone)]
pub struct AttachConfig {
    /// Private directory, must survive a restart of the daemon but not of the host: under `/run`.
    pub run_dir: PathBuf,
    /// The NBD server's socket, an absolute path.
    pub socket: PathBuf,
    /// Program and first arguments of the holder, for instance `sdc-hold`.
    pub holder: Vec<OsString>,
    /// Requests in flight of one FUSE device, 1 to 64.
    pub holder_threads: usize,
    /// Connections of one kernel nbd device, 1 to 16.
    pub nbd_connections: usize,
    /// Links to keep.
    pub links: Links,
}

/// A device that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// As attached.
    pub volume: VolumeSpec,
    /// For instance `/dev/nbd0`.
    pub device: PathBuf,
    /// By what.
    pub mechanism: Mechanism,
}

/// What a start found.
#[derive(Debug, Default)]
pub struct Adopted {
    /// Alive and taken over.
    pub attached: Vec<Attached>,
    /// Dead and cleaned away: what it was.
    pub cleaned: Vec<String>,
    /// Dead but still held, or not to be cleaned: why. They are tried again at the next adoption.
    pub broken: Vec<(String, AttachError)>,
}

/// Why a device could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// This host has neither.
    #[error(
        "this host can attach no block devices: its kernel has no nbd (load it with `modprobe nbd`; on Debian it is in \
         the package linux-image-{release}) and {missing} is missing for the fallback"
    )]
    NoMechanism {
        /// Running kernel.
        release: String,
        /// What the fallback lacks.
        missing: &'static str,
    },
    /// Somebody uses the device.
    #[error("{device} is in use by {users}; stop that, or detach by force")]
    Busy {
        /// Which.
        device: String,
        /// Who, readable.
        users: String,
    },
    /// Another call has been working on that volume for long.
    #[error("another operation on volume {0} is under way")]
    InProgress(String),
    /// Not attached here.
    #[error("volume {0} is not attached")]
    NotAttached(String),
    /// The name cannot be a file name.
    #[error("{0:?} cannot name a device: use letters, digits and ._+-:@, at most 127 of them")]
    InvalidName(String),
    /// A size the device cannot have.
    #[error("a device of {0} bytes is not possible: the size must be a positive multiple of 4096 and cannot shrink")]
    InvalidSize(u64),
    /// Attached already, but as something else.
    #[error("volume {0} is attached with another generation, size or access; detach it first")]
    Different(String),
    /// The NBD server did not play along.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// The kernel said no.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// What it said.
        error: io::Error,
    },
    /// The holder did not start.
    #[error("the holder process did not start: {0}")]
    Holder(String),
    /// A record does not read.
    #[error("the record {path} is damaged ({reason}); detach its device by hand and remove it")]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> AttachError {
    let what = what.into();
    move |error| AttachError::System { what, error }
}

/// Which mechanism this host has.
pub fn probe() -> Result<Mechanism, AttachError> {
    if netlink::Nbd::open().is_ok() {
        return Ok(Mechanism::Nbd);
    }
    let missing = match () {
        () if !Path::new("/dev/fuse").exists() => "/dev/fuse (`modprobe fuse`)",
        () if !Path::new("/dev/loop-control").exists() => "/dev/loop-control (`modprobe loop`)",
        () => return Ok(Mechanism::FuseLoop),
    };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Err(AttachError::NoMechanism { release, missing })
}

/// How long an operation on a volume waits for the one before it.
const CLAIM_PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to give new sockets to devices whose volumes are not served yet.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Makes and removes devices. Clones share their book-keeping.
#[derive(Debug, Clone)]
pub struct Attacher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: AttachConfig,
    mechanism: Mechanism,
    records: Records,
    /// Names of volumes that somebody works on.
    working: Mutex<BTreeSet<String>>,
    /// Told when one is not worked on any more.
    released: Condvar,
}

impl Attacher {
    /// Finds out what this host can do and makes the run directory (mode 0700).
    pub fn new(config: AttachConfig) -> Result<Self, AttachError> {
        let mechanism = probe()?;
        Self::with_mechanism(config, mechanism)
    }

    /// As [`Attacher::new`], with the mechanism given.
    pub fn with_mechanism(config: AttachConfig, mechanism: Mechanism) -> Result<Self, AttachError> {
        let records = Records::open(&config.run_dir)?;
        let inner = Inner { config, mechanism, records, working: Mutex::default(), released: Condvar::new() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What devices are made of here.
    pub fn mechanism(&self) -> Mechanism {
        self.inner.mechanism
    }

    /// Takes over what an earlier process left, and cleans away what is dead. Kernel nbd devices get their sockets from
    /// [`Attacher::keep_connected`], as soon as their volumes are served.
    pub async fn adopt(&self) -> Result<Adopted, AttachError> {
        self.blocking(None, Inner::adopt).await
    }

    /// Makes the device, or finds it made. The server must be serving `volume.export`.
    pub async fn attach(&self, volume: VolumeSpec) -> Result<Attached, AttachError> {
        let name = volume.name.clone();
        self.blocking(Some(name), move |inner| inner.attach(&volume)).await
    }

    /// Removes the device. In use, it is refused, with the names of the users; `force` makes their I/O fail instead
    /// (fence the volume first).
    pub async fn detach(&self, name: &str, force: bool) -> Result<(), AttachError> {
        let owned = name.to_owned();
        self.blocking(Some(name.to_owned()), move |inner| inner.detach(&owned, force)).await
    }

    /// Tells the kernel of a new, larger size; the server must already say it.
    pub async fn resize(&self, name: &str, size_bytes: u64) -> Result<(), AttachError> {
        let owned = name.to_owned();
        self.blocking(Some(name.to_owned()), move |inner| inner.resize(&owned, size_bytes)).await
    }

    /// What is recorded as attached.
    pub async fn list(&self) -> Result<Vec<Attached>, AttachError> {
        let records = self.blocking(None, |inner| inner.records.all()).await?;
        Ok(records.into_iter().flatten().map(|record| record.attached()).collect())
    }

    /// Gives kernel devices new sockets for dead ones: at once to all of them, for those of an earlier process are dead,
    /// and then whenever one dies (time-outs, evictions). A volume that is not served yet is asked for again and again.
    /// Runs until dropped; returns at once where the kernel has no nbd.
    pub async fn keep_connected(&self) -> Result<(), AttachError> {
        if self.inner.mechanism != Mechanism::Nbd {
            return Ok(());
        }
        let events = netlink::DeadLinks::open().map_err(failed("cannot listen to nbd events"))?;
        let mut dead = self.blocking(None, Inner::kernel_devices).await?;
        loop {
            if !dead.is_empty() {
                dead = self.blocking(None, move |inner| inner.revive(&dead)).await?;
            }
            let heard = if dead.is_empty() {
                Some(events.next().await)
            } else {
                tokio::time::timeout(RECONNECT_PAUSE, events.next()).await.ok()
            };
            match heard.transpose().map_err(failed("cannot hear nbd events"))? {
                Some(netlink::DeadLink::Of(index)) => drop(dead.insert(index)),
                Some(netlink::DeadLink::Unknown) => dead.extend(self.blocking(None, Inner::kernel_devices).await?),
                None => {}
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: Option<String>,
        work: impl FnOnce(&Inner) -> Result<T, AttachError> + Send + 'static,
    ) -> Result<T, AttachError> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::task::spawn_blocking(move || {
            let _claim = name.map(|name| Claim::new(&inner, name, CLAIM_PATIENCE)).transpose()?;
            work(&inner)
        });
        task.await.map_err(|error| failed("an attach operation panicked")(io::Error::other(error)))?
    }
}

/// One operation on a volume at a time.
struct Claim<'a> {
    inner: &'a Inner,
    name: String,
}

impl<'a> Claim<'a> {
    /// Waits for its turn, if that takes no longer than `patience`.
    fn new(inner: &'a Inner, name: String, patience: Duration) -> Result<Self, AttachError> {
        let working = inner.working.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = inner.released.wait_timeout_while(working, patience, |working| working.contains(&name));
        let (mut working, _) = turn.unwrap_or_else(PoisonError::into_inner);
        if !working.insert(name.clone()) {
            return Err(AttachError::InProgress(name));
        }
        Ok(Self { inner, name })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.inner.working.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        self.inner.released.notify_all();
    }
}

impl Inner {
    fn attach(&self, volume: &VolumeSpec) -> Result<Attached, AttachError> {
        check_name(&volume.name)?;
        if volume.size_bytes == 0 || !volume.size_bytes.is_multiple_of(4096) {
            return Err(AttachError::InvalidSize(volume.size_bytes));
        }
        if let Some(record) = self.records.get(&volume.name)? {
            if self.alive(&record) {
                return self.same(&record, volume);
            }
            self.clean(&record)?;
        }
        let record = match self.mechanism {
            Mechanism::Nbd => nbd::attach(&self.config, &self.records, volume)?,
            Mechanism::FuseLoop => fuse_loop::attach(&self.config, &self.records, volume)?,
        };
        self.config.links.create(&volume.name, volume.id, &record.device)?;
        Ok(record.attached())
    }

    fn same(&self, record: &Record, volume: &VolumeSpec) -> Result<Attached, AttachError> {
        if record.volume != *volume {
            return Err(AttachError::Different(volume.name.clone()));
        }
        self.config.links.create(&volume.name, volume.id, &record.device)?;
        Ok(record.attached())
    }

    fn detach(&self, name: &str, force: bool) -> Result<(), AttachError> {
        check_name(name)?;
        let record = self.records.get(name)?.ok_or_else(|| AttachError::NotAttached(name.to_owned()))?;
        if !self.alive(&record) {
            return self.clean(&record);
        }
        // Held exclusively from the question to the end, so that nobody mounts it in between.
        let exclusive = match record.mechanism {
            _ if !force => Some(users::claim(&record.device)?),
            // Opening it may read from it, and have to wait for just what is to be ended.
            Mechanism::Nbd => None,
            Mechanism::FuseLoop => users::claim(&record.device).ok(),
        };
        self.config.links.remove(name, record.volume.id)?;
        match record.mechanism {
            Mechanism::Nbd => nbd::detach(&record, exclusive)?,
            Mechanism::FuseLoop => fuse_loop::detach(&record, exclusive, force)?,
        }
        self.records.remove(name)
    }

    fn resize(&self, name: &str, size_bytes: u64) -> Result<(), AttachError> {
        check_name(name)?;
        let mut record = self.records.get(name)?.ok_or_else(|| AttachError::NotAttached(name.to_owned()))?;
        if size_bytes < record.volume.size_bytes || !size_bytes.is_multiple_of(4096) {
            return Err(AttachError::InvalidSize(size_bytes));
        }
        match record.mechanism {
            Mechanism::Nbd => nbd::resize(self.config.links.system, &record, size_bytes)?,
            Mechanism::FuseLoop => fuse_loop::resize(&record, size_bytes)?,
        }
        record.volume.size_bytes = size_bytes;
        self.records.put(&record)
    }

    fn alive(&self, record: &Record) -> bool {
        match record.mechanism {
            Mechanism::Nbd => nbd::alive(self.config.links.system, record),
            Mechanism::FuseLoop => fuse_loop::alive(record),
        }
    }

    /// Removes what is left of a dead device.
    fn clean(&self, record: &Record) -> Result<(), AttachError> {
        self.config.links.remove(&record.volume.name, record.volume.id)?;
        match record.mechanism {
            // A kernel device whose record does not match any more is somebody else's now.
            Mechanism::Nbd => {}
            Mechanism::FuseLoop => fuse_loop::clean(record)?,
        }
        self.records.remove(&record.volume.name)
    }

    fn adopt(&self) -> Result<Adopted, AttachError> {
        let mut adopted = Adopted::default();
        // A device that lives keeps its links, whatever else is wrong with it.
        let mut keep = Vec::new();
        for record in self.records.all()? {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    adopted.broken.push(("a record".to_owned(), error));
                    continue;
                }
            };
            let name = record.volume.name.clone();
            let taken_over = if self.alive(&record) {
                keep.push(record.volume.id);
                self.take_over(&record).map(Some)
            } else {
                self.clean(&record).map(|()| None)
            };
            match taken_over {
                Ok(Some(attached)) => adopted.attached.push(attached),
                Ok(None) => adopted.cleaned.push(format!("{name} at {}", record.device.display())),
                Err(error) => adopted.broken.push((name, error)),
            }
        }
        if self.mechanism == Mechanism::Nbd {
            adopted.cleaned.extend(nbd::sweep(self.config.links.system, &self.records)?);
        }
        for outcome in fuse_loop::sweep(&self.config.run_dir, &self.records)? {
            match outcome {
                Ok(what) => adopted.cleaned.push(what),
                Err((what, error)) => adopted.broken.push((what, error)),
            }
        }
        adopted.cleaned.extend(self.config.links.sweep(&keep)?);
        Ok(adopted)
    }

    fn take_over(&self, record: &Record) -> Result<Attached, AttachError> {
        self.config.links.create(&record.volume.name, record.volume.id, &record.device)?;
        Ok(record.attached())
    }

    /// Numbers of the kernel devices that are recorded.
    fn kernel_devices(&self) -> Result<BTreeSet<u32>, AttachError> {
        let records = self.records.all()?.into_iter().flatten();
        Ok(records.filter(|record| record.mechanism == Mechanism::Nbd).map(|record| record.index).collect())
    }

    /// Offers new sockets to kernel devices. Those that could not be helped yet.
    fn revive(&self, dead: &BTreeSet<u32>) -> Result<BTreeSet<u32>, AttachError> {
        let mut left = BTreeSet::new();
        for record in self.records.all()?.into_iter().flatten() {
            if record.mechanism != Mechanism::Nbd || !dead.contains(&record.index) {
                continue;
            }
            // Who works on the volume may be about to take its device away.
            let Ok(_claim) = Claim::new(self, record.volume.name.clone(), Duration::ZERO) else {
                left.insert(record.index);
                continue;
            };
            if !self.alive(&record) {
                continue;
            }
            match nbd::reconnect(&self.config, &record) {
                Ok(()) => tracing::info!(volume = record.volume.name, device = %record.device.display(), "reconnected"),
                Err(error) => {
                    tracing::debug!(volume = record.volume.name, %error, "cannot reconnect yet");
                    left.insert(record.index);
                }
            }
        }
        Ok(left)
    }
}

fn check_name(name: &str) -> Result<(), AttachError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-:@".contains(&byte);
    if name.is_empty() || name.len() > 127 || name.starts_with('.') || !name.bytes().all(fine) {
        return Err(AttachError::InvalidName(name.to_owned()));
    }
    Ok(())
}
