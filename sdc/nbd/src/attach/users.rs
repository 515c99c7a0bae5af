//! Who uses a block device.
//!
//! The kernel's exclusive open is the judge: mounts, swap, device mapper and md hold one. Processes that merely have
//! the device open are found through `/proc`. The names are for people: what is gone while we look is skipped.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{AttachError, failed};

/// Opens the device exclusively: while the file is open nobody can mount it. Refused with the names of those who use
/// it.
pub fn claim(device: &Path) -> Result<File, AttachError> {
    let exclusive = OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(device);
    let busy = |users: &BTreeSet<String>| AttachError::Busy {
        device: device.display().to_string(),
        users: if users.is_empty() {
            "somebody that /proc does not show (another mount namespace, or the kernel)".to_owned()
        } else {
            users.iter().cloned().collect::<Vec<_>>().join(", ")
        },
    };
    let users = users(device);
    match exclusive {
        Ok(file) if users.is_empty() => Ok(file),
        Ok(_) => Err(busy(&users)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(busy(&users)),
        Err(error) => Err(failed(format!("cannot open {}", device.display()))(error)),
    }
}

/// Readable names of the users of a device, this process aside.
pub fn users(device: &Path) -> BTreeSet<String> {
    let mut users = BTreeSet::new();
    let Ok(metadata) = fs::metadata(device) else { return users };
    if !metadata.file_type().is_block_device() {
        return users;
    }
    let number = metadata.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Ok(holders) = fs::read_dir(format!("/sys/block/{name}/holders")) {
        users.extend(holders.flatten().map(|holder| format!("device {}", holder.file_name().to_string_lossy())));
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().any(|line| line.split_whitespace().next().is_some_and(|path| Path::new(path) == device)) {
        users.insert("swap".to_owned());
    }
    let Ok(processes) = fs::read_dir("/proc") else { return users };
    let own = std::process::id();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|text| text.parse::<u32>().ok()) else { continue };
        let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        users.extend(mounts_of(&mounts, &format!("{major}:{minor}")).map(|point| format!("mount {point}")));
        if pid != own && has_open(&process.path(), number) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.insert(format!("process {pid} ({})", command.trim()));
        }
    }
    users
}

fn has_open(process: &Path, number: u64) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    files.flatten().any(|file| {
        // Only paths under /dev are followed: others may lead to file systems that hang.
        fs::read_link(file.path()).is_ok_and(|target| target.starts_with("/dev/"))
            && fs::metadata(file.path())
                .is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == number)
    })
}

/// Mount points of a device in a `mountinfo`.
fn mounts_of<'a>(mountinfo: &'a str, device: &'a str) -> impl Iterator<Item = &'a str> {
    mountinfo.lines().filter_map(move |line| {
        let mut words = line.split(' ').skip(2);
        (words.next()? == device).then_some(())?;
        words.nth(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_device_number() {
        let text =
            "36 35 98:0 / /mnt2 rw master:1 - ext3 /dev/root rw\n37 35 7:1 / /mnt/a\\040b rw - ext4 /dev/loop1 rw\n";
        assert_eq!(mounts_of(text, "7:1").collect::<Vec<_>>(), ["/mnt/a\\040b"]);
        assert_eq!(mounts_of(text, "7:11").count(), 0);
    }

    #[test]
    fn what_is_no_block_device_has_no_users() {
        assert!(users(Path::new("/dev/null")).is_empty());
        assert!(users(Path::new("/nonexistent")).is_empty());
    }
}
