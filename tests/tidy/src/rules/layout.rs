//! The top level is the product: its parts, its companions, and nothing else.

use std::collections::BTreeMap;

use crate::tree::Tree;
use crate::violation::Violation;

/// What the top level holds. Files and folders that begin with a dot may stand beside it.
const TOP_LEVEL: &[&str] =
    &["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "docs", "mdm", "plugin", "sdc", "sds", "tests", "tools"];

/// Entries that do not belong to the top level.
pub fn top_level(tree: &Tree) -> Vec<Violation> {
    let strangers = tree.top_level().into_iter().filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(name));
    let remedy = format!("move it into the part that it serves; the top level holds {}", TOP_LEVEL.join(", "));
    strangers.map(|name| Violation::new(name, 0, "stands at the top level", remedy.clone())).collect()
}

/// Integration tests that share a name with one of another package: `tests/run` names them without their packages.
pub fn test_names(tree: &Tree) -> Vec<Violation> {
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    let mut violations = Vec::new();
    for (path, _) in tree.rust() {
        let Some((_, file)) = path.rsplit_once("/tests/") else { continue };
        // `x.rs` and `x/main.rs` are tests; other files below are modules of theirs.
        let name = file.strip_suffix("/main.rs").or_else(|| file.strip_suffix(".rs"));
        let Some(name) = name.filter(|name| !name.contains('/')) else { continue };
        if path.contains("/src/") {
            continue;
        }
        match first.get(name) {
            Some(other) => violations.push(Violation::new(
                path,
                0,
                format!("has the name of {other}"),
                "give each integration test of the tree a name of its own",
            )),
            None => {
                first.insert(name, path);
            }
        }
    }
    violations
}
