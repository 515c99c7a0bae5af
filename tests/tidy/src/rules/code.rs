//! Rules of the code itself: failure is handled, names are spelt out, nothing is left unfinished, files stay small.

use crate::modules::Source;
use crate::names::{names, tokens};
use crate::violation::Violation;

/// Most lines that a source file may have, tests included.
pub const LINES_MAX: usize = 600;

/// Macros that mark code as unfinished or under inspection.
const LEFTOVERS: &[&str] = &[concat!("to", "do"), concat!("un", "implemented"), concat!("db", "g")];

/// `.unwrap()` outside tests.
pub fn unwraps<'a>(sources: impl Iterator<Item = &'a Source<'a>>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        let tokens = tokens(&source.code);
        for window in tokens.windows(4) {
            let texts: Vec<&str> = window.iter().map(|token| token.text).collect();
            if texts != [".", "unwrap", "(", ")"] || source.in_test(window[0].offset) {
                continue;
            }
            let remedy = "return the error, or write `expect` with the reason why it cannot fail";
            let line = source.line(window[1].offset);
            violations.push(Violation::new(source.path, line, "`.unwrap()` outside tests", remedy));
        }
    }
    violations
}

/// Globs: `super::*` and preludes are for tests, all others for nobody.
pub fn globs<'a>(sources: impl Iterator<Item = &'a Source<'a>>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        for name in names(&source.code).iter().filter(|name| name.used) {
            let [above @ .., last] = name.segments.as_slice() else { continue };
            let is_for_tests = above.last().is_some_and(|segment| segment == "super" || segment == "prelude");
            if last != "*" || (is_for_tests && source.in_test(name.offset)) {
                continue;
            }
            let what = format!("`use {}` hides what this module depends on", name.path());
            violations.push(Violation::new(source.path, source.line(name.offset), what, "name what is used"));
        }
    }
    violations
}

/// Macros of unfinished code, in tests as well.
pub fn leftovers<'a>(sources: impl Iterator<Item = &'a Source<'a>>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        for window in tokens(&source.code).windows(2) {
            if window[1].text == "!" && LEFTOVERS.contains(&window[0].text) {
                let what = format!("`{}!` is left over", window[0].text);
                let line = source.line(window[0].offset);
                violations.push(Violation::new(source.path, line, what, "finish it, or remove it"));
            }
        }
    }
    violations
}

/// Files that are too long for one concept.
pub fn lengths<'a>(sources: impl Iterator<Item = &'a Source<'a>>) -> Vec<Violation> {
    let too_long = sources.map(|source| (source, source.text.lines().count())).filter(|(_, lines)| *lines > LINES_MAX);
    too_long
        .map(|(source, lines)| {
            let what = format!("has {lines} lines, {LINES_MAX} at most");
            let remedy = "split it by the state that each part owns; move large tests to a `tests.rs` beside it";
            Violation::new(source.path, 0, what, remedy)
        })
        .collect()
}

/// Files that do not say why they exist.
pub fn introductions<'a>(sources: impl Iterator<Item = &'a Source<'a>>) -> Vec<Violation> {
    let remedy = "begin with `//!`: why the module exists, what it owns, what is always true";
    let silent = sources.filter(|source| !source.text.starts_with("//!"));
    silent.map(|source| Violation::new(source.path, 1, "does not say what it is for", remedy)).collect()
}

/// Files that no build reaches.
pub fn dead_files<'a>(sources: impl Iterator<Item = &'a Source<'a>>) -> Vec<Violation> {
    let remedy = "declare it with `mod` where it belongs, or remove it";
    let dead = sources.filter(|source| !source.reached);
    dead.map(|source| Violation::new(source.path, 0, "belongs to no module of its crate", remedy)).collect()
}
