//! Bounds of what is spoken, each with its reason.

/// Longest control frame: a full map of 16 Ki groups and 16 Ki volumes is below 8 MiB; a snapshot of the state travels
/// between MDMs in one frame.
pub const CONTROL_FRAME_BYTES_MAX: usize = 256 << 20;
/// Longest control frame before the peer has said who it is: a greeting is a few hundred bytes, a certificate request 2 KiB.
pub const GREETING_BYTES_MAX: usize = 16 << 10;
/// Longest header of a data frame: 64 entries of a small batch with their checksums.
pub const DATA_HEADER_BYTES_MAX: usize = 1 << 20;
/// Longest payload of a data frame: a replication batch of several whole chunks.
pub const DATA_PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// A member says at least this often, in milliseconds, to those who follow the map that it is in touch with the others.
pub const FOLLOW_KEEPALIVE_MS: u64 = 250;
/// Silence of the member that is followed, in milliseconds, after which another one is asked: it may be cut off, from here or
/// from the others, and no connection would say so for seconds.
pub const FOLLOW_SILENCE_MS: u64 = 1000;
/// As `FOLLOW_SILENCE_MS`, at most, while no member speaks: the metadata managers are not to be flooded when they come back.
pub const FOLLOW_SILENCE_MS_MAX: u64 = 8000;
/// Longest name of an object, in bytes: ScaleIO's limit, which its clients rely on.
pub const NAME_BYTES_MAX: usize = 31;
/// Labels of one volume.
pub const LABELS_MAX: usize = 32;
/// Longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 63;
/// Longest value of a label, in bytes: the longest file name, which the plugin notes.
pub const LABEL_VALUE_BYTES_MAX: usize = 255;
/// The granule of volume sizes.
pub const VOLUME_GRANULE_BYTES: u64 = 1 << 20;
/// What the classic spellings round volume sizes up to.
pub const CLASSIC_GRANULE_BYTES: u64 = 8 << 30;
/// The largest volume: 1 PiB, ScaleIO's limit.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Placement groups of a pool, unless said otherwise.
pub const PG_COUNT_DEFAULT: u32 = 1024;
/// The most placement groups of a pool.
pub const PG_COUNT_MAX: u32 = 16_384;
