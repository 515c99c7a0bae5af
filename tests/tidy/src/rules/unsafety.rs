//! `unsafe` stands in few places, and each use says why it is sound.

use crate::modules::Source;
use crate::names::tokens;
use crate::violation::Violation;

/// Where the product may be unsafe: disk engines, the kernel's side of NBD, the one aligned allocation.
const PLACES: &[&str] = &["sds/disk/src/", "sdc/nbd/src/", "sds/api/src/buf.rs"];

/// `unsafe` out of place, and `unsafe` without its reason.
pub fn reasons<'a>(sources: impl Iterator<Item = &'a Source<'a>>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        let allowed = PLACES.iter().any(|place| source.path.starts_with(place));
        for token in tokens(&source.code) {
            let line = source.line(token.offset);
            let is_place = allowed || source.in_test(token.offset);
            match token.text {
                "unsafe_code" if !is_place => {
                    let remedy = format!("remove it; unsafe code belongs to {}", PLACES.join(", "));
                    violations.push(Violation::new(source.path, line, "allows unsafe code", remedy));
                }
                "unsafe" if !is_place => {
                    let remedy = format!("do it safely, or move it to {}", PLACES.join(", "));
                    violations.push(Violation::new(source.path, line, "`unsafe` out of place", remedy));
                }
                "unsafe" if !has_reason(source, line) => {
                    let remedy = "write `// SAFETY:` above it, with what makes it sound";
                    violations.push(Violation::new(source.path, line, "`unsafe` without its reason", remedy));
                }
                _ => {}
            }
        }
    }
    violations
}

/// Whether a safety comment stands above the statement that holds this line, or on the line itself.
fn has_reason(source: &Source<'_>, line: usize) -> bool {
    let code: Vec<&str> = source.code.lines().collect();
    let comments: Vec<&str> = source.comments.lines().collect();
    let says_why = |index: usize| {
        comments.get(index).is_some_and(|comment| comment.contains("SAFETY:") || comment.contains("# Safety"))
    };
    let mut index = line - 1;
    if says_why(index) {
        return true;
    }
    while index > 0 {
        index -= 1;
        if says_why(index) {
            return true;
        }
        let text = code[index].trim();
        let is_comment = text.is_empty() && !comments[index].trim().is_empty();
        let is_attribute = text.starts_with("#[");
        let is_begun = !text.is_empty() && !text.ends_with([';', '{', '}', ',']);
        if !(is_comment || is_attribute || is_begun) {
            return false;
        }
    }
    false
}
