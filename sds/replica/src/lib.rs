//! The replication of a placement group, as a pure state machine.
//!
//! One [`Replica`] is one group on one device. It is told what happens ([`Event`]) together with the time, and says what is
//! to be done ([`Action`]): no clock, no randomness, no I/O. Architecture 5.3 to 5.6 describes the protocol; invariants
//! (I1..I24) and rows of the failure matrix (F1..F33) are cited by number.
//!
//! What the server around it does: carries messages and store requests, one `step` at a time; delivers the completions of
//! the store in any order; calls `step` with [`Event::Tick`] at [`Replica::deadline`]; keeps one [`Context`] for all
//! replicas of the process, in which it asks other servers for leases ([`Leases::ask`], [`Leases::receive`]) and sets
//! shares of space ([`Credits::set_share`]).
//!
//! ```text
//! Replica::new(identity: Identity, recovered: Option<Recovered>, context: &mut Context) -> Replica
//! replica.step(now: Nanos, event: Event, context: &mut Context, out: &mut Vec<Action>)
//! replica.deadline(&context) -> Nanos    // NEVER if nothing waits for time
//! replica.status() -> Status
//! replica.close(context: &mut Context)   // before it is dropped: gives back what it holds of shared budgets
//! ```
//!
//! Where to read on: `role` has the picture of roles; `primary` orders, commits and reads; `secondary` follows; `activate`
//! leads from appointment to service; `isr` says who must acknowledge; `resync` feeds learners;
//! `repair` and `scrub` put bad blocks right.

mod action;
mod activate;
mod credits;
mod deadline;
mod dedup;
mod event;
mod fence;
mod inspect;
mod isr;
mod leader;
mod lease;
pub mod limits;
mod log;
mod overlap;
mod primary;
mod repair;
mod replica;
mod resync;
mod role;
mod scrub;
mod secondary;
mod state;
mod write;

pub use action::{Action, ResyncProgress, Status, StoreRequest};
pub use credits::{Cover, Credits, cost};
pub use event::{ClientRef, Event, Identity, MemberHome, Recovered, StoreDone, StoreError, Token, Verdict};
pub use lease::Leases;
pub use replica::Replica;
pub use role::{ActivationStep, Role};

/// What all replicas of one server share.
#[derive(Clone, Debug)]
pub struct Context {
    /// Leases held and granted.
    pub leases: Leases,
    /// Space granted and under way.
    pub credits: Credits,
    /// What resync may take.
    pub resync: ResyncBudget,
    /// Memory for entries that are kept for replicas that come back soon.
    pub retained: RetainedBudget,
}

/// What resync may take at this moment; the server refills it by its policy (architecture 5.6, throttle).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResyncBudget {
    /// Copies that may be under way at once.
    pub slots: u32,
    /// Copies under way; there may be more than slots where those became fewer.
    pub in_use: u32,
    /// Copies may begin; those under way go on in any case.
    pub is_open: bool,
    /// Payload bytes that were copied since the start.
    pub copied: u64,
}

/// Memory for entries that are committed and kept for the catch-up of replicas that were away for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedBudget {
    /// Bytes that all replicas of the process may keep together.
    pub limit: usize,
    /// Bytes kept.
    pub used: usize,
}
