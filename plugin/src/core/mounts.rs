//! The kernel's tables of mounts, read.

use super::facts::DeviceNumber;

/// One line of a `mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device that is mounted.
    pub device: DeviceNumber,
    /// Where.
    pub point: String,
}

/// Reads a whole table. Lines that do not read are left out: the kernel writes none.
pub fn parse(mountinfo: &str) -> impl Iterator<Item = Mount> {
    mountinfo.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(2);
        let (major, minor) = words.next()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let point = unescape(words.nth(1)?);
        Some(Mount { device, point })
    })
}

/// Blanks, tabs, line ends and backslashes stand as three octal digits.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// What is mounted at a point: of several mounts on top of each other the last.
pub fn at(mountinfo: &str, point: &str) -> Option<DeviceNumber> {
    parse(mountinfo).filter(|mount| mount.point == point).last().map(|mount| mount.device)
}

/// Where the file systems of all volumes are mounted, of which `point` is one: the same in every mount namespace that
/// copied it, and as dockerd shows it where the plugin runs as one of its own.
fn is_own(mount: &Mount, point: &str) -> bool {
    let name = point.rsplit('/').next().unwrap_or(point);
    mount.point == point || mount.point.ends_with(&format!("/propagated-mount/{name}"))
}

/// True if a device is mounted anywhere but at the plugin's own mount point: then a container has it.
pub fn is_used(mountinfo: &str, device: DeviceNumber, point: &str) -> bool {
    parse(mountinfo).any(|mount| mount.device == device && !is_own(&mount, point))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "36 35 98:0 / / rw master:1 - ext3 /dev/root rw\n\
        37 35 7:1 / /var/v/a\\040b rw - ext4 /dev/loop1 rw\n\
        38 35 7:2 / /var/v/db rw - ext4 /dev/loop2 rw\n\
        39 35 7:2 /data /lib/docker/plugins/77/propagated-mount/db rw - ext4 /dev/loop2 rw\n\
        40 35 7:3 / /var/v/db rw - ext4 /dev/loop3 rw\n";

    #[test]
    fn the_topmost_mount_counts() {
        assert_eq!(at(TABLE, "/var/v/db"), Some((7, 3)));
        assert_eq!(at(TABLE, "/var/v/a b"), Some((7, 1)));
        assert_eq!(at(TABLE, "/var/v"), None);
    }

    #[test]
    fn copies_of_the_plugins_own_mount_are_no_use() {
        assert!(!is_used(TABLE, (7, 2), "/var/v/db"));
        let container = "50 49 7:2 /data /var/lib/mysql rw - ext4 /dev/loop2 rw\n";
        assert!(is_used(container, (7, 2), "/var/v/db"));
        assert!(!is_used(container, (7, 1), "/var/v/db"));
    }
}
