//! A tree of real files of this machine, and its copies on a volume.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, bail};

use crate::shell;

/// Files above this are left out: many small ones say more.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// A tree in a folder of its own.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Where it is.
    pub path: PathBuf,
    /// Its files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Tree {
    /// Copies files of `/usr/share` and `/usr/lib` into a folder until there are so many files and so many bytes.
    pub fn gather(into: &Path, files_wanted: usize, bytes_wanted: u64) -> anyhow::Result<Self> {
        let mut tree = Self { path: into.to_owned(), files: 0, bytes: 0 };
        for root in ["/usr/share", "/usr/lib"] {
            tree.gather_from(Path::new(root), files_wanted, bytes_wanted)?;
        }
        if tree.files < files_wanted || tree.bytes < bytes_wanted {
            bail!("/usr/share and /usr/lib hold only {} files and {} bytes", tree.files, tree.bytes);
        }
        Ok(tree)
    }

    fn gather_from(&mut self, folder: &Path, files_wanted: usize, bytes_wanted: u64) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let entries: BTreeSet<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        for path in entries {
            if self.files >= files_wanted && self.bytes >= bytes_wanted {
                return Ok(());
            }
            let data = path.symlink_metadata().with_context(|| format!("cannot look at {}", path.display()))?;
            if data.is_dir() {
                self.gather_from(&path, files_wanted, bytes_wanted)?;
            } else if data.is_file() && data.len() <= FILE_BYTES_MAX {
                let target = self.path.join(path.strip_prefix("/").context("paths begin at the root")?);
                if let Some(parent) = target.parent() {
                    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
                }
                self.bytes +=
                    std::fs::copy(&path, &target).with_context(|| format!("cannot copy {}", path.display()))?;
                self.files += 1;
            }
        }
        Ok(())
    }

    /// Compares a copy with `diff -r`.
    pub fn compare(&self, copy: &Path) -> anyhow::Result<()> {
        let (own, other) = (self.path.display().to_string(), copy.display().to_string());
        shell::succeed("diff", &["-r", &own, &other]).map(drop)
    }
}

/// Copies a tree onto a volume again and again, in a thread of its own.
pub struct Copier {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<usize>>,
    folder: PathBuf,
    kept: usize,
}

impl Copier {
    /// Starts; the last `kept` copies stay.
    pub fn start(tree: &Tree, folder: &Path, kept: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, source, target) = (Arc::clone(&stop), tree.path.clone(), folder.to_owned());
        let thread = std::thread::spawn(move || {
            let mut copies = 0;
            loop {
                let copy = target.join(format!("copy{copies}"));
                shell::succeed("cp", &["-r", &source.display().to_string(), &copy.display().to_string()])?;
                shell::succeed("sync", &["-f", &target.display().to_string()])?;
                copies += 1;
                if flag.load(Ordering::Relaxed) {
                    return Ok(copies);
                }
                if copies > kept {
                    let oldest = target.join(format!("copy{}", copies - kept - 1));
                    std::fs::remove_dir_all(&oldest).with_context(|| format!("cannot remove {}", oldest.display()))?;
                }
            }
        });
        Self { stop, thread, folder: folder.to_owned(), kept }
    }

    /// Lets it end its copy; gives the copies that are there and how many there were. The first I/O error of its life is
    /// the error of this.
    pub fn finish(self) -> anyhow::Result<(Vec<PathBuf>, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        let copies = self.thread.join().map_err(|_| anyhow::anyhow!("the copier panicked"))??;
        let first = copies.saturating_sub(self.kept);
        Ok(((first..copies).map(|index| self.folder.join(format!("copy{index}"))).collect(), copies))
    }
}
