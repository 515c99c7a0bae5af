//! What was seen of one volume: in the system, at this host's data client, and in the mount table.
//!
//! Facts are taken together and thrown away after what they led to; nothing decides on facts of an earlier round but the
//! showing of a volume to people.

use mdm_api::command::SystemView;
use mdm_api::ids::{SdcId, VolumeId};
use mdm_api::model::{AccessMode, Limits, Mapping};

use super::labels::{self, Spec};

/// Major and minor number of a block device.
pub type DeviceNumber = (u32, u32);

/// A block device of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its path.
    pub path: String,
    /// Its number, which a mount shows.
    pub number: DeviceNumber,
    /// Its size.
    pub size_bytes: u64,
}

/// Another host that has the volume mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its client.
    pub sdc: SdcId,
    /// Its name, or its id.
    pub name: String,
    /// What it may do.
    pub access: AccessMode,
    /// For how long the system has not heard of it.
    pub silent_ms: u64,
    /// It is being unmapped.
    pub is_going: bool,
}

/// This host's mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Here {
    /// What it allows.
    pub access: AccessMode,
    /// Its limits.
    pub limits: Limits,
    /// It is being taken away.
    pub is_going: bool,
    /// The map's revision that a client must have to know of it.
    pub revision: u64,
}

/// The volume as the system has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InSystem {
    /// Its id.
    pub volume: VolumeId,
    /// Its size.
    pub size_bytes: u64,
    /// What it is to be.
    pub spec: Spec,
    /// This host's mapping.
    pub here: Option<Here>,
    /// The mappings of others.
    pub holders: Vec<Holder>,
}

impl InSystem {
    /// Finds a volume by Docker's name.
    pub fn find(view: &SystemView, name: &str, own: SdcId) -> Option<Self> {
        let volume = view.volumes.iter().find(|volume| labels::is_named(volume, name))?;
        let of_volume = || view.mappings.iter().filter(|mapping| mapping.volume == volume.id);
        let here = of_volume().find(|mapping| mapping.sdc == own).map(|mapping| Here {
            access: mapping.access,
            limits: mapping.limits,
            is_going: mapping.revoked,
            revision: mapping.fence_revision.0.max(mapping.mapped.0),
        });
        let holders = of_volume().filter(|mapping| mapping.sdc != own).map(|mapping| holder(view, mapping)).collect();
        let spec = Spec::of(&volume.labels);
        Some(Self { volume: volume.id, size_bytes: volume.size_bytes, spec, here, holders })
    }
}

fn holder(view: &SystemView, mapping: &Mapping) -> Holder {
    let client = view.sdcs.iter().find(|client| client.sdc.id == mapping.sdc);
    Holder {
        sdc: mapping.sdc,
        name: client.and_then(|client| client.sdc.name.clone()).unwrap_or_else(|| mapping.sdc.to_string()),
        access: mapping.access,
        silent_ms: client.map_or(u64::MAX, |client| client.silent_ms),
        is_going: mapping.revoked,
    }
}

/// All of it. What could not be asked is an error in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// In the system; `None`: there is no such volume.
    pub system: Result<Option<InSystem>, String>,
    /// The block device that the data client has made of it.
    pub device: Result<Option<Device>, String>,
    /// What is mounted at its mount point.
    pub mounted: Option<DeviceNumber>,
}
