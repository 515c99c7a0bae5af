//! The data wire protocol, and the words that replication and the store share: blocks, entries, checksums, buffers.
//!
//! Who speaks what: clients speak `client` to primaries; primaries speak `peer` to secondaries and learners. Both ride on
//! the product's frames (`mdm_api::frame`), header and payload apart, so that a payload is read once from the socket into
//! aligned memory and never copied again.

pub mod block;
pub mod buf;
pub mod checksum;
pub mod client;
pub mod client_codec;
pub mod entry;
pub mod open;
pub mod peer;
