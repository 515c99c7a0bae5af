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
/// Chunk copies under way for each open device of this server (ScaleIO's default is one or two).
pub const RESYNC_SLOTS_PER_DEVICE: u32 = 2;
/// Resync in bytes per second and device while clients are busy: the floor that brings redundancy back in any case.
pub const RESYNC_BYTES_BUSY: i64 = 64 << 20;
/// The same while no client waits for anything.
pub const RESYNC_BYTES_IDLE: i64 = 512 << 20;
/// The least share of allocation units that a primary gets while there is room: two whole chunks.
pub const SHARE_AUS_MIN: u64 = 32;
/// The least share of journal bytes while there is room: one whole chunk and its headers.
pub const SHARE_JOURNAL_MIN: u64 = (1 << 20) + (64 << 10);
/// Times a layer is captured again when its bad block cannot be found by reading.
pub const CAPTURES_MAX: u8 = 3;
/// A peer that has not been reached this long after it was wanted is reported as unreachable.
pub const UNREACHABLE_MS: u64 = 300;
