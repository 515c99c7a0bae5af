//! Bounds and defaults of the disk engines, each with its arithmetic.

use std::time::Duration;

/// Submission queue entries of one device's ring; the completion queue has twice as many. 512 entries of 64 bytes.
pub const RING_ENTRIES: u32 = 512;

/// Operations that one device holds at once, waiting or in the kernel: 3/4 of [`RING_ENTRIES`], so that a full
/// submission queue, on which tokio-uring panics, cannot happen. The store bounds itself below this; more is refused.
pub const IN_FLIGHT_MAX: usize = RING_ENTRIES as usize / 4 * 3;

/// Longest read or write in bytes. Lengths above are refused before anything is allocated.
pub const OPERATION_BYTES_MAX: u64 = 64 << 20;

/// Smallest device in bytes. A store needs more than this and says so itself; this only refuses obvious mistakes.
pub const DEVICE_BYTES_MIN: u64 = 1 << 20;

/// Devices are used in units of this many bytes, so their size is a multiple of it.
pub const DEVICE_BYTES_UNIT: u64 = 4096;

/// Segments of one vectored transfer (the kernel's UIO_MAXIOV). Longer lists continue in a second transfer.
pub const SEGMENTS_MAX: usize = 1024;

/// How often one transfer is tried again after EINTR or EAGAIN before it counts as failed.
pub const RETRIES_MAX: u32 = 64;

/// Threads of the blocking engine: how many operations the device sees at once. Enough to keep an SSD busy, cheap in
/// memory (stacks are touched on use).
pub const BLOCKING_THREADS: usize = 16;

/// Age of the oldest operation at which a device counts as hung, unless the opener says otherwise.
pub const HANG_LIMIT: Duration = Duration::from_secs(5);

/// Discards may take this many times as long: drives erase slowly, and nobody waits for it.
pub const DISCARD_PATIENCE: u32 = 12;
