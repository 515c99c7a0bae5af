//! The metadata manager daemon: wiring around [`mdm_node::Node`], which decides everything.
//!
//! ```text
//!  control port ---- greet ---- connection --.                .-- disk (thread): the log
//!  peer port ------- greet ---- hear --------+--> owner ------+-- peers: to the other members
//!  clocks, randomness, signals --------------'   (thread,     '-- connections: answers, steps of the map
//!                                                 mdm-node)
//! ```
//!
//! What is always true: one thread owns the member; every queue is bounded; bad input costs its connection and nothing else;
//! secrets are in files that nobody else reads, and never in a log or a process list.

pub mod args;
pub mod config;
mod connection;
pub mod create;
pub mod directory;
mod disk;
mod greet;
pub mod join;
mod listen;
pub mod logging;
mod mailbox;
mod metrics;
mod moment;
mod owner;
pub mod password;
mod peers;
pub mod run;
