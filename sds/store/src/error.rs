//! What can go wrong, grouped by what the caller can do about it.

use mdm_api::ids::{DeviceId, DeviceIncarnation, SystemId};

use crate::io::DiskError;

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The device failed for good (I22). Nothing was acknowledged after the first error, nothing will be.
    #[error("the device has failed: {0}")]
    Failed(DiskError),
    /// The journal has no room for it; nothing happened. Room comes back as entries are committed, applied and
    /// checkpointed, or when a state is saved.
    #[error("the journal is full")]
    NoJournalSpace,
    /// No allocation units or chunk records are left for it; nothing happened.
    #[error("the device is full")]
    NoSpace,
    /// An entry does not come after the last of its placement group, or not in the journal's terms; nothing happened.
    #[error("an entry is out of order")]
    OutOfOrder,
    /// It would take back what is committed; nothing happened.
    #[error("committed entries cannot be voided")]
    Committed,
    /// Sizes that do not fit together, or beyond the limits; nothing happened.
    #[error("malformed request")]
    Malformed,
    /// The entry, layer or block is not here (any more).
    #[error("not here")]
    NotFound,
    /// `Repair`: the block's recorded checksum is another one: it was written since.
    #[error("the block was written since")]
    Changed,
    /// The bytes on the medium are bad: unreadable, or not what their checksum says.
    #[error("the block on the medium is bad")]
    BadBlock,
}

/// Why one block could not be read. Only that block is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The device did not deliver it.
    #[error("unreadable: {0}")]
    Unreadable(DiskError),
    /// It is not what its checksum says (I21).
    #[error("checksum mismatch")]
    Checksum,
}

/// Why a device was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No super block anywhere.
    #[error("not an Ashlar device: add it with `scli device add`")]
    NotFormatted,
    /// It belongs to another system.
    #[error("the device belongs to system {found}, not to {expected}: it is refused, so that no data is mixed up")]
    OtherSystem {
        /// Whose it is.
        found: SystemId,
        /// Whose it should be.
        expected: SystemId,
    },
    /// It is another device of this system.
    #[error("this is device {found}, not {expected}: check the paths in the configuration")]
    OtherDevice {
        /// Which it is.
        found: DeviceId,
        /// Which it should be.
        expected: DeviceId,
    },
    /// The device was wiped or replaced since this incarnation was made (I4).
    #[error("the device is incarnation {found}, the system expects {expected}")]
    OtherIncarnation {
        /// What it is.
        found: DeviceIncarnation,
        /// What it should be.
        expected: DeviceIncarnation,
    },
    /// Written by newer software.
    #[error("store format {found} is newer than this software knows ({known}): upgrade it")]
    NewerVersion {
        /// Version on the device.
        found: u16,
        /// The newest version known.
        known: u16,
    },
    /// No two super blocks agree.
    #[error(
        "{valid} of 4 super blocks are readable and no two agree (newest sequence {newest}): the device cannot be trusted"
    )]
    TooFewSuperBlocks {
        /// How many have a good checksum.
        valid: usize,
        /// The newest sequence seen.
        newest: u64,
    },
    /// The device is smaller than it was.
    #[error("the device has {found} bytes, it was formatted with {expected}: it was truncated")]
    Truncated {
        /// Bytes now.
        found: u64,
        /// Bytes at format.
        expected: u64,
    },
    /// The super blocks describe an impossible device.
    #[error("the super block describes an impossible layout")]
    BadGeometry,
    /// An operation failed.
    #[error("opening failed: {0}")]
    Disk(#[from] DiskError),
}

/// Why a device was not formatted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Too small for a journal and some data.
    #[error("the device has {found} bytes; at least {needed} are needed")]
    TooSmall {
        /// Bytes it has.
        found: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// Larger than the format can address.
    #[error("the device is larger than {limit} bytes, the most that this format addresses")]
    TooLarge {
        /// The most.
        limit: u64,
    },
    /// The journal size asked for is impossible.
    #[error("a journal of {asked} bytes does not fit: it must be a multiple of 4096 from {least} to {most}")]
    BadJournalSize {
        /// What was asked for.
        asked: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// It is an Ashlar device already.
    #[error(
        "the device is in use as device {device} of system {system}: remove it there, or blank its first and its last MiB to destroy what it holds"
    )]
    AshlarDevice {
        /// Whose.
        system: SystemId,
        /// Which.
        device: DeviceId,
    },
    /// Something else is on it.
    #[error("the device holds {what}: blank its first MiB to destroy what it holds")]
    NotBlank {
        /// What was recognised.
        what: &'static str,
    },
    /// An operation failed.
    #[error("formatting failed: {0}")]
    Disk(#[from] DiskError),
}
