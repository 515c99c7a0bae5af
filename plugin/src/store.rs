//! Records on disk: one file for each volume in use, replaced as a whole.
//!
//! Always true: a record that was written is there after a crash, as it was before or as it is now.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::core::record::{Record, VERSION};

const ENDING: &str = "json";
const FRESH: &str = "new";

/// The directory of the records.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Makes the directory if need be.
    pub fn open(directory: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self, name: &str, ending: &str) -> PathBuf {
        self.directory.join(format!("{name}.{ending}"))
    }

    fn sync(&self) -> io::Result<()> {
        std::fs::File::open(&self.directory)?.sync_all()
    }

    /// Writes a record.
    pub fn put(&self, record: &Record) -> io::Result<()> {
        let fresh = self.path(&record.name, FRESH);
        let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, self.path(&record.name, ENDING))?;
        self.sync()
    }

    /// Removes a record, if there is one.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(name, ENDING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync(),
        }
    }

    /// All records; those that do not read, by their path and why. Unfinished writings are cleaned away.
    pub fn all(&self) -> io::Result<(Vec<Record>, Vec<String>)> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(FRESH) => std::fs::remove_file(&path)?,
                Some(ENDING) => match read(&path) {
                    Ok(record) => records.push(record),
                    Err(why) => damaged.push(format!("{}: {why}", path.display())),
                },
                _ => {}
            }
        }
        Ok((records, damaged))
    }
}

fn read(path: &Path) -> Result<Record, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let record: Record = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if record.version != VERSION {
        return Err(format!("version {} is not known here", record.version));
    }
    let is_own = path.file_stem().is_some_and(|stem| stem == record.name.as_str());
    if is_own && crate::core::names::check(&record.name).is_ok() {
        Ok(record)
    } else {
        Err("it is about another volume".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_replaced_whole_and_damage_is_told() {
        let folder = tempfile::tempdir().expect("directory");
        let store = Store::open(folder.path()).expect("open");
        let mut record = Record::new("db", "boot");
        store.put(&record).expect("put");
        record.add("a");
        store.put(&record).expect("put again");
        std::fs::write(folder.path().join("torn.json"), b"{").expect("write");
        std::fs::write(folder.path().join("x.new"), b"{").expect("write");
        let mut moved = record.clone();
        moved.name = "elsewhere".to_owned();
        std::fs::write(folder.path().join("y.json"), serde_json::to_vec(&moved).expect("JSON")).expect("write");
        let (records, damaged) = store.all().expect("all");
        assert_eq!(records, [record]);
        assert_eq!(damaged.len(), 2, "{damaged:?}");
        assert!(!folder.path().join("x.new").exists());
        store.remove("db").expect("remove");
        store.remove("db").expect("twice is once");
        assert!(store.all().expect("all").0.is_empty());
    }
}
