//! Splits Rust source into what is code and what is comment, byte for byte.
//!
//! Rules look for words, and a word in a string or in a comment is not the same thing as a word in code. [`split`]
//! gives two texts as long as the source: in one everything but code is blank, in the other everything but comments.
//!
//! Always true: both texts have the length of the source and its line breaks at the same places, so that an offset
//! or a line number found in one is right in all three. The delimiters of strings stay in the code, so that `""` is
//! still an expression.

/// Code and comments of one source file, each with the rest blanked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The source with comments and the insides of strings and characters blanked.
    pub code: String,
    /// The source with all but comments blanked.
    pub comments: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// Splits `source`. Source that does not end its last string or comment is read as if the end of the file ended it.
pub fn split(source: &str) -> Split {
    let bytes = source.as_bytes();
    let mut kinds = vec![Kind::Code; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => mark(&mut kinds, at, line_end(bytes, at), Kind::Comment),
            b'/' if bytes[at..].starts_with(b"/*") => mark(&mut kinds, at, block_end(bytes, at), Kind::Comment),
            b'"' => inside(&mut kinds, at, quoted_end(bytes, at + 1, b'"')),
            b'\'' => match character_end(bytes, at) {
                Some(end) => inside(&mut kinds, at, end),
                None => at + 1,
            },
            b'r' if !follows_name(bytes, at) => match raw_end(bytes, at) {
                Some((open, close, end)) => {
                    // The hashes go too: one before a bracket would look like an attribute.
                    mark(&mut kinds, at + 1, open, Kind::Literal);
                    inside(&mut kinds, open, close);
                    mark(&mut kinds, close, end, Kind::Literal)
                }
                None => at + 1,
            },
            _ => at + 1,
        };
        at = end;
    }
    Split { code: keep(bytes, &kinds, Kind::Code), comments: keep(bytes, &kinds, Kind::Comment) }
}

fn mark(kinds: &mut [Kind], from: usize, to: usize, kind: Kind) -> usize {
    kinds[from..to].fill(kind);
    to
}

/// Marks what lies between the first and the last byte of a literal.
fn inside(kinds: &mut [Kind], from: usize, to: usize) -> usize {
    if to > from + 2 {
        mark(kinds, from + 1, to - 1, Kind::Literal);
    }
    to
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| from + length)
}

/// The end of a block comment; they nest.
fn block_end(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = from;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// The end of a literal with escapes, behind its closing quote.
fn quoted_end(bytes: &[u8], from: usize, quote: u8) -> usize {
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of a character literal; `None` when the quote begins a lifetime or a label.
fn character_end(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at + 1)? {
        b'\\' => Some(quoted_end(bytes, at + 1, b'\'')),
        first => {
            let length = match first {
                0..=0x7f => 1,
                0x80..=0xdf => 2,
                0xe0..=0xef => 3,
                _ => 4,
            };
            (bytes.get(at + 1 + length) == Some(&b'\'')).then_some(at + 2 + length)
        }
    }
}

/// The opening quote of `r"…"` or `r#"…"#`, which begins at `at`, the offset behind its closing quote, and its end;
/// `None` when it is a name such as `r` or `r#type`.
fn raw_end(bytes: &[u8], at: usize) -> Option<(usize, usize, usize)> {
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let found = bytes[open + 1..].windows(close.len()).position(|window| window == close);
    Some(match found.map(|length| open + 1 + length) {
        Some(quote) => (open, quote + 1, quote + 1 + hashes),
        None => (open, bytes.len(), bytes.len()),
    })
}

/// Whether the byte before belongs to a name of which `r` is only the tail. The `b` and `c` of `br"…"` and `cr"…"` do not count.
fn follows_name(bytes: &[u8], at: usize) -> bool {
    let part_of_name = |index: usize| bytes[index].is_ascii_alphanumeric() || bytes[index] == b'_';
    match at {
        0 => false,
        1 => part_of_name(0) && !matches!(bytes[0], b'b' | b'c'),
        _ if matches!(bytes[at - 1], b'b' | b'c') => part_of_name(at - 2),
        _ => part_of_name(at - 1),
    }
}

fn keep(bytes: &[u8], kinds: &[Kind], kind: Kind) -> String {
    let kept = bytes.iter().zip(kinds).map(|(byte, of)| if *of == kind || *byte == b'\n' { *byte } else { b' ' });
    // Only whole characters are blanked: literals and comments begin and end at ASCII bytes.
    String::from_utf8_lossy(&kept.collect::<Vec<u8>>()).into_owned()
}

/// The line, counted from 1, that holds the byte at `offset`.
pub fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_not_code() {
        let source = "let a = \"unsafe // x\"; // unsafe\nlet b = r#\"a \" b\"#; /* /* unsafe */ */ let c = b'\\'';";
        let split = split(source);
        assert_eq!(split.code.len(), source.len());
        assert!(!split.code.contains("unsafe"));
        assert!(split.code.contains("let b = r") && split.code.contains("let c = b'"));
        assert!(split.comments.contains("// unsafe") && !split.comments.contains("// x"));
    }

    #[test]
    fn lifetimes_do_not_open_a_character() {
        let source = "fn f<'a>(x: &'a str) -> &'a str { 'outer: loop { break 'outer; } }";
        assert_eq!(split(source).code, source);
    }

    #[test]
    fn characters_of_every_length_are_blanked() {
        let split = split("let x = ['\"', 'é', '→', '𝄞', '\\u{1F600}']; let y = \"z\";");
        assert!(split.code.contains("let y = \" \";"), "{}", split.code);
    }

    #[test]
    fn raw_identifiers_are_code() {
        let source = "let r#type = r; let bar = other\"x\";";
        assert_eq!(split(source).code, source.replace('x', " "));
        assert_eq!(split("br#\"x\"#").code, "br \" \" ");
    }

    #[test]
    fn unfinished_source_is_read_to_its_end() {
        for source in ["\"abc", "/* abc", "r#\"abc", "'\\", "//"] {
            assert_eq!(split(source).code.len(), source.len());
        }
    }
}
