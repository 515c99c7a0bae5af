//! Pure crates decide and nothing else: their manifest names no runtime, their code no clock, thread, file, socket or
//! unordered map. This is what lets one and the same code run in a daemon, in a unit test and in the simulator.
//!
//! Code of tests, and code behind the features that the table gives to a crate, is not held to it.

use crate::manifest::{Crate, Section, Workspace};
use crate::modules::Source;
use crate::rules::table::{Kind, PLACES, Place, RUNTIMES, place_of};
use crate::violation::Violation;

/// Names that no decision may depend on, whatever path leads to them, and what to use instead.
const WORDS: &[(&str, &str)] = &[
    ("Instant", "take the time as an argument, `now: Nanos`"),
    ("SystemTime", "take the time as an argument, `now: Nanos`"),
    ("UNIX_EPOCH", "take the time as an argument, `now: Nanos`"),
    ("HashMap", "use BTreeMap or a Vec: the order of iteration must not depend on a random seed"),
    ("HashSet", "use BTreeSet or a Vec: the order of iteration must not depend on a random seed"),
    ("RandomState", "take randomness as an argument: a seed or an id"),
    ("DefaultHasher", "use BLAKE3 or CRC32C: its result is the same in every build"),
    ("tokio", "return an action and let the daemon carry it out"),
    ("rand", "take randomness as an argument: a seed or an id"),
    ("getrandom", "take randomness as an argument: a seed or an id"),
];

/// Paths that no decision may touch.
const PATHS: &[(&[&str], &str)] = &[
    (&["std", "thread"], "return an action and let the daemon carry it out"),
    (&["std", "fs"], "return an action and let the daemon carry it out"),
    (&["std", "net"], "keep sockets in the daemon, and addresses as the words of mdm-api"),
    (&["std", "process"], "return an action and let the daemon carry it out"),
    (&["std", "env"], "take configuration as an argument"),
    (&["std", "os"], "return an action and let the daemon carry it out"),
];

/// Runtimes in the manifests of pure crates.
pub fn manifests(workspace: &Workspace) -> Vec<Violation> {
    let pure = PLACES.iter().filter_map(|place| Some((place, gates(place)?)));
    let found = pure.filter_map(|(place, gates)| Some((workspace.named(place.name)?, gates)));
    found.flat_map(|(krate, gates)| manifest(krate, gates)).collect()
}

fn gates(place: &Place) -> Option<&'static [&'static str]> {
    match place.kind {
        Kind::Pure(gates) => Some(gates),
        Kind::Shell | Kind::Outside => None,
    }
}

fn manifest(krate: &Crate, own_gates: &[&str]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut say = |line, what: String, remedy: &str| {
        violations.push(Violation::new(&krate.manifest(), line, what, remedy));
    };
    let needed = krate.dependencies.iter().filter(|found| found.section == Section::Normal && !found.optional);
    for dependency in needed {
        let package = dependency.package.as_str();
        if RUNTIMES.contains(&package) {
            let what = format!("the pure crate {} depends on `{package}`", krate.name);
            say(
                dependency.line,
                what,
                "move what needs it into the daemon, or behind the feature that the table allows",
            );
        }
        match place_of(package).map(|place| place.kind) {
            Some(Kind::Pure(gates)) => {
                for feature in dependency.features.iter().filter(|feature| gates.contains(&feature.as_str())) {
                    let what = format!("the pure crate {} asks `{package}` for its runtime (`{feature}`)", krate.name);
                    say(dependency.line, what, "ask for it from a feature, or in the daemon");
                }
            }
            Some(Kind::Shell | Kind::Outside) => {
                let what = format!("the pure crate {} depends on `{package}`, which is not pure", krate.name);
                say(dependency.line, what, "turn the dependency round: return an action");
            }
            None => {}
        }
    }
    let default = krate.table.get("features").and_then(|features| features.get("default"));
    for feature in crate::manifest::strings(default).iter().filter(|feature| own_gates.contains(&feature.as_str())) {
        let what = format!("the pure crate {} has its runtime (`{feature}`) on by default", krate.name);
        say(0, what, "leave it out of `default`; daemons ask for it");
    }
    violations
}

/// The outside world in the code of pure crates.
pub fn sources<'a>(sources: impl Iterator<Item = &'a Source<'a>>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        let place = source.owner.and_then(|owner| place_of(&owner.name));
        let Some(gates) = place.and_then(gates) else { continue };
        for name in crate::names::names(&source.code) {
            let Some((shown, remedy)) = banned(&name.segments) else { continue };
            if source.in_test(name.offset) || source.is_behind(name.offset, gates) {
                continue;
            }
            let what = format!("a pure crate names `{shown}`");
            violations.push(Violation::new(source.path, source.line(name.offset), what, remedy));
        }
    }
    violations
}

fn banned(segments: &[String]) -> Option<(String, &'static str)> {
    let starts = |path: &[&str]| segments.len() >= path.len() && segments.iter().zip(path).all(|(is, want)| is == want);
    let path = PATHS.iter().find(|(path, _)| starts(path)).map(|(path, remedy)| (path.join("::"), *remedy));
    let word = || WORDS.iter().find(|(word, _)| segments.iter().any(|segment| segment == word));
    path.or_else(|| word().map(|(word, remedy)| ((*word).to_owned(), *remedy)))
}
