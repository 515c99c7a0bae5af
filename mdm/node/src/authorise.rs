//! Who may ask what: one table, asked before anything is proposed.
//!
//! People act by their account's role. A daemon acts by its certificate, and only for itself.

use mdm_api::command::{DaemonCommand, Query};
use mdm_api::control::PeerRole;
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::model::UserRole;
use mdm_core::State;

use crate::followers::Connection;
use crate::session::record;

/// The account role that a query needs.
pub(crate) fn role_for_query(query: &Query) -> UserRole {
    match query {
        Query::System | Query::SystemSince(_) | Query::Cluster => UserRole::Monitor,
        Query::Users => UserRole::Administrator,
    }
}

/// The role that the connection acts with now, or why it has none.
pub(crate) fn role_of(state: &State, connection: &Connection, wall_s: u64) -> Result<UserRole, CommandError> {
    let Some(session) = &connection.session else {
        return Err(CommandError::new(
            ErrorCode::InvalidSession,
            "Not logged in",
            "log in with `scli login --username admin`",
        ));
    };
    match record(state, session.user) {
        Some(user) if session.holds(state, wall_s) => Ok(user.user.role),
        _ => Err(invalid_session()),
    }
}

/// A token or session that is not valid any more.
pub(crate) fn invalid_session() -> CommandError {
    CommandError::new(
        ErrorCode::InvalidSession,
        "The session is not valid or has expired",
        "log in again with `scli login`",
    )
}

/// Refuses an account whose role does not include the one that is needed.
pub(crate) fn demand(
    state: &State,
    connection: &Connection,
    wall_s: u64,
    needed: UserRole,
) -> Result<(), CommandError> {
    let has = role_of(state, connection, wall_s)?;
    if includes(has, needed) {
        return Ok(());
    }
    Err(CommandError::new(
        ErrorCode::PermissionDenied,
        format!("The role {has:?} does not allow this"),
        format!("ask somebody whose role is {needed:?}"),
    ))
}

/// Each role includes the ones before it, except that `Security` is about users only (and may look, as everybody may).
fn includes(has: UserRole, needed: UserRole) -> bool {
    match (has, needed) {
        (UserRole::SuperUser, _) => true,
        (UserRole::Security, needed) => matches!(needed, UserRole::Security | UserRole::Monitor),
        (_, UserRole::Security) => false,
        (has, needed) => has >= needed,
    }
}

/// Refuses a daemon that speaks for another one, or a caller that is no daemon.
pub(crate) fn demand_own(state: &State, peer: PeerRole, command: &DaemonCommand) -> Result<(), CommandError> {
    let is_own = match (peer, command) {
        (
            PeerRole::Sds(peer),
            DaemonCommand::RegisterSds { sds, .. }
            | DaemonCommand::PresentDevice { sds, .. }
            | DaemonCommand::DeviceReady { sds, .. }
            | DaemonCommand::DeviceRefused { sds, .. }
            | DaemonCommand::DeviceFailed { sds, .. },
        ) => peer == *sds,
        (PeerRole::Sds(peer), DaemonCommand::ChangePg(change)) => {
            state.devices().get(&change.proposer).is_some_and(|device| device.sds == peer)
        }
        (PeerRole::Sdc(peer), DaemonCommand::RegisterSdc { guid, .. }) => {
            state.sdcs().get(&peer).is_some_and(|sdc| sdc.guid == *guid)
        }
        (PeerRole::Sdc(peer), DaemonCommand::OpenMapping { sdc, .. }) => peer == *sdc,
        _ => false,
    };
    if is_own { Ok(()) } else { Err(not_yours("a daemon may only ask for itself")) }
}

/// A request that this caller's role on the wire does not allow.
pub(crate) fn not_yours(why: &str) -> CommandError {
    CommandError::new(
        ErrorCode::PermissionDenied,
        format!("Refused: {why}"),
        "use the certificate that belongs to this daemon",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_includes_the_ones_before_it_but_security_is_apart() {
        use UserRole::{Administrator, Configure, Monitor, Security, SuperUser};
        for needed in [Monitor, Configure, Administrator, Security, SuperUser] {
            assert!(includes(SuperUser, needed));
            assert!(includes(needed, Monitor));
        }
        assert!(includes(Administrator, Configure));
        assert!(!includes(Configure, Administrator));
        assert!(!includes(Administrator, Security));
        assert!(!includes(Security, Configure));
        assert!(!includes(Administrator, SuperUser));
    }
}
