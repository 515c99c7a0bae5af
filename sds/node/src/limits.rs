//! Bounds of everything that a server keeps, each with its reason.

/// Client connections: a host has one or two to each server; a thousand hosts are a large system.
pub const CLIENTS_MAX: usize = 4096;
/// Volumes open on one connection. ScaleIO's limit of mappings of one client is 8,192.
pub const HANDLES_MAX: usize = 8192;
/// Requests under way on one connection; more are a client that does not keep its own bound.
pub const REQUESTS_PER_CLIENT_MAX: usize = 4096;
/// Openings that wait for the map, over all connections.
pub const WAITING_OPENS_MAX: usize = 1024;
/// How long an opening waits for the map before the client is told to try again.
pub const OPEN_PATIENCE_MS: u64 = 2000;
/// How far the clocks of two hosts may be apart, for the times in tickets.
pub const TICKET_SKEW_S: u64 = 300;
/// Proposals under way to the metadata manager; replicas repeat those for which there is no room.
pub const PROPOSALS_MAX: usize = 192;
/// How long after a failure a command about a device or the registration is tried again.
pub const COMMAND_AGAIN_MS: u64 = 250;
/// How often open stores are told the time.
pub const STORE_TICK_MS: u64 = 20;
/// How often the slow upkeep runs: shares, budgets, drops, what has expired.
pub const UPKEEP_MS: u64 = 50;
/// Entries read back from one journal at once while a device is being opened.
pub const LOADS_IN_FLIGHT: usize = 32;
/// Times that an entry is read back before it counts as lost.
pub const LOAD_TRIES: u32 = 5;
/// Memory for committed entries that are kept for replicas that come back soon, over all groups.
pub const RETAINED_BYTES: usize = 64 << 20;
/// Chunk copies under way for each open device of this server while no client is served (ScaleIO's default is one or two).
pub const RESYNC_SLOTS_IDLE: u32 = 2;
/// The same while clients are served.
pub const RESYNC_SLOTS_BUSY: u32 = 1;
/// Of the time, in percent, copies may be under way while clients are served. Two servers that copy from and to each other are
/// busy with it for 36 percent of the time then: the median of what clients wait for is not touched.
pub const RESYNC_TIME_PERCENT: i64 = 20;
/// Time for copies that is saved up at most.
pub const RESYNC_BURST_MS: u64 = 20;
/// Time for copies that is overdrawn at most, by one that took long.
pub const RESYNC_DEBT_MS: u64 = 1000;
/// Bytes per second and device that resync gets in any case: a TiB in a day and a half.
pub const RESYNC_FLOOR_BYTES: i64 = 8 << 20;
/// How long after a request clients count as being served.
pub const SERVED_SPAN_MS: u64 = 1000;
/// The least share of allocation units that a primary gets while there is room: two whole chunks.
pub const SHARE_AUS_MIN: u64 = 32;
/// The least share of journal bytes while there is room: one whole chunk and its headers.
pub const SHARE_JOURNAL_MIN: u64 = (1 << 20) + (64 << 10);
/// Times a layer is captured again when its bad block cannot be found by reading.
pub const CAPTURES_MAX: u8 = 3;
/// A peer that has not been reached this long after it was wanted is reported as unreachable.
pub const UNREACHABLE_MS: u64 = 300;
