//! Finds the parts of a source file that exist only under a condition: tests, and code behind a feature.
//!
//! Works on the code text of [`crate::lexer`]. An attribute's region runs from its `#` to the end of the item, the
//! statement or the field that it is put on.
//!
//! Always true: when in doubt a region ends early, so that a rule looks at too much rather than at too little.

use std::ops::Range;

/// One outer attribute and the reach of what it is put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// From the `#` to the end of the item.
    pub reach: Range<usize>,
    /// The text between the brackets, from the source, strings included.
    pub text: String,
    /// Whether it is an inner attribute, `#![…]`; then `reach` ends with the file.
    pub inner: bool,
}

/// All attributes of a file. `code` is the code text of `source`.
pub fn attributes(source: &str, code: &str) -> Vec<Attribute> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(length) = bytes[at..].iter().position(|byte| *byte == b'#') {
        let hash = at + length;
        let inner = bytes.get(hash + 1) == Some(&b'!');
        let open = hash + 1 + usize::from(inner);
        at = hash + 1;
        if bytes.get(open) != Some(&b'[') {
            continue;
        }
        let close = closing(bytes, open);
        let text = source.get(open + 1..close.saturating_sub(1)).unwrap_or_default().to_owned();
        let end = if inner { code.len() } else { item_end(code, close) };
        found.push(Attribute { reach: hash..end, text, inner });
        at = close;
    }
    found
}

/// The offset behind the bracket that closes the one at `open`.
fn closing(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0_usize;
    for (index, byte) in bytes.iter().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return index + 1;
                }
            }
            _ => {}
        }
    }
    bytes.len()
}

/// The end of the item that begins behind an attribute, further attributes included.
fn item_end(code: &str, from: usize) -> usize {
    let bytes = code.as_bytes();
    let mut at = from;
    loop {
        while at < bytes.len() && bytes[at].is_ascii_whitespace() {
            at += 1;
        }
        if !code[at..].starts_with("#[") {
            break;
        }
        at = closing(bytes, at + 1);
    }
    let shape = Shape::of(&code[at..]);
    while at < bytes.len() {
        match bytes[at] {
            b';' => return at + 1,
            b',' if shape == Shape::Other => return at + 1,
            b')' | b']' | b'}' => return at,
            b'{' if shape != Shape::Statement => return closing(bytes, at),
            b'(' | b'[' | b'{' => at = closing(bytes, at),
            _ => at += 1,
        }
    }
    bytes.len()
}

/// How an item ends.
#[derive(PartialEq, Eq)]
enum Shape {
    /// At the brace that closes its body, or at `;`.
    Body,
    /// At `;` only.
    Statement,
    /// A field, a variant, an arm, an expression: at a comma as well.
    Other,
}

impl Shape {
    fn of(code: &str) -> Self {
        let words = code.split(|character: char| !character.is_alphanumeric() && character != '_');
        let mut before_const = false;
        for word in words.filter(|word| !word.is_empty()).take(8) {
            match word {
                "pub" | "crate" | "super" | "in" | "async" | "unsafe" | "extern" | "default" | "C" => {}
                "const" => before_const = true,
                "fn" | "mod" | "struct" | "enum" | "impl" | "trait" | "union" | "macro_rules" => return Self::Body,
                "use" | "let" | "static" | "type" => return Self::Statement,
                _ => break,
            }
        }
        if before_const { Self::Statement } else { Self::Other }
    }
}

/// Whether code under this attribute exists only in tests.
pub fn is_test(attribute: &Attribute) -> bool {
    let text = attribute.text.trim();
    text == "test" || text.ends_with("::test") || requires(text, &|atom| atom == "test")
}

/// Whether code under this attribute exists only with one of `features`.
pub fn is_behind(attribute: &Attribute, features: &[&str]) -> bool {
    let of = |atom: &str| {
        let value = atom.strip_prefix("feature").map(|rest| rest.trim_start().trim_start_matches('=').trim());
        value.is_some_and(|value| features.contains(&value.trim_matches('"')))
    };
    requires(attribute.text.trim(), &of)
}

/// Whether a `cfg(…)` can hold only where an atom accepted by `is` holds.
fn requires(text: &str, is: &dyn Fn(&str) -> bool) -> bool {
    text.strip_prefix("cfg").map(str::trim).and_then(arguments).is_some_and(|predicate| holds_only_with(predicate, is))
}

fn holds_only_with(predicate: &str, is: &dyn Fn(&str) -> bool) -> bool {
    let predicate = predicate.trim();
    let parts = |name: &str| predicate.strip_prefix(name).map(str::trim).and_then(arguments).map(top_level_parts);
    if let Some(parts) = parts("all") {
        parts.iter().any(|part| holds_only_with(part, is))
    } else if let Some(parts) = parts("any") {
        !parts.is_empty() && parts.iter().all(|part| holds_only_with(part, is))
    } else {
        is(predicate)
    }
}

fn arguments(text: &str) -> Option<&str> {
    text.strip_prefix('(')?.strip_suffix(')')
}

fn top_level_parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (index, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer::split;

    fn reached(source: &str) -> Vec<String> {
        let found = attributes(source, &split(source).code);
        found.into_iter().map(|attribute| source[attribute.reach].to_owned()).collect()
    }

    #[test]
    fn a_region_ends_with_its_item() {
        assert_eq!(reached("#[a] fn f<A, B>() -> [u8; 4] { {} } fn g() {}"), ["#[a] fn f<A, B>() -> [u8; 4] { {} }"]);
        assert_eq!(reached("#[a] mod x; mod y;"), ["#[a] mod x;"]);
        assert_eq!(reached("#[a] use x::{y, z}; use w;"), ["#[a] use x::{y, z};"]);
        assert_eq!(reached("#[a] pub const X: T = T { y: 1 }; z"), ["#[a] pub const X: T = T { y: 1 };"]);
        assert_eq!(reached("enum E { #[a] B, C }"), ["#[a] B,"]);
        assert_eq!(
            reached("#[a] #[b(c)] pub struct S(u8); z"),
            ["#[a] #[b(c)] pub struct S(u8);", "#[b(c)] pub struct S(u8);"]
        );
    }

    fn attribute(text: &str) -> Attribute {
        Attribute { reach: 0..0, text: text.to_owned(), inner: false }
    }

    #[test]
    fn only_what_needs_the_test_build_is_a_test() {
        for text in ["cfg(test)", "test", "cfg(all(test, unix))", "tokio::test", "cfg(any(test, all(test, unix)))"] {
            assert!(is_test(&attribute(text)), "{text}");
        }
        for text in ["cfg(not(test))", "cfg(any(test, unix))", "cfg_attr(test, x)", "cfg(feature = \"test\")"] {
            assert!(!is_test(&attribute(text)), "{text}");
        }
    }

    #[test]
    fn only_what_needs_the_feature_is_behind_it() {
        assert!(is_behind(&attribute("cfg(feature = \"client\")"), &["client"]));
        assert!(is_behind(&attribute("cfg(all(unix, feature = \"client\"))"), &["client"]));
        assert!(!is_behind(&attribute("cfg(not(feature = \"client\"))"), &["client"]));
        assert!(!is_behind(&attribute("cfg(feature = \"other\")"), &["client"]));
    }
}
