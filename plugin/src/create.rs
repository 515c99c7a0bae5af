//! Making and removing volumes.
//!
//! Both may be asked twice, by two hosts at once, or again after an answer was lost: making a volume that is there as it
//! was asked for is success, and so is removing one that is gone while it was being removed.

use std::collections::BTreeMap;
use std::time::Duration;

use mdm_api::client::ClientError;
use mdm_api::command::{AdminCommand, ObjectRef, SystemView};
use mdm_api::error::ErrorCode;
use mdm_api::limits::VOLUME_GRANULE_BYTES;
use mdm_api::model::Volume;

use crate::core::options::{self, Given};
use crate::core::placement::{self, Defaults};
use crate::core::{labels, names};
use crate::system::System;

/// How long the system may take.
const PATIENCE: Duration = Duration::from_secs(25);

/// What the configuration says for volumes that say nothing.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Bytes.
    pub size_bytes: u64,
    /// File system.
    pub filesystem: String,
    /// Where.
    pub place: Defaults,
}

/// Makes a volume; says why not.
pub async fn create(
    system: &System,
    defaults: &NewVolume,
    name: &str,
    options: &BTreeMap<String, String>,
) -> Result<(), String> {
    let given = options::parse(options).map_err(|error| error.to_string())?;
    // Twice: the volume may be made, or be removed, between the look and the command.
    for _ in 0..2 {
        let view = system.view(PATIENCE).await.map_err(|error| error.to_string())?;
        if let Some(volume) = view.volumes.iter().find(|volume| labels::is_named(volume, name)) {
            return compare(&view, volume, name, &given);
        }
        let pool = placement::choose(&view, &given, &defaults.place).map_err(|error| error.to_string())?;
        let command = AdminCommand::AddVolume {
            name: names::system_name(name),
            storage_pool: Some(ObjectRef(pool.to_string())),
            size_bytes: given.size_bytes().unwrap_or(defaults.size_bytes),
            labels: labels::of_new(name, &given, &defaults.filesystem),
        };
        match system.change(command, PATIENCE).await {
            Ok(_) => return Ok(()),
            Err(ClientError::Refused(error)) if error.code == ErrorCode::VolumeNameInUse => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    let own = names::system_name(name);
    Err(format!(
        "the system has a volume '{own}' that was not made for Docker: choose another name, or hand it over with \
         `scli volume label {own} --key {} --value {name}`",
        labels::NAME
    ))
}

/// A volume that is there must be what is asked for.
fn compare(view: &SystemView, volume: &Volume, name: &str, given: &Given) -> Result<(), String> {
    if let Some((option, has)) = labels::difference(volume, given) {
        let asked = given.get(option).unwrap_or_default();
        return Err(format!("volume '{name}' exists with {option}={has}, not {option}={asked}"));
    }
    if let Some(bytes) = given.size_bytes()
        && bytes.next_multiple_of(VOLUME_GRANULE_BYTES) != volume.size_bytes
    {
        return Err(format!("volume '{name}' exists with {} bytes, not {bytes}", volume.size_bytes));
    }
    let pool = view.storage_pools.iter().find(|pool| pool.pool.id == volume.pool);
    match pool {
        Some(pool) if !placement::matches(view, &pool.pool, given) => Err(format!(
            "volume '{name}' exists in pool {} with {} copies, which is not what is asked for",
            pool.pool.name, pool.pool.copies
        )),
        _ => Ok(()),
    }
}

/// Removes a volume that nothing of is left on this host; says why not.
pub async fn remove(system: &System, name: &str) -> Result<(), String> {
    let view = system.view(PATIENCE).await.map_err(|error| error.to_string())?;
    let Some(volume) = view.volumes.iter().find(|volume| labels::is_named(volume, name)) else {
        return Err(format!("there is no volume '{name}'"));
    };
    let hosts: Vec<String> = view
        .mappings
        .iter()
        .filter(|mapping| mapping.volume == volume.id && !mapping.revoked)
        .map(|mapping| {
            let client = view.sdcs.iter().find(|client| client.sdc.id == mapping.sdc);
            client.and_then(|client| client.sdc.name.clone()).unwrap_or_else(|| mapping.sdc.to_string())
        })
        .collect();
    if !hosts.is_empty() {
        return Err(format!("volume '{name}' is in use on {}", hosts.join(", ")));
    }
    let command = AdminCommand::RemoveVolume { volume: ObjectRef(volume.id.to_string()) };
    match system.change(command, PATIENCE).await {
        Ok(_) => Ok(()),
        Err(ClientError::Refused(error)) if error.code == ErrorCode::VolumeNotFound => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
