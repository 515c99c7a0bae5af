//! Data clients.

use mdm_api::command::{CommandAnswer, CommandResult, ObjectRef};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{Guid, SdcId};
use mdm_api::map::MapKey;
use mdm_api::model::Sdc;

use super::name::{check_name, check_text, in_use};
use super::{object, refuse};
use crate::limits::SDCS_MAX;
use crate::state::State;

impl State {
    /// Adds a client, or finds the one that this host already is.
    pub(super) fn add_sdc(&mut self, guid: Guid, name: Option<&str>) -> CommandResult {
        if let Some(sdc) = self.sdc_by_guid(guid) {
            let id = sdc.id;
            self.name_sdc(id, name)?;
            return object(id.0);
        }
        object(self.new_sdc(guid, name, String::new())?.0)
    }

    /// A client daemon has started.
    pub(super) fn register_sdc(&mut self, guid: Guid, name: Option<&str>, address: &str) -> CommandResult {
        check_text("address", address)?;
        let Some(sdc) = self.sdc_by_guid(guid) else {
            let id = self.new_sdc(guid, name, address.to_owned())?;
            return Ok(CommandAnswer::SdcRegistered { id });
        };
        let id = sdc.id;
        self.name_sdc(id, name)?;
        if let Some(sdc) = self.sdcs.get_mut(&id).filter(|sdc| sdc.address != address) {
            sdc.address = address.to_owned();
            self.touch(MapKey::Sdc(id));
        }
        Ok(CommandAnswer::SdcRegistered { id })
    }

    fn new_sdc(&mut self, guid: Guid, name: Option<&str>, address: String) -> Result<SdcId, CommandError> {
        if guid == Guid::default() {
            return refuse(ErrorCode::InvalidArgument, "The GUID is all zero", "let the SDC make a proper one");
        }
        self.check_sdc_name(None, name)?;
        if self.sdcs.len() >= SDCS_MAX {
            return refuse(ErrorCode::TooMany, "There are too many SDCs", "remove one first");
        }
        let id = SdcId(self.mint.take());
        self.sdcs.insert(id, Sdc { id, guid, name: name.map(str::to_owned), address });
        self.touch(MapKey::Sdc(id));
        Ok(id)
    }

    fn check_sdc_name(&self, id: Option<SdcId>, name: Option<&str>) -> Result<(), CommandError> {
        let Some(name) = name else { return Ok(()) };
        check_name(name)?;
        if self.sdcs.values().any(|sdc| Some(sdc.id) != id && sdc.name.as_deref() == Some(name)) {
            return in_use("SDC", name);
        }
        Ok(())
    }

    /// Gives a client its first name; one that it already has is changed by `rename` alone.
    fn name_sdc(&mut self, id: SdcId, name: Option<&str>) -> Result<(), CommandError> {
        if self.sdcs.get(&id).is_some_and(|sdc| sdc.name.is_some()) || name.is_none() {
            return Ok(());
        }
        self.check_sdc_name(Some(id), name)?;
        if let Some(sdc) = self.sdcs.get_mut(&id) {
            sdc.name = name.map(str::to_owned);
        }
        self.touch(MapKey::Sdc(id));
        Ok(())
    }

    pub(super) fn rename_sdc(&mut self, sdc: &ObjectRef, name: &str) -> CommandResult {
        let id = self.find_sdc(sdc)?.id;
        self.check_sdc_name(Some(id), Some(name))?;
        if let Some(sdc) = self.sdcs.get_mut(&id) {
            sdc.name = Some(name.to_owned());
        }
        self.touch(MapKey::Sdc(id));
        object(id.0)
    }

    pub(super) fn remove_sdc(&mut self, sdc: &ObjectRef) -> CommandResult {
        let sdc = self.find_sdc(sdc)?;
        let id = sdc.id;
        let mapped = self.mappings.keys().filter(|(_, mapped)| *mapped == id).count();
        if mapped > 0 {
            let name = sdc.name.clone().unwrap_or_else(|| id.to_string());
            return refuse(
                ErrorCode::SdcHasMappings,
                format!("SDC '{name}' has {mapped} mapped volumes"),
                "unmap them first with `scli volume unmap`",
            );
        }
        self.sdcs.remove(&id);
        self.bury(MapKey::Sdc(id));
        object(id.0)
    }
}
