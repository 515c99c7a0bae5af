//! Consensus among the members of the metadata manager: commands in as bytes, committed commands out in the same order on
//! every member.
//!
//! Why it exists: invariant I1 (only a committed command creates a configuration) needs a log that survives the loss of
//! members (F21, F22). The protocol is Raft, by the `raft` crate; its types stop here. What this crate adds is everything
//! around it that safety rests upon: the log and its recovery ([`log`], [`stable`], [`snapshot`], [`files`]), the identity
//! of members ([`identity`], [`members`]), bytes of our own for messages, and the order between durability and messages.
//!
//! It is a pure state machine: [`RaftNode::step`] takes an [`Event`] and appends [`Action`]s. It reads no clock, opens no
//! file, draws no randomness; equal seeds and events give equal actions.
//!
//! What is always true:
//!
//! * No message that depends on a vote, a term, an entry, a snapshot or a peer's start leaves before that is durable.
//! * A member whose log lost something it had acknowledged never votes or answers: [`recover`] refuses to open it where the
//!   files show it, and the other members refuse its messages where only they can know.
//! * `Apply` comes once for each committed command, in the order of the index, after the entry is durable here.
//! * No bytes from a peer or a disk make it panic.

mod codec;
pub mod files;
mod guard;
pub mod identity;
mod inbox;
mod lead;
pub mod limits;
pub mod log;
pub mod members;
mod message;
mod node;
mod ready;
mod recovery;
mod settings;
pub mod snapshot;
pub mod stable;
mod status;
mod storage;

pub use codec::DecodeError;
pub use files::{Damage, FileName, FileOp, RecoverError, Recovered, is_ours, recover};
pub use identity::{Refusal, Start, StoreId};
pub use mdm_api::ids::{MdmId, SystemId};
pub use mdm_api::model::MdmRole;
pub use members::{ChangeError, Member, Members, MembersChange, Standing};
pub use node::{NewGroup, OpenError, RaftNode};
pub use settings::{Action, DropReason, Event, HaltReason, Nanos, PersistId, Settings};
pub use status::{MemberProgress, Status};
