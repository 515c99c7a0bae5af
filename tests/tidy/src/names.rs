//! Finds the paths that code names, with `use` declarations written out.
//!
//! `use std::{fs, time::Instant};` names `std::fs` and `std::time::Instant`, and the rules want to see both.
//! Works on the code text of [`crate::lexer`].

/// A path in code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Where its first segment begins; for a `use` declaration, where its last one stands.
    pub offset: usize,
    /// Its segments; a glob ends in `*`.
    pub segments: Vec<String>,
    /// Whether a `use` declaration brings it in.
    pub used: bool,
}

impl Name {
    /// The path as one writes it.
    pub fn path(&self) -> String {
        self.segments.join("::")
    }
}

/// A word or a mark of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// Where it begins.
    pub offset: usize,
    /// A word, `::`, or one character.
    pub text: &'a str,
}

/// Words and marks in order, without blanks. A lifetime is its quote and its word.
pub fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = code.char_indices().peekable();
    while let Some((offset, character)) = rest.next() {
        if character.is_whitespace() {
            continue;
        }
        let mut end = offset + character.len_utf8();
        if is_word(character) {
            while let Some((next, _)) = rest.next_if(|(_, next)| is_word(*next)) {
                end = next + code[next..].chars().next().map_or(1, char::len_utf8);
            }
        } else if character == ':' && rest.next_if(|(_, next)| *next == ':').is_some() {
            end += 1;
        }
        found.push(Token { offset, text: &code[offset..end] });
    }
    found
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// All paths that `code` names, in order of appearance.
pub fn names(code: &str) -> Vec<Name> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins_use = tokens[at].text == "use" && tokens.get(at + 1).is_some_and(|next| next.text != "<");
        if begins_use {
            at = use_tree(&tokens, at + 1, &[], &mut found);
        } else if tokens[at].text.starts_with(is_word) {
            let mut segments = vec![tokens[at].text.to_owned()];
            let offset = tokens[at].offset;
            at += 1;
            while at + 1 < tokens.len() && tokens[at].text == "::" && tokens[at + 1].text.starts_with(is_word) {
                segments.push(tokens[at + 1].text.to_owned());
                at += 2;
            }
            found.push(Name { offset, segments, used: false });
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one tree of a `use` declaration, gives the index behind it.
fn use_tree(tokens: &[Token<'_>], from: usize, prefix: &[String], found: &mut Vec<Name>) -> usize {
    let mut segments = prefix.to_vec();
    let mut at = from;
    let mut offset = None;
    while let Some(token) = tokens.get(at) {
        match token.text {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    let begin = at;
                    at = use_tree(tokens, at, &segments, found);
                    if at == begin {
                        at += 1;
                        continue;
                    }
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
                    if tokens.get(at).is_none_or(|token| token.text == ";") {
                        return at;
                    }
                }
                return at + 1;
            }
            "as" => at += 2,
            "*" => {
                segments.push("*".to_owned());
                offset = Some(token.offset);
                at += 1;
            }
            word if word.starts_with(is_word) => {
                segments.push(word.to_owned());
                offset = Some(token.offset);
                at += 1;
            }
            _ => break,
        }
    }
    if let Some(offset) = offset {
        found.push(Name { offset, segments, used: true });
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(code: &str) -> Vec<String> {
        names(code).iter().map(Name::path).collect()
    }

    #[test]
    fn use_declarations_are_written_out() {
        let code = "use std::{fs, net::{self, *}, time::Instant as I}; pub use a::b;";
        let expected = ["std::fs", "std::net::self", "std::net::*", "std::time::Instant", "pub", "a::b"];
        assert_eq!(paths(code), expected);
    }

    #[test]
    fn paths_in_expressions_are_whole() {
        assert_eq!(paths("::std::fs::read(x)"), ["std::fs::read", "x"]);
        assert_eq!(paths("fn f() -> impl X + use<'a> {}"), ["fn", "f", "impl", "X", "use", "a"]);
    }

    #[test]
    fn broken_declarations_end() {
        for code in ["use", "use a::{b", "use a::{;", "use {{{", "use a::{b c}", "use a::{)}", "use a::{)"] {
            names(code);
        }
    }
}
