//! Bounds of a session and of its connections, each with its reason.

/// I/Os that a session holds at once. The kernel's nbd has at most 128 tags for each of a few connections; a full session
/// refuses the next, which pushes back towards the guest.
pub const OPERATIONS_MAX: usize = 1024;
/// Bytes of reads and writes that a session holds at once: two of the largest I/Os.
pub const BYTES_MAX: usize = 2 * IO_BYTES_MAX;
/// The largest read or write: NBD's customary maximum.
pub const IO_BYTES_MAX: usize = 32 << 20;
/// The largest range that one status request covers: 64 Ki blocks, 64 KiB of answer.
pub const STATUS_BYTES_MAX: u64 = 256 << 20;
/// Pieces of one I/O that are under way at once: a zero request may name the whole volume.
pub const PIECES_PER_OPERATION_MAX: u32 = 64;
/// Changing requests between the oldest unanswered one and the newest of a placement group: the servers' table of answered
/// requests is this long for each session (I16).
pub const REQUEST_WINDOW: u64 = 128;

/// The first wait before a request is sent again, doubled for each further one.
pub const BACKOFF_MS_MIN: u64 = 5;
/// The longest wait before a request is sent again: a fail-over is over within a second.
pub const BACKOFF_MS_MAX: u64 = 200;
/// The wait after "no space": somebody has to add a device or delete something.
pub const NO_SPACE_BACKOFF_MS: u64 = 1000;
/// A request that was unanswered this long on a connection that was silent this long makes the connection suspect. Well
/// above any pause of a healthy system (P6: 3 s): a dead host shows in the map, and in TCP's own time-outs, before.
pub const SILENCE_MS: u64 = 10_000;
/// A request that was unanswered this long on a connection that lives is sent again: the server may have lost it. Twice as
/// long after each time, so that a group that waits for a copy for hours is not asked thousands of times.
pub const RESEND_MS: u64 = 20_000;
/// See [`RESEND_MS`]: at most about eleven minutes.
pub const RESEND_DOUBLINGS_MAX: u32 = 5;
/// How often unanswered requests are looked at.
pub const SILENCE_CHECK_MS: u64 = 1000;
/// A server says "out of range" of bytes that the client's map has, because its own map is behind after a resize: asked
/// again this long, then believed.
pub const OUT_OF_RANGE_MS_MAX: u64 = 30_000;
/// Damaged answers to one piece that are asked for again; damage that stays is not the line's.
pub const DAMAGED_ANSWERS_MAX: u32 = 64;
