//! The cluster's vocabulary, shared by every crate: ids, the objects of a system, configurations of placement groups, the
//! map and its deltas, the function from chunks to groups, the commands and their errors, the frames of every connection
//! and the tickets that open volumes.
//!
//! What belongs here: words that two or more crates must agree on, and pure functions over them. What does not: decisions
//! (they are in `mdm-core`, `sds-replica`, `sds-store`, `sdc-client`) and, except behind the feature `client`, anything
//! that touches a socket or a clock.

pub mod command;
pub mod config;
pub mod control;
pub mod epoch;
pub mod error;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod map;
pub mod model;
pub mod mutants;
pub mod placement;
pub mod ticket;
pub mod timing;
pub mod verbs;

#[cfg(feature = "client")]
pub mod client;
