//! The README names the commands that exist: what it tells a newcomer to type can be typed.
//!
//! Looks at its shell blocks (```` ```sh ````, `bash`, `console`, `shell`). Cargo's aliases must be aliases, scripts
//! must be there and be executable, and sub-commands and flags of our own programs must occur in their sources.

use std::collections::BTreeSet;

use toml::Table;

use crate::lexer::split;
use crate::names::tokens;
use crate::tree::Tree;
use crate::violation::Violation;

/// Commands of Cargo itself that a README may use.
const CARGO: &[&str] =
    &["bench", "build", "check", "clippy", "clean", "deny", "doc", "fmt", "install", "metadata", "run", "test"];

/// Our programs: name, folder of the sources, and how many words after the name are sub-commands.
const PROGRAMS: &[(&str, &str, usize)] = &[
    ("dev", "tools/dev/", 1),
    ("scli", "tools/scli/", 2),
    ("inspect", "tools/inspect/", 1),
    ("bench", "tools/bench/", 1),
    ("sim", "tests/sim/", 1),
    ("mdm", "mdm/src/", 1),
    ("sds", "sds/src/", 1),
    ("sdc", "sdc/src/", 1),
];

/// The table that verbs of the command line come from.
const VERBS: &str = "mdm/api/src/verbs/";

/// What a newcomer types first and what a contributor types always.
const EXPECTED: &[&str] = &["cargo dev up", "tests/run"];

/// Commands of the README that do not exist, and commands that it must not forget. None where there is no README.
pub fn commands(tree: &Tree) -> Vec<Violation> {
    let Some(readme) = tree.text("README.md") else { return Vec::new() };
    let commands = commands_of(readme);
    let mut violations = Vec::new();
    for (line, words) in &commands {
        let problem = check(tree, words);
        violations
            .extend(problem.map(|what| Violation::new("README.md", *line, what, "correct the command, or add it")));
    }
    for expected in EXPECTED {
        let wanted: Vec<&str> = expected.split(' ').collect();
        if !commands.iter().any(|(_, words)| words.starts_with(&wanted)) {
            let what = format!("does not show `{expected}`");
            violations.push(Violation::new("README.md", 0, what, "show it in a shell block"));
        }
    }
    violations
}

/// The commands of all shell blocks, as words, with their lines.
fn commands_of(readme: &str) -> Vec<(usize, Vec<&str>)> {
    let mut found = Vec::new();
    let mut in_shell: Option<bool> = None;
    for (index, line) in readme.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            in_shell = match in_shell {
                None => Some(matches!(language.trim(), "sh" | "bash" | "console" | "shell")),
                Some(_) => None,
            };
            continue;
        }
        if in_shell != Some(true) {
            continue;
        }
        let line = line.trim().trim_start_matches("$ ").trim_start_matches("# ");
        let line = line.split(" #").next().unwrap_or_default();
        for part in line.split("&&").flat_map(|part| part.split(['|', ';'])) {
            let words = part.split_whitespace().skip_while(|word| *word == "sudo" || word.contains('='));
            let words: Vec<&str> = words.map(|word| word.trim_start_matches("./")).collect();
            if !words.is_empty() {
                found.push((index + 1, words));
            }
        }
    }
    found
}

fn check(tree: &Tree, words: &[&str]) -> Option<String> {
    let (first, rest) = words.split_first()?;
    if *first == "cargo" {
        let (name, rest) = rest.split_first()?;
        return match aliases(tree).contains(*name) {
            true => check_program(tree, name, rest),
            false => (!CARGO.contains(name)).then(|| format!("`cargo {name}` is no command")),
        };
    }
    if PROGRAMS.iter().any(|(name, ..)| name == first) {
        return check_program(tree, first, rest);
    }
    if !first.contains('/') || first.starts_with(['/', '~', '$']) || first.starts_with("target/") {
        return None;
    }
    let Some(script) = tree.text(first) else { return Some(format!("`{first}` does not exist")) };
    if !tree.executables.contains(*first) {
        return Some(format!("`{first}` is not executable"));
    }
    let known: BTreeSet<&str> = tokens(script).iter().map(|token| token.text).collect();
    let unknown = rest.iter().find(|word| !known.contains(word.trim_start_matches('-')))?;
    Some(format!("`{first}` does not know `{unknown}`"))
}

/// Sub-commands and flags of one of our programs must occur in its sources: as a string, or as a name.
fn check_program(tree: &Tree, name: &str, rest: &[&str]) -> Option<String> {
    let (_, folder, count) = PROGRAMS.iter().find(|(program, ..)| *program == name)?;
    let mut known = BTreeSet::new();
    for (_, text) in tree.rust().filter(|(path, _)| path.starts_with(folder) || path.starts_with(VERBS)) {
        known.extend(tokens(&split(text).code).iter().map(|token| plain(token.text)));
        known.extend(text.split('"').skip(1).step_by(2).map(plain));
    }
    let is_word = |word: &&&str| word.chars().all(|character| character.is_ascii_lowercase() || character == '-');
    let verbs = rest.iter().take_while(|word| is_word(word) && !word.starts_with('-')).take(*count);
    let flags = rest.iter().filter_map(|word| word.strip_prefix("--")).filter(|flag| !flag.is_empty());
    let flags = flags.map(|flag| flag.split('=').next().unwrap_or(flag));
    let unknown = verbs.copied().chain(flags).find(|word| !known.contains(&plain(word)))?;
    Some(format!("`{name}` does not know `{unknown}`"))
}

/// A word without the marks and capitals in which `device-size`, `device_size` and `DeviceSize` differ.
fn plain(word: &str) -> String {
    word.chars().filter(|character| character.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn aliases(tree: &Tree) -> BTreeSet<String> {
    let config = tree.text(".cargo/config.toml").and_then(|text| text.parse::<Table>().ok());
    let aliases = config.as_ref().and_then(|config| config.get("alias")?.as_table());
    aliases.into_iter().flat_map(|table| table.keys().cloned()).collect()
}
