//! Real members as real processes: the command line, and what running members promise.

mod commands;
mod common;
mod daemon;
