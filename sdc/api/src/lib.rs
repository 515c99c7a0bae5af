//! The local control protocol: what the plugin, `scli`, `drv_cfg` and `dev` say to the data client of their own host.
//!
//! One JSON object on a line each way, over a unix socket that only root reaches (mode 0600): easy to speak from any
//! language, easy to look at. A connection carries any number of requests, answered in order. Lines are bounded.

use mdm_api::ids::{Guid, SdcId, SystemId, VolumeId};
use mdm_api::model::AccessMode;
use serde::{Deserialize, Serialize};

#[cfg(feature = "client")]
pub mod client;

/// The longest line, either way: the status of 10,000 volumes is below 8 MiB.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Where the socket is unless the configuration says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/ashlar/sdc.sock";

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum LocalRequest {
    /// Who this client is and what it serves.
    Status,
    /// Make a mapped volume a block device of this host. Done when the device is there; done already is success.
    Attach {
        /// Its name or id.
        volume: String,
        /// Whoever has just mapped it says at which revision of the map: the client waits until it has heard of it. 0: it
        /// answers from what it has.
        #[serde(default)]
        revision: u64,
    },
    /// Take the block device away. Refused while something on this host uses it, unless `force`.
    Detach {
        /// Its name or id.
        volume: String,
        /// Take it away under its users; what they write from then on fails.
        #[serde(default)]
        force: bool,
    },
    /// Ask the metadata manager anew for everything.
    Rescan,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum LocalAnswer {
    /// To `Status`.
    Status(Box<LocalStatus>),
    /// To `Attach`: the volume with its device.
    Attached(LocalVolume),
    /// Done.
    Done,
    /// Refused.
    Refused(LocalError),
}

/// Why not, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}: {remedy}")]
pub struct LocalError {
    /// What programs match.
    pub code: LocalErrorCode,
    /// What is wrong, naming the thing.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalErrorCode {
    /// The line was not a request.
    BadRequest,
    /// The volume is not mapped to this host.
    NotMapped,
    /// Something uses the device.
    InUse,
    /// No way to make a block device here.
    NoMechanism,
    /// The system cannot be reached.
    Unavailable,
    /// Something else went wrong.
    Failed,
}

/// Who this client is and what it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalStatus {
    /// The host's lasting identity.
    pub guid: Guid,
    /// The systems that it uses.
    pub systems: Vec<LocalSystem>,
    /// The volumes that are mapped to it.
    pub volumes: Vec<LocalVolume>,
    /// Version of the daemon.
    pub version: String,
}

/// A system that this host uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalSystem {
    /// Its id.
    #[serde(with = "hex")]
    pub system: SystemId,
    /// This client's id there.
    #[serde(with = "hex")]
    pub sdc: SdcId,
    /// Where its metadata managers are.
    pub mdms: Vec<String>,
    /// True while one of them is followed.
    pub connected: bool,
}

/// A mapped volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalVolume {
    /// Its system.
    #[serde(with = "hex")]
    pub system: SystemId,
    /// Its id.
    #[serde(with = "hex")]
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What this host may do.
    pub access: AccessMode,
    /// Where it is served.
    pub nbd_uri: String,
    /// The block device, where it is attached.
    pub device: Option<String>,
    /// How it is attached, in a word.
    pub mechanism: Option<String>,
    /// Why it is not served or not attached as it should be.
    pub problem: Option<String>,
}

mod hex {
    //! Ids as 16 hex digits.
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_plain_line() {
        let line = serde_json::to_string(&LocalRequest::Detach { volume: "v".to_owned(), force: true }).unwrap();
        assert_eq!(line, r#"{"request":"detach","volume":"v","force":true}"#);
        let parsed: LocalRequest = serde_json::from_str(r#"{"request":"detach","volume":"v"}"#).unwrap();
        assert_eq!(parsed, LocalRequest::Detach { volume: "v".to_owned(), force: false });
        assert!(serde_json::from_str::<LocalRequest>(r#"{"request":"format"}"#).is_err());
    }

    #[test]
    fn ids_are_hex_in_json() {
        let system = LocalSystem { system: SystemId(5), sdc: SdcId(6), mdms: vec![], connected: true };
        let text = serde_json::to_string(&LocalAnswer::Status(Box::new(LocalStatus {
            guid: Guid([1; 16]),
            systems: vec![system],
            volumes: vec![],
            version: "1".to_owned(),
        })))
        .unwrap();
        assert!(text.contains("\"0000000000000005\""), "{text}");
        assert!(matches!(serde_json::from_str(&text), Ok(LocalAnswer::Status(_))));
    }
}
