//! Volume I/O as a library: what turns byte ranges of a volume into requests to primaries, and keeps at it.
//!
//! The core is [`session::Session`]: pure, one for each opened mapping. Events go in (an I/O, an answer, a new map, the
//! time), actions come out (open the volume on that server, send this, complete that). It cuts requests at chunks, finds the
//! primary, keeps overlapping writes in order, numbers every change so that it takes effect once however often it is sent
//! (I16), and retries for ever: a role change, a lost connection or a stale map is a pause to the user, never an error (P6).
//!
//! With feature `runtime` come the connections and the clock: [`runtime::Client`] and [`runtime::Volume`].

pub mod io;
pub mod limits;
pub mod order;
pub mod route;
pub mod session;
pub mod split;
pub mod stats;

#[cfg(feature = "runtime")]
pub mod runtime;
