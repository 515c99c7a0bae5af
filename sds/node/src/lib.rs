//! One data server, as a pure state machine: its stores, its replicas, its leases and its clients, put together.
//!
//! The daemon and the simulator run exactly this. It is told what happens ([`Event`]) together with the time and says what is
//! to be done ([`Action`]); it has no clock, no randomness, no threads and does no I/O.
//!
//! ```text
//!                 map deltas, answers to commands                     Command, heartbeat()
//!                         ▼                                                  ▲
//!  clients ──open,──▶ ┌───────────────────────── Shard ────────────────────────────┐ ──▶ replies
//!           requests  │ map   clients   groups (replicas)   peers, leases, credits │
//!  peers ───frames──▶ │ fences   drops   devices (formatters, openers, stores)     │ ──▶ frames to peers
//!                     └─────────────────────────────────────────────────────────────┘
//!                         ▲ completions                                      ▼ disk operations
//! ```
//!
//! The life of a process: open the devices that are known, register them, wait for a map at least as new as the
//! registration, then let the replicas act. Before that point no replica exists, so nothing of an older order can be
//! followed or acknowledged by a process that has not seen what was decided while it was away.
//!
//! Always true:
//! - a client's request reaches a replica only with rights that the map of this moment gives (I17, I18);
//! - all replicas of one step see one map; a replica exists only for a device that this process has open and presented;
//! - every queue has a bound in [`limits`].

pub mod limits;

mod action;
mod clients;
mod commands;
mod configs;
mod devices;
mod drops;
mod event;
mod fences;
mod groups;
mod loading;
mod peers;
mod replies;
mod report;
mod requests;
mod shard;
mod shares;
mod stores;
mod throttle;
mod translate;

pub use action::{Action, CommandId, Notice, Severity};
pub use event::{ClientOpen, CommandFailure, Event, KnownDevice, Settings};
pub use report::{DeviceFigures, Figures, OperationFigures, OperationKind, latency_bounds_ns};
pub use shard::Shard;
