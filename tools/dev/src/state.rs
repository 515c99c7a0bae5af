//! What was started: `dev.json`, rewritten as a whole after each change, and its lock.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Metadata manager.
    Mdm,
    /// Data server.
    Sds,
    /// Data client.
    Sdc,
}

impl Role {
    /// The daemon's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Mdm => "mdm",
            Self::Sds => "sds",
            Self::Sdc => "sdc",
        }
    }
}

/// A process, known by its id and its start time: ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot, as /proc says.
    pub started: u64,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `mdm1`, `sds2`, ..
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its process, once started.
    pub process: Option<Process>,
    /// Where others reach it, host:port; the control socket of a client.
    pub address: String,
    /// Its configuration.
    pub config: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its network namespace, with `--isolate`.
    pub namespace: Option<String>,
    /// Its host address, with `--isolate`.
    pub ip: Option<String>,
}

/// A volume that `up` made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeVolume {
    /// Its name.
    pub name: String,
    /// Where it is mounted, if it is.
    pub mount: Option<PathBuf>,
}

/// The isolated network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The bridge.
    pub bridge: String,
    /// First three numbers of its addresses.
    pub prefix: String,
}

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    /// Where sockets are; short, for their names are limited to 108 bytes.
    pub sockets: PathBuf,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The volumes.
    pub volumes: Vec<MadeVolume>,
    /// Set once everything has been up.
    pub ready: bool,
    /// The isolated network, if there is one.
    pub network: Option<Network>,
}

/// The saved state of one directory.
pub struct State {
    /// The directory.
    pub directory: PathBuf,
    /// What is saved.
    pub saved: Saved,
    _lock: Option<File>,
}

/// The directory that is meant: the option, else `target/dev` of the workspace, else `ashlar-dev` here.
pub fn directory(option: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let directory = match option {
        Some(directory) => directory,
        None => match std::env::var_os("CARGO_MANIFEST_DIR") {
            Some(manifest) => PathBuf::from(manifest).join("..").join("..").join("target").join("dev"),
            None => PathBuf::from("ashlar-dev"),
        },
    };
    match directory.canonicalize() {
        Ok(absolute) => Ok(absolute),
        Err(_) => {
            let parent = directory.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot make {}: choose another directory with --dir", parent.display()))?;
            let parent = parent.canonicalize().with_context(|| format!("cannot find {}", parent.display()))?;
            Ok(parent.join(directory.file_name().context("the directory has no name")?))
        }
    }
}

impl State {
    fn path(directory: &Path) -> PathBuf {
        directory.join("dev.json")
    }

    /// True if a system is there.
    pub fn exists(directory: &Path) -> bool {
        Self::path(directory).exists()
    }

    /// A new one, locked.
    pub fn create(directory: &Path, saved: Saved) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}: choose another directory with --dir", directory.display()))?;
        let lock = lock(directory)?;
        let state = Self { directory: directory.to_path_buf(), saved, _lock: Some(lock) };
        state.save()?;
        Ok(state)
    }

    /// To look at.
    pub fn load(directory: &Path) -> anyhow::Result<Self> {
        let path = Self::path(directory);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(
                    "there is no system in {}: start one with 'dev up', or name its directory with --dir",
                    directory.display()
                )
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let saved = serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Self { directory: directory.to_path_buf(), saved, _lock: None })
    }

    /// To change.
    pub fn lock(directory: &Path) -> anyhow::Result<Self> {
        Self::load(directory)?;
        let lock = lock(directory)?;
        let mut state = Self::load(directory)?;
        state._lock = Some(lock);
        Ok(state)
    }

    /// Writes it.
    pub fn save(&self) -> anyhow::Result<()> {
        let path = Self::path(&self.directory);
        let beside = path.with_extension("new");
        let context = || format!("cannot write {}", path.display());
        let mut file = File::create(&beside).with_context(context)?;
        file.write_all(&serde_json::to_vec_pretty(&self.saved)?).with_context(context)?;
        file.sync_all().with_context(context)?;
        std::fs::rename(&beside, &path).with_context(context)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        let names = || self.saved.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
        self.saved
            .nodes
            .iter()
            .find(|n| n.name == name)
            .with_context(|| format!("there is no node '{name}': choose one of {}", names()))
    }

    /// The nodes that a name means: itself, or `all`.
    pub fn nodes(&self, name: &str) -> anyhow::Result<Vec<&Node>> {
        if name == "all" { Ok(self.saved.nodes.iter().collect()) } else { Ok(vec![self.node(name)?]) }
    }

    /// The file with the administrator's password.
    pub fn password_file(&self) -> PathBuf {
        self.directory.join("admin-password")
    }

    /// The authority's certificate.
    pub fn authority_file(&self) -> PathBuf {
        self.directory.join("mdm1").join("authority.pem")
    }

    /// The session file of scli.
    pub fn session_file(&self) -> PathBuf {
        self.directory.join("session.json")
    }

    /// Addresses of all MDMs.
    pub fn mdm_addresses(&self) -> Vec<String> {
        self.saved.nodes.iter().filter(|n| n.role == Role::Mdm).map(|n| n.address.clone()).collect()
    }
}

fn lock(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join("dev.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another 'dev' command works in {}: wait for it to end", directory.display()))?;
    Ok(file)
}
