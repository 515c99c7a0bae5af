//! The system itself.

use std::collections::BTreeMap;

use mdm_api::command::CommandResult;
use mdm_api::error::ErrorCode;
use mdm_api::ids::{MdmId, UserId};
use mdm_api::map::MapKey;
use mdm_api::model::{Mdm, MdmRole, System, User, UserRole};

use super::name::{check_address, check_name};
use super::{Context, done, object, refuse};
use crate::command::{CreateSystem, Effect};
use crate::state::{Mint, State, SystemRecord, UserRecord};

impl State {
    pub(super) fn create_system(&mut self, create: &CreateSystem, context: &mut Context<'_>) -> CommandResult {
        if let Some(record) = &self.system {
            return refuse(
                ErrorCode::WrongState,
                format!("This metadata manager already has the system '{}'", record.system.name),
                "join it, or create the new one elsewhere",
            );
        }
        check_name(&create.name)?;
        check_name(&create.mdm_name)?;
        check_address(&create.mdm_address)?;
        check_address(&create.mdm_peer_address)?;
        if create.system.0 == 0 || create.mdm_store_id == 0 {
            return refuse(ErrorCode::InvalidArgument, "The id of the system or of its log is 0", "draw it at random");
        }
        self.mint = Mint::new(create.system);
        let mdm = Mdm {
            id: MdmId(self.mint.take()),
            name: create.mdm_name.clone(),
            role: MdmRole::Manager,
            address: create.mdm_address.clone(),
            peer_address: create.mdm_peer_address.clone(),
            store_id: create.mdm_store_id,
            voter: true,
        };
        let admin = User { id: UserId(self.mint.take()), name: "admin".to_owned(), role: UserRole::SuperUser };
        self.system = Some(SystemRecord {
            system: System { id: create.system, name: create.name.clone() },
            authority_certificate_pem: create.authority_certificate_pem.clone(),
            authority_key_pem: create.authority_key_pem.clone(),
            join_token_hash: create.join_token_hash,
        });
        self.touch(MapKey::System);
        self.touch(MapKey::Mdm(mdm.id));
        self.mdms = BTreeMap::from([(mdm.id, mdm)]);
        let record = UserRecord { user: admin, password_hash: create.admin_password_hash.clone() };
        self.users.insert(record.user.id, record);
        context.effects.push(Effect::MembersChanged);
        object(create.system.0)
    }

    pub(super) fn rename_system(&mut self, name: &str) -> CommandResult {
        check_name(name)?;
        if let Some(record) = &mut self.system {
            record.system.name = name.to_owned();
        }
        self.touch(MapKey::System);
        done()
    }
}
