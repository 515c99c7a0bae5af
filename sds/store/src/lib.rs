//! The crash-consistent store of one device: a pure planner over disk operations.
//!
//! It is told what happens ([`request::Event`]) and says what is to be done ([`request::Output`]); an engine of `sds-disk`, or
//! a simulator, carries out. It owns the layout of the device, the journal, the chunk records and all space, and knows nothing
//! of networks, terms in force, or clocks.
//!
//! The life of a small write: `append` puts the entry into the frame being filled; the frame is cut when fewer than four are in
//! flight, and its write is one vectored operation of header and payload. When it and all frames before are durable the request
//! is done. `Commit` makes the entry visible; a commit mark travels in a later frame; then `apply` writes the folded content
//! of the layer home, and a `checkpoint` makes that durable, notes it in the metadata pages and moves the journal's tail.
//!
//! The life of a copied chunk: `install` writes the data to fresh units, then one record in the journal claims them.
//!
//! Where to look: [`layout`] for places, [`superblock`], [`journal`] for frames and their recovery table, [`meta`] for pages
//! and their directory, [`open`] and [`format`] for beginnings, [`limits`] for bounds. `docs/store-format.md` has the bytes.
//!
//! The life of a large write: its data goes to fresh units, durable, then one record in the journal links them.
//!
//! All of it is read again from time to time, slowly: `scrub`.
//!
//! Memory: about 220 bytes for each chunk layer with data, a cache of their checksums, 48 bytes for each frame in the ring,
//! the headers of the entries in it, and the payload of those that wait to be applied up to a cap.

mod alloc;
mod append;
mod apply;
pub mod blockmap;
mod carry;
mod checkpoint;
mod chunks;
mod control;
pub mod error;
mod fetch;
pub mod format;
mod install;
pub mod io;
pub mod journal;
mod layer;
mod layers;
pub mod layout;
pub mod limits;
pub mod meta;
pub mod open;
mod pg;
pub mod planted;
mod read;
mod replay;
pub mod request;
mod reread;
mod scrub;
mod stage;
pub mod store;
mod sums;
pub mod superblock;
