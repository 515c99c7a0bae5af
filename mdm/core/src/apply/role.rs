//! Who may do what.

use mdm_api::command::AdminCommand;
use mdm_api::model::UserRole;

/// The role that a command needs. Of one's own password the proposer decides itself.
pub fn role_needed(command: &AdminCommand) -> UserRole {
    use AdminCommand as A;
    match command {
        A::AddVolume { .. }
        | A::LabelVolume { .. }
        | A::RenameVolume { .. }
        | A::ResizeVolume { .. }
        | A::RemoveVolume { .. }
        | A::MapVolume { .. }
        | A::UnmapVolume { .. }
        | A::SetMappingLimits { .. } => UserRole::Configure,
        A::RenameSystem { .. }
        | A::AddMdm { .. }
        | A::RemoveMdm { .. }
        | A::RenameMdm { .. }
        | A::AddProtectionDomain { .. }
        | A::RenameProtectionDomain { .. }
        | A::RemoveProtectionDomain { .. }
        | A::AddFaultSet { .. }
        | A::RenameFaultSet { .. }
        | A::RemoveFaultSet { .. }
        | A::AddStoragePool { .. }
        | A::RenameStoragePool { .. }
        | A::RemoveStoragePool { .. }
        | A::AddSds { .. }
        | A::RenameSds { .. }
        | A::RemoveSds { .. }
        | A::AddDevice { .. }
        | A::RenameDevice { .. }
        | A::RemoveDevice { .. }
        | A::AddSdc { .. }
        | A::RenameSdc { .. }
        | A::RemoveSdc { .. } => UserRole::Administrator,
        A::AddUser { .. } | A::RemoveUser { .. } | A::SetPassword { .. } => UserRole::Security,
    }
}
