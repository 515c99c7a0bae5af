//! The part of the vocabulary that touches the network: certificates, TLS connections, finding the leader, following the
//! map. Every daemon and tool speaks to the metadata manager through this module.
//!
//! Always true: a connection that is handed out has been verified (the certificate is of this system's authority and of an
//! MDM) and greeted; a request is retried on another member until its own deadline and never answered twice; the deltas
//! that a follower delivers follow on each other.

mod connection;
mod follow;
mod leader;
mod lock;
pub mod pki;
mod search;
pub mod token;

pub use connection::{ConnectError, Connection, Connector, FramedReader, FramedWriter, tune};
pub use follow::{Members, follow};
pub use leader::{ClientError, MdmClient};
pub use lock::{LOCK_PATIENCE, lock_patiently};
