//! The leader's own commands.

use mdm_api::command::CommandResult;

use super::{Context, done};
use crate::command::OwnCommand;
use crate::state::State;

impl State {
    pub(super) fn own(&mut self, command: &OwnCommand, context: &mut Context<'_>) -> CommandResult {
        match command {
            OwnCommand::SdsDown { sds, incarnation } => self.sds_down(*sds, *incarnation),
            OwnCommand::SdsUp { sds, incarnation } => self.sds_up(*sds, *incarnation),
            OwnCommand::UpdatePgs(updates) => self.update_pgs(updates),
            OwnCommand::SettlePgs(groups) => self.settle_pgs(groups),
            OwnCommand::FencesDone(fences) => self.fences_done(fences),
            OwnCommand::VolumesDropped(volumes) => self.volumes_dropped(volumes),
            OwnCommand::DevicesDrained(devices) => self.devices_drained(devices),
            OwnCommand::SetMdmVoter { mdm, voter } => self.set_mdm_voter(*mdm, *voter, context),
            OwnCommand::SetMdmAddresses { mdm, address, peer_address } => {
                self.set_mdm_addresses(*mdm, address, peer_address)
            }
            OwnCommand::SetJoinToken { hash } => {
                if let Some(record) = &mut self.system {
                    record.join_token_hash = *hash;
                }
                done()
            }
        }
    }
}
