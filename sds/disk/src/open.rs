//! Opening: one owner per device, direct I/O, and every refusal with its remedy.
//!
//! Two locks. O_EXCL on a block device is the kernel's own claim: it keeps out mounts, RAID, LVM and other claims of the
//! same disk, whatever name it goes by. flock, which belongs to the open file description, keeps out a second SDS, and a
//! second open in this process. Both end with the descriptor, so nothing is left behind by a crash.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use sds_api::buf::AlignedBuf;

use crate::geometry::{self, Geometry};
use crate::limits;

/// Why a device cannot be opened or made, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there.
    #[error("{path}: no such device or file; check the path, or create the file first", path = .0.display())]
    NotFound(PathBuf),
    /// Neither a block device nor a regular file.
    #[error("{path} is a {found}; give a disk, a partition or a regular file", path = path.display())]
    NotADevice {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// Not allowed.
    #[error("{path}: permission denied; run as root, or give this user read and write access", path = .0.display())]
    Permission(PathBuf),
    /// The device or its file system takes no writes.
    #[error("{path} is read-only; make it writable (blockdev --setrw, or mount -o remount,rw)", path = .0.display())]
    ReadOnly(PathBuf),
    /// Mounted, or claimed by the kernel for something else.
    #[error("{path} is in use: mounted, swap, or part of RAID, LVM or another claim; see lsblk and release it", path = .0.display())]
    InUse(PathBuf),
    /// Another open holds the lock.
    #[error("{path} is locked: another SDS (or this one) has it open; stop that one first, see fuser {path}", path = .0.display())]
    Locked(PathBuf),
    /// The file system cannot bypass its cache.
    #[error("{path} is on a file system without direct I/O (O_DIRECT); use ext4, XFS or a raw device", path = .0.display())]
    NoDirectIo(PathBuf),
    /// Not whole blocks.
    #[error("{path} has {size} bytes, not a multiple of {unit}; resize it", path = path.display(), unit = limits::DEVICE_BYTES_UNIT)]
    RaggedSize {
        /// The path.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// Too small to be meant.
    #[error("{path} has {size} bytes; at least {min} are needed", path = path.display(), min = limits::DEVICE_BYTES_MIN)]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// Blocks larger than the store's.
    #[error("{path} has blocks of {logical_block} bytes; at most 4096 are supported: reformat the drive's sectors", path = path.display())]
    BlockSize {
        /// The path.
        path: PathBuf,
        /// Bytes.
        logical_block: u32,
    },
    /// A device file is never made over something.
    #[error("{path} exists; choose another name, or remove it yourself if nothing in it is needed", path = .0.display())]
    Exists(PathBuf),
    /// Not enough room to reserve the file.
    #[error("{path}: no room for {size} bytes on this file system; free space or choose a smaller size", path = path.display())]
    NoSpace {
        /// The path.
        path: PathBuf,
        /// Bytes wanted.
        size: u64,
    },
    /// The file system cannot reserve space.
    #[error("{path}: this file system cannot preallocate; use ext4, XFS or a raw device", path = .0.display())]
    NoPreallocation(PathBuf),
    /// The uring engine was asked for, and is refused.
    #[error("{path}: io_uring is refused here ({source}); choose the blocking engine, or allow it (sysctl kernel.io_uring_disabled, the container's seccomp profile)", path = path.display())]
    NoUring {
        /// The path.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// Anything else.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl OpenError {
    fn io(path: &Path, doing: &'static str, source: impl Into<io::Error>) -> Self {
        OpenError::Io { path: path.to_owned(), doing, source: source.into() }
    }
}

/// An open, locked medium: what the engines work on. Dropping the last reference releases
/// the locks.
#[derive(Debug)]
pub(crate) struct Media {
    pub(crate) fd: OwnedFd,
    pub(crate) path: PathBuf,
    pub(crate) geometry: Geometry,
}

impl Drop for Media {
    /// Gives the lock back by name: merely closing would leave it with a child that another thread is forking just now,
    /// and the next to open would find a lock that nobody holds.
    fn drop(&mut self) {
        if let Err(errno) = rustix::fs::flock(&self.fd, FlockOperation::Unlock) {
            tracing::warn!(path = %self.path.display(), error = %errno, "could not unlock the device");
        }
    }
}

/// Opens for reading and writing, direct, locked.
pub(crate) fn open_exclusively(path: &Path) -> Result<Media, OpenError> {
    let (named, is_block) = look_at(path)?;
    let mut flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    if is_block {
        // The kernel lets a write-protected device be opened for writing, and fails the writes.
        if geometry::is_read_only(named.st_rdev) {
            return Err(OpenError::ReadOnly(path.to_owned()));
        }
        flags |= OFlags::EXCL;
    }
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ROFS => OpenError::ReadOnly(path.to_owned()),
        Errno::ACCESS | Errno::PERM => OpenError::Permission(path.to_owned()),
        Errno::BUSY => OpenError::InUse(path.to_owned()),
        Errno::INVAL => OpenError::NoDirectIo(path.to_owned()),
        errno => OpenError::io(path, "opening", errno),
    })?;
    let stat = rustix::fs::fstat(&fd).map_err(|errno| OpenError::io(path, "examining", errno))?;
    if (stat.st_dev, stat.st_ino) != (named.st_dev, named.st_ino) {
        let source = io::Error::other("it was replaced while it was being opened; try again");
        return Err(OpenError::io(path, "opening", source));
    }
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        Errno::WOULDBLOCK => OpenError::Locked(path.to_owned()),
        errno => OpenError::io(path, "locking", errno),
    })?;
    let geometry = if is_block {
        geometry::of_block_device(fd.as_fd(), &stat).map_err(|errno| OpenError::io(path, "examining", errno))?
    } else {
        geometry::of_file(fd.as_fd(), &stat)
    };
    check_geometry(path, &geometry)?;
    probe_direct_read(path, &fd)?;
    Ok(Media { fd, path: path.to_owned(), geometry })
}

/// What the path names, before it is opened: opening a fifo or a tape would have effects.
fn look_at(path: &Path) -> Result<(Stat, bool), OpenError> {
    let stat = rustix::fs::stat(path).map_err(|errno| match errno {
        Errno::NOENT => OpenError::NotFound(path.to_owned()),
        Errno::ACCESS => OpenError::Permission(path.to_owned()),
        errno => OpenError::io(path, "examining", errno),
    })?;
    let not_a_device = |found| Err(OpenError::NotADevice { path: path.to_owned(), found });
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Ok((stat, true)),
        FileType::RegularFile => Ok((stat, false)),
        FileType::Directory => not_a_device("directory"),
        FileType::CharacterDevice => not_a_device("character device"),
        FileType::Fifo => not_a_device("pipe"),
        FileType::Socket => not_a_device("socket"),
        _ => not_a_device("file of another kind"),
    }
}

fn check_geometry(path: &Path, geometry: &Geometry) -> Result<(), OpenError> {
    let Geometry { size, logical_block, .. } = *geometry;
    if logical_block > 4096 || !logical_block.is_power_of_two() {
        return Err(OpenError::BlockSize { path: path.to_owned(), logical_block });
    }
    if size < limits::DEVICE_BYTES_MIN {
        return Err(OpenError::TooSmall { path: path.to_owned(), size });
    }
    if !size.is_multiple_of(limits::DEVICE_BYTES_UNIT) {
        return Err(OpenError::RaggedSize { path: path.to_owned(), size });
    }
    Ok(())
}

/// Some file systems take the flag and refuse the transfer; better to learn it now.
fn probe_direct_read(path: &Path, fd: &OwnedFd) -> Result<(), OpenError> {
    let mut buffer = AlignedBuf::zeroed(4096);
    loop {
        match rustix::io::pread(fd, &mut *buffer, 0) {
            Ok(4096) => return Ok(()),
            Ok(count) => {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{count} bytes instead of 4096"));
                return Err(OpenError::io(path, "reading the first block of", source));
            }
            Err(Errno::INTR) => continue,
            Err(Errno::INVAL) => return Err(OpenError::NoDirectIo(path.to_owned())),
            Err(errno) => return Err(OpenError::io(path, "reading the first block of", errno)),
        }
    }
}

/// Makes a device file of `size` bytes whose space is reserved. Never over an existing one; nothing is left behind on
/// failure.
///
/// # Errors
/// See [`OpenError`].
pub fn create_file(path: &Path, size: u64) -> Result<(), OpenError> {
    create(path, size, |fd| match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Err(OpenError::NoSpace { path: path.to_owned(), size }),
        Err(Errno::OPNOTSUPP) => Err(OpenError::NoPreallocation(path.to_owned())),
        Err(errno) => Err(OpenError::io(path, "preallocating", errno)),
    })
}

/// Makes a device file of `size` bytes without reserving space: for trials. The file system may fill up under it, which
/// fails the device. Never over an existing one.
///
/// # Errors
/// See [`OpenError`].
pub fn create_sparse_file(path: &Path, size: u64) -> Result<(), OpenError> {
    create(path, size, |fd| {
        rustix::fs::ftruncate(fd, size).map_err(|errno| match errno {
            Errno::FBIG | Errno::NOSPC => OpenError::NoSpace { path: path.to_owned(), size },
            errno => OpenError::io(path, "sizing", errno),
        })
    })
}

fn create(path: &Path, size: u64, fill: impl Fn(&OwnedFd) -> Result<(), OpenError>) -> Result<(), OpenError> {
    if size < limits::DEVICE_BYTES_MIN {
        return Err(OpenError::TooSmall { path: path.to_owned(), size });
    }
    if !size.is_multiple_of(limits::DEVICE_BYTES_UNIT) {
        return Err(OpenError::RaggedSize { path: path.to_owned(), size });
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| match errno {
        Errno::EXIST => OpenError::Exists(path.to_owned()),
        Errno::NOENT => OpenError::NotFound(path.to_owned()),
        Errno::ACCESS | Errno::PERM => OpenError::Permission(path.to_owned()),
        Errno::ROFS => OpenError::ReadOnly(path.to_owned()),
        errno => OpenError::io(path, "creating", errno),
    })?;
    let made = fill(&fd).and_then(|()| make_lasting(path, &fd));
    if let Err(error) = made {
        // Ours: O_EXCL made it a moment ago.
        if let Err(left) = rustix::fs::unlink(path) {
            tracing::warn!(path = %path.display(), error = %left, "could not remove the unfinished device file");
        }
        return Err(error);
    }
    Ok(())
}

/// The file and its name survive a power cut.
fn make_lasting(path: &Path, fd: &OwnedFd) -> Result<(), OpenError> {
    rustix::fs::fsync(fd).map_err(|errno| OpenError::io(path, "flushing", errno))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(parent, directory, Mode::empty())
        .and_then(rustix::fs::fsync)
        .map_err(|errno| OpenError::io(parent, "flushing", errno))
}

/// A device opened for looking only: no lock, no direct I/O, no engine. What it reads is only meaningful while no SDS
/// writes to the device; see [`InspectedDevice::is_locked`].
#[derive(Debug)]
pub struct InspectedDevice {
    file: File,
    size: u64,
}

/// Opens for offline inspection. Never writes.
///
/// # Errors
/// See [`OpenError`].
pub fn inspect(path: &Path) -> Result<InspectedDevice, OpenError> {
    look_at(path)?;
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => OpenError::Permission(path.to_owned()),
        errno => OpenError::io(path, "opening", errno),
    })?;
    let end = rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0));
    let size = end.map_err(|errno| OpenError::io(path, "sizing", errno))?;
    Ok(InspectedDevice { file: File::from(fd), size })
}

impl InspectedDevice {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// What the kernel says; `UnexpectedEof` past the end.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// True while an SDS has the device open, so that what is read may change meanwhile.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_locked(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                rustix::fs::flock(&self.file, FlockOperation::Unlock)?;
                Ok(false)
            }
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}
