//! Real members as real processes: the command line, and what running members promise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod commands;
mod common;
mod daemon;
