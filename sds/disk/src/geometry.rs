//! What a device is like: size, block sizes, write cache, discard, rotation.
//!
//! Block devices are asked directly and through sysfs. A file takes the answers of the device under its file system where
//! there is exactly one; what cannot be known is said to be unknown, never guessed.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Stat, StatxFlags};

/// What holds the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaKind {
    /// A disk or partition.
    BlockDevice,
    /// A file whose space is reserved; discards leave it reserved.
    File,
    /// A file with holes; discards give space back to the file system.
    SparseFile,
}

/// Whether completed writes survive a power cut by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteCache {
    /// "write back": they need a flush.
    Volatile,
    /// "write through": no cache, or a protected one.
    Protected,
    /// Not reported.
    Unknown,
}

/// The facts, read once at opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// What holds the bytes.
    pub kind: MediaKind,
    /// Bytes.
    pub size: u64,
    /// Smallest unit of direct I/O in bytes: 512 to 4096.
    pub logical_block: u32,
    /// Smallest unit that the medium writes without read-modify-write, in bytes, if known.
    pub physical_block: Option<u32>,
    /// The write cache.
    pub write_cache: WriteCache,
    /// Granularity of discard in bytes; `None` if discards do nothing here.
    pub discard_granularity: Option<u32>,
    /// Spinning or not, if known.
    pub rotational: Option<bool>,
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} bytes, blocks of {}", self.kind, self.size, self.logical_block)?;
        write!(f, ", write cache {:?}", self.write_cache)?;
        match self.discard_granularity {
            Some(bytes) => write!(f, ", discard by {bytes}")?,
            None => write!(f, ", no discard")?,
        }
        match self.rotational {
            Some(true) => write!(f, ", rotational"),
            Some(false) => write!(f, ", not rotational"),
            None => Ok(()),
        }
    }
}

/// Geometry of a block device.
pub(crate) fn of_block_device(fd: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<Geometry> {
    let size = rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))?;
    let queue = queue_directory(stat.st_rdev);
    Ok(Geometry {
        kind: MediaKind::BlockDevice,
        size,
        logical_block: rustix::fs::ioctl_blksszget(fd)?,
        physical_block: Some(rustix::fs::ioctl_blkpbszget(fd)?),
        write_cache: write_cache(queue.as_deref()),
        discard_granularity: discard_granularity(queue.as_deref()),
        rotational: rotational(queue.as_deref()),
    })
}

/// Geometry of a file.
pub(crate) fn of_file(fd: BorrowedFd<'_>, stat: &Stat) -> Geometry {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    let sparse = allocated < size;
    let queue = queue_directory(stat.st_dev);
    let number = |name| queue.as_deref().and_then(|queue| read_number(queue, name));
    Geometry {
        kind: if sparse { MediaKind::SparseFile } else { MediaKind::File },
        size,
        // The file system knows best; then its device; 4 KiB is right everywhere, as the store uses nothing smaller.
        logical_block: direct_io_alignment(fd).or_else(|| number("logical_block_size")).unwrap_or(4096),
        physical_block: number("physical_block_size"),
        write_cache: write_cache(queue.as_deref()),
        discard_granularity: sparse.then(|| u32::try_from(stat.st_blksize).unwrap_or(4096).max(4096)),
        rotational: rotational(queue.as_deref()),
    }
}

/// What statx says about the offsets of direct I/O, if it says anything (Linux 6.1 and later).
fn direct_io_alignment(fd: BorrowedFd<'_>) -> Option<u32> {
    let statx = rustix::fs::statx(fd.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let known = statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    (known && statx.stx_dio_offset_align > 0).then_some(statx.stx_dio_offset_align)
}

/// The request queue's directory in sysfs. A partition has its disk's, one level up.
fn queue_directory(device: u64) -> Option<PathBuf> {
    let base = device_directory(device);
    [base.join("queue"), base.join("../queue")].into_iter().find(|path| path.is_dir())
}

fn device_directory(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
}

/// True if the kernel holds the block device read-only.
pub(crate) fn is_read_only(device: u64) -> bool {
    read_number(&device_directory(device), "ro") == Some(1)
}

fn read_number(directory: &Path, name: &str) -> Option<u32> {
    fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok()
}

fn write_cache(queue: Option<&Path>) -> WriteCache {
    let text = queue.and_then(|queue| fs::read_to_string(queue.join("write_cache")).ok());
    match text.as_deref().map(str::trim) {
        Some("write back") => WriteCache::Volatile,
        Some("write through") => WriteCache::Protected,
        _ => WriteCache::Unknown,
    }
}

fn discard_granularity(queue: Option<&Path>) -> Option<u32> {
    let queue = queue?;
    let most: u64 = fs::read_to_string(queue.join("discard_max_bytes")).ok()?.trim().parse().ok()?;
    let granularity = read_number(queue, "discard_granularity")?;
    (most > 0 && granularity > 0).then_some(granularity)
}

fn rotational(queue: Option<&Path>) -> Option<bool> {
    read_number(queue?, "rotational").map(|number| number != 0)
}
