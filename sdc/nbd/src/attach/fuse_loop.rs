//! A loop device on a FUSE file that a holder serves.
//!
//! Order of making: file, mount, holder, loop device, record. Order of removing: loop device, mount, file, record; the
//! holder ends by itself when its mount is gone. A crash in between leaves things without a record, which
//! [`sweep`] finds below the private directory.
//!
//! Promise over a restart of the daemon, however it ends: the device stays, I/O waits and is carried out when the
//! server is back, no error is seen. Over the death of a *holder* there is none: the device fails for good and is
//! cleaned away when its users let go. A holder therefore is hard to kill (see [`crate::hold`]); service managers must
//! be told to leave it alone (systemd: `KillMode=process`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::state::{Mechanism, Record, Records};
use super::{AttachConfig, AttachError, VolumeSpec, failed, loop_device, users};

/// How long the kernel may take to let go of a loop device that nobody uses.
const LET_GO: Duration = Duration::from_secs(5);

fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("files")
}

pub(super) fn attach(config: &AttachConfig, records: &Records, volume: &VolumeSpec) -> Result<Record, AttachError> {
    let directory = directory(&config.run_dir);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(failed(format!("cannot make {}", directory.display())))?;
    let file = directory.join(&volume.name);
    remove_file(&file)?;
    File::create_new(&file).map_err(failed(format!("cannot make {}", file.display())))?;
    let outcome = build(config, volume, &file).and_then(|record| match records.put(&record) {
        Ok(()) => Ok(record),
        Err(error) => Err(undo(&record, error)),
    });
    if outcome.is_err()
        && let Err(error) = remove_file(&file)
    {
        tracing::warn!(%error, "cannot clean up after a failed attach");
    }
    outcome
}

fn undo(record: &Record, error: AttachError) -> AttachError {
    let cleared = loop_device::open(record.index, false).and_then(|device| loop_device::clear(&device));
    if let Err(error) = cleared {
        tracing::warn!(device = %record.device.display(), %error, "cannot clean up after a failed attach");
    }
    error
}

fn build(config: &AttachConfig, volume: &VolumeSpec, file: &Path) -> Result<Record, AttachError> {
    let pid = {
        let mut options = OpenOptions::new();
        let fuse = options.read(true).write(true).open("/dev/fuse").map_err(failed("cannot open /dev/fuse"))?;
        mount_file(&fuse, file)?;
        // Our copy of the descriptor closes here: from now on the file lives and dies with the holder.
        start_holder(config, volume, file, fuse)?
    };
    let started = process_start(pid).ok_or_else(|| died(file))?;
    let mut options = OpenOptions::new();
    options.read(true).write(!volume.read_only).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC);
    let backing = options.open(file).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTCONN) => died(file),
        _ => failed(format!("cannot open {}", file.display()))(error),
    })?;
    let index = loop_device::configure(&backing, volume.read_only).map_err(failed("cannot set up a loop device"))?;
    let record = Record {
        volume: volume.clone(),
        mechanism: Mechanism::FuseLoop,
        device: loop_device::device_path(index),
        index,
        pid,
        started,
        file: file.to_owned(),
    };
    check_size(index, volume.size_bytes).map_err(|error| undo(&record, error))?;
    Ok(record)
}

fn mount_file(fuse: &File, file: &Path) -> Result<(), AttachError> {
    use std::os::fd::AsRawFd;
    let data = format!("fd={},rootmode=100000,user_id=0,group_id=0\0", fuse.as_raw_fd());
    let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).expect("one zero byte, at the end");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("ashlar", file, "fuse.ashlar", flags, data)
        .map_err(|error| failed(format!("cannot mount {}", file.display()))(error.into()))
}

fn log_path(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join(format!("{name}.log"))
}

fn died(file: &Path) -> AttachError {
    let said = fs::read_to_string(log_path(file)).unwrap_or_default();
    AttachError::Holder(if said.is_empty() { "it ended without a word".to_owned() } else { said.trim().to_owned() })
}

fn start_holder(config: &AttachConfig, volume: &VolumeSpec, file: &Path, fuse: File) -> Result<u32, AttachError> {
    let [program, first @ ..] = config.holder.as_slice() else {
        return Err(AttachError::Holder("no program is configured".to_owned()));
    };
    let log = File::create(log_path(file)).map_err(failed("cannot make the holder's log"))?;
    let output = Command::new(program)
        .args(first)
        .arg(&config.socket)
        .arg(&volume.export)
        .arg(volume.size_bytes.to_string())
        .arg(config.holder_threads.to_string())
        .stdin(Stdio::from(fuse))
        .stderr(Stdio::from(log))
        .output()
        .map_err(|error| AttachError::Holder(format!("{}: {error}", program.to_string_lossy())))?;
    let pid = std::str::from_utf8(&output.stdout).ok().and_then(|text| text.trim().parse().ok());
    pid.filter(|_| output.status.success()).ok_or_else(|| died(file))
}

/// When a living process started, in ticks since boot; `None` if it is dead.
pub(super) fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

pub(super) fn alive(record: &Record) -> bool {
    process_start(record.pid) == Some(record.started) && owns_loop(record)
}

fn owns_loop(record: &Record) -> bool {
    loop_device::backing_file(record.index).is_some_and(|file| Path::new(&file) == record.file)
}

fn check_size(index: u32, size_bytes: u64) -> Result<(), AttachError> {
    let path = format!("/sys/block/loop{index}/size");
    let text = fs::read_to_string(&path).map_err(failed(format!("cannot read {path}")))?;
    let sectors: u64 = text.trim().parse().map_err(|_| failed(path.clone())(io::Error::other("not a number")))?;
    if sectors.checked_mul(512) == Some(size_bytes) { Ok(()) } else { Err(AttachError::InvalidSize(size_bytes)) }
}

pub(super) fn resize(record: &Record, size_bytes: u64) -> Result<(), AttachError> {
    // Kernels before 6.15 take the size that the last stat left in the inode, later ones ask themselves.
    fs::metadata(&record.file).map_err(failed(format!("cannot ask for the size of {}", record.file.display())))?;
    loop_device::take_size(record.index).map_err(failed(format!("cannot resize {}", record.device.display())))?;
    check_size(record.index, size_bytes)
}

pub(super) fn detach(record: &Record, exclusive: Option<File>, force: bool) -> Result<(), AttachError> {
    if force {
        // Fails whatever is under way and whatever comes, then says "busy": that is what is wanted.
        match unmount(&record.file, UnmountFlags::FORCE) {
            Ok(()) | Err(Errno::BUSY | Errno::INVAL) => {}
            Err(error) => return Err(failed(format!("cannot abort {}", record.file.display()))(error.into())),
        }
    }
    let in_use = exclusive.is_none();
    let cleared = match exclusive {
        Some(device) => loop_device::clear(&device),
        None => loop_device::open(record.index, false).and_then(|device| loop_device::clear(&device)),
    };
    cleared.map_err(failed(format!("cannot clear {}", record.device.display())))?;
    if !in_use {
        wait_cleared(record)?;
    }
    remove_file(&record.file)
}

/// A device manager may have looked at the device just now; the kernel clears it when that one closes it, and tells
/// nobody.
fn wait_cleared(record: &Record) -> Result<(), AttachError> {
    let deadline = Instant::now() + LET_GO;
    while owns_loop(record) {
        if Instant::now() > deadline {
            let device = record.device.display().to_string();
            let users = users::users(&record.device).into_iter().collect::<Vec<_>>().join(", ");
            return Err(AttachError::Busy { device, users });
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

pub(super) fn clean(record: &Record) -> Result<(), AttachError> {
    if owns_loop(record) {
        let device = users::claim(&record.device)?;
        loop_device::clear(&device).map_err(failed(format!("cannot clear {}", record.device.display())))?;
        drop(device);
        wait_cleared(record)?;
    }
    remove_file(&record.file)
}

/// Unmounts a file, however often it is mounted, and removes it.
fn remove_file(file: &Path) -> Result<(), AttachError> {
    loop {
        match unmount(file, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(failed(format!("cannot unmount {}", file.display()))(error.into())),
        }
    }
    for path in [file.to_owned(), log_path(file)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(format!("cannot remove {}", path.display()))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Cleans what a crash left without a record.
pub(super) fn sweep(
    run_dir: &Path,
    records: &Records,
) -> Result<Vec<Result<String, (String, AttachError)>>, AttachError> {
    let directory = directory(run_dir);
    let known: Vec<PathBuf> = records.all()?.into_iter().flatten().map(|record| record.file).collect();
    let mut outcomes = Vec::new();
    let loops = loop_device::on_files_below(&directory).map_err(failed("cannot read /sys/block"))?;
    for (index, file) in loops.into_iter().filter(|(_, file)| !known.contains(&PathBuf::from(file))) {
        let device = loop_device::device_path(index);
        let cleared = users::claim(&device)
            .and_then(|open| loop_device::clear(&open).map_err(failed(format!("cannot clear {}", device.display()))));
        let what = format!("{} on {file}", device.display());
        outcomes.push(cleared.map(|()| what.clone()).map_err(|error| (what, error)));
    }
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(outcomes),
        Err(error) => return Err(failed(format!("cannot read {}", directory.display()))(error)),
    };
    for entry in entries.flatten().filter(|entry| !known.contains(&entry.path())) {
        let file = entry.path();
        let what = file.display().to_string();
        outcomes.push(remove_file(&file).map(|()| what.clone()).map_err(|error| (what, error)));
    }
    Ok(outcomes)
}
