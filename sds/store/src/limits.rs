//! Bounds, each with its reason.

/// Bytes of everything that is written at once on the medium: the unit of frames, pages and super blocks.
pub const PAGE_BYTES: usize = 4096;
/// Frames in flight. More would not raise the throughput of a device that takes writes one behind the other, and each
/// widens the window of what a crash leaves half done.
pub const FRAMES_IN_FLIGHT: usize = 4;
/// Bytes of a frame's payload after which a new frame is begun: long enough to amortise the header, short enough that a
/// small write behind it does not wait long. A single larger request (a whole chunk) makes a larger frame.
pub const FRAME_PAYLOAD_TARGET: usize = 512 << 10;
/// Bytes of a frame's records after which a new frame is begun.
pub const FRAME_RECORDS_TARGET: usize = 64 << 10;
/// The longest header area of a frame: a saved state of the longest kind and some more.
pub const FRAME_HEADER_BYTES_MAX: usize = (1 << 20) + (256 << 10);
/// The longest payload of a frame: the target and one whole chunk.
pub const FRAME_PAYLOAD_MAX: usize = FRAME_PAYLOAD_TARGET + (1 << 20);
/// The longest state of a placement group.
pub const STATE_BYTES_MAX: usize = 1 << 20;
/// All states together take at most this part of the ring, since they are carried along at its head for ever.
pub const STATES_SHARE: u64 = 8;
/// What appends of data leave free of the ring: a part of it (5 %), and at least so many pages, which count in small rings.
pub const DATA_KEEPS: (u64, u64) = (20, 14);
/// What promises, voids, deletes and copies leave free.
pub const CONTROL_KEEPS: (u64, u64) = (40, 10);
/// What the store's own carrying forward, and commit marks when the tail does not hang on them, leave free.
pub const CARRY_KEEPS: (u64, u64) = (80, 6);
/// What states, which let entries go, leave free for the commit mark on which the tail hangs.
pub const STATE_KEEPS: (u64, u64) = (160, 2);
/// The least journal: a few frames of the largest kind must fit in the reserves. Small ones are for tests.
pub const JOURNAL_BYTES_MIN: u64 = 128 << 10;
/// The least journal of a device formatted by default.
pub const JOURNAL_BYTES_DEFAULT_MIN: u64 = 64 << 20;
/// The largest journal of a device.
pub const JOURNAL_BYTES_MAX: u64 = 4 << 30;
/// Bytes of a read of the ring or of the pages while opening.
pub const OPEN_READ_BYTES: u64 = 1 << 20;
/// Reads in flight while opening.
pub const OPEN_READS: usize = 8;
/// Times that a block is read before it counts as unreadable.
pub const READ_TRIES: u32 = 5;
/// The same where a client waits.
pub const READ_TRIES_FOREGROUND: u32 = 2;
/// Payload of entries that wait to be applied that is kept in memory by default; beyond it the journal is read again.
pub const PAYLOAD_CACHE_BYTES: usize = 64 << 20;
/// Checksums of blocks at home that are kept in memory by default: for 64 GiB of data.
pub const CHECKSUM_CACHE_BYTES: usize = 64 << 20;
/// Blocks of a write from which on it goes to units of its own by default: 128 KiB. Its data is then written once instead of
/// twice, for one more wait; below, the wait costs more.
pub const LARGE_BLOCKS_MIN: u16 = 32;
/// Memory that entries in the log may take, apart from their data, before they are applied and states are asked for however
/// much room the journal has.
pub const LOG_BYTES_MAX: usize = 64 << 20;
/// Layers being applied at once when the journal is under pressure. Of 8, 16 and 32 this one gets most small writes through in
/// a minute with applying, and delays those at depth 1 least: the sweep is over soonest (`bench store`).
pub const APPLY_JOBS_MAX: usize = 32;
/// Reads and writes of these layers on their way from which on no further layer is begun: what clients wait for is behind
/// them in the device's queue.
pub const APPLY_OPERATIONS_MAX: usize = 128;
/// Layers being applied at once when the device is otherwise idle.
pub const APPLY_JOBS_IDLE: usize = 4;
/// Layers that one `RemoveLayers` names: its record fits a frame header with ease.
pub const REMOVE_LAYERS_MAX: usize = 2048;
/// Metadata pages that may be dirty before a checkpoint is due: their images are in memory while it runs.
pub const DIRTY_PAGES_MAX: usize = 4096;
/// Milliseconds without an append after which the device counts as idle.
pub const IDLE_MS: u64 = 200;
/// Milliseconds after which a checkpoint is due on an idle device.
pub const CHECKPOINT_IDLE_MS: u64 = 1000;
/// Milliseconds over which a scrub of the whole device is spread by default: a week, as is the custom.
pub const SCRUB_PERIOD_MS: u64 = 7 * 24 * 3600 * 1000;
/// Milliseconds after which committed entries go home, however few they are and however busy clients keep the device: what was
/// trimmed comes free with them, and a start has less to replay.
pub const APPLY_AGE_MS: u64 = 10_000;
/// Milliseconds after which units that wait for the tail are made usable on a device that never rests.
pub const QUARANTINE_AGE_MS: u64 = 30_000;
