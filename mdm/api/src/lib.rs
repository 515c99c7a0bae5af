//! The cluster's vocabulary, shared by every crate.
pub mod config;
pub mod epoch;
pub mod ids;
pub mod timing;
