//! Records of devices, one small text file each, that outlive the daemon.
//!
//! A record is written with rename, so that it is whole or absent. It lives in the run directory, which is empty after
//! a boot, as is the kernel. `key value` lines; an unknown key is an error, so that an old daemon does not misread a
//! newer one's record.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{AttachError, Attached, VolumeSpec, failed};

const SUFFIX: &str = ".device";
/// First line of every record.
const HEADER: &str = "ashlar-device 1";

/// What a device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// The kernel's nbd.
    Nbd,
    /// A loop device on a FUSE file.
    FuseLoop,
}

impl Mechanism {
    /// As written in records and shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Nbd => "nbd",
            Mechanism::FuseLoop => "fuse-loop",
        }
    }
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// As attached; the size as last told to the kernel.
    pub volume: VolumeSpec,
    /// By what.
    pub mechanism: Mechanism,
    /// `/dev/...`.
    pub device: PathBuf,
    /// Number of the nbd or loop device.
    pub index: u32,
    /// FUSE: the holder's process id, else 0.
    pub pid: u32,
    /// FUSE: when it started, in the kernel's ticks, so that a process id used again is not mistaken for it.
    pub started: u64,
    /// FUSE: the file that is mounted, else empty.
    pub file: PathBuf,
}

impl Record {
    /// What others see of it.
    pub fn attached(&self) -> Attached {
        Attached { volume: self.volume.clone(), device: self.device.clone(), mechanism: self.mechanism }
    }

    /// What the kernel is told about an nbd device: a device with another identity is not ours to touch.
    pub fn identity(system: u64, volume: &VolumeSpec) -> String {
        format!("{}{:016x}-{:016x}", Self::identity_prefix(system), volume.id, volume.generation)
    }

    /// How the identities of all devices of a system begin.
    pub fn identity_prefix(system: u64) -> String {
        format!("ashlar-{system:016x}-")
    }

    fn to_text(&self) -> String {
        let VolumeSpec { name, id, generation, export, size_bytes, read_only } = &self.volume;
        format!(
            "{HEADER}\nname {name}\nid {id}\ngeneration {generation}\nexport {export}\nsize_bytes {size_bytes}\n\
             read_only {read_only}\nmechanism {}\ndevice {}\nindex {}\npid {}\nstarted {}\nfile {}\n",
            self.mechanism.name(),
            self.device.display(),
            self.index,
            self.pid,
            self.started,
            self.file.display()
        )
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err("not a record of this version");
        }
        let mut field = |key: &str| {
            let line = lines.next().ok_or("it ends too early")?;
            line.strip_prefix(key).and_then(|rest| rest.strip_prefix(' ')).ok_or("a line is not where it belongs")
        };
        fn number<T: std::str::FromStr>(text: &str) -> Result<T, &'static str> {
            text.parse().map_err(|_| "a number does not read")
        }
        let volume = VolumeSpec {
            name: field("name")?.to_owned(),
            id: number(field("id")?)?,
            generation: number(field("generation")?)?,
            export: field("export")?.to_owned(),
            size_bytes: number(field("size_bytes")?)?,
            read_only: number(field("read_only")?)?,
        };
        let mechanism = match field("mechanism")? {
            "nbd" => Mechanism::Nbd,
            "fuse-loop" => Mechanism::FuseLoop,
            _ => return Err("an unknown mechanism"),
        };
        Ok(Self {
            volume,
            mechanism,
            device: field("device")?.into(),
            index: number(field("index")?)?,
            pid: number(field("pid")?)?,
            started: number(field("started")?)?,
            file: field("file")?.into(),
        })
    }
}

/// All records of a run directory.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// Makes the directory if needed.
    pub fn open(directory: &Path) -> Result<Self, AttachError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(failed(format!("cannot make {}", directory.display())))?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{SUFFIX}"))
    }

    /// The record of that volume.
    pub fn get(&self, name: &str) -> Result<Option<Record>, AttachError> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Record::from_text(&text).map(Some).map_err(|reason| AttachError::Record { path, reason }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(format!("cannot read {}", path.display()))(error)),
        }
    }

    /// Every record, readable or not, by name.
    pub fn all(&self) -> Result<Vec<Result<Record, AttachError>>, AttachError> {
        let unreadable = || format!("cannot read {}", self.directory.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed(unreadable()))? {
            let entry = entry.map_err(failed(unreadable()))?;
            if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(SUFFIX)) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names.iter().filter_map(|name| self.get(name).transpose()).collect())
    }

    /// Writes or replaces a record.
    pub fn put(&self, record: &Record) -> Result<(), AttachError> {
        let path = self.path(&record.volume.name);
        let fresh = path.with_extension("device.new");
        let write = || {
            use std::io::Write;
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(record.to_text().as_bytes())?;
            fs::rename(&fresh, &path)
        };
        write().map_err(failed(format!("cannot write {}", path.display())))
    }

    /// Removes a record, if it is there.
    pub fn remove(&self, name: &str) -> Result<(), AttachError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(format!("cannot remove {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }
}
