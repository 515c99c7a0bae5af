//! What a rule says when it fires: where, what is wrong, and what to do about it.

use std::fmt;

/// One breach of one rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path from the root of the tree, with `/`.
    pub file: String,
    /// Line, counted from 1; 0 when the whole file or folder is meant.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What makes it right.
    pub remedy: String,
}

impl Violation {
    /// A breach at a line of a file.
    pub fn new(file: &str, line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}; {}", self.file, self.what, self.remedy),
            line => write!(f, "{}:{line}: {}; {}", self.file, self.what, self.remedy),
        }
    }
}
