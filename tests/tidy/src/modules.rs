//! Which source file is what: reached from which crate, in tests only, behind which feature.
//!
//! Follows `mod name;` from the roots of every crate, as the compiler does, and keeps for each file its code, its
//! comments and the parts that are tests.
//!
//! Always true: a file that several modules reach is test code only if all of them are.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::lexer::{line_of, split};
use crate::manifest::{Crate, Workspace};
use crate::names::{Token, tokens};
use crate::regions::{Attribute, attributes, is_behind, is_test};
use crate::tree::{Tree, file_name, folder_of, resolve};

/// One Rust source of the tree.
#[derive(Debug)]
pub struct Source<'a> {
    /// Its path.
    pub path: &'a str,
    /// The source itself.
    pub text: &'a str,
    /// Code only; see [`crate::lexer`].
    pub code: String,
    /// Comments only.
    pub comments: String,
    /// Its outer and inner attributes.
    pub attributes: Vec<Attribute>,
    /// The crate it belongs to.
    pub owner: Option<&'a Crate>,
    /// Whether a root of the crate reaches it.
    pub reached: bool,
    /// Whether the whole file exists in tests only.
    pub test_only: bool,
    /// Conditions of the modules above it: the attributes on its chain of `mod` declarations.
    pub conditions: Vec<Attribute>,
}

impl Source<'_> {
    /// Whether the code at `offset` exists in tests only.
    pub fn in_test(&self, offset: usize) -> bool {
        self.test_only
            || self.attributes.iter().any(|attribute| is_test(attribute) && attribute.reach.contains(&offset))
    }

    /// Whether the code at `offset` exists only with one of `features`.
    pub fn is_behind(&self, offset: usize, features: &[&str]) -> bool {
        let here = self.attributes.iter().filter(|attribute| attribute.reach.contains(&offset));
        here.chain(&self.conditions).any(|attribute| is_behind(attribute, features))
    }

    /// The line, from 1, of an offset.
    pub fn line(&self, offset: usize) -> usize {
        line_of(self.text, offset)
    }
}

/// All Rust sources of the tree, by path.
pub fn sources<'a>(tree: &'a Tree, workspace: &'a Workspace) -> BTreeMap<&'a str, Source<'a>> {
    let mut sources = BTreeMap::new();
    for (path, text) in tree.rust() {
        let parts = split(text);
        let attributes = attributes(text, &parts.code);
        let owner = workspace.owner(path);
        let (code, comments) = (parts.code, parts.comments);
        let conditions = Vec::new();
        let source =
            Source { path, text, code, comments, attributes, owner, reached: false, test_only: false, conditions };
        sources.insert(path, source);
    }
    let mut visits: Vec<Visit> = sources.values().filter_map(root).collect();
    let mut seen: BTreeMap<String, bool> = BTreeMap::new();
    while let Some(visit) = visits.pop() {
        // A second visit matters only when it makes a file of tests a file of the product.
        if seen.get(&visit.path).is_some_and(|test_only| !*test_only || visit.test_only) {
            continue;
        }
        let Some(source) = sources.get_mut(visit.path.as_str()) else { continue };
        source.reached = true;
        source.test_only = visit.test_only || source.attributes.iter().any(|found| found.inner && is_test(found));
        seen.insert(visit.path, source.test_only);
        source.conditions = visit.conditions;
        visits.extend(children(source, visit.is_root));
    }
    sources
}

/// A file to be looked at, and what is known of it from the way there.
struct Visit {
    path: String,
    test_only: bool,
    is_root: bool,
    conditions: Vec<Attribute>,
}

/// A visit of a file that the build begins with: `lib.rs`, `main.rs`, a binary, an integration test, a bench, an example.
fn root(source: &Source<'_>) -> Option<Visit> {
    let krate = source.owner?;
    let inside = source.path.strip_prefix(&krate.folder)?.strip_prefix('/')?;
    let parts: Vec<&str> = inside.split('/').collect();
    let targets = ["lib", "bin", "test", "bench", "example"].into_iter().filter_map(|kind| krate.table.get(kind));
    let tables = targets.flat_map(|target| target.as_array().map_or(vec![target], |array| array.iter().collect()));
    let named = tables.filter_map(|table| table.get("path")?.as_str()).any(|path| path == inside);
    let is_root = match parts.as_slice() {
        ["build.rs"] | ["src", "lib.rs" | "main.rs"] | ["src", "bin", _] | ["src", "bin", _, "main.rs"] => true,
        ["tests" | "benches" | "examples", _] | ["tests" | "benches" | "examples", _, "main.rs"] => true,
        _ => named,
    };
    let test_only = matches!(parts[0], "tests" | "benches") && parts.len() > 1;
    is_root.then(|| Visit { path: source.path.to_owned(), test_only, is_root: true, conditions: Vec::new() })
}

/// The files that `mod name;` in this source stand for.
fn children(source: &Source<'_>, is_root: bool) -> Vec<Visit> {
    let name = file_name(source.path);
    let stem = name.strip_suffix(".rs").unwrap_or(name);
    let folder = folder_of(source.path);
    let home = if is_root || stem == "mod" { folder.to_owned() } else { format!("{folder}/{stem}") };
    let tokens = tokens(&source.code);
    let inline = inline_modules(&tokens);
    let mut visits = Vec::new();
    for window in tokens.windows(3) {
        let [keyword, name, end] = window else { continue };
        if keyword.text != "mod" || end.text != ";" {
            continue;
        }
        let offset = keyword.offset;
        let above: Vec<&str> =
            inline.iter().filter(|(_, body)| body.contains(&offset)).map(|(name, _)| *name).collect();
        let on: Vec<&Attribute> = source.attributes.iter().filter(|found| found.reach.contains(&offset)).collect();
        let test_only = source.test_only || name.text == "tests" || on.iter().any(|attribute| is_test(attribute));
        let conditions: Vec<Attribute> = source.conditions.iter().chain(on.iter().copied()).cloned().collect();
        let given = on.iter().find_map(|found| found.text.trim().strip_prefix("path")?.split('"').nth(1));
        let base = if above.is_empty() { home.clone() } else { format!("{home}/{}", above.join("/")) };
        let candidates = match given {
            Some(path) => vec![resolve(folder, path).unwrap_or_default()],
            None => vec![format!("{base}/{}.rs", name.text), format!("{base}/{}/mod.rs", name.text)],
        };
        let visit = |path| Visit { path, test_only, is_root: given.is_some(), conditions: conditions.clone() };
        visits.extend(candidates.into_iter().map(visit));
    }
    visits
}

/// `mod name { … }`: names and bodies, outermost first.
fn inline_modules<'a>(tokens: &[Token<'a>]) -> Vec<(&'a str, Range<usize>)> {
    let mut found = Vec::new();
    for (index, window) in tokens.windows(3).enumerate() {
        if window[0].text != "mod" || window[2].text != "{" {
            continue;
        }
        let mut depth = 0_usize;
        let end = tokens[index + 2..].iter().find(|token| {
            match token.text {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        found.push((window[1].text, window[2].offset..end.map_or(usize::MAX, |token| token.offset)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[package]\nname = \"a\"\n";

    #[test]
    fn modules_are_followed_as_the_compiler_does() {
        let tree = Tree::of(&[
            ("a/Cargo.toml", MANIFEST),
            ("a/src/lib.rs", "mod b;\n#[cfg(test)] mod c;\n#[cfg(feature = \"client\")] pub mod d;\nmod e { mod f; }"),
            ("a/src/b.rs", "mod g;\n#[cfg(test)]\nmod tests;"),
            ("a/src/b/g.rs", ""),
            ("a/src/b/tests.rs", ""),
            ("a/src/c/mod.rs", "mod h;"),
            ("a/src/c/h.rs", ""),
            ("a/src/d.rs", "mod i;"),
            ("a/src/d/i.rs", ""),
            ("a/src/e/f.rs", ""),
            ("a/src/lost.rs", ""),
            ("a/tests/t.rs", "mod help;"),
            ("a/tests/help.rs", ""),
        ]);
        let workspace = Workspace::of(&tree);
        let sources = sources(&tree, &workspace);
        let lost: Vec<&str> = sources.values().filter(|source| !source.reached).map(|source| source.path).collect();
        assert_eq!(lost, ["a/src/lost.rs"]);
        let tests: Vec<&str> = sources.values().filter(|source| source.test_only).map(|source| source.path).collect();
        let expected = ["a/src/b/tests.rs", "a/src/c/h.rs", "a/src/c/mod.rs", "a/tests/help.rs", "a/tests/t.rs"];
        assert_eq!(tests, expected);
        assert!(sources["a/src/d/i.rs"].is_behind(0, &["client"]));
        assert!(!sources["a/src/b/g.rs"].is_behind(0, &["client"]));
    }
}
