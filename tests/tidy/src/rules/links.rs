//! Links in documents lead somewhere: the file exists, and so does the heading.

use std::collections::BTreeSet;

use crate::tree::{Tree, folder_of, resolve};
use crate::violation::Violation;

/// Relative links of all documents that lead nowhere.
pub fn dangling(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| path.ends_with(".md")) {
        for (line, target) in links(text) {
            if let Some(what) = problem(tree, path, &target) {
                violations.push(Violation::new(path, line, what, "correct the link, or write what it promises"));
            }
        }
    }
    violations
}

fn problem(tree: &Tree, path: &str, target: &str) -> Option<String> {
    let is_elsewhere = target.contains("://") || target.starts_with("mailto:");
    if is_elsewhere || target.is_empty() {
        return target.is_empty().then(|| "has a link without a target".to_owned());
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    if file.starts_with('/') {
        return Some(format!("links to `{file}`, which is absolute"));
    }
    let file = if file.is_empty() { Some(path.to_owned()) } else { resolve(folder_of(path), file) };
    let Some(file) = file.filter(|file| tree.exists(file)) else {
        return Some(format!("links to `{target}`, which does not exist"));
    };
    let text = tree.text(&file).filter(|_| file.ends_with(".md"));
    match (anchor, text) {
        (Some(anchor), Some(text)) if !anchors(text).contains(anchor) => {
            Some(format!("links to `{target}`, but {file} has no such heading"))
        }
        _ => None,
    }
}

/// Lines of a document outside fenced code, counted from 1, with inline code blanked.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut fence: Option<char> = None;
    for (index, line) in text.lines().enumerate() {
        let start = line.trim_start();
        let mark = ['`', '~'].into_iter().find(|mark| start.starts_with(&mark.to_string().repeat(3)));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, None) => lines.push((index + 1, without_inline_code(line))),
            _ => {}
        }
    }
    lines
}

fn without_inline_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    let last = parts.len() - 1;
    // An unpaired mark opens nothing.
    let is_code = |index: usize| index % 2 == 1 && index < last;
    parts.iter().enumerate().map(|(index, part)| if is_code(index) { "code" } else { part }).collect()
}

/// Targets of all links, `[text](target)` and `[label]: target`, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, prose) in prose(text) {
        for (offset, _) in prose.match_indices("](") {
            let rest = &prose[offset + 2..];
            let Some(end) = rest.find(')') else { continue };
            let target = rest[..end].split_whitespace().next().unwrap_or_default();
            found.push((line, target.trim_matches(['<', '>']).to_owned()));
        }
        let definition = prose.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]: "));
        if let Some((label, target)) = definition.filter(|(label, _)| !label.contains(']')) {
            let target = target.split_whitespace().next().unwrap_or_default();
            if !label.starts_with('^') {
                found.push((line, target.trim_matches(['<', '>']).to_owned()));
            }
        }
    }
    found
}

/// The anchors that headings give, in the form that forges use.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let title = line.trim_start_matches('#');
        let depth = line.len() - title.len();
        if fenced || !(1..=6).contains(&depth) || !title.starts_with(' ') {
            continue;
        }
        let slug = slug(title.trim());
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let free = std::iter::once(slug.clone()).chain(numbered).find(|slug| !found.contains(slug));
        found.extend(free);
    }
    found
}

fn slug(title: &str) -> String {
    let kept = title.chars().filter_map(|character| match character {
        ' ' => Some('-'),
        '-' | '_' => Some(character),
        character if character.is_alphanumeric() => Some(character),
        _ => None,
    });
    kept.flat_map(char::to_lowercase).collect()
}
