//! Members are alike: lints, edition, licence and versions come from the workspace, and no crate stands beside it.

use toml::Value;

use crate::manifest::Workspace;
use crate::violation::Violation;

/// What every member takes from the workspace.
const INHERITED: &[&str] = &["version", "edition", "rust-version", "license", "publish"];

/// Manifests that do not parse, crates beside the workspace, and members that go their own way.
pub fn inheritance(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = workspace.broken.clone();
    for member in &workspace.members {
        if !workspace.crates.iter().any(|krate| krate.folder == *member) {
            let what = format!("the member {member} has no manifest");
            violations.push(Violation::new("Cargo.toml", 0, what, "write it, or take the member out"));
        }
    }
    for krate in &workspace.crates {
        let manifest = krate.manifest();
        if !workspace.is_member(&krate.folder) {
            if !workspace.excluded.contains(&krate.folder) {
                let remedy = "add its folder to `members` in the root manifest, or to `exclude` with a reason";
                violations.push(Violation::new(&manifest, 0, "is no member of the workspace", remedy));
            }
            continue;
        }
        let inherits = |value: Option<&Value>| value.and_then(|value| value.get("workspace")?.as_bool()) == Some(true);
        if !inherits(krate.table.get("lints")) {
            let remedy = "write `[lints]` with `workspace = true`";
            violations.push(Violation::new(&manifest, 0, "does not take the lints of the workspace", remedy));
        }
        for key in INHERITED {
            if !inherits(krate.table.get("package").and_then(|package| package.get(key))) {
                let what = format!("does not take `{key}` from the workspace");
                violations.push(Violation::new(&manifest, 0, what, format!("write `{key}.workspace = true`")));
            }
        }
        let strays = krate.dependencies.iter().filter(|dependency| !dependency.inherited && !dependency.is_own(krate));
        for dependency in strays {
            let package = &dependency.package;
            let what = format!("has its own version of `{package}`");
            let remedy = format!("put `{package}` into [workspace.dependencies] and write `workspace = true` here");
            violations.push(Violation::new(&manifest, dependency.line, what, remedy));
        }
    }
    violations
}
