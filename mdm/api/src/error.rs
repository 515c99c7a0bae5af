//! Why a command was refused: a code that programs match, words that say what is wrong, and what to do about it.

use serde::{Deserialize, Serialize};

/// What kind of refusal. Numbers are those that ScaleIO's clients know, where they have one; ours start at 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the words of `message`
pub enum ErrorCode {
    NotFound,
    SdsNotFound,
    VolumeNotFound,
    SdcNotFound,
    AlreadyMapped,
    NotMapped,
    InvalidId,
    VolumeNameInUse,
    VolumeMapped,
    DeviceNotFound,
    SizeCanOnlyGrow,
    ProtectionDomainNotFound,
    ProtectionDomainNotEmpty,
    NameInUse,
    Busy,
    VolumeTooLarge,
    PermissionDenied,
    StoragePoolNotFound,
    StoragePoolNotEmpty,
    SdcHasMappings,
    SizeIllegal,
    NameTooLong,
    NameInvalid,
    InvalidSession,
    WrongPassword,
    FaultSetNotFound,
    FaultSetNotEmpty,
    TooFewFaultUnits,
    MappedElsewhere,
    TooMany,
    /// No leader, or it is not known yet: try again.
    Unavailable,
    /// The command was carried out only in part in time; it goes on by itself.
    TimedOut,
    /// A forced detach could not be confirmed.
    NotFenced,
    /// The object is not in a state that allows this.
    WrongState,
    /// A device that belongs to somebody else, is in use, or is not what it was.
    DeviceUnusable,
    /// The caller is not who it must be, or is outdated.
    Stale,
    MdmNotFound,
    UserNotFound,
    InvalidArgument,
    Internal,
}

impl ErrorCode {
    /// The number on the wire to people's scripts.
    pub const fn number(self) -> u32 {
        match self {
            Self::NotFound => 3,
            Self::SdsNotFound => 78,
            Self::VolumeNotFound => 79,
            Self::SdcNotFound => 80,
            Self::AlreadyMapped => 81,
            Self::NotMapped => 84,
            Self::InvalidId => 88,
            Self::TooMany => 97,
            Self::VolumeNameInUse => 99,
            Self::VolumeMapped => 104,
            Self::DeviceNotFound => 126,
            Self::SizeCanOnlyGrow => 133,
            Self::ProtectionDomainNotFound => 142,
            Self::ProtectionDomainNotEmpty => 143,
            Self::Busy => 164,
            Self::PermissionDenied => 168,
            Self::StoragePoolNotFound => 171,
            Self::StoragePoolNotEmpty => 172,
            Self::NameInUse => 173,
            Self::SdcHasMappings => 180,
            Self::VolumeTooLarge => 190,
            Self::SizeIllegal => 225,
            Self::NameTooLong => 226,
            Self::NameInvalid => 227,
            Self::WrongPassword => 247,
            Self::InvalidSession => 248,
            Self::FaultSetNotFound => 265,
            Self::FaultSetNotEmpty => 266,
            Self::TooFewFaultUnits => 287,
            Self::MappedElsewhere => 306,
            Self::Unavailable => 10_000,
            Self::TimedOut => 10_001,
            Self::NotFenced => 10_002,
            Self::WrongState => 10_003,
            Self::DeviceUnusable => 10_004,
            Self::Stale => 10_005,
            Self::MdmNotFound => 10_006,
            Self::UserNotFound => 10_007,
            Self::InvalidArgument => 10_008,
            Self::Internal => 10_009,
        }
    }
}

/// A refusal. Printed as one line: what is wrong, then what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}{remedy}", if remedy.is_empty() { "" } else { ": " })]
pub struct CommandError {
    /// For programs.
    pub code: ErrorCode,
    /// What is wrong, naming the thing; ScaleIO's words where clients match them.
    pub message: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

impl CommandError {
    /// A refusal with its remedy.
    pub fn new(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: remedy.into() }
    }
}
