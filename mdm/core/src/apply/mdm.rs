//! Members of the metadata manager's own group. Recorded here; Raft's membership follows the record.

use mdm_api::command::{CommandResult, ObjectRef};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::MdmId;
use mdm_api::map::MapKey;
use mdm_api::model::{Mdm, MdmRole};

use super::name::{check_address, check_name, in_use};
use super::{Context, done, object, refuse};
use crate::command::Effect;
use crate::limits::MDMS_MAX;
use crate::state::State;

impl State {
    pub(super) fn add_mdm(
        &mut self,
        name: &str,
        role: MdmRole,
        address: &str,
        peer_address: &str,
        store_id: u64,
        context: &mut Context<'_>,
    ) -> CommandResult {
        check_name(name)?;
        check_address(address)?;
        check_address(peer_address)?;
        if store_id == 0 {
            return refuse(ErrorCode::InvalidArgument, "The id of the member's log is 0", "draw it at random");
        }
        // The same log joins again after its answer was lost: it is the member that it was made.
        if let Some(mdm) = self.mdms.values().find(|mdm| mdm.store_id == store_id) {
            return if mdm.name == name {
                object(mdm.id.0)
            } else {
                in_use("MDM with this log; it is", &mdm.name.clone())
            };
        }
        // A wiped log comes with another store id: it must not slip in under its old name and be taken for what it was.
        if self.mdms.values().any(|mdm| mdm.name == name) {
            return in_use("MDM", name);
        }
        if self.mdms.values().any(|mdm| mdm.peer_address == peer_address || mdm.address == address) {
            return refuse(
                ErrorCode::InvalidArgument,
                format!("Another MDM is at '{address}' or '{peer_address}'"),
                "remove it first with `scli mdm remove`, or use another address",
            );
        }
        if self.mdms.len() >= MDMS_MAX {
            return refuse(ErrorCode::TooMany, "There are too many MDMs", "remove one first");
        }
        let id = MdmId(self.mint.take());
        let mdm = Mdm {
            id,
            name: name.to_owned(),
            role,
            address: address.to_owned(),
            peer_address: peer_address.to_owned(),
            store_id,
            voter: false,
        };
        self.mdms.insert(id, mdm);
        self.touch(MapKey::Mdm(id));
        context.effects.push(Effect::MembersChanged);
        object(id.0)
    }

    pub(super) fn remove_mdm(&mut self, mdm: &ObjectRef, context: &mut Context<'_>) -> CommandResult {
        let mdm = self.find_mdm(mdm)?;
        let id = mdm.id;
        let others = |other: &&Mdm| other.id != id && other.voter && other.role == MdmRole::Manager;
        if !self.mdms.values().any(|other| others(&other)) {
            return refuse(
                ErrorCode::WrongState,
                format!("'{}' is the last manager of the system", mdm.name),
                "add another one first with `scli mdm add`",
            );
        }
        self.mdms.remove(&id);
        self.bury(MapKey::Mdm(id));
        context.effects.push(Effect::MembersChanged);
        object(id.0)
    }

    pub(super) fn rename_mdm(&mut self, mdm: &ObjectRef, name: &str) -> CommandResult {
        let id = self.find_mdm(mdm)?.id;
        check_name(name)?;
        if self.mdms.values().any(|other| other.id != id && other.name == name) {
            return in_use("MDM", name);
        }
        self.edit_mdm(id, |mdm| mdm.name = name.to_owned())
    }

    pub(super) fn set_mdm_voter(&mut self, id: MdmId, voter: bool, context: &mut Context<'_>) -> CommandResult {
        if self.mdms.get(&id).is_some_and(|mdm| mdm.voter == voter) {
            return done();
        }
        self.edit_mdm(id, |mdm| mdm.voter = voter)?;
        context.effects.push(Effect::MembersChanged);
        done()
    }

    pub(super) fn set_mdm_addresses(&mut self, id: MdmId, address: &str, peer_address: &str) -> CommandResult {
        check_address(address)?;
        check_address(peer_address)?;
        if self.mdms.get(&id).is_some_and(|mdm| mdm.address == address && mdm.peer_address == peer_address) {
            return done();
        }
        self.edit_mdm(id, |mdm| {
            mdm.address = address.to_owned();
            mdm.peer_address = peer_address.to_owned();
        })
    }

    fn edit_mdm(&mut self, id: MdmId, edit: impl FnOnce(&mut Mdm)) -> CommandResult {
        let gone = || CommandError::new(ErrorCode::MdmNotFound, format!("There is no MDM {id} any more"), "");
        edit(self.mdms.get_mut(&id).ok_or_else(gone)?);
        self.touch(MapKey::Mdm(id));
        object(id.0)
    }
}
