//! The tree that the rules look at: every file with its text, read once, or given in memory.
//!
//! Always true: paths are relative to the root and written with `/`; build output (`target`, or any folder that Cargo
//! tagged as a cache) and `.git` are not part of the tree; a file that is not UTF-8, or holds a NUL, has no text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

/// All files of a tree.
#[derive(Debug, Default)]
pub struct Tree {
    /// Every file; its text where it is text.
    pub files: BTreeMap<String, Option<String>>,
    /// Those that may be executed.
    pub executables: BTreeSet<String>,
}

impl Tree {
    /// Reads the tree under `root`.
    ///
    /// # Errors
    /// A folder or a file that cannot be read, other than one that vanished in the meantime.
    pub fn read(root: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        tree.read_folder(root, "")?;
        Ok(tree)
    }

    /// A tree in memory: pairs of path and text.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), Some((*text).to_owned())));
        Self { files: files.collect(), executables: BTreeSet::new() }
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let is_output = name == ".git" || name == "target" || entry.path().join("CACHEDIR.TAG").exists();
                if !is_output {
                    self.read_folder(&entry.path(), &format!("{path}/"))?;
                }
            } else if kind.is_file() {
                self.read_file(&entry.path(), path)?;
            } else {
                self.files.insert(path, None);
            }
        }
        Ok(())
    }

    fn read_file(&mut self, file: &Path, path: String) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let read = fs::read(file).and_then(|bytes| Ok((bytes, fs::metadata(file)?)));
        let (bytes, metadata) = match read {
            Ok(read) => read,
            // An editor's temporary file may go while we look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if metadata.permissions().mode() & 0o111 != 0 {
            self.executables.insert(path.clone());
        }
        let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
        self.files.insert(path, text);
        Ok(())
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.as_deref()
    }

    /// All files that are text, with their path.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// All Rust sources, with their path.
    pub fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// Whether a file or a folder of this path exists. The root is the empty path.
    pub fn exists(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        path.is_empty() || self.files.contains_key(path) || self.files.keys().any(|file| file.starts_with(&folder))
    }

    /// Files and folders at the top level.
    pub fn top_level(&self) -> BTreeSet<&str> {
        self.files.keys().filter_map(|path| path.split('/').next()).collect()
    }
}

/// The folder of a path, without a final `/`; empty at the root.
pub fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The last part of a path.
pub fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// `target` as seen from `folder`, with `.` and `..` resolved; `None` when it leaves the tree.
pub fn resolve(folder: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
