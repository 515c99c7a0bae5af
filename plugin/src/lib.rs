//! Docker's volumes on Ashlar: a volume plugin.
//!
//! ```text
//!   dockerd ──HTTP──▶ http ─▶ api ──▶ volumes: one keeper for each volume of this host
//!                              │           │  core::machine decides, `host` and `system` carry out
//!                              ▼           ▼
//!                           system (MDM: volumes, mappings)   host (sdc: devices; mkfs, mount, ..)
//! ```
//!
//! The data path is not here: the devices belong to the host's data client and to the kernel, so this daemon can be killed,
//! restarted and upgraded at any time without an I/O noticing.

pub mod api;
pub mod config;
pub mod core;
pub mod create;
pub mod daemon;
pub mod discovery;
pub mod host;
pub mod http;
pub mod keeper;
pub mod listen;
pub mod store;
pub mod sweep;
pub mod system;
pub mod tools;
pub mod volumes;
pub mod wire;
