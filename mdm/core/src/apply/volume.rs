//! Volumes.

use std::collections::BTreeMap;

use mdm_api::command::{CommandAnswer, CommandResult, ObjectRef};
use mdm_api::epoch::SnapSeq;
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{StoragePoolId, VolumeId, VtreeId};
use mdm_api::limits::{LABEL_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, VOLUME_BYTES_MAX, VOLUME_GRANULE_BYTES};
use mdm_api::map::MapKey;
use mdm_api::model::Volume;

use super::name::check_name;
use super::{done, object, refuse};
use crate::limits::{OVERCOMMIT_MAX, VOLUMES_MAX};
use crate::placement;
use crate::state::State;

impl State {
    /// Makes a volume, and with a pool's first volume the groups of the pool.
    pub(super) fn add_volume(
        &mut self,
        name: &str,
        pool: Option<&ObjectRef>,
        size_bytes: u64,
        labels: &BTreeMap<String, String>,
        at_s: u64,
    ) -> CommandResult {
        check_name(name)?;
        labels.iter().try_for_each(|(key, value)| check_label(key, value))?;
        check_label_count(labels.len())?;
        let pool = self.find_pool_or_only(pool, |_| true)?.id;
        self.check_volume_name(name, None)?;
        if self.volumes.len() >= VOLUMES_MAX {
            return refuse(ErrorCode::TooMany, "There are too many volumes", "remove one first");
        }
        let size_bytes = round_up(size_bytes)?;
        // The table first: without devices the words about missing ones are of more use than those about room.
        if self.pgs_of(pool).next().is_some() {
            self.check_room(pool, None, size_bytes)?;
            self.make_table(pool)?;
        } else {
            let mut trial = self.clone();
            trial.make_table(pool)?;
            trial.check_room(pool, None, size_bytes)?;
            *self = trial;
        }
        let id = VolumeId(self.mint.take());
        let vtree = VtreeId(self.mint.take());
        let volume = Volume {
            id,
            name: name.to_owned(),
            pool,
            vtree,
            size_bytes,
            snap_seq: SnapSeq(0),
            created_s: at_s,
            removing: false,
            labels: labels.clone(),
        };
        self.volumes.insert(id, volume);
        self.touch(MapKey::Volume(id));
        Ok(CommandAnswer::Volume { id, size_bytes })
    }

    pub(super) fn rename_volume(&mut self, volume: &ObjectRef, name: &str) -> CommandResult {
        let id = self.find_open_volume(volume)?.id;
        check_name(name)?;
        self.check_volume_name(name, Some(id))?;
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.name = name.to_owned();
        }
        self.touch(MapKey::Volume(id));
        object(id.0)
    }

    /// Sets a label, or takes it away where the value is empty.
    pub(super) fn label_volume(&mut self, volume: &ObjectRef, key: &str, value: &str) -> CommandResult {
        let found = self.find_open_volume(volume)?;
        let id = found.id;
        check_label(key, value)?;
        check_label_count(found.labels.len() + usize::from(!value.is_empty() && !found.labels.contains_key(key)))?;
        if found.labels.get(key).map_or("", String::as_str) == value {
            return object(id.0);
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            if value.is_empty() {
                volume.labels.remove(key);
            } else {
                volume.labels.insert(key.to_owned(), value.to_owned());
            }
        }
        self.touch(MapKey::Volume(id));
        object(id.0)
    }

    pub(super) fn resize_volume(&mut self, volume: &ObjectRef, size_bytes: u64) -> CommandResult {
        let volume = self.find_open_volume(volume)?;
        let (id, pool, before) = (volume.id, volume.pool, volume.size_bytes);
        let size_bytes = round_up(size_bytes)?;
        if size_bytes < before {
            return refuse(
                ErrorCode::SizeCanOnlyGrow,
                "Volume capacity can only be increased",
                format!("it has {before} bytes: ask for more, or copy to a smaller one"),
            );
        }
        if size_bytes > before {
            self.check_room(pool, Some(id), size_bytes)?;
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.size_bytes = size_bytes;
            }
            self.touch(MapKey::Volume(id));
        }
        Ok(CommandAnswer::Volume { id, size_bytes })
    }

    /// Nobody can open it from now on; it is gone when every primary has dropped its chunks.
    pub(super) fn remove_volume(&mut self, volume: &ObjectRef) -> CommandResult {
        let volume = self.find_volume(volume)?;
        let (id, name) = (volume.id, volume.name.clone());
        if volume.removing {
            return object(id.0);
        }
        let mut waiting = false;
        for mapping in self.mappings.values().filter(|mapping| mapping.volume == id) {
            if !mapping.revoked {
                return refuse(
                    ErrorCode::VolumeMapped,
                    format!("Volume is mapped: '{name}' to SDC {}", mapping.sdc),
                    "unmap it first with `scli volume unmap`",
                );
            }
            waiting = true;
        }
        if waiting {
            return refuse(ErrorCode::Busy, format!("Volume '{name}' is still being unmapped"), "try again shortly");
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.removing = true;
        }
        self.touch(MapKey::Volume(id));
        object(id.0)
    }

    pub(super) fn volumes_dropped(&mut self, volumes: &[VolumeId]) -> CommandResult {
        for id in volumes {
            if self.volumes.get(id).is_some_and(|volume| volume.removing) {
                self.volumes.remove(id);
                self.bury(MapKey::Volume(*id));
            }
        }
        done()
    }

    /// A volume that is not going away.
    pub(super) fn find_open_volume(&self, volume: &ObjectRef) -> Result<&Volume, CommandError> {
        let volume = self.find_volume(volume)?;
        if volume.removing {
            return refuse(
                ErrorCode::Busy,
                format!("A volume removal operation is currently in progress. Volume {} is being removed", volume.id),
                "",
            );
        }
        Ok(volume)
    }

    fn check_volume_name(&self, name: &str, own: Option<VolumeId>) -> Result<(), CommandError> {
        let same = |volume: &Volume| !volume.removing && volume.name == name && Some(volume.id) != own;
        if self.volumes.values().any(same) {
            // The words that clients match, and nothing but them in the message.
            return refuse(
                ErrorCode::VolumeNameInUse,
                "Volume name already in use. Please use a different name.",
                format!("there is a volume '{name}'"),
            );
        }
        Ok(())
    }

    /// Thin provisioning has an end: a volume that the pool could never hold, and more promised than any growth makes good.
    fn check_room(&self, pool: StoragePoolId, own: Option<VolumeId>, size_bytes: u64) -> Result<(), CommandError> {
        let Some(record) = self.pools.get(&pool) else { return Ok(()) };
        let usable = placement::usable_bytes(&placement::slots(self, pool), record.copies);
        let mib = |bytes: u64| bytes >> 20;
        if size_bytes > usable {
            return refuse(
                ErrorCode::VolumeTooLarge,
                format!(
                    "A volume of {} MiB is larger than storage pool '{}', which can hold {} MiB with {} copies",
                    mib(size_bytes),
                    record.name,
                    mib(usable),
                    record.copies
                ),
                "ask for less, or add devices first",
            );
        }
        let volumes = self.volumes.values().filter(|volume| volume.pool == pool && Some(volume.id) != own);
        let promised: u128 = volumes.map(|volume| u128::from(volume.size_bytes)).sum();
        if promised + u128::from(size_bytes) > u128::from(usable) * u128::from(OVERCOMMIT_MAX) {
            return refuse(
                ErrorCode::VolumeTooLarge,
                format!(
                    "All volumes of storage pool '{}' together would be more than {OVERCOMMIT_MAX} times what it can hold",
                    record.name
                ),
                "remove volumes, or add devices first",
            );
        }
        Ok(())
    }
}

/// Plain keys, so that scripts can name them; values are anybody's text.
fn check_label(key: &str, value: &str) -> Result<(), CommandError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX || !key.bytes().all(plain) {
        return refuse(
            ErrorCode::InvalidArgument,
            format!("'{key}' cannot be the key of a label"),
            format!("use 1 to {LABEL_KEY_BYTES_MAX} letters, digits and . _ -"),
        );
    }
    if value.len() > LABEL_VALUE_BYTES_MAX || value.bytes().any(|byte| byte == 0) {
        return refuse(
            ErrorCode::InvalidArgument,
            format!(
                "The value of the label '{key}' is longer than {LABEL_VALUE_BYTES_MAX} bytes, or has a zero byte in it"
            ),
            "shorten it",
        );
    }
    Ok(())
}

fn check_label_count(count: usize) -> Result<(), CommandError> {
    if count > LABELS_MAX {
        return refuse(ErrorCode::TooMany, "There are too many labels", format!("a volume has at most {LABELS_MAX}"));
    }
    Ok(())
}

fn round_up(size_bytes: u64) -> Result<u64, CommandError> {
    if size_bytes == 0 {
        return refuse(ErrorCode::SizeIllegal, "The specified volume size is illegal: 0", "give at least 1 MiB");
    }
    if size_bytes > VOLUME_BYTES_MAX {
        return refuse(
            ErrorCode::VolumeTooLarge,
            format!("A volume of {size_bytes} bytes is too large"),
            format!("the largest has {} TiB", VOLUME_BYTES_MAX >> 40),
        );
    }
    Ok(size_bytes.next_multiple_of(VOLUME_GRANULE_BYTES))
}
