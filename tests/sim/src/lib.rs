//! The whole of Ashlar in one thread, from one seed: members, servers and clients are the production cores; time, network
//! and disks are simulated. A seed draws a cluster, a load and a mix of faults; afterwards everything is healed and checked.
//!
//! Always true: equal seeds give equal runs, event for event, in any process.

pub mod check;
pub mod clock;
pub mod cluster;
pub mod core;
pub mod disk;
pub mod faults;
pub mod files;
pub mod history;
pub mod host;
pub mod marking;
pub mod marks;
pub mod net;
pub mod panics;
pub mod plan;
pub mod report;
pub mod rng;
pub mod run;
pub mod shrink;
pub mod story;
pub mod trace;
pub mod workload;
pub mod world;
