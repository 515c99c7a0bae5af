//! Devices: from being added to being gone.

use std::collections::BTreeSet;

use mdm_api::command::{CommandAnswer, CommandResult, ObjectRef, PresentedDevice, StoreVerdict};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{DeviceId, DeviceIncarnation, ProcessIncarnation, SdsId, StoragePoolId};
use mdm_api::map::MapKey;
use mdm_api::model::{Device, DeviceState};

use super::name::{check_name, check_text, clip, in_use};
use super::{Context, done, object, refuse};
use crate::command::Effect;
use crate::limits::{DEVICE_BYTES_MIN, DEVICES_PER_SDS_MAX};
use crate::placement;
use crate::state::{FaultUnit, State};

impl State {
    /// Records a device; its server formats it, and says `DeviceReady` or `DeviceRefused`.
    pub(super) fn add_device(
        &mut self,
        name: Option<&str>,
        sds: &ObjectRef,
        pool: Option<&ObjectRef>,
        path: &str,
    ) -> CommandResult {
        let sds = self.find_sds(sds)?;
        let (sds, domain, sds_name) = (sds.id, sds.protection_domain, sds.name.clone());
        let pool = self.find_pool_or_only(pool, |pool| pool.protection_domain == domain)?;
        if pool.protection_domain != domain {
            return refuse(
                ErrorCode::StoragePoolNotFound,
                format!("Storage pool '{}' is of another protection domain than SDS '{sds_name}'", pool.name),
                "choose a pool of the SDS's own domain",
            );
        }
        let pool = pool.id;
        check_text("path", path)?;
        if !path.starts_with('/') {
            return refuse(ErrorCode::InvalidArgument, format!("'{path}' is no absolute path"), "begin it with /");
        }
        let own = || self.devices.values().filter(|device| device.sds == sds);
        if let Some(device) = own().find(|device| device.path == path) {
            return refuse(
                ErrorCode::DeviceUnusable,
                format!("'{path}' is already device '{}' of SDS '{sds_name}'", device.name),
                "choose another path, or remove that device first",
            );
        }
        if own().count() >= DEVICES_PER_SDS_MAX {
            return refuse(ErrorCode::TooMany, format!("SDS '{sds_name}' has too many devices"), "remove one first");
        }
        if self.registrations.get(&sds).is_some_and(|registration| registration.removing) {
            return refuse(ErrorCode::WrongState, format!("SDS '{sds_name}' is being removed"), "use another SDS");
        }
        let is_free = |name: &str| own().all(|device| device.name != name);
        let name = match name {
            Some(name) => {
                check_name(name)?;
                if !is_free(name) {
                    return in_use("device on this SDS", name);
                }
                name.to_owned()
            }
            None => {
                let base = path.rsplit('/').next().unwrap_or_default();
                let numbered = || (1..).map(|n| format!("device-{n}")).find(|name| is_free(name));
                match Some(base).filter(|base| check_name(base).is_ok() && is_free(base)) {
                    Some(base) => base.to_owned(),
                    None => numbered().expect("of that many names one is free"),
                }
            }
        };
        let id = DeviceId(self.mint.take());
        let incarnation = DeviceIncarnation(self.mint.take());
        let device = Device {
            id,
            name,
            sds,
            pool,
            path: path.to_owned(),
            incarnation,
            open_count: 0,
            opened_by: None,
            size_bytes: 0,
            state: DeviceState::Adding,
            suspect: false,
            error: None,
        };
        self.devices.insert(id, device);
        self.touch(MapKey::Device(id));
        Ok(CommandAnswer::DeviceRecorded { id, incarnation })
    }

    pub(super) fn rename_device(&mut self, device: &ObjectRef, name: &str) -> CommandResult {
        let (id, sds) = self.find_device(device).map(|device| (device.id, device.sds))?;
        check_name(name)?;
        if self.devices.values().any(|other| other.id != id && other.sds == sds && other.name == name) {
            return in_use("device on this SDS", name);
        }
        if let Some(device) = self.devices.get_mut(&id) {
            device.name = name.to_owned();
        }
        self.touch(MapKey::Device(id));
        object(id.0)
    }

    /// Takes a device as its server's process presents it, or says why not. I4, F32: only the very device that was added,
    /// and never an older state of it.
    pub(super) fn accept_device(
        &mut self,
        sds: SdsId,
        process: ProcessIncarnation,
        presented: &PresentedDevice,
    ) -> Result<(), String> {
        let id = presented.device;
        let Some(device) = self.devices.get_mut(&id) else {
            return Err(format!("device {id} is not of this system any more: wipe it and add it anew"));
        };
        if device.sds != sds {
            return Err(format!("device {id} belongs to SDS {}: it may be a copy", device.sds));
        }
        if device.incarnation != presented.incarnation {
            return Err(format!("device {id} was replaced since: wipe it and add it anew"));
        }
        if device.state == DeviceState::Failed {
            return Err(format!("device {id} has failed for good: remove it, wipe it and add it anew"));
        }
        if device.opened_by == Some(process) && device.open_count != presented.open_count {
            return Err(format!("device {id} is presented twice by one process: one of the two is a copy"));
        }
        // Each process opens it once more than the one before.
        let expected = device.open_count + u64::from(device.opened_by != Some(process));
        if presented.open_count < expected {
            // What it acknowledged since is gone. Marked, so that opening it often enough does not hide it.
            let fresh = !device.suspect;
            device.suspect = true;
            if fresh {
                self.touch(MapKey::Device(id));
                self.note_doubt(id, true);
            }
            return Err(format!("device {id} was rolled back to an older state, or is a copy of it"));
        }
        if presented.size_bytes < DEVICE_BYTES_MIN.max(device.size_bytes) {
            return Err(format!("device {id} has {} bytes: too small, or smaller than it was", presented.size_bytes));
        }
        device.open_count = presented.open_count;
        device.opened_by = Some(process);
        device.size_bytes = presented.size_bytes;
        device.error = None;
        if device.state == DeviceState::Adding {
            device.state = DeviceState::Normal;
        }
        let suspect = presented.verdict == StoreVerdict::Suspect;
        device.suspect |= suspect;
        self.touch(MapKey::Device(id));
        if presented.verdict != StoreVerdict::Clean {
            self.note_doubt(id, suspect);
        }
        Ok(())
    }

    /// A device was formatted, or found after its server had registered.
    pub(super) fn present_device(
        &mut self,
        sds: SdsId,
        process: ProcessIncarnation,
        presented: &PresentedDevice,
    ) -> CommandResult {
        self.check_process(sds, process)?;
        // A refusal that leaves a mark on the device is an answer, not an error: errors change nothing.
        match self.accept_device(sds, process, presented) {
            Ok(()) => {
                self.repoint_all(&BTreeSet::from([presented.device]));
                object(presented.device.0)
            }
            Err(reason) => {
                if self.changes.has(self.next_revision()) {
                    self.repoint_all(&BTreeSet::from([presented.device]));
                    return Ok(CommandAnswer::SdsRegistered {
                        incarnation: process,
                        revision: self.next_revision(),
                        refused: vec![(presented.device, reason)],
                    });
                }
                refuse(ErrorCode::DeviceUnusable, reason, "see `scli device list`")
            }
        }
    }

    /// A device that was to be formatted cannot be: as if it had never been added.
    pub(super) fn device_refused(
        &mut self,
        sds: SdsId,
        process: ProcessIncarnation,
        device: DeviceId,
        reason: &str,
        context: &mut Context<'_>,
    ) -> CommandResult {
        self.check_process(sds, process)?;
        let Some(record) = self.devices.get(&device).filter(|record| record.sds == sds) else { return done() };
        if record.state != DeviceState::Adding {
            return refuse(ErrorCode::WrongState, format!("Device {device} is in use already"), "");
        }
        let reason = clip(&format!("{}: {reason}", record.path));
        self.bury_device(device);
        context.effects.push(Effect::DeviceRefused { device, reason });
        done()
    }

    /// A write or flush error, or a hung disk: failed for good. All its groups change in this one command (F13, F14).
    pub(super) fn device_failed(
        &mut self,
        sds: SdsId,
        process: ProcessIncarnation,
        device: DeviceId,
        reason: &str,
    ) -> CommandResult {
        self.check_process(sds, process)?;
        let Some(record) = self.devices.get_mut(&device).filter(|record| record.sds == sds) else {
            return refuse(ErrorCode::DeviceNotFound, format!("Could not find the device {device}"), "");
        };
        if record.state == DeviceState::Failed {
            return done();
        }
        record.state = DeviceState::Failed;
        record.error = Some(clip(reason));
        self.touch(MapKey::Device(device));
        self.repoint_all(&BTreeSet::from([device]));
        done()
    }

    pub(super) fn remove_device(&mut self, device: &ObjectRef, force: bool) -> CommandResult {
        let id = self.find_device(device)?.id;
        // All or nothing: tried on a copy.
        let mut trial = self.clone();
        trial.remove_devices(&BTreeSet::from([id]), force)?;
        *self = trial;
        object(id.0)
    }

    /// Begins to empty devices, or removes them at once where nothing hangs on them or `force` is given. The state may be
    /// half changed if this is refused.
    pub(super) fn remove_devices(&mut self, devices: &BTreeSet<DeviceId>, force: bool) -> Result<(), CommandError> {
        let pools: BTreeSet<StoragePoolId> =
            devices.iter().filter_map(|device| self.devices.get(device)).map(|device| device.pool).collect();
        for pool in pools {
            if !self.volumes.values().any(|volume| volume.pool == pool) {
                self.discard_table(pool);
            }
        }
        let mut leads = self.leads();
        for id in devices {
            let groups = self.pgs_naming(&BTreeSet::from([*id]));
            if groups.is_empty() {
                self.bury_device(*id);
                continue;
            }
            if force {
                self.check_force(*id)?;
                for pg in groups {
                    self.force_out(pg, *id, &mut leads)?;
                }
                self.bury_device(*id);
                continue;
            }
            self.check_room_without(*id, devices)?;
            if let Some(device) = self.devices.get_mut(id).filter(|device| device.state == DeviceState::Normal) {
                device.state = DeviceState::Removing;
                self.touch(MapKey::Device(*id));
            }
        }
        Ok(())
    }

    /// By force only what is not there: a device that works is emptied, whatever hurry there is.
    fn check_force(&self, id: DeviceId) -> Result<(), CommandError> {
        let alone = self.pgs.values().any(|record| record.config.isr == [id]);
        if alone && self.is_fit(id) {
            return refuse(
                ErrorCode::WrongState,
                format!("Device {id} works, and holds the only good copy of some data"),
                "wait for the rebuild, or remove it without force",
            );
        }
        Ok(())
    }

    /// The pool must still have enough fault units, and room for what is in it, without these devices.
    fn check_room_without(&self, id: DeviceId, leaving: &BTreeSet<DeviceId>) -> Result<(), CommandError> {
        let Some(device) = self.devices.get(&id) else { return Ok(()) };
        if device.state == DeviceState::Failed {
            return refuse(
                ErrorCode::WrongState,
                format!("Device '{}' has failed and holds the only copy of some data", device.name),
                "to give that data up, remove it with --force",
            );
        }
        let Some(pool) = self.pools.get(&device.pool) else { return Ok(()) };
        let mut left = placement::slots(self, pool.id);
        left.retain(|other, _| !leaving.contains(other));
        let units: BTreeSet<FaultUnit> = left.values().map(|slot| slot.unit).collect();
        if units.len() < usize::from(pool.copies) {
            return refuse(
                ErrorCode::TooFewFaultUnits,
                format!(
                    "Without device '{}' storage pool '{}' has devices of only {} fault sets or SDSs for {} copies",
                    device.name,
                    pool.name,
                    units.len(),
                    pool.copies
                ),
                "add a device elsewhere first, or remove the pool's volumes",
            );
        }
        Ok(())
    }

    /// Removes the record. Its id and incarnation are never used again (I4).
    pub(super) fn bury_device(&mut self, id: DeviceId) {
        let Some(device) = self.devices.remove(&id) else { return };
        self.bury(MapKey::Device(id));
        self.bury_empty_sds(device.sds);
    }

    /// Devices that were being emptied, and are.
    pub(super) fn devices_drained(&mut self, devices: &[DeviceId]) -> CommandResult {
        for id in devices {
            let removing = self.devices.get(id).is_some_and(|device| device.state == DeviceState::Removing);
            if removing && self.pgs_naming(&BTreeSet::from([*id])).is_empty() {
                self.bury_device(*id);
            }
        }
        done()
    }
}
