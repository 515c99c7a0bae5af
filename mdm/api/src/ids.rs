//! Identifiers.
//!
//! Every id is 64 bits, minted by the metadata manager from one counter in its replicated state, and never used again
//! after its object is gone: reuse is the root of most mix-ups between an old thing and a new one. They are printed, and
//! parsed, as 16 lower-case hex digits. Zero is never minted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text was not 16 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an id: write it as 16 hex digits")]
pub struct ParseIdError(pub String);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:016x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let digits = text.strip_prefix("0x").unwrap_or(text);
                if digits.len() != 16 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(ParseIdError(text.to_owned()));
                }
                u64::from_str_radix(digits, 16).map(Self).map_err(|_| ParseIdError(text.to_owned()))
            }
        }
    };
}

id!(/// One cluster.
    SystemId);
id!(/// A member of the metadata manager's group. A member whose log was lost comes back under a new one.
    MdmId);
id!(/// A protection domain: a set of servers that mirror among themselves.
    ProtectionDomainId);
id!(/// A fault set: servers that fail together.
    FaultSetId);
id!(/// A storage pool: devices of one protection domain under one policy.
    StoragePoolId);
id!(/// A data server.
    SdsId);
id!(/// A device that a data server pools. The unit of failure and of placement.
    DeviceId);
id!(/// What a device was when it was added or last wiped: a wiped or replaced device has a new incarnation.
    DeviceIncarnation);
id!(/// One start of one process of a data server. Minted when the process registers.
    ProcessIncarnation);
id!(/// A data client as the system knows it.
    SdcId);
id!(/// A volume or a snapshot.
    VolumeId);
id!(/// A volume with all its snapshots and clones: the unit that placement knows.
    VtreeId);
id!(/// A user account.
    UserId);
id!(/// A key of a protection domain, under which tickets are signed.
    KeyId);

/// A placement group: the unit of replication and of write order. The index counts from 0 within the pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct PgId {
    /// The pool.
    pub pool: StoragePoolId,
    /// Which of the pool's placement groups.
    pub index: u32,
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.pool, self.index)
    }
}

impl fmt::Debug for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PgId({self})")
    }
}

/// The lasting identity of a host that uses volumes, made once by its data client. Printed in upper case with dashes,
/// parsed in any case: ScaleIO's tools compare the text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

impl FromStr for Guid {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError(text.to_owned());
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(error());
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_printed_and_parsed_as_16_hex_digits() {
        let id = VolumeId(0x5a2c_67b9_0000_0000);
        assert_eq!(id.to_string(), "5a2c67b900000000");
        assert_eq!("5a2c67b900000000".parse(), Ok(id));
        assert_eq!("0x5a2c67b900000000".parse(), Ok(id));
        assert!("5a2c".parse::<VolumeId>().is_err());
        assert!("+a2c67b900000000".parse::<VolumeId>().is_err());
    }

    #[test]
    fn a_guid_survives_its_text_in_any_case() {
        let guid: Guid = "271bad82-08ee-44f2-a2b1-7e2787c27be1".parse().unwrap();
        assert_eq!(guid.to_string(), "271BAD82-08EE-44F2-A2B1-7E2787C27BE1");
        assert!("271bad82".parse::<Guid>().is_err());
    }
}
