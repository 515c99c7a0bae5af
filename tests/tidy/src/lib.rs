//! Rules of the tree, kept by an ordinary test.
//!
//! A convention that nobody checks is a wish. The rules that hold this tree together (which crate may use which, which
//! crates must stay pure, where `unsafe` may stand, that links in the documents resolve) are functions here, from a
//! [`tree::Tree`] to a list of [`violation::Violation`]s; `tests/tidy.rs` runs every one of them over the tree that it
//! was built from, and shows by a small bad example that each can fire.
//!
//! Always true: a rule looks only at the `Tree` it is given, so that an example in memory is as good as the disk; a
//! violation names its file, its line and its remedy.

pub mod lexer;
pub mod manifest;
pub mod modules;
pub mod names;
pub mod regions;
pub mod rules;
pub mod tree;
pub mod violation;
