//! One member of the metadata manager: consensus, the replicated state, and everything a leader does, as one pure machine.
//!
//! Why it exists: the daemon and the simulator must run the same decisions. [`Node::step`] takes an [`Event`] (a message, a
//! request, a heartbeat, a tick) with the [`Moment`] it happens at, and appends [`Action`]s (send, make durable, answer).
//!
//! ```text
//!            Request            Propose              Persist
//!  caller ------------> Node -----------> Raft ------------------> disk
//!    ^     Respond, Push  |  <-----------  |  <-----------------
//!    '--------------------'     Apply      '--- SendPeer --> other members
//! ```
//!
//! It owns the Raft member, the state, and what is volatile: connections, sessions, what was heard, answers that wait.
//!
//! What is always true:
//!
//! * A command is answered "done" only when it is committed, and what it promises beyond that holds: a device is in use, a
//!   client is fenced at every server (I17, P8), a credential opens nothing while an older generation could write.
//! * Only a leader whose state is current answers for the system; everybody else names the leader (F21).
//! * A caller gets what its role allows: people by their account, daemons only for themselves (P9).
//! * A member whose log must not be trusted stops, with words that say what to do.

mod authorise;
mod commit;
mod deferred;
mod event;
mod figures;
mod followers;
mod group;
mod join;
mod kind;
mod leadership;
mod node;
mod proposals;
mod requests;
mod session;

pub use event::{Action, ConnectionId, Event, Moment, Notice, RequestKey, SignOrder};
pub use figures::Figures;
pub use node::{Node, StartError};
pub use session::{SESSION_S, join_secret_hash, mint_join_secret};

pub use mdm_core::command::CreateSystem;
pub use mdm_core::state::first_mdm_id;
