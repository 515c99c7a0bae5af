//! Volume I/O as a library: what turns byte ranges of a volume into requests to primaries, and keeps at it.
//!
//! The core is [`session::Session`]: pure, one for each opened mapping. Events go in (an I/O, an answer, a new map, the
//! time), actions come out (open the volume on that server, send this, complete that). It cuts requests at chunks, finds the
//! primary, keeps overlapping writes in order, numbers every change so that it takes effect once however often it is sent
//! (I16), and retries for ever: a role change, a lost connection or a stale map is a pause to the user, never an error (P6).
//!
//! With feature `runtime` come the connections and the clock: [`runtime::Client`] and [`runtime::Volume`].
//!
//! # Use
//!
//! ```text
//! let client = Client::start(cluster, system, sdc);              // one for all volumes; shares its connections
//! let volume = client.open(id, Policy::default()).await?;        // fences whoever opened this mapping before
//! volume.write(5000, bytes).await?;                              // any alignment; durable when it returns
//! let pieces = volume.read(4096, 8192).await?;                   // shared, not copied
//! volume.zero(0, 1 << 20).await?;                                // gives space back
//! volume.watch().changed().await?;                               // size, access, the end of the session
//! ```
//!
//! `cluster` is a [`runtime::Cluster`]: the map as it changes and the right to open; the daemon's is `sdc::link`. A whole
//! program is `sdc/examples/volume.rs`.
//!
//! | | |
//! |---|---|
//! | cancelling | dropping a future frees its room at once; a change that was sent may still take effect, before any later overlapping one |
//! | back-pressure | 1,024 I/Os and 64 MiB of a volume at once ([`limits`]); a call beyond that waits for its turn |
//! | time-out | none by default; [`session::Policy`] has one, for those who would rather see an error |
//! | order | overlapping changes of one volume take effect in the order of their calls |
//! | errors | [`io::IoError`]: what no retry can mend. A role change, a restart, a full pool are waited out |
//! | figures | [`stats::Stats`], with retries, role changes and late answers |

pub mod io;
pub mod limits;
pub mod order;
pub mod route;
pub mod session;
pub mod split;
pub mod stats;

#[cfg(feature = "runtime")]
pub mod runtime;
