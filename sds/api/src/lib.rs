//! The data wire protocol, and the words that replication and the store share.
pub mod buf;
