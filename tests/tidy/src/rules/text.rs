//! Rules for every text file: clean ends, no leftover markers, no path of somebody's machine.
//!
//! Stored expectations (`golden/`, `fixtures/`) keep the bytes that they record.

use crate::lexer::split;
use crate::tree::Tree;
use crate::violation::Violation;

/// Words that mark something as unfinished, wherever they stand.
const MARKERS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Phrases that promise to finish something, in documents, comments and messages.
const PROMISES: &[&str] = &[concat!("for", " now"), concat!("not", " yet")];

/// Where paths of one machine begin.
const MACHINE_ROOTS: &[&str] =
    &[concat!("/wo", "rk"), concat!("/ho", "me"), concat!("/ro", "ot"), concat!("/Us", "ers")];

fn kept_as_recorded(path: &str) -> bool {
    path.split('/').any(|part| part == "golden" || part == "fixtures")
}

fn is_ours(path: &str) -> bool {
    !matches!(path, "Cargo.lock" | "LICENSE") && !kept_as_recorded(path)
}

/// Files without a final line break, lines with blanks at their end, tabs in Rust.
pub fn blanks(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| is_ours(path)) {
        if !text.is_empty() && !text.ends_with('\n') {
            let line = text.lines().count();
            violations.push(Violation::new(path, line, "ends without a line break", "add it"));
        }
        for (index, line) in text.split('\n').enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                violations.push(Violation::new(path, index + 1, "has blanks at its end", "remove them"));
            }
            if path.ends_with(".rs") && line.contains('\t') {
                violations.push(Violation::new(
                    path,
                    index + 1,
                    "has a tab",
                    "indent with blanks; write \\t in strings",
                ));
            }
        }
    }
    violations
}

/// Words and phrases of unfinished work.
pub fn markers(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| is_ours(path)) {
        // A phrase may run over two lines of one comment.
        let flat = flattened(path, text);
        for marker in MARKERS {
            violations.extend(whole_words(text, marker).map(|offset| found(path, text, offset, marker)));
        }
        for phrase in PROMISES {
            violations.extend(whole_words(&flat, phrase).map(|offset| found(path, text, offset, phrase)));
        }
    }
    violations
}

fn found(path: &str, text: &str, offset: usize, marker: &str) -> Violation {
    let line = crate::lexer::line_of(text, offset);
    let remedy = "finish it, or remove it; where it only describes a state, say which state";
    Violation::new(path, line, format!("`{marker}` is left over"), remedy)
}

/// The text in lower case with line breaks and comment marks as blanks, so that a phrase is found over the end of a
/// line, byte for byte. Of Rust only comments and strings are kept: code may well say `for`, then the time.
fn flattened(path: &str, text: &str) -> String {
    let code = if path.ends_with(".rs") { split(text).code } else { " ".repeat(text.len()) };
    let flat = text.bytes().zip(code.bytes()).map(|(byte, code)| match byte {
        b'\n' | b'/' | b'!' | b'#' | b'*' => b' ',
        _ if !code.is_ascii_whitespace() => b';',
        byte => byte.to_ascii_lowercase(),
    });
    String::from_utf8_lossy(&flat.collect::<Vec<u8>>()).into_owned()
}

/// Where `phrase` stands in `text` as words of their own, with any blanks between them.
fn whole_words(text: &str, phrase: &str) -> impl Iterator<Item = usize> {
    let (first, second) = phrase.split_once(' ').unwrap_or((phrase, ""));
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(first).filter_map(move |(offset, _)| {
        let rest = &text[offset + first.len()..];
        let is_begin = !text[..offset].chars().next_back().is_some_and(is_word);
        let tail = if second.is_empty() { Some(rest) } else { rest.trim_start_matches(' ').strip_prefix(second) };
        let has_blank = second.is_empty() || rest.starts_with(' ');
        let is_end = tail.is_some_and(|tail| !tail.chars().next().is_some_and(is_word));
        (is_begin && has_blank && is_end).then_some(offset)
    })
}

/// Absolute paths that exist on one machine only.
pub fn machine_paths(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| is_ours(path)) {
        for root in MACHINE_ROOTS {
            for (offset, _) in text.match_indices(root) {
                let before = text[..offset].chars().next_back();
                let after = text[offset + root.len()..].chars().next();
                let inside =
                    before.is_some_and(|character| character.is_alphanumeric() || "_-.~})]/*".contains(character));
                let longer = after.is_some_and(|character| character.is_alphanumeric() || "_-.".contains(character));
                if inside || longer {
                    continue;
                }
                let line = crate::lexer::line_of(text, offset);
                let what = format!("names `{root}`, a path of one machine");
                violations.push(Violation::new(
                    path,
                    line,
                    what,
                    "write it relative to the tree, or take it as an option",
                ));
            }
        }
    }
    violations
}
