//! The numbers that order things, each its own type so that mixing them up does not compile.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Nanoseconds of a clock that counts through suspension (CLOCK_BOOTTIME). Only differences mean anything, and only on
/// one host: no protocol compares two hosts' clocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The far end of time: a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// `ms` milliseconds later.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Milliseconds since `earlier`, 0 if it is not earlier.
    #[must_use]
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number!(/// Version of the cluster map: the number of committed commands that changed it.
    Revision);
number!(/// Version of a placement group's configuration. I1: grows with every change, only by a committed command.
    Epoch);
number!(/// Version of a primary's appointment: the epoch in which it was appointed. I2.
    Term);
number!(/// Number of a write within its placement group, dense from 1; 0 stands before the first.
    Seq);
number!(/// Number of a snapshot cut of a V-Tree; 0 until the first.
    SnapSeq);
number!(/// How often a mapping was made anew or revoked. A write carries the one it was opened under. I17.
    AttachGeneration);
number!(/// Number of a request within its session, from 1.
    RequestNumber);

/// The version of a chunk layer's content: the last write that was applied to it. I23: equal versions, equal content.
/// The default, (0, 0), stands for "never written".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default, Debug)]
pub struct Version {
    /// The term in which the write was ordered.
    pub term: Term,
    /// Its number.
    pub seq: Seq,
}
