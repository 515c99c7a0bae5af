//! What the system remembers of a volume for Docker: labels that begin with `docker.`.
//!
//! `docker.name` says that the volume is Docker's at all: volumes that were made for other uses are neither shown nor
//! touched. `docker.state` says how far the making of the file system is, and is what keeps it from being made twice.

use std::collections::BTreeMap;

use mdm_api::model::{AccessMode, Limits, Volume};

use super::options::{Given, default_of};

/// Label of the full name.
pub const NAME: &str = "docker.name";
/// Label of the file system's state.
pub const STATE: &str = "docker.state";
const PREFIX: &str = "docker.";

/// How far the making of the file system is.
///
/// ```text
///   Given   nobody of us has made the volume: a file system is made only where it is blank
///   New     made for Docker, never mounted: likewise
///   Making  a host has begun to make a file system, and nobody has mounted it: may be made anew over what is there
///   Made    the file system is there, and may hold data: never made again
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MakeState {
    /// No label.
    Given,
    /// Fresh.
    New,
    /// Begun.
    Making,
    /// Done.
    Made,
}

impl MakeState {
    /// As the label says it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Given => "",
            Self::New => "new",
            Self::Making => "making",
            Self::Made => "made",
        }
    }

    fn of(word: Option<&str>) -> Self {
        match word {
            Some("new") => Self::New,
            Some("making") => Self::Making,
            // A word of a later version: whatever it means, nothing is made over what is there.
            Some(_) => Self::Made,
            None => Self::Given,
        }
    }
}

/// A file system that is made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// As `mount` and `mkfs` call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// What a volume is to be for Docker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The file system to make.
    pub filesystem: FileSystem,
    /// Further arguments of `mkfs`.
    pub make_arguments: Vec<String>,
    /// Further options of `mount`.
    pub mount_options: String,
    /// Limits of the mapping.
    pub limits: Limits,
    /// Owner of the root directory.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u32,
    /// Nothing is written.
    pub read_only: bool,
    /// Several hosts may have it at once.
    pub shared: bool,
    /// How far the file system is.
    pub state: MakeState,
}

impl Spec {
    /// Reads labels. What does not read (somebody changed it by hand) is as if it were not there.
    pub fn of(labels: &BTreeMap<String, String>) -> Self {
        let text = |name: &str| {
            labels.get(&format!("{PREFIX}{name}")).map(String::as_str).or_else(|| default_of(name)).unwrap_or_default()
        };
        let number = |name: &str| text(name).parse().unwrap_or(0);
        let id = |name: &str| text(name).parse().unwrap_or(0);
        Self {
            filesystem: if text("fstype") == "xfs" { FileSystem::Xfs } else { FileSystem::Ext4 },
            make_arguments: text("mkfs-opts").split_whitespace().map(str::to_owned).collect(),
            mount_options: text("mount-opts").to_owned(),
            limits: Limits { iops: number("iops"), bandwidth_bytes_per_s: number("bandwidth") },
            uid: id("uid"),
            gid: id("gid"),
            mode: u32::from_str_radix(text("mode"), 8).unwrap_or(0o755),
            read_only: text("read-only") == "true",
            shared: text("shared") == "true",
            state: MakeState::of(labels.get(STATE).map(String::as_str)),
        }
    }

    /// What the mapping has to allow.
    pub fn access(&self) -> AccessMode {
        if self.read_only { AccessMode::ReadOnly } else { AccessMode::ReadWrite }
    }
}

/// The labels of a new volume.
pub fn of_new(name: &str, given: &Given, default_filesystem: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (NAME.to_owned(), name.to_owned()),
        (STATE.to_owned(), MakeState::New.word().to_owned()),
        (format!("{PREFIX}fstype"), default_filesystem.to_owned()),
    ]);
    // An empty value is no label.
    let kept = given.kept().filter(|(_, value)| !value.is_empty());
    labels.extend(kept.map(|(name, value)| (format!("{PREFIX}{name}"), value.to_owned())));
    labels
}

/// True if the volume is Docker's, under this name.
pub fn is_named(volume: &Volume, name: &str) -> bool {
    !volume.removing && volume.labels.get(NAME).is_some_and(|own| own == name)
}

/// A given option that the volume does not have, if there is one: its name, and what the volume has.
pub fn difference<'a>(volume: &'a Volume, given: &'a Given) -> Option<(&'static str, &'a str)> {
    let has = |name: &str| {
        volume
            .labels
            .get(&format!("{PREFIX}{name}"))
            .map(String::as_str)
            .or_else(|| default_of(name))
            .unwrap_or_default()
    };
    given.kept().find(|(name, value)| has(name) != *value).map(|(name, _)| (name, has(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::options::parse;

    fn given(options: &[(&str, &str)]) -> Given {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        parse(&options).expect("right options")
    }

    #[test]
    fn a_volume_is_what_it_was_made_as() {
        let options =
            given(&[("fstype", "xfs"), ("mount-opts", "noatime"), ("iops", "500"), ("mode", "700"), ("uid", "999")]);
        let spec = Spec::of(&of_new("db", &options, "ext4"));
        assert_eq!(spec.filesystem, FileSystem::Xfs);
        assert_eq!((spec.uid, spec.gid, spec.mode), (999, 0, 0o700));
        assert_eq!(spec.limits.iops, 500);
        assert_eq!(spec.state, MakeState::New);
        assert!(!spec.read_only && !spec.shared);
    }

    #[test]
    fn an_unknown_state_is_never_made_over() {
        assert_eq!(MakeState::of(Some("frozen")), MakeState::Made);
        for state in [MakeState::New, MakeState::Making, MakeState::Made] {
            assert_eq!(MakeState::of(Some(state.word())), state);
        }
    }
}
