//! Data servers and their processes.

use std::collections::BTreeSet;

use mdm_api::command::{CommandAnswer, CommandResult, ObjectRef, PresentedDevice};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{DeviceId, ProcessIncarnation, SdsId};
use mdm_api::map::MapKey;
use mdm_api::model::Sds;

use super::name::{check_addresses, check_name, in_use};
use super::{done, object, refuse};
use crate::limits::{DEVICES_PER_SDS_MAX, NONCES_MAX, SDS_MAX};
use crate::state::{Registration, State};

impl State {
    pub(super) fn add_sds(
        &mut self,
        name: &str,
        domain: Option<&ObjectRef>,
        fault_set: Option<&ObjectRef>,
        addresses: &[String],
    ) -> CommandResult {
        check_name(name)?;
        check_addresses(addresses)?;
        let fault_set = fault_set.map(|set| self.find_fault_set(set).cloned()).transpose()?;
        let domain = match (domain, &fault_set) {
            (None, Some(set)) => set.protection_domain,
            _ => self.find_domain_or_only(domain)?.id,
        };
        if let Some(set) = fault_set.as_ref().filter(|set| set.protection_domain != domain) {
            return refuse(
                ErrorCode::FaultSetNotFound,
                format!("Fault set '{}' is of another protection domain", set.name),
                "choose one of the SDS's own domain",
            );
        }
        if self.sds.values().any(|sds| sds.name == name) {
            return in_use("SDS", name);
        }
        let taken = |sds: &&Sds| addresses.iter().any(|address| sds.addresses.contains(address));
        if let Some(other) = self.sds.values().find(taken) {
            return refuse(
                ErrorCode::InvalidArgument,
                format!("SDS '{}' is already at one of these addresses", other.name),
                "use another address or port",
            );
        }
        if self.sds.len() >= SDS_MAX {
            return refuse(ErrorCode::TooMany, "There are too many SDSs", "remove one first");
        }
        let id = SdsId(self.mint.take());
        let sds = Sds {
            id,
            name: name.to_owned(),
            protection_domain: domain,
            fault_set: fault_set.map(|set| set.id),
            addresses: addresses.to_vec(),
            incarnation: None,
            connected: false,
        };
        self.sds.insert(id, sds);
        self.registrations.insert(id, Registration::default());
        self.touch(MapKey::Sds(id));
        object(id.0)
    }

    pub(super) fn rename_sds(&mut self, sds: &ObjectRef, name: &str) -> CommandResult {
        let id = self.find_sds(sds)?.id;
        check_name(name)?;
        if self.sds.values().any(|other| other.id != id && other.name == name) {
            return in_use("SDS", name);
        }
        if let Some(sds) = self.sds.get_mut(&id) {
            sds.name = name.to_owned();
        }
        self.touch(MapKey::Sds(id));
        object(id.0)
    }

    /// A server that has devices is emptied first, and goes with the last of them.
    pub(super) fn remove_sds(&mut self, sds: &ObjectRef, force: bool) -> CommandResult {
        let id = self.find_sds(sds)?.id;
        let devices: BTreeSet<DeviceId> = self.devices_of(id).into_iter().collect();
        // All or nothing: tried on a copy.
        let mut trial = self.clone();
        trial.remove_devices(&devices, force)?;
        if let Some(registration) = trial.registrations.get_mut(&id) {
            registration.removing = true;
        }
        trial.bury_empty_sds(id);
        *self = trial;
        object(id.0)
    }

    /// Removes a server that is to go and has no device any more.
    pub(super) fn bury_empty_sds(&mut self, id: SdsId) {
        let removing = self.registrations.get(&id).is_some_and(|registration| registration.removing);
        if removing && self.devices_of(id).is_empty() {
            self.sds.remove(&id);
            self.registrations.remove(&id);
            self.bury(MapKey::Sds(id));
        }
    }

    /// The process must be the current one of its server.
    pub(super) fn check_process(&self, sds: SdsId, incarnation: ProcessIncarnation) -> Result<(), CommandError> {
        let Some(record) = self.sds.get(&sds) else { return no_such_sds(sds) };
        if record.incarnation != Some(incarnation) {
            return refuse(
                ErrorCode::Stale,
                format!("This is not the current process of SDS '{}'", record.name),
                "register again",
            );
        }
        Ok(())
    }

    /// A process of a server has started. Its devices count from now on as held by it, and the groups that the process
    /// before it led get a new term (I2), with its death certified where this one holds the device (I14).
    pub(super) fn register_sds(
        &mut self,
        id: SdsId,
        nonce: u64,
        addresses: &[String],
        devices: &[PresentedDevice],
    ) -> CommandResult {
        let Some(sds) = self.sds.get(&id) else { return no_such_sds(id) };
        check_addresses(addresses)?;
        if nonce == 0 || devices.len() > DEVICES_PER_SDS_MAX {
            return refuse(ErrorCode::InvalidArgument, "A registration without a nonce or with too many devices", "");
        }
        let known = self.registrations.get(&id).cloned().unwrap_or_default();
        if known.nonces.last() == Some(&nonce) {
            let incarnation = sds.incarnation.unwrap_or_default();
            self.set_connected(id, true);
            let revision = if self.changes.has(self.next_revision()) { self.next_revision() } else { self.revision };
            return Ok(CommandAnswer::SdsRegistered { incarnation, revision, refused: known.refused });
        }
        if known.nonces.contains(&nonce) {
            return refuse(
                ErrorCode::Stale,
                format!("A later process of SDS '{}' has registered", sds.name),
                "stop this one, or register anew",
            );
        }
        let revision = self.next_revision();
        let incarnation = ProcessIncarnation(self.mint.take());
        if let Some(sds) = self.sds.get_mut(&id) {
            sds.incarnation = Some(incarnation);
            sds.connected = true;
            if !addresses.is_empty() {
                sds.addresses = addresses.to_vec();
            }
        }
        self.touch(MapKey::Sds(id));
        let own: BTreeSet<DeviceId> = self.devices_of(id).into_iter().collect();
        for device in &own {
            // Not held by this process until it has presented it.
            if let Some(record) = self.devices.get_mut(device).filter(|record| record.opened_by.is_some()) {
                record.opened_by = None;
                self.touch(MapKey::Device(*device));
            }
        }
        let mut refused = Vec::new();
        for device in devices {
            if let Err(reason) = self.accept_device(id, incarnation, device) {
                refused.push((device.device, reason));
            }
        }
        let mut nonces = known.nonces;
        nonces.push(nonce);
        if nonces.len() > NONCES_MAX {
            nonces.remove(0);
        }
        let registration = Registration { nonces, refused: refused.clone(), removing: known.removing };
        self.registrations.insert(id, registration);
        self.repoint_all(&own);
        Ok(CommandAnswer::SdsRegistered { incarnation, revision, refused })
    }

    /// Brings all groups of the devices in line.
    pub(super) fn repoint_all(&mut self, devices: &BTreeSet<DeviceId>) {
        let mut leads = self.leads();
        for pg in self.pgs_naming(devices) {
            self.repoint(pg, &mut leads);
        }
    }

    /// The process is taken to be dead: one command for all groups that it leads or was to lead. Groups in which it only
    /// follows are left to their primaries, who alone know what has been acknowledged (I9).
    pub(super) fn sds_down(&mut self, id: SdsId, incarnation: ProcessIncarnation) -> CommandResult {
        self.check_process(id, incarnation)?;
        if !self.set_connected(id, false) {
            return done();
        }
        let devices: BTreeSet<DeviceId> = self.devices_of(id).into_iter().collect();
        let led: Vec<_> = self
            .pgs
            .values()
            .filter(|record| record.config.primary.into_iter().chain(record.config.heir).any(|d| devices.contains(&d)))
            .map(|record| record.config.pg)
            .collect();
        let mut leads = self.leads();
        for pg in led {
            self.repoint(pg, &mut leads);
        }
        done()
    }

    /// A process that was taken to be dead is heard again. What it led was given to others, or waits for it.
    pub(super) fn sds_up(&mut self, id: SdsId, incarnation: ProcessIncarnation) -> CommandResult {
        self.check_process(id, incarnation)?;
        if self.set_connected(id, true) {
            let devices: BTreeSet<DeviceId> = self.devices_of(id).into_iter().collect();
            self.repoint_all(&devices);
        }
        done()
    }

    fn set_connected(&mut self, id: SdsId, connected: bool) -> bool {
        let changed = self.sds.get_mut(&id).is_some_and(|sds| {
            let changed = sds.connected != connected;
            sds.connected = connected;
            changed
        });
        if changed {
            self.touch(MapKey::Sds(id));
        }
        changed
    }
}

pub(super) fn no_such_sds<T>(sds: SdsId) -> Result<T, CommandError> {
    refuse(
        ErrorCode::SdsNotFound,
        format!("Could not find SDS {sds}"),
        "it was removed, or is of another system; add it with `scli sds add`",
    )
}
