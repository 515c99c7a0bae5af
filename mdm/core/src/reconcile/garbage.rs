//! What nobody refers to any more: devices that were being emptied, and are.

use std::collections::BTreeSet;

use mdm_api::ids::DeviceId;
use mdm_api::model::DeviceState;

use crate::command::{Command, OwnCommand};
use crate::state::State;

/// Devices to remove.
pub fn propose(state: &State) -> Vec<Command> {
    let mut drained: BTreeSet<DeviceId> = state
        .devices()
        .values()
        .filter(|device| device.state == DeviceState::Removing)
        .map(|device| device.id)
        .collect();
    if drained.is_empty() {
        return Vec::new();
    }
    for record in state.pgs().values() {
        for member in record.members() {
            drained.remove(&member);
        }
    }
    if drained.is_empty() {
        return Vec::new();
    }
    vec![Command::Own(OwnCommand::DevicesDrained(drained.into_iter().collect()))]
}
