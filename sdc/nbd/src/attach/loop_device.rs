//! Loop devices, by their ioctls.

#![allow(unsafe_code)]

use std::ffi::c_ulong;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: c_ulong = 0x4c82;
const LOOP_CONFIGURE: c_ulong = 0x4c0a;
const LOOP_CLR_FD: c_ulong = 0x4c01;
const LOOP_SET_CAPACITY: c_ulong = 0x4c07;
const FLAG_READ_ONLY: u32 = 1;
const FLAG_DIRECT_IO: u32 = 16;
/// Somebody else may take the free device between our asking and configuring it.
const ATTEMPTS: usize = 64;

/// `struct loop_info64` of the kernel.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of the kernel.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

pub(super) fn device_path(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{index}"))
}

/// Puts a loop device of 4 KiB blocks with direct I/O on an open file. Returns its number.
pub(super) fn configure(backing: &File, read_only: bool) -> io::Result<u32> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: takes no argument.
        let index = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let index = u32::try_from(index).map_err(|_| io::Error::last_os_error())?;
        let device = open(index, !read_only)?;
        let config = LoopConfig {
            fd: u32::try_from(backing.as_raw_fd()).expect("an open descriptor is not negative"),
            block_size: 4096,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: FLAG_DIRECT_IO | if read_only { FLAG_READ_ONLY } else { 0 },
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: the kernel reads one loop_config, which has its layout and lives through the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
            return Ok(index);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::other("loop devices are taken as fast as they are found"))
}

/// Takes the file off the device. If somebody still has it open, that happens when the last one closes it.
pub(super) fn clear(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            error => Err(error),
        },
    }
}

/// Takes the size of the file again.
pub(super) fn take_size(index: u32) -> io::Result<()> {
    let device = open(index, false)?;
    // SAFETY: takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

pub(super) fn open(index: u32, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_CLOEXEC).open(device_path(index))
}

/// The file under a loop device, as the kernel calls it; `None` if there is none.
pub(super) fn backing_file(index: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/block/loop{index}/loop/backing_file")).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// Loop devices on files below a directory.
pub(super) fn on_files_below(directory: &Path) -> io::Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("loop")).and_then(|rest| rest.parse().ok());
        let Some(index) = index else { continue };
        if let Some(file) = backing_file(index).filter(|file| Path::new(file).starts_with(directory)) {
            found.push((index, file));
        }
    }
    Ok(found)
}
