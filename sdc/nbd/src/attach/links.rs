//! Stable names of devices: `/dev/ashlar/<volume>` and `/dev/disk/by-id/emc-vol-<system>-<volume>`.
//!
//! The link by id is made first and removed last; a name link is stale when no link by id, of whatever system on this
//! host, points to the same device. Several systems can therefore share the directory of names.
//!
//! Always true: a link is made by rename, so it is right or absent.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{AttachError, failed};

const ID_PREFIX: &str = "emc-vol-";

/// Where links are kept.
#[derive(Debug, Clone)]
pub struct Links {
    /// Normally `/dev/ashlar`.
    pub by_name: PathBuf,
    /// Normally `/dev/disk/by-id`.
    pub by_id: PathBuf,
    /// Id of the system.
    pub system: u64,
}

impl Links {
    /// In the usual places.
    pub fn of_system(system: u64) -> Self {
        Self { by_name: "/dev/ashlar".into(), by_id: "/dev/disk/by-id".into(), system }
    }

    /// `/dev/ashlar/<volume>`.
    pub fn name_path(&self, volume: &str) -> PathBuf {
        self.by_name.join(volume)
    }

    /// `/dev/disk/by-id/emc-vol-<system>-<volume>`.
    pub fn id_path(&self, volume: u64) -> PathBuf {
        self.by_id.join(format!("{ID_PREFIX}{:016x}-{volume:016x}", self.system))
    }

    /// Makes or replaces both links.
    pub fn create(&self, name: &str, id: u64, device: &Path) -> Result<(), AttachError> {
        for path in [self.id_path(id), self.name_path(name)] {
            place(&path, device).map_err(failed(format!("cannot make the link {}", path.display())))?;
        }
        Ok(())
    }

    /// Removes both links, where they are.
    pub fn remove(&self, name: &str, id: u64) -> Result<(), AttachError> {
        for path in [self.name_path(name), self.id_path(id)] {
            remove(&path)?;
        }
        Ok(())
    }

    /// Removes this system's links by id except those of `keep`, then names that point to nothing known. Returns what
    /// it removed.
    pub fn sweep(&self, keep: &[u64]) -> Result<Vec<String>, AttachError> {
        let kept: BTreeSet<_> = keep.iter().map(|id| self.id_path(*id)).collect();
        let ours = format!("{ID_PREFIX}{:016x}-", self.system);
        let mut known = BTreeSet::new();
        let mut removed = Vec::new();
        for (path, target) in links_in(&self.by_id)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(&ours) && !kept.contains(&path) {
                remove(&path)?;
                removed.push(path.display().to_string());
            } else if name.starts_with(ID_PREFIX) {
                known.insert(target);
            }
        }
        for (path, target) in links_in(&self.by_name)? {
            if !known.contains(&target) {
                remove(&path)?;
                removed.push(path.display().to_string());
            }
        }
        Ok(removed)
    }
}

fn place(path: &Path, device: &Path) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|target| target == device) {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = directory.join(format!(".{name}.{}", std::process::id()));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(device, &fresh)?;
    fs::rename(&fresh, path)
}

fn remove(path: &Path) -> Result<(), AttachError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("cannot remove the link {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

fn links_in(directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>, AttachError> {
    let unreadable = || format!("cannot read {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(unreadable())(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(unreadable()))?.path();
        if let Ok(target) = fs::read_link(&path) {
            found.push((path, target));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_replaced_removed_and_swept_without_touching_another_system() {
        let directory = tempfile::tempdir().expect("directory");
        let links = |system| Links { by_name: directory.path().join("n"), by_id: directory.path().join("i"), system };
        let (ours, other) = (links(0xa), links(0xb));
        ours.create("v1", 1, Path::new("/dev/x1")).expect("create");
        ours.create("v1", 1, Path::new("/dev/x2")).expect("replace");
        assert_eq!(fs::read_link(ours.name_path("v1")).expect("link"), Path::new("/dev/x2"));
        assert!(ours.id_path(1).ends_with("emc-vol-000000000000000a-0000000000000001"));
        ours.create("v2", 2, Path::new("/dev/x3")).expect("create");
        other.create("w", 9, Path::new("/dev/x4")).expect("create");
        let removed = ours.sweep(&[1]).expect("sweep");
        assert_eq!(removed.len(), 2, "{removed:?}");
        assert!(fs::symlink_metadata(ours.name_path("v2")).is_err());
        assert!(fs::symlink_metadata(ours.name_path("v1")).is_ok());
        assert!(fs::symlink_metadata(ours.name_path("w")).is_ok(), "another system's");
        ours.remove("v1", 1).expect("remove");
        ours.remove("v1", 1).expect("twice is once");
        assert_eq!(ours.sweep(&[]).expect("sweep"), Vec::<String>::new());
    }
}
