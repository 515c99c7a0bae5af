//! The system's own tools for file systems, and the kernel's calls for mounting.
//!
//! Nothing here is cut off by time: a tool that waits for storage ends when the storage is back, and who waits for it is
//! answered without it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use tokio::process::Command;

use crate::core::content::{Content, PROBE_BYTES, classify};
use crate::core::facts::{Device, DeviceNumber};
use crate::core::labels::{FileSystem, Spec};
use crate::core::machine::Failure;

/// Longest piece of a tool's words that is passed on.
const WORDS_BYTES_MAX: usize = 600;
/// Directory of a container's data in a file system that was made here: so a container sees neither `lost+found` nor a
/// directory at all when nothing is mounted.
pub const DATA: &str = "data";

/// It may work another time.
pub fn passing(text: impl Into<String>) -> Failure {
    Failure { text: text.into(), is_final: false }
}

/// It will not work by trying again.
pub fn definite(text: impl Into<String>) -> Failure {
    Failure { text: text.into(), is_final: true }
}

/// Runs blocking work elsewhere.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(passing(format!("a task failed: {error}"))))
}

/// Runs a program; gives its exit code and what it said.
async fn run(program: &str, arguments: &[&str]) -> Result<(i32, String), Failure> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        // What an argument might name by mistake is not found there.
        .current_dir("/proc")
        .output()
        .await
        .map_err(|error| definite(format!("cannot run {program}: {error}; is its package installed?")))?;
    let mut words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if words.is_empty() {
        words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    let mut end = words.len().min(WORDS_BYTES_MAX);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words.truncate(end);
    let words = words.replace('\n', "; ");
    match output.status.code() {
        Some(code) => Ok((code, words)),
        None => Err(passing(format!("{program} was killed"))),
    }
}

async fn succeed(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    match run(program, arguments).await? {
        (0, _) => Ok(()),
        (code, words) => Err(definite(format!("{program} ended with {code}: {words}"))),
    }
}

/// The number of a block device.
pub fn device_number(path: &str) -> io::Result<DeviceNumber> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.file_type().is_block_device() {
        return Err(io::Error::other(format!("{path} is no block device")));
    }
    Ok((rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())))
}

/// What is on a device, by its two ends.
pub async fn probe(device: &Device) -> Result<Content, Failure> {
    let path = device.path.clone();
    blocking(move || {
        let failed = |error: io::Error| passing(format!("cannot read {path}: {error}"));
        let mut file = File::open(&path).map_err(failed)?;
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let length = PROBE_BYTES.min(usize::try_from(size).unwrap_or(PROBE_BYTES));
        let mut end = |from: u64| -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; length];
            file.seek(SeekFrom::Start(from))?;
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let first = end(0).map_err(failed)?;
        let last = end(size - length as u64).map_err(failed)?;
        Ok(classify(&first, &last))
    })
    .await
}

/// Makes a file system with its root directory of the data. Nobody has to be asked: the caller knows that nothing is lost.
/// `staging` is an empty directory of ours.
pub async fn make(device: &Device, spec: &Spec, staging: &Path) -> Result<(), Failure> {
    let mut arguments: Vec<&str> = match spec.filesystem {
        // Space that was never written need not be given back.
        FileSystem::Ext4 => vec!["-q", "-F", "-E", "nodiscard"],
        FileSystem::Xfs => vec!["-q", "-f", "-K"],
    };
    arguments.extend(spec.make_arguments.iter().map(String::as_str));
    arguments.push(&device.path);
    succeed(&format!("mkfs.{}", spec.filesystem.name()), &arguments).await?;
    make_directory(staging)?;
    unmount_all(staging, UnmountFlags::empty()).await?;
    let point = staging.display().to_string();
    succeed("mount", &["-t", spec.filesystem.name(), &device.path, &point]).await?;
    let furnished = furnish(staging, spec).await;
    unmount_all(staging, UnmountFlags::empty()).await?;
    furnished
}

async fn furnish(root: &Path, spec: &Spec) -> Result<(), Failure> {
    let (data, uid, gid, mode) = (root.join(DATA), spec.uid, spec.gid, spec.mode);
    blocking(move || {
        let failed = |error: io::Error| definite(format!("cannot make the directory of the data: {error}"));
        std::fs::DirBuilder::new().mode(0o700).create(&data).map_err(failed)?;
        std::os::unix::fs::chown(&data, Some(uid), Some(gid)).map_err(failed)?;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode)).map_err(failed)
    })
    .await
}

/// Checks a file system that is not mounted, and repairs what can be repaired without asking.
pub async fn check(device: &Device, filesystem: FileSystem) -> Result<(), Failure> {
    match filesystem {
        // XFS replays its log as it is mounted, and refuses to be if it is damaged.
        FileSystem::Xfs => Ok(()),
        FileSystem::Ext4 => match run("e2fsck", &["-p", &device.path]).await? {
            // Clean; repaired; repaired, and a root file system would need a restart.
            (0..=2, _) => Ok(()),
            (code, words) if code & 8 != 0 => Err(passing(format!("e2fsck ended with {code}: {words}"))),
            (code, words) => Err(definite(format!(
                "the file system is damaged (e2fsck ended with {code}: {words}): repair it by hand with `e2fsck -f`"
            ))),
        },
    }
}

/// Mounts a device.
pub async fn mount(device: &Device, spec: &Spec, filesystem: Option<FileSystem>, point: &Path) -> Result<(), Failure> {
    make_directory(point)?;
    let mut options = vec![if spec.read_only { "ro" } else { "rw" }];
    match filesystem {
        // Nothing is written, not even the replay of a journal.
        Some(FileSystem::Ext4) if spec.read_only => options.push("noload"),
        Some(FileSystem::Xfs) if spec.read_only => options.extend(["norecovery", "nouuid"]),
        // A container may still hold the dead mount of an earlier mapping.
        Some(FileSystem::Xfs) => options.push("nouuid"),
        Some(FileSystem::Ext4) | None => {}
    }
    if !spec.mount_options.is_empty() {
        options.push(&spec.mount_options);
    }
    let (options, point) = (options.join(","), point.display().to_string());
    let mut arguments = vec!["-o", &options];
    if let Some(filesystem) = filesystem {
        arguments.extend(["-t", filesystem.name()]);
    }
    arguments.extend([device.path.as_str(), &point]);
    succeed("mount", &arguments).await
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| definite(format!("cannot make {}: {error}", path.display())))
}

/// Lets a mounted file system grow to its device.
pub async fn grow(device: &Device, filesystem: FileSystem, point: &Path) -> Result<(), Failure> {
    match filesystem {
        FileSystem::Ext4 => succeed("resize2fs", &[&device.path]).await,
        FileSystem::Xfs => succeed("xfs_growfs", &[&point.display().to_string()]).await,
    }
}

/// Unmounts whatever is mounted at a point, however often.
pub async fn unmount_all(point: &Path, how: UnmountFlags) -> Result<(), Failure> {
    let point = point.to_owned();
    blocking(move || {
        loop {
            match unmount(&point, how | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                // Not mounted, or not there at all.
                Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY) => return Err(passing(format!("{} is in use", point.display()))),
                Err(error) => return Err(passing(format!("cannot unmount {}: {error}", point.display()))),
            }
        }
    })
    .await
}

/// How full a mounted file system is.
pub fn usage(point: &Path) -> io::Result<crate::core::show::Usage> {
    let figures = rustix::fs::statvfs(point)?;
    let size_bytes = figures.f_blocks.saturating_mul(figures.f_frsize);
    let free = figures.f_bfree.saturating_mul(figures.f_frsize);
    Ok(crate::core::show::Usage { used_bytes: size_bytes.saturating_sub(free), size_bytes })
}

/// The mount table of this process.
pub fn own_mounts() -> io::Result<String> {
    std::fs::read_to_string("/proc/self/mountinfo")
}
