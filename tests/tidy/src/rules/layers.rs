//! Dependencies point one way, and every crate has its place.

use crate::manifest::Workspace;
use crate::rules::table::{BORDERS, may_use, place_of};
use crate::violation::Violation;

/// Names of crates that would gather what belongs to nobody.
const NOBODYS: &[&str] = &["base", "common", "helper", "helpers", "lib", "misc", "shared", "types", "util", "utils"];

/// Crates out of place, dependencies against the direction, third-party types past their border.
pub fn direction(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for krate in &workspace.crates {
        let manifest = krate.manifest();
        if krate.name.split(['-', '_']).any(|part| NOBODYS.contains(&part)) {
            let what = format!("a crate called `{}` gathers what belongs to nobody", krate.name);
            let remedy = "words belong to the api of whoever answers for their meaning, a helper beside its first user";
            violations.push(Violation::new(&manifest, 0, what, remedy));
        }
        let Some(place) = place_of(&krate.name) else {
            let what = format!("the crate `{}` has no place in the plan", krate.name);
            violations.push(Violation::new(&manifest, 0, what, "give it one in tests/tidy/src/rules/table.rs"));
            continue;
        };
        if place.folder != krate.folder {
            let what = format!("the crate `{}` belongs to {}", krate.name, place.folder);
            violations.push(Violation::new(
                &manifest,
                0,
                what,
                "move it, or change the plan in tests/tidy/src/rules/table.rs",
            ));
        }
        for dependency in &krate.dependencies {
            let package = dependency.package.as_str();
            let is_ours = place_of(package).is_some() && workspace.named(package).is_some();
            if is_ours && !dependency.is_own(krate) && !may_use(place, package) {
                let what = format!("`{}` may not use `{package}`", krate.name);
                let remedy = format!("it may use: {}; move the code to where both may see it", list(place.uses));
                violations.push(Violation::new(&manifest, dependency.line, what, remedy));
            }
            if let Some((_, border)) = BORDERS.iter().find(|(name, border)| *name == package && *border != krate.name) {
                let what = format!("`{}` uses `{package}`, whose types stop in {border}", krate.name);
                let remedy = format!("use what {border} gives, and extend it where it lacks something");
                violations.push(Violation::new(&manifest, dependency.line, what, remedy));
            }
        }
    }
    violations
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none of ours".to_owned() } else { names.join(", ") }
}
