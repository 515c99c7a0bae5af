//! The block device that a host sees: an NBD server and the ways to attach it.
//!
//! Why it exists: applications want `/dev/...`, or an NBD address for tools that speak the protocol themselves. This
//! crate turns anything that can read and write byte ranges ([`export::Export`]) into both.
//!
//! ```text
//!   qemu, nbdcopy, fio ──────────────┐
//!   kernel nbd (netlink) ────────────┤ unix socket    ┌──────────┐ Export
//!   loop device ─ FUSE ─ sdc-hold ───┴───────────────▶│  Server  │────────▶ the SDC's volumes
//!                                                     └──────────┘
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`wire`] | the bytes of the protocol, pure |
//! | [`export`] | what is served, as traits |
//! | [`negotiate`] | one handshake |
//! | [`serve`] | the server, and one connection after its handshake |
//! | [`listen`], [`network`] | the unix socket; the port with TLS |
//! | [`client`] | a small blocking NBD client, for the kernel hand-over and for the holder |
//! | [`hold`] | the process between FUSE and the server that outlives the daemon |
//! | [`attach`] | devices: kernel nbd, or FUSE and loop; links; adoption after a restart |
//!
//! Always true: memory of a connection and of all together is bounded ([`limits::Limits`]); nothing that a peer sends
//! makes the server panic or answer wrongly to somebody else.

pub mod attach;
pub mod client;
pub mod export;
pub mod hold;
pub mod limits;
pub mod listen;
pub mod negotiate;
pub mod network;
pub mod serve;
mod source;
pub mod wire;
