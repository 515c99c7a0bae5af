//! What is kept on disk of a volume that this host uses: which of Docker's mounts hold it.
//!
//! Always true: the record is on disk before a mount is answered and before anything is mapped; it goes when nothing of the
//! volume is left on this host.
//!
//! Docker names each mount, and mounts again under the same name for `docker cp` while the container runs: so each name is
//! counted. An engine that was killed never unmounts and mounts again under the names it had: so when an engine is heard for
//! the first time, its names stay, and their counts begin anew.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The form in which records are written.
pub const VERSION: u32 = 1;
/// Mounts of one volume on one host at a time; a container is one.
pub const IDS_MAX: usize = 4096;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Docker's name of the volume.
    pub name: String,
    /// The mounts that hold it, and how often; 0: held by an engine that has ended, or goes on to hold it.
    pub ids: BTreeMap<String, u32>,
    /// Which start of the host it was written under: after another start nothing is mounted any more.
    pub boot: String,
}

impl Record {
    /// Of a volume that nobody uses yet.
    pub fn new(name: &str, boot: &str) -> Self {
        Self { version: VERSION, name: name.to_owned(), ids: BTreeMap::new(), boot: boot.to_owned() }
    }

    /// One more mount under this name.
    pub fn add(&mut self, id: &str) {
        let count = self.ids.entry(id.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// One mount less under this name; false if there was none.
    pub fn take(&mut self, id: &str) -> bool {
        let Some(count) = self.ids.get_mut(id) else { return false };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.ids.remove(id);
        }
        true
    }

    /// As it is to be taken after a start of the plugin: mounts of an earlier start of the host are gone.
    #[must_use]
    pub fn after_start(mut self, boot: &str) -> Self {
        if self.boot != boot {
            self.ids.clear();
            boot.clone_into(&mut self.boot);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_holds_as_often_as_it_was_mounted() {
        let mut record = Record::new("db", "boot");
        record.add("a");
        record.add("a");
        assert!(record.take("a") && !record.ids.is_empty(), "a copy out of a running container is no end of it");
        assert!(record.take("a") && record.ids.is_empty());
        assert!(!record.take("a"));
    }

    #[test]
    fn mounts_do_not_outlive_the_host_but_outlive_the_plugin() {
        let mut record = Record::new("db", "boot 1");
        record.add("a");
        assert_eq!(record.clone().after_start("boot 1"), record);
        assert!(record.after_start("boot 2").ids.is_empty());
    }
}
