//! The rules, one kind to a module. Each takes the tree (or what was read from it) and gives its violations.

pub mod code;
pub mod layers;
pub mod layout;
pub mod links;
pub mod members;
pub mod purity;
pub mod readme;
pub mod table;
pub mod text;
pub mod unsafety;
