//! Every bound of the server, with its reason.

use std::time::Duration;

/// Largest payload of one READ or WRITE, bytes: what qemu and the kernel send at most.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// A WRITE beyond [`MAX_PAYLOAD`] is read away and refused up to this length; a longer one ends the connection.
pub const MAX_DISCARDED_PAYLOAD: u64 = 64 << 20;
/// Longest option payload that is parsed, bytes. Export names are at most 4096 each.
pub const MAX_OPTION: u32 = 64 << 10;
/// An option up to this length is read away and answered "too big"; a longer one ends the connection.
pub const MAX_DISCARDED_OPTION: u32 = 1 << 20;
/// Options in one handshake. Most clients send fewer than ten, but a listing asks for each export by some; the time of the
/// handshake is what bounds the rest.
pub const MAX_OPTION_COUNT: u32 = 1 << 16;
/// Longest export name, bytes, by the protocol.
pub const MAX_NAME: usize = 4096;
/// Extents in one BLOCK_STATUS reply; the client asks again for the rest.
pub const MAX_EXTENTS: usize = 8192;
/// What a request costs beside its payload: task, headers, book-keeping, bytes. Bounds the number of requests too.
pub const REQUEST_OVERHEAD: u32 = 4096;
/// A connection with nothing else in flight may always have one request of up to this many bytes, however full the
/// common budget is: slow clients cannot starve the others.
pub const GUARANTEED_REQUEST: u32 = 256 << 10;
/// How long the requests of a client that has vanished may still run before they are dropped. Longer than a healthy volume
/// ever takes; a client that only closed its sending side gets its answers within it.
pub const VANISHED_GRACE: Duration = Duration::from_secs(3);

/// A payload may take [`Limits::stall`] for each so many bytes.
pub const STALL_BYTES: u64 = 1 << 20;

/// What a server allows. The default suits a host with some hundred volumes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From accept to the end of the handshake.
    pub handshake: Duration,
    /// A payload, in either direction, of which less than [`STALL_BYTES`] move in this time ends the connection.
    pub stall: Duration,
    /// Connections at once; one more is closed at accept.
    pub connections: usize,
    /// Requests in flight on one connection, at least 1.
    pub requests_per_connection: u32,
    /// Payload bytes in flight on one connection; at least [`MAX_PAYLOAD`] plus overhead.
    pub bytes_per_connection: u32,
    /// Payload bytes in flight on all connections; at least [`MAX_PAYLOAD`] plus overhead.
    pub bytes_in_all: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            connections: 16_384,
            requests_per_connection: 128,
            bytes_per_connection: 64 << 20,
            bytes_in_all: 512 << 20,
        }
    }
}

impl Limits {
    /// The same limits, lifted where they could not carry one largest request.
    pub fn at_least_workable(mut self) -> Self {
        let largest = MAX_PAYLOAD + REQUEST_OVERHEAD;
        self.requests_per_connection = self.requests_per_connection.max(1);
        self.connections = self.connections.max(1);
        self.bytes_per_connection = self.bytes_per_connection.max(largest);
        self.bytes_in_all = self.bytes_in_all.max(largest as usize);
        self
    }
}
