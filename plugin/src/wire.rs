//! What dockerd and the plugin say to each other, in JSON.
//!
//! Facts of the protocol that are easy to get wrong: bodies come without a Content-Type; a request that dockerd retries
//! comes with an *empty* body; an error in the answer to `Get` means "there is no such volume" to dockerd, whatever its text.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// A request about one volume; what an endpoint does not use is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Named {
    /// The volume.
    pub name: String,
    /// Options of `Create`; may be null.
    pub opts: Option<BTreeMap<String, String>>,
    /// Which mount.
    #[serde(rename = "ID")]
    pub id: String,
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named as Docker names them
pub enum Endpoint {
    Activate,
    Capabilities,
    Create,
    Remove,
    Mount,
    Unmount,
    Path,
    Get,
    List,
    /// Ours: forget mounts by hand.
    Release,
}

impl Endpoint {
    /// By its path.
    pub fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/Plugin.Activate" => Self::Activate,
            "/VolumeDriver.Capabilities" => Self::Capabilities,
            "/VolumeDriver.Create" => Self::Create,
            "/VolumeDriver.Remove" => Self::Remove,
            "/VolumeDriver.Mount" => Self::Mount,
            "/VolumeDriver.Unmount" => Self::Unmount,
            "/VolumeDriver.Path" => Self::Path,
            "/VolumeDriver.Get" => Self::Get,
            "/VolumeDriver.List" => Self::List,
            "/Ashlar.Release" => Self::Release,
            _ => return None,
        })
    }

    /// True if it is about one volume, so that a request without a body cannot be answered.
    pub const fn is_named(self) -> bool {
        !matches!(self, Self::Activate | Self::Capabilities | Self::List)
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The endpoint's own object.
    Object(Value),
    /// Refused, in words; an error of the request, not of HTTP.
    Refused(String),
    /// Not a request at all.
    Bad {
        /// Status of HTTP.
        status: u16,
        /// In words.
        text: String,
    },
    /// It cannot be told: the connection is closed without a word, which dockerd takes as "unknown".
    HangUp,
}

impl Reply {
    /// Done, nothing to tell.
    pub fn done() -> Self {
        Self::Object(json!({ "Err": "" }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_docker_writes_them() {
        let named: Named = serde_json::from_str(r#"{"Name":"v","Opts":null}"#).expect("JSON");
        assert_eq!((named.name.as_str(), named.opts), ("v", None));
        let named: Named = serde_json::from_str(r#"{"Name":"v","ID":"77"}"#).expect("JSON");
        assert_eq!(named.id, "77");
        assert!(serde_json::from_str::<Named>(r#"{"Name":5}"#).is_err());
    }
}
