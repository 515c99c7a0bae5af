//! Accounts. Passwords come in as hashes; nothing here ever sees one.

use mdm_api::command::{CommandResult, ObjectRef};
use mdm_api::error::ErrorCode;
use mdm_api::ids::UserId;
use mdm_api::model::{User, UserRole};

use super::name::{check_name, in_use};
use super::{Context, object, refuse};
use crate::command::Effect;
use crate::limits::{TEXT_BYTES_MAX, USERS_MAX};
use crate::state::{State, UserRecord};

fn check_hash(hash: &str) -> Result<(), mdm_api::error::CommandError> {
    if hash.starts_with("$argon2") && hash.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    refuse(ErrorCode::InvalidArgument, "The password did not come as an argon2 hash", "use `scli` to set it")
}

impl State {
    pub(super) fn add_user(&mut self, name: &str, role: UserRole, password_hash: &str) -> CommandResult {
        check_name(name)?;
        check_hash(password_hash)?;
        if self.user(name).is_some() {
            return in_use("user", name);
        }
        if self.users.len() >= USERS_MAX {
            return refuse(ErrorCode::TooMany, "There are too many users", "remove one first");
        }
        let id = UserId(self.mint.take());
        let user = User { id, name: name.to_owned(), role };
        self.users.insert(id, UserRecord { user, password_hash: password_hash.to_owned() });
        object(id.0)
    }

    pub(super) fn remove_user(&mut self, user: &ObjectRef, context: &mut Context<'_>) -> CommandResult {
        let user = self.find_user(user)?;
        let id = user.id;
        let other = |record: &UserRecord| record.user.id != id && record.user.role == UserRole::SuperUser;
        if user.role == UserRole::SuperUser && !self.users.values().any(other) {
            return refuse(
                ErrorCode::WrongState,
                format!("'{}' is the last user with all rights", user.name),
                "add another SuperUser first",
            );
        }
        self.users.remove(&id);
        context.effects.push(Effect::AccountChanged(id));
        object(id.0)
    }

    pub(super) fn set_password(&mut self, user: &ObjectRef, hash: &str, context: &mut Context<'_>) -> CommandResult {
        let id = self.find_user(user)?.id;
        check_hash(hash)?;
        if let Some(record) = self.users.get_mut(&id) {
            record.password_hash = hash.to_owned();
        }
        context.effects.push(Effect::AccountChanged(id));
        object(id.0)
    }
}
