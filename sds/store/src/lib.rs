//! The crash-consistent store of one device: a pure planner over disk operations.
#![forbid(unsafe_code)]
pub mod blockmap;
pub mod error;
pub mod io;
pub mod limits;
pub mod request;
