//! Who uses a block device.
//!
//! The kernel's exclusive open is the judge: mounts, swap, device mapper and md hold one, on the device or on a partition
//! of it. Processes that merely have one of them open are found through `/proc`. The names are for people: what is gone
//! while we look is skipped.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{AttachError, failed};

/// How long somebody may look at a device who only looks: programs that search for file systems open whatever there is.
const GLANCE: Duration = Duration::from_millis(300);

/// Opens the device exclusively: while the file is open nobody can mount it. Refused with the names of those who use
/// it, and go on to.
pub fn claim(device: &Path) -> Result<File, AttachError> {
    let until = Instant::now() + GLANCE;
    loop {
        match claim_now(device) {
            Err(AttachError::Busy { .. }) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            claimed => return claimed,
        }
    }
}

fn claim_now(device: &Path) -> Result<File, AttachError> {
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

/// Readable names of the users of a device and of its partitions, this process aside.
pub fn users(device: &Path) -> BTreeSet<String> {
    let mut users = BTreeSet::new();
    let Ok(metadata) = fs::metadata(device) else { return users };
    if !metadata.file_type().is_block_device() {
        return users;
    }
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut parts = partitions(&Path::new("/sys/block").join(&name));
    parts.push((name, metadata.rdev()));
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for (part, _) in &parts {
        users.extend(holders(part).map(|holder| format!("device {holder}")));
        let path = device.with_file_name(part);
        if swaps.lines().any(|line| line.split_whitespace().next().is_some_and(|used| Path::new(used) == path)) {
            users.insert("swap".to_owned());
        }
    }
    let Ok(processes) = fs::read_dir("/proc") else { return users };
    let own = std::process::id();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|text| text.parse::<u32>().ok()) else { continue };
        let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        for (_, number) in &parts {
            let number = format!("{}:{}", libc::major(*number), libc::minor(*number));
            users.extend(mounts_of(&mounts, &number).map(|point| format!("mount {point}")));
        }
        if pid != own && has_open(&process.path(), &parts) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.insert(format!("process {pid} ({})", command.trim()));
        }
    }
    users
}

/// Names and numbers of the partitions of a disk that is known to the kernel as `disk`, its folder in `/sys/block`.
fn partitions(disk: &Path) -> Vec<(String, u64)> {
    let Ok(entries) = fs::read_dir(disk) else { return Vec::new() };
    let part = |entry: fs::DirEntry| {
        entry.path().join("partition").exists().then_some(())?;
        let number = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        let number = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some((entry.file_name().to_string_lossy().into_owned(), number))
    };
    entries.flatten().filter_map(part).collect()
}

/// Devices that are made of a disk or partition (device mapper, md).
fn holders(part: &str) -> impl Iterator<Item = String> {
    let folder = fs::read_dir(Path::new("/sys/class/block").join(part).join("holders"));
    folder.into_iter().flatten().flatten().map(|holder| holder.file_name().to_string_lossy().into_owned())
}

fn has_open(process: &Path, parts: &[(String, u64)]) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    files.flatten().any(|file| {
        // Only paths under /dev are followed: others may lead to file systems that hang.
        fs::read_link(file.path()).is_ok_and(|target| target.starts_with("/dev/"))
            && fs::metadata(file.path()).is_ok_and(|found| {
                found.file_type().is_block_device() && parts.iter().any(|(_, number)| *number == found.rdev())
            })
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
    fn partitions_are_what_the_kernel_calls_so() {
        let disk = tempfile::tempdir().expect("a directory");
        for (name, number) in [("nbd3p1", "43:49"), ("queue", "1:1"), ("nbd3p2", "none")] {
            let folder = disk.path().join(name);
            fs::create_dir(&folder).expect("a folder");
            fs::write(folder.join("dev"), format!("{number}\n")).expect("a file");
            if name != "queue" {
                fs::write(folder.join("partition"), "1\n").expect("a file");
            }
        }
        assert_eq!(partitions(disk.path()), [("nbd3p1".to_owned(), libc::makedev(43, 49))]);
    }

    #[test]
    fn what_is_no_block_device_has_no_users() {
        assert!(users(Path::new("/dev/null")).is_empty());
        assert!(users(Path::new("/nonexistent")).is_empty());
    }
}
