//! The data server as a process: wiring around `sds_node::Shard`, which decides everything.
//!
//! ```text
//!  control runtime (2 threads)              shard thread                         disk threads (sds-disk)
//!   follow the map  ──deltas──▶ ┌────────────────────────────────────┐ ──batches──▶ io_uring or threads
//!   commands       ◀──────────▶ │ sockets of clients and servers     │ ◀─completions──
//!   heartbeats     ◀──watch──── │ Shard::step, then flush everything │
//!   metrics        ◀──watch──── └────────────────────────────────────┘
//! ```
//!
//! The shard thread does nothing that blocks: files are opened, closed and written elsewhere. Heartbeats are sent only when
//! the shard thread has just made one, so that a server whose shard hangs falls silent, as it should.

pub mod args;
pub mod config;
pub mod identity;
pub mod logging;
pub mod run;

mod clock;
mod control;
mod data;
mod disks;
mod inbox;
mod metrics;
mod remembered;
