//! Bugs on purpose, for tests that must find them.
//!
//! Nothing here does anything without the feature `planted`, which only tests have.

/// A way to break the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A checkpoint does not flush its pages before the super blocks name them.
    SkipFlush,
    /// A checkpoint writes its super blocks before its pages.
    SwapCheckpoint,
    /// A recovery accepts frames that do not chain to the one before.
    IgnoreChain,
    /// Freed units are given out again at once.
    FreeAtOnce,
    /// A lone super block is believed.
    TrustLoneSuper,
    /// Frames are acknowledged before they are durable.
    EarlyAnswer,
    /// The data of large writes is linked before it is durable.
    EarlyLink,
    /// Units of large writes that the log still speaks of are overwritten in place.
    IgnorePins,
}

/// All of them.
pub const ALL: [Bug; 8] = [
    Bug::SkipFlush,
    Bug::SwapCheckpoint,
    Bug::IgnoreChain,
    Bug::FreeAtOnce,
    Bug::TrustLoneSuper,
    Bug::EarlyAnswer,
    Bug::EarlyLink,
    Bug::IgnorePins,
];
