//! The crash-consistent store of one device: a pure planner over disk operations.
pub mod io;
