//! The guest's file system: a cpio archive (the `newc` form that the kernel unpacks) of programs, the libraries that they
//! need, kernel modules and a script that is process 1.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cluster::shell;

/// Modules in the order in which they are loaded; what a kernel has built in is missing and skipped.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "lib/libcrc32c",
    "fs/xfs/xfs",
    "drivers/block/nbd",
];

/// Folders that things are mounted on or written to.
const FOLDERS: [&str; 12] =
    ["bin", "sbin", "proc", "sys", "dev", "tmp", "run", "etc", "etc/ashlar", "mnt", "modules", "var"];

/// Process 1. Every shell that ends is replaced, so that a session that hangs costs no other.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
for module in $(cat /modules/order); do insmod "/modules/$module" || echo "guest: no module $module"; done
hostname guest
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
address=$(sed -n 's/.*shells=\([^ ]*\).*/\1/p' /proc/cmdline)
shells() { while true; do nc "${address%:*}" "${address#*:}" -e /bin/sh; sleep 1; done; }
shells &
shells &
shells
"#;

/// An archive that grows.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    folders: BTreeSet<PathBuf>,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).context("a file beyond 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1)?;
        // magic, inode, mode, uid, gid, links, time, size, device and special device in two parts each, name, checksum
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.bytes, "070701")?;
        fields.iter().try_for_each(|field| write!(self.bytes, "{field:08x}"))?;
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn folder(&mut self, path: &Path) -> anyhow::Result<()> {
        let ancestors: Vec<PathBuf> = path.ancestors().map(Path::to_owned).collect();
        for folder in ancestors.into_iter().rev().filter(|folder| folder.components().next().is_some()) {
            if self.folders.insert(folder.clone()) {
                self.entry(folder.to_str().context("a name that is not UTF-8")?, 0o040_755, &[])?;
            }
        }
        Ok(())
    }

    /// A file at a path without a leading slash.
    fn file(&mut self, path: &Path, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        self.entry(path.to_str().context("a name that is not UTF-8")?, 0o100_000 | mode, content)
    }

    fn finish(mut self) -> anyhow::Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

/// Shared libraries of a program, and its loader; none if it is linked statically.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = shell::output(std::process::Command::new("ldd").arg(program))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(|line| line.split_once("=>").map_or(line, |(_, path)| path));
    let paths = lines.filter_map(|line| line.split_whitespace().next()).filter(|path| path.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists());
    found.with_context(|| format!("{program} is not installed: see tests/guest/needs"))
}

/// The only file below a folder whose name begins so.
fn only_one(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let first = found.next().with_context(|| format!("{} holds no {prefix}", folder.display()))?;
    Ok(first.path())
}

/// The kernel image of an unpacked package.
pub fn kernel_image(kernel: &Path) -> anyhow::Result<PathBuf> {
    only_one(&kernel.join("boot"), "vmlinuz-")
}

/// Builds the archive: `programs` go to `/sbin`, with what they are linked to.
pub fn build(kernel: &Path, programs: &[PathBuf]) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.folder(Path::new(folder))?;
    }
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    archive.file(Path::new("init"), 0o755, INIT.as_bytes())?;
    let busybox = find("busybox")?;
    if !libraries(&busybox)?.is_empty() {
        bail!("busybox is not linked statically: install busybox-static");
    }
    archive.file(Path::new("bin/busybox"), 0o755, &read(&busybox)?)?;
    let modules = only_one(&kernel.join("lib/modules"), "")?.join("kernel");
    let mut order = String::new();
    for module in MODULES {
        let path = modules.join(format!("{module}.ko"));
        if path.exists() {
            let name = path.file_name().context("a module has a name")?.to_string_lossy().into_owned();
            archive.file(&Path::new("modules").join(&name), 0o644, &read(&path)?)?;
            order.push_str(&name);
            order.push('\n');
        }
    }
    if !order.contains("nbd.ko") {
        bail!("{} holds no nbd.ko", modules.display());
    }
    archive.file(Path::new("modules/order"), 0o644, order.as_bytes())?;
    let tools = ["mke2fs", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_repair", "xfs_growfs", "fio"].map(find);
    let mut linked = BTreeSet::new();
    for program in tools.into_iter().collect::<anyhow::Result<Vec<_>>>()?.iter().chain(programs) {
        let name = program.file_name().context("a program has a name")?;
        archive.file(&Path::new("sbin").join(name), 0o755, &read(program)?)?;
        linked.extend(libraries(program)?);
    }
    for library in linked {
        let inside = library.strip_prefix("/").context("libraries have absolute paths")?;
        archive.file(inside, 0o755, &read(&library)?)?;
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_form_that_kernels_unpack() {
        let mut archive = Archive::default();
        archive.file(Path::new("a/b/c"), 0o644, b"hello").expect("file");
        archive.file(Path::new("a/b/d"), 0o755, b"").expect("file");
        let bytes = archive.finish().expect("trailer");
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 5, "a, a/b, c, d and the trailer");
        assert!(text.contains("a/b/c\0") && text.contains("hello\0") && text.contains("TRAILER!!!\0"));
        // The size of the third entry's content stands in the seventh field of its header.
        let third = text.match_indices("070701").nth(2).expect("three").0;
        assert_eq!(&text[third + 6 + 6 * 8..third + 6 + 7 * 8], "00000005");
    }
}
