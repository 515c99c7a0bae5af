//! One word for each kind of command: for the log and for counts, which must have few labels.

use mdm_api::command::{AdminCommand, DaemonCommand};
use mdm_core::Command;
use mdm_core::command::OwnCommand;

pub(crate) fn kind_of(command: &Command) -> &'static str {
    match command {
        Command::CreateSystem(_) => "create_system",
        Command::Admin(command) => admin(command),
        Command::Daemon(command) => match command {
            DaemonCommand::RegisterSds { .. } => "register_sds",
            DaemonCommand::PresentDevice { .. } => "present_device",
            DaemonCommand::DeviceReady { .. } => "device_ready",
            DaemonCommand::DeviceRefused { .. } => "device_refused",
            DaemonCommand::DeviceFailed { .. } => "device_failed",
            DaemonCommand::ChangePg(_) => "change_pg",
            DaemonCommand::RegisterSdc { .. } => "register_sdc",
            DaemonCommand::OpenMapping { .. } => "open_mapping",
        },
        Command::Own(command) => match command {
            OwnCommand::SdsDown { .. } => "sds_down",
            OwnCommand::SdsUp { .. } => "sds_up",
            OwnCommand::UpdatePgs(_) => "update_pgs",
            OwnCommand::SettlePgs(_) => "settle_pgs",
            OwnCommand::FencesDone(_) => "fences_done",
            OwnCommand::VolumesDropped(_) => "volumes_dropped",
            OwnCommand::DevicesDrained(_) => "devices_drained",
            OwnCommand::SetMdmVoter { .. } => "set_mdm_voter",
            OwnCommand::SetMdmAddresses { .. } => "set_mdm_addresses",
            OwnCommand::SetJoinToken { .. } => "set_join_token",
        },
    }
}

fn admin(command: &AdminCommand) -> &'static str {
    use AdminCommand as A;
    match command {
        A::RenameSystem { .. } => "rename_system",
        A::AddMdm { .. } => "add_mdm",
        A::RemoveMdm { .. } => "remove_mdm",
        A::RenameMdm { .. } => "rename_mdm",
        A::AddProtectionDomain { .. } => "add_protection_domain",
        A::RenameProtectionDomain { .. } => "rename_protection_domain",
        A::RemoveProtectionDomain { .. } => "remove_protection_domain",
        A::AddFaultSet { .. } => "add_fault_set",
        A::RenameFaultSet { .. } => "rename_fault_set",
        A::RemoveFaultSet { .. } => "remove_fault_set",
        A::AddStoragePool { .. } => "add_storage_pool",
        A::RenameStoragePool { .. } => "rename_storage_pool",
        A::RemoveStoragePool { .. } => "remove_storage_pool",
        A::AddSds { .. } => "add_sds",
        A::RenameSds { .. } => "rename_sds",
        A::RemoveSds { .. } => "remove_sds",
        A::AddDevice { .. } => "add_device",
        A::RenameDevice { .. } => "rename_device",
        A::RemoveDevice { .. } => "remove_device",
        A::AddSdc { .. } => "add_sdc",
        A::RenameSdc { .. } => "rename_sdc",
        A::RemoveSdc { .. } => "remove_sdc",
        A::AddVolume { .. } => "add_volume",
        A::LabelVolume { .. } => "label_volume",
        A::RenameVolume { .. } => "rename_volume",
        A::ResizeVolume { .. } => "resize_volume",
        A::RemoveVolume { .. } => "remove_volume",
        A::MapVolume { .. } => "map_volume",
        A::UnmapVolume { .. } => "unmap_volume",
        A::SetMappingLimits { .. } => "set_mapping_limits",
        A::AddUser { .. } => "add_user",
        A::RemoveUser { .. } => "remove_user",
        A::SetPassword { .. } => "set_password",
    }
}
