//! The data directory: one process at a time, secrets that nobody else can read, and the files of the log.
//!
//! ```text
//! lock              held exclusively while a process uses the directory
//! member.toml       who this member is
//! key.pem  certificate.pem  authority.pem
//! joining           identity of the log to be, while a join is under way
//! raft/             the log; see `mdm_raft::files`
//! ```
//!
//! `member.toml` is written last: a directory without it holds no member, whatever else a broken attempt left there.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use mdm_api::client::lock_patiently;
use mdm_api::client::pki::Identity;
use mdm_api::ids::{MdmId, SystemId};
use mdm_raft::{FileName, FileOp, is_ours};
use serde::{Deserialize, Serialize};

const MEMBER: &str = "member.toml";
/// The identity that a joining member's log will have; kept so that an attempt that broke off is the same member again.
const JOINING: &str = "joining";

/// Who the member of a directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFile {
    /// The system, as 16 hex digits.
    pub system: String,
    /// The member, as 16 hex digits.
    pub mdm: String,
    /// Identity of its log, as 16 hex digits.
    pub store: String,
    /// Where the others were when it joined: `id`, `address` of each. The log says it better once it has been received.
    pub peers: Vec<(String, String)>,
}

impl MemberFile {
    /// The system.
    pub fn system(&self) -> anyhow::Result<SystemId> {
        self.system.parse().context("member.toml: system")
    }

    /// The member.
    pub fn mdm(&self) -> anyhow::Result<MdmId> {
        self.mdm.parse().context("member.toml: mdm")
    }

    /// Identity of its log.
    pub fn store(&self) -> anyhow::Result<u64> {
        u64::from_str_radix(&self.store, 16).context("member.toml: store")
    }

    /// The others, when it joined.
    pub fn peers(&self) -> anyhow::Result<Vec<(MdmId, Vec<String>)>> {
        let one = |(id, address): &(String, String)| {
            Ok((id.parse::<MdmId>().context("member.toml: peers")?, vec![address.clone()]))
        };
        self.peers.iter().map(one).collect()
    }
}

/// A data directory that this process holds.
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes the directory for this process, within `patience`; makes it if `create`.
    pub fn open(path: &Path, create: bool, patience: Duration) -> anyhow::Result<Self> {
        if create {
            DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
                format!("cannot make the data directory {}: make it, owned by the user that runs mdm", path.display())
            })?;
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => anyhow!(
                    "there is no data directory {}: create a system with `mdm create-system`, or join one with `mdm join`",
                    path.display()
                ),
                _ => anyhow!(
                    "cannot write in the data directory {}: {error}: give it to the user that runs mdm",
                    path.display()
                ),
            })?;
        let lock = lock_patiently(lock, patience)
            .with_context(|| format!("cannot lock {}", lock_path.display()))?
            .ok_or_else(|| {
                anyhow!("the data directory {} is in use by another mdm: stop that one first", path.display())
            })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// True if a member lives here.
    pub fn has_member(&self) -> bool {
        self.path.join(MEMBER).exists()
    }

    /// Refuses a directory in which a member lives, or in which there is a log of one.
    pub fn demand_empty(&self) -> anyhow::Result<()> {
        if self.has_member() {
            bail!(
                "a metadata manager was already created in {}: start it with `mdm run`, or use another data_directory",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Who lives here.
    pub fn member(&self) -> anyhow::Result<MemberFile> {
        let path = self.path.join(MEMBER);
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow!(
                "no metadata manager was created in {}: run `mdm create-system` or `mdm join` first",
                self.path.display()
            ),
            _ => anyhow!("cannot read {}: {error}", path.display()),
        })?;
        toml::from_str(&text).map_err(|error| anyhow!("{} is damaged: {}", path.display(), error.message()))
    }

    /// Key, certificate and authority of the member.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        let read = |name: &str| {
            let path = self.path.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Identity {
            certificate_pem: read("certificate.pem")?,
            key_pem: read("key.pem")?,
            authority_pem: read("authority.pem")?,
        })
    }

    /// Where the authority's certificate is: people's tools need it.
    pub fn authority_path(&self) -> PathBuf {
        self.path.join("authority.pem")
    }

    /// Writes who lives here, its secrets first.
    pub fn write_member(&self, member: &MemberFile, identity: &Identity) -> anyhow::Result<()> {
        self.write_secret("key.pem", &identity.key_pem)?;
        self.write_secret("certificate.pem", &identity.certificate_pem)?;
        self.write_secret("authority.pem", &identity.authority_pem)?;
        self.write_secret(MEMBER, &toml::to_string(member).context("member.toml")?)?;
        match fs::remove_file(self.path.join(JOINING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("cannot remove a file"),
            _ => Ok(()),
        }
    }

    fn write_secret(&self, name: &str, text: &str) -> anyhow::Result<()> {
        replace(&self.path, name, text.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.join(name).display()))
    }

    /// Opens the log's directory, making it if need be.
    pub fn log(&self) -> anyhow::Result<LogDirectory> {
        let path = self.path.join("raft");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("cannot flush {}", self.path.display()))?;
        Ok(LogDirectory { path, open: BTreeMap::new() })
    }

    /// The identity of the log of a member that joins: the one of an attempt that was not completed, or a fresh one.
    pub fn joining_store(&self, fresh: u64) -> anyhow::Result<u64> {
        let path = self.path.join(JOINING);
        match fs::read_to_string(&path) {
            Ok(text) => u64::from_str_radix(text.trim(), 16)
                .with_context(|| format!("{} is damaged: remove it and join again", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.write_secret(JOINING, &format!("{fresh:016x}\n"))?;
                Ok(fresh)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Throws away the log of an attempt to create or join that was not completed: nobody knows of it.
    pub fn clear_log(&self) -> anyhow::Result<()> {
        self.demand_empty()?;
        match fs::remove_dir_all(self.path.join("raft")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("cannot remove an unfinished log")
            }
            _ => Ok(()),
        }
    }
}

/// The files of the log, as `mdm_raft` asks for them.
pub struct LogDirectory {
    path: PathBuf,
    /// Segments that are being appended to.
    open: BTreeMap<FileName, File>,
}

impl LogDirectory {
    /// All that is there, for [`mdm_raft::recover`].
    pub fn read(&self) -> io::Result<BTreeMap<FileName, Bytes>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && is_ours(&name)
            {
                files.insert(name, Bytes::from(fs::read(entry.path())?));
            }
        }
        Ok(files)
    }

    /// Carries out operations in order, each complete before the next.
    pub fn execute(&mut self, ops: &[FileOp]) -> io::Result<()> {
        ops.iter().try_for_each(|op| self.execute_one(op))
    }

    fn execute_one(&mut self, op: &FileOp) -> io::Result<()> {
        match op {
            FileOp::Append { file, bytes } => self.segment(file)?.write_all(bytes),
            FileOp::Sync { file } => self.segment(file)?.sync_data(),
            FileOp::Replace { file, bytes } => {
                self.open.remove(file);
                replace(&self.path, file, bytes)
            }
            FileOp::Remove { file } => {
                self.open.remove(file);
                match fs::remove_file(self.path.join(file)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    /// The open segment; a few stay open at the most, since a new one replaces the use of the old.
    fn segment(&mut self, name: &FileName) -> io::Result<&mut File> {
        if !self.open.contains_key(name) {
            if self.open.len() >= 4 {
                self.open.pop_first();
            }
            let file = OpenOptions::new().append(true).open(self.path.join(name))?;
            self.open.insert(name.clone(), file);
        }
        self.open.get_mut(name).ok_or_else(|| io::Error::other("the segment was just opened"))
    }
}

/// Gives a file a new content, atomically and durably: write beside, flush, rename, flush the directory.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = directory.join(format!("{name}.new"));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, directory.join(name))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn op(file: &str, bytes: &'static [u8]) -> FileOp {
        FileOp::Append { file: file.to_owned(), bytes: Bytes::from_static(bytes) }
    }

    #[test]
    fn operations_are_carried_out_in_order_and_nobody_else_reads_the_files() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(&temporary.path().join("d"), true, Duration::ZERO).unwrap();
        let mut log = directory.log().unwrap();
        let segment = "log-0000000000000001".to_owned();
        let replace = FileOp::Replace { file: segment.clone(), bytes: Bytes::from_static(b"head") };
        log.execute(&[replace, op(&segment, b" one"), op(&segment, b" two"), FileOp::Sync { file: segment.clone() }])
            .unwrap();
        assert_eq!(log.read().unwrap().get(&segment).unwrap().as_ref(), b"head one two");
        let mode = fs::metadata(temporary.path().join("d/raft").join(&segment)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let remove = FileOp::Remove { file: segment.clone() };
        log.execute(&[remove.clone(), remove]).unwrap();
        assert!(log.read().unwrap().is_empty());
        assert!(log.execute(&[op(&segment, b"x")]).is_err(), "an append makes no file");
    }

    #[test]
    fn two_processes_do_not_share_a_directory() {
        let temporary = tempfile::tempdir().unwrap();
        let first = Directory::open(temporary.path(), true, Duration::ZERO).unwrap();
        let error = Directory::open(temporary.path(), true, Duration::ZERO).err().unwrap().to_string();
        assert!(error.contains("in use by another mdm"), "{error}");
        drop(first);
        Directory::open(temporary.path(), true, Duration::ZERO).unwrap();
    }
}
