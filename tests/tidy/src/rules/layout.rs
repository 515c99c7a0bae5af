//! The top level is the product: its parts, its companions, and nothing else.

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
