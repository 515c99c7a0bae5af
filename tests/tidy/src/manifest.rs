//! What the rules need to know of a `Cargo.toml`.

use std::collections::BTreeMap;

use toml::{Table, Value};

use crate::tree::{Tree, folder_of, resolve};
use crate::violation::Violation;

/// For whom a dependency is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `[dependencies]`
    Normal,
    /// `[build-dependencies]`
    Build,
    /// `[dev-dependencies]`
    Dev,
}

/// One dependency of a crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Name of the package, renames undone.
    pub package: String,
    /// The section that lists it.
    pub section: Section,
    /// Whether only a feature brings it in.
    pub optional: bool,
    /// Whether its version is the one of the workspace.
    pub inherited: bool,
    /// The features asked for, those of the workspace's entry included.
    pub features: Vec<String>,
    /// Its line in the manifest, from 1; 0 where it could not be found.
    pub line: usize,
}

impl Dependency {
    /// Whether the crate names itself, as it may for its tests: to turn its own features on.
    pub fn is_own(&self, krate: &Crate) -> bool {
        self.section == Section::Dev && self.package == krate.name
    }
}

/// One crate of the tree.
#[derive(Debug, Clone)]
pub struct Crate {
    /// Name of the package.
    pub name: String,
    /// Its folder.
    pub folder: String,
    /// The manifest.
    pub table: Table,
    /// Its dependencies of every kind.
    pub dependencies: Vec<Dependency>,
}

impl Crate {
    /// Path of its manifest.
    pub fn manifest(&self) -> String {
        format!("{}/Cargo.toml", self.folder)
    }
}

/// The workspace: its root manifest and its members.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The root manifest.
    pub root: Table,
    /// Folders listed as members.
    pub members: Vec<String>,
    /// Folders excluded on purpose.
    pub excluded: Vec<String>,
    /// All crates found in the tree, members or not, by folder.
    pub crates: Vec<Crate>,
    /// Manifests that do not parse.
    pub broken: Vec<Violation>,
}

impl Workspace {
    /// Reads all manifests of the tree.
    pub fn of(tree: &Tree) -> Self {
        let mut workspace = Self::default();
        let mut tables = BTreeMap::new();
        for (path, text) in tree.texts().filter(|(path, _)| *path == "Cargo.toml" || path.ends_with("/Cargo.toml")) {
            match text.parse::<Table>() {
                Ok(table) => {
                    tables.insert(path, (table, text));
                }
                Err(error) => {
                    let what = format!("is not TOML: {}", error.message());
                    workspace.broken.push(Violation::new(path, 0, what, "correct the manifest"));
                }
            }
        }
        if let Some((root, _)) = tables.remove("Cargo.toml") {
            workspace.members = strings(root.get("workspace").and_then(|table| table.get("members")));
            workspace.excluded = strings(root.get("workspace").and_then(|table| table.get("exclude")));
            workspace.root = root;
        }
        for (path, (table, text)) in tables {
            let Some(name) = table.get("package").and_then(|package| package.get("name")).and_then(Value::as_str)
            else {
                workspace.broken.push(Violation::new(path, 0, "names no package", "give it a [package] with a name"));
                continue;
            };
            let dependencies = dependencies(&table, &workspace.root, text);
            let (name, folder) = (name.to_owned(), folder_of(path).to_owned());
            workspace.crates.push(Crate { name, folder, dependencies, table });
        }
        workspace
    }

    /// The crate of this name.
    pub fn named(&self, name: &str) -> Option<&Crate> {
        self.crates.iter().find(|krate| krate.name == name)
    }

    /// The crate whose folder holds this file: the innermost one.
    pub fn owner(&self, path: &str) -> Option<&Crate> {
        let holds = |krate: &&Crate| path.strip_prefix(&krate.folder).is_some_and(|rest| rest.starts_with('/'));
        self.crates.iter().filter(holds).max_by_key(|krate| krate.folder.len())
    }

    /// Whether a folder is a member.
    pub fn is_member(&self, folder: &str) -> bool {
        self.members.iter().any(|member| resolve("", member).as_deref() == Some(folder))
    }
}

/// The strings of an array; none when it is missing.
pub fn strings(value: Option<&Value>) -> Vec<String> {
    let values = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn dependencies(table: &Table, root: &Table, text: &str) -> Vec<Dependency> {
    let shared = root.get("workspace").and_then(|table| table.get("dependencies"));
    let targets = table.get("target").and_then(Value::as_table).into_iter().flat_map(|targets| targets.values());
    let places = std::iter::once(table).chain(targets.filter_map(Value::as_table));
    let mut found = Vec::new();
    for place in places {
        for (key, section) in [
            ("dependencies", Section::Normal),
            ("build-dependencies", Section::Build),
            ("dev-dependencies", Section::Dev),
        ] {
            let entries = place.get(key).and_then(Value::as_table);
            for (name, value) in entries.into_iter().flatten() {
                let inherited = value.get("workspace").and_then(Value::as_bool) == Some(true);
                let base = if inherited { shared.and_then(|shared| shared.get(name)) } else { None };
                let package =
                    [Some(value), base].into_iter().flatten().find_map(|value| value.get("package")?.as_str());
                let mut features = strings(value.get("features"));
                features.extend(strings(base.and_then(|base| base.get("features"))));
                found.push(Dependency {
                    package: package.unwrap_or(name).to_owned(),
                    section,
                    optional: value.get("optional").and_then(Value::as_bool) == Some(true),
                    inherited,
                    features,
                    line: line_of_key(text, name),
                });
            }
        }
    }
    found
}

fn line_of_key(text: &str, key: &str) -> usize {
    let is_entry = |line: &str| {
        let rest = line.trim_start().strip_prefix(key).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with('=') || rest.starts_with('.')) || line.ends_with(&format!(".{key}]"))
    };
    text.lines().position(is_entry).map_or(0, |index| index + 1)
}
