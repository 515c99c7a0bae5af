//! The plan of the building: every crate, its folder, whether it is pure, and which of our crates it may use.
//!
//! Always true: arrows point one way. A crate uses only crates above it in the table; nobody uses a daemon, a tool or
//! a test crate; `sds-replica` and `sds-store` do not know each other.

/// How much of the outside world a crate may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Decides. No clock, no randomness, no runtime, no threads, no I/O, no unordered maps, but behind these features.
    Pure(&'static [&'static str]),
    /// Carries out.
    Shell,
    /// A tool or a test: may use every crate that is not one itself, and those that are named.
    Outside,
}

/// A crate's place.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Name of the package.
    pub name: &'static str,
    /// Its folder.
    pub folder: &'static str,
    /// How much of the world it knows.
    pub kind: Kind,
    /// Our crates that it may use.
    pub uses: &'static [&'static str],
}

const fn place(name: &'static str, folder: &'static str, kind: Kind, uses: &'static [&'static str]) -> Place {
    Place { name, folder, kind, uses }
}

/// Every crate of the system. A crate that is not here has no place in the tree.
pub const PLACES: &[Place] = &[
    // Vocabulary.
    place("mdm-api", "mdm/api", Kind::Pure(&["client"]), &[]),
    place("sdc-api", "sdc/api", Kind::Pure(&["client"]), &["mdm-api"]),
    place("sds-api", "sds/api", Kind::Pure(&[]), &["mdm-api"]),
    // Decisions.
    place("mdm-core", "mdm/core", Kind::Pure(&[]), &["mdm-api"]),
    place("mdm-raft", "mdm/raft", Kind::Pure(&[]), &["mdm-api"]),
    place("sds-replica", "sds/replica", Kind::Pure(&[]), &["mdm-api", "sds-api"]),
    place("sds-store", "sds/store", Kind::Pure(&[]), &["mdm-api", "sds-api"]),
    place("sdc-client", "sdc/client", Kind::Pure(&["runtime"]), &["mdm-api", "sds-api"]),
    // Compositions: what a daemon and the simulator both run.
    place("mdm-node", "mdm/node", Kind::Pure(&[]), &["mdm-api", "mdm-core", "mdm-raft"]),
    place("sds-node", "sds/node", Kind::Pure(&[]), &["mdm-api", "sds-api", "sds-replica", "sds-store"]),
    // Borders to the kernel and to the network.
    place("sds-disk", "sds/disk", Kind::Shell, &["mdm-api", "sds-api", "sds-store"]),
    place("sdc-nbd", "sdc/nbd", Kind::Shell, &["mdm-api", "sds-api"]),
    place("mdm-gateway", "mdm/gateway", Kind::Shell, &["mdm-api"]),
    // Daemons and front ends: wiring.
    place("mdm", "mdm", Kind::Shell, &["mdm-api", "mdm-core", "mdm-raft", "mdm-node", "mdm-gateway"]),
    place("sds", "sds", Kind::Shell, &["mdm-api", "sds-api", "sds-replica", "sds-store", "sds-disk", "sds-node"]),
    place("sdc", "sdc", Kind::Shell, &["mdm-api", "sds-api", "sdc-api", "sdc-client", "sdc-nbd"]),
    place("plugin", "plugin", Kind::Shell, &["mdm-api", "sdc-api"]),
    place("scli", "tools/scli", Kind::Shell, &["mdm-api", "sdc-api"]),
    // They see everything and are seen by nobody.
    place("dev", "tools/dev", Kind::Outside, &[]),
    place("inspect", "tools/inspect", Kind::Outside, &[]),
    place("bench", "tools/bench", Kind::Outside, &[]),
    place("sim", "tests/sim", Kind::Outside, &[]),
    place("cluster", "tests/cluster", Kind::Outside, &["sim"]),
    place("docker", "tests/docker", Kind::Outside, &["cluster"]),
    place("guest", "tests/guest", Kind::Outside, &["cluster"]),
    place("tidy", "tests/tidy", Kind::Outside, &[]),
    place("fuzz", "tests/fuzz", Kind::Outside, &[]),
    place("model", "tests/model", Kind::Outside, &[]),
];

/// Front ends and daemons, which no other crate may use as a library.
const TOPS: &[&str] = &["mdm", "sds", "sdc", "plugin", "scli"];

/// Third-party crates whose types stop at one border crate of ours.
pub const BORDERS: &[(&str, &str)] = &[
    ("stateright", "model"),
    ("raft", "mdm-raft"),
    ("raft-proto", "mdm-raft"),
    ("protobuf", "mdm-raft"),
    ("slog", "mdm-raft"),
    ("tokio-uring", "sds-disk"),
    ("io-uring", "sds-disk"),
];

/// Packages that bring a runtime, the operating system, randomness or threads with them.
pub const RUNTIMES: &[&str] = &[
    "async-io",
    "async-std",
    "crossbeam",
    "fastrand",
    "futures-executor",
    "getrandom",
    "http-body-util",
    "hyper",
    "hyper-util",
    "io-uring",
    "libc",
    "mio",
    "nix",
    "polling",
    "rand",
    "rand_core",
    "rayon",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "tokio-rustls",
    "tokio-uring",
    "tracing-subscriber",
    "uuid",
];

/// The place of a crate.
pub fn place_of(name: &str) -> Option<&'static Place> {
    PLACES.iter().find(|place| place.name == name)
}

/// Whether `user` may depend on `used`, both being ours.
pub fn may_use(user: &Place, used: &str) -> bool {
    match (user.kind, place_of(used)) {
        (Kind::Outside, Some(place)) if place.kind != Kind::Outside => !TOPS.contains(&place.name),
        _ => user.uses.contains(&used),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_point_to_what_stands_above() {
        for (index, place) in PLACES.iter().enumerate() {
            for used in place.uses {
                let above = PLACES[..index].iter().find(|other| other.name == *used);
                let above =
                    above.unwrap_or_else(|| panic!("{} uses {used}, which does not stand above it", place.name));
                let outside = above.kind == Kind::Outside && place.kind != Kind::Outside;
                assert!(!outside && !TOPS.contains(used), "{} uses {used}", place.name);
                let is_pure = |place: &Place| matches!(place.kind, Kind::Pure(_));
                assert!(!is_pure(place) || is_pure(above), "{} is pure and uses {used}", place.name);
            }
        }
    }

    #[test]
    fn replica_and_store_do_not_know_each_other() {
        let place = |name| place_of(name).expect("a crate of the plan");
        assert!(!may_use(place("sds-replica"), "sds-store") && !may_use(place("sds-store"), "sds-replica"));
        assert!(may_use(place("sim"), "sds-node") && !may_use(place("sim"), "sds") && !may_use(place("sim"), "dev"));
    }

    #[test]
    fn no_name_or_folder_is_given_twice() {
        for (index, place) in PLACES.iter().enumerate() {
            let later = &PLACES[index + 1..];
            assert!(later.iter().all(|other| other.name != place.name && other.folder != place.folder), "{place:?}");
        }
    }
}
