//! Heavy file activity: create, write, append, rename, read back, delete, sync. Every thread knows what must be in its
//! folder and compares as it goes; at the end it notes it, so that `check` can compare again after a remount.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};

use super::Random;

/// Files of one thread.
const FILES_MAX: usize = 40;
/// Bytes of one file.
const BYTES_MAX: u64 = 96 << 10;

/// What is in a file: parts, each by its seed and length.
type Content = Vec<(u64, u64)>;

fn bytes_of(content: &Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (seed, length) in content {
        let start = bytes.len();
        bytes.resize(start + *length as usize, 0);
        Random::new(*seed).fill(&mut bytes[start..]);
    }
    bytes
}

fn compare(path: &Path, content: &Content) -> anyhow::Result<()> {
    let found = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if found != bytes_of(content) {
        bail!("{} is not what was written", path.display());
    }
    Ok(())
}

struct Folder {
    path: PathBuf,
    files: BTreeMap<String, Content>,
    random: Random,
    made: u64,
    operations: u64,
}

impl Folder {
    fn any(&mut self) -> Option<String> {
        let count = self.files.len() as u64;
        let index = (count > 0).then(|| self.random.below(count))?;
        self.files.keys().nth(index as usize).cloned()
    }

    fn put(&mut self, name: &str, append: bool) -> anyhow::Result<()> {
        let part = (self.random.next(), self.random.below(BYTES_MAX) + 1);
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.create(true).write(true).append(append).truncate(!append);
        let mut file = options.open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        file.write_all(&bytes_of(&vec![part])).with_context(|| format!("cannot write {}", path.display()))?;
        if self.random.below(4) == 0 {
            file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
        }
        let content = self.files.entry(name.to_owned()).or_default();
        if !append {
            content.clear();
        }
        content.push(part);
        Ok(())
    }

    fn operation(&mut self) -> anyhow::Result<()> {
        self.operations += 1;
        let choice = self.random.below(10);
        let existing = self.any();
        match existing {
            Some(name) if self.files.len() >= FILES_MAX || choice == 0 => {
                fs::remove_file(self.path.join(&name)).with_context(|| format!("cannot remove {name}"))?;
                self.files.remove(&name);
            }
            Some(name) if choice == 1 => {
                self.made += 1;
                let fresh = format!("renamed-{}", self.made);
                fs::rename(self.path.join(&name), self.path.join(&fresh))
                    .with_context(|| format!("cannot rename {name}"))?;
                let content = self.files.remove(&name).context("a file that is known")?;
                self.files.insert(fresh, content);
            }
            Some(name) if choice == 2 && self.files[&name].len() < 3 => self.put(&name, true)?,
            Some(name) if choice == 3 => self.put(&name, false)?,
            Some(name) if choice < 6 => compare(&self.path.join(&name), &self.files[&name])?,
            _ => {
                self.made += 1;
                let name = format!("file-{}", self.made);
                self.put(&name, false)?;
            }
        }
        Ok(())
    }

    fn note(&self) -> anyhow::Result<()> {
        let mut text = String::new();
        for (name, content) in &self.files {
            let parts: Vec<String> = content.iter().map(|(seed, length)| format!("{seed}:{length}")).collect();
            text.push_str(&format!("{name} {}\n", parts.join(" ")));
        }
        let path = self.path.with_extension("noted");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        File::open(&path).and_then(|file| file.sync_all()).context("cannot sync")
    }
}

fn work(path: PathBuf, seed: u64, until: &Path) -> anyhow::Result<u64> {
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut folder = Folder { path, files: BTreeMap::new(), random: Random::new(seed), made: 0, operations: 0 };
    while !until.exists() {
        folder.operation()?;
    }
    folder.files.iter().try_for_each(|(name, content)| compare(&folder.path.join(name), content))?;
    folder.note()?;
    Ok(folder.operations)
}

/// Works until the file `until` exists.
pub fn run(directory: &Path, until: &Path, threads: u32) -> anyhow::Result<()> {
    let started = Instant::now();
    println!("begun");
    let outcomes: Vec<anyhow::Result<u64>> = std::thread::scope(|scope| {
        let begin = |thread: u32| {
            let path = directory.join(format!("folder-{thread}"));
            scope.spawn(move || work(path, u64::from(thread) + 100, until))
        };
        let threads: Vec<_> = (0..threads).map(begin).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|outcome| outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))).collect()
    });
    let operations: u64 = outcomes.into_iter().sum::<anyhow::Result<u64>>()?;
    println!("operations {operations}\nseconds {}", started.elapsed().as_secs());
    Ok(())
}

/// Compares every folder with what was noted of it: all files, no others.
pub fn check(directory: &Path) -> anyhow::Result<()> {
    let mut compared = 0;
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for noted in entries.flatten().map(|entry| entry.path()) {
        if noted.extension().is_none_or(|extension| extension != "noted") {
            continue;
        }
        let folder = noted.with_extension("");
        let text = fs::read_to_string(&noted).context("cannot read a note")?;
        let mut files = 0;
        for line in text.lines() {
            let (name, parts) = line.split_once(' ').context("a damaged note")?;
            let part = |text: &str| {
                let (seed, length) = text.split_once(':')?;
                Some((seed.parse().ok()?, length.parse().ok()?))
            };
            let content: Option<Content> = parts.split(' ').map(part).collect();
            compare(&folder.join(name), &content.context("a damaged note")?)?;
            files += 1;
        }
        let there = fs::read_dir(&folder).context("cannot read a folder")?.count();
        if there != files {
            bail!("{} holds {there} files, {files} were noted", folder.display());
        }
        compared += files;
    }
    if compared == 0 {
        bail!("{} holds nothing to compare", directory.display());
    }
    println!("compared {compared}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_again_and_damage_is_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let mut work = Folder {
            path: folder.path().join("folder-0"),
            files: BTreeMap::new(),
            random: Random::new(3),
            made: 0,
            operations: 0,
        };
        fs::create_dir_all(&work.path).expect("folder");
        (0..200).for_each(|_| work.operation().expect("operation"));
        work.note().expect("note");
        check(folder.path()).expect("as noted");
        let name = work.any().expect("a file");
        fs::write(work.path.join(name), "other").expect("write");
        check(folder.path()).expect_err("damage is noticed");
    }
}
