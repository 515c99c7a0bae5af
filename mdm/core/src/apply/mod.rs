//! What every command does to the state.
//!
//! Each function checks everything first and then changes: a refused command leaves the state as it was, byte for byte.
//! Equal states and equal entries give equal states and equal answers on every member.

mod device;
mod domain;
mod mapping;
mod mdm;
mod name;
mod own;
mod pg;
mod pool;
mod role;
mod sdc;
mod sds;
mod system;
mod user;
mod volume;

#[cfg(test)]
mod tests;

use mdm_api::command::{AdminCommand, CommandAnswer, CommandResult, DaemonCommand};
use mdm_api::error::{CommandError, ErrorCode};

use crate::command::{Applied, Command, Effect, LogEntry};
use crate::limits::{RECENT_ADMIN_MAX, RECENT_DAEMON_MAX};
use crate::state::State;

pub use role::role_needed;

/// What a command may use besides the state.
struct Context<'a> {
    at_s: u64,
    random: &'a [u8; 32],
    effects: Vec<Effect>,
}

/// Carries out one entry of the log.
pub fn apply(state: &mut State, entry: &LogEntry) -> Applied {
    // The leader's own commands are compare-and-set, and 0 means that nobody will ask again.
    let remembered = |state: &State| match &entry.command {
        _ if entry.request_id == 0 => None,
        Command::Admin(_) | Command::CreateSystem(_) => state.recent_admin.get(entry.request_id).cloned(),
        Command::Daemon(_) => state.recent_daemon.get(entry.request_id).cloned(),
        Command::Own(_) => None,
    };
    if let Some(answer) = remembered(state) {
        return Applied { result: Ok(answer), effects: Vec::new() };
    }
    let next = state.next_revision();
    let mut context = Context { at_s: entry.at_s, random: &entry.random, effects: Vec::new() };
    let result = dispatch(state, &entry.command, &mut context);
    let changed = state.changes.has(next);
    if let Ok(answer) = &result {
        if changed {
            state.revision = next;
            context.effects.push(Effect::MapChanged(next));
        }
        if entry.request_id != 0 {
            match entry.command {
                Command::Admin(_) | Command::CreateSystem(_) => {
                    state.recent_admin.put(entry.request_id, answer.clone(), RECENT_ADMIN_MAX);
                }
                Command::Daemon(_) => state.recent_daemon.put(entry.request_id, answer.clone(), RECENT_DAEMON_MAX),
                Command::Own(_) => {}
            }
        }
    } else {
        assert!(!changed, "a refused command has changed the map: {:?}", entry.command);
        context.effects.clear();
    }
    Applied { result, effects: context.effects }
}

fn dispatch(state: &mut State, command: &Command, context: &mut Context<'_>) -> CommandResult {
    if let Command::CreateSystem(create) = command {
        return state.create_system(create, context);
    }
    if state.system.is_none() {
        return Err(CommandError::new(
            ErrorCode::Unavailable,
            "There is no system yet",
            "create one with `mdm create-system`",
        ));
    }
    match command {
        Command::CreateSystem(_) => unreachable!("handled above"),
        Command::Admin(command) => admin(state, command, context),
        Command::Daemon(command) => daemon(state, command, context),
        Command::Own(command) => state.own(command, context),
    }
}

fn admin(state: &mut State, command: &AdminCommand, context: &mut Context<'_>) -> CommandResult {
    use AdminCommand as A;
    match command {
        A::RenameSystem { name } => state.rename_system(name),
        A::AddMdm { name, role, address, peer_address, store_id } => {
            state.add_mdm(name, *role, address, peer_address, *store_id, context)
        }
        A::RemoveMdm { mdm } => state.remove_mdm(mdm, context),
        A::RenameMdm { mdm, name } => state.rename_mdm(mdm, name),
        A::AddProtectionDomain { name } => state.add_domain(name, context.random),
        A::RenameProtectionDomain { protection_domain, name } => state.rename_domain(protection_domain, name),
        A::RemoveProtectionDomain { protection_domain } => state.remove_domain(protection_domain),
        A::AddFaultSet { name, protection_domain } => state.add_fault_set(name, protection_domain.as_ref()),
        A::RenameFaultSet { fault_set, name } => state.rename_fault_set(fault_set, name),
        A::RemoveFaultSet { fault_set } => state.remove_fault_set(fault_set),
        A::AddStoragePool { name, protection_domain, copies, min_isr, pg_count } => {
            state.add_pool(name, protection_domain.as_ref(), *copies, *min_isr, *pg_count)
        }
        A::RenameStoragePool { storage_pool, name } => state.rename_pool(storage_pool, name),
        A::RemoveStoragePool { storage_pool } => state.remove_pool(storage_pool),
        A::AddSds { name, protection_domain, fault_set, addresses } => {
            state.add_sds(name, protection_domain.as_ref(), fault_set.as_ref(), addresses)
        }
        A::RenameSds { sds, name } => state.rename_sds(sds, name),
        A::RemoveSds { sds, force } => state.remove_sds(sds, *force),
        A::AddDevice { name, sds, storage_pool, path } => {
            state.add_device(name.as_deref(), sds, storage_pool.as_ref(), path)
        }
        A::RenameDevice { device, name } => state.rename_device(device, name),
        A::RemoveDevice { device, force } => state.remove_device(device, *force),
        A::AddSdc { guid, name } => state.add_sdc(*guid, name.as_deref()),
        A::RenameSdc { sdc, name } => state.rename_sdc(sdc, name),
        A::RemoveSdc { sdc } => state.remove_sdc(sdc),
        A::AddVolume { name, storage_pool, size_bytes, labels } => {
            state.add_volume(name, storage_pool.as_ref(), *size_bytes, labels, context.at_s)
        }
        A::LabelVolume { volume, key, value } => state.label_volume(volume, key, value),
        A::RenameVolume { volume, name } => state.rename_volume(volume, name),
        A::ResizeVolume { volume, size_bytes } => state.resize_volume(volume, *size_bytes),
        A::RemoveVolume { volume } => state.remove_volume(volume),
        A::MapVolume { volume, sdc, access, limits, allow_multiple } => {
            state.map_volume(volume, sdc, *access, *limits, *allow_multiple)
        }
        A::UnmapVolume { volume, sdc } => state.unmap_volume(volume, sdc.as_ref()),
        A::SetMappingLimits { volume, sdc, limits } => state.set_mapping_limits(volume, sdc, *limits),
        A::AddUser { name, role, password_hash } => state.add_user(name, *role, password_hash),
        A::RemoveUser { user } => state.remove_user(user, context),
        A::SetPassword { user, password_hash } => state.set_password(user, password_hash, context),
    }
}

fn daemon(state: &mut State, command: &DaemonCommand, context: &mut Context<'_>) -> CommandResult {
    use DaemonCommand as D;
    match command {
        D::RegisterSds { sds, nonce, addresses, devices } => state.register_sds(*sds, *nonce, addresses, devices),
        D::PresentDevice { sds, incarnation, device } | D::DeviceReady { sds, incarnation, device } => {
            state.present_device(*sds, *incarnation, device)
        }
        D::DeviceRefused { sds, incarnation, device, reason } => {
            state.device_refused(*sds, *incarnation, *device, reason, context)
        }
        D::DeviceFailed { sds, incarnation, device, reason } => {
            state.device_failed(*sds, *incarnation, *device, reason)
        }
        D::ChangePg(change) => state.change_pg(change),
        D::RegisterSdc { guid, name, address } => state.register_sdc(*guid, name.as_deref(), address),
        D::OpenMapping { volume, sdc, opener } => state.open_mapping(*volume, *sdc, *opener),
    }
}

/// Done, and nothing to tell.
fn done() -> CommandResult {
    Ok(CommandAnswer::Done)
}

/// Made or changed.
fn object(id: u64) -> CommandResult {
    Ok(CommandAnswer::Object { id })
}

fn refuse<T>(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Result<T, CommandError> {
    Err(CommandError::new(code, message, remedy))
}
