//! The metadata manager's mind: what the system is, what every command does to it, and what should be done next.
//!
//! Pure: no clock, no randomness, no I/O, no order that depends on a hash. Every member of the group applies the same log
//! and holds the same [`State`], byte for byte ([`State::digest`]). The leader also keeps what it has heard lately
//! ([`Observed`]), from which the [`detector`] and the [`reconcile`]rs propose commands of its own. All of those are
//! compare-and-set, so a proposal that comes late, twice, or from a deposed leader changes nothing.
//!
//! ```text
//!  people, daemons ----> LogEntry --(Raft)--> apply(State, entry) -> Applied{result, effects}
//!  heartbeats ---------> Observed ---> detector, reconcilers ---> Command ---> LogEntry ...
//! ```

pub mod apply;
pub mod command;
pub mod detector;
pub mod limits;
pub mod observed;
pub mod placement;
#[cfg(test)]
mod random_tests;
pub mod reconcile;
pub mod state;
#[cfg(test)]
mod testing;
pub mod view;

pub use apply::apply;
pub use command::{Applied, Command, Effect, LogEntry, OwnCommand, PgUpdate, PgUpdateKind};
pub use observed::Observed;
pub use state::State;
