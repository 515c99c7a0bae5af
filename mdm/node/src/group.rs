//! The group's members: Raft's membership follows the record, one change at a time.
//!
//! The record says who belongs to the group; this compares it with Raft's table on every tick of the leader and takes the
//! next step: add as a learner, promote when it has caught up, note that it votes, move, remove. A leader that was removed
//! from the record hands over first.

use mdm_api::ids::MdmId;
use mdm_api::model::MdmRole;
use mdm_core::State;
use mdm_core::command::OwnCommand;
use mdm_raft::{Member, Members, MembersChange, Standing, StoreId};

use crate::event::Action;
use crate::node::Node;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A change of Raft's table.
    Change(MembersChange),
    /// A change of the record.
    Record(OwnCommand),
    /// The leader was removed: another one has to lead.
    HandOver(MdmId),
}

/// All steps that the difference asks for, the most useful first. Only one is taken at a time; a learner that has not
/// caught up does not hold up the others.
pub(crate) fn steps(state: &State, members: &Members, this: MdmId) -> Vec<Step> {
    let mut steps = Vec::new();
    for mdm in state.mdms().values() {
        let addresses = vec![mdm.peer_address.clone()];
        match members.get(mdm.id) {
            None if members.was_removed(mdm.id) => {}
            None => steps.push(Step::Change(MembersChange::Add {
                id: mdm.id,
                member: Member { store: StoreId(mdm.store_id), role: mdm.role, standing: Standing::Learner, addresses },
            })),
            Some(member) => {
                let votes = member.standing == Standing::Voter;
                if mdm.voter != votes {
                    steps.push(Step::Record(OwnCommand::SetMdmVoter { mdm: mdm.id, voter: votes }));
                }
                if member.addresses != addresses {
                    steps.push(Step::Change(MembersChange::SetAddresses { id: mdm.id, addresses }));
                }
            }
        }
    }
    for (id, member) in members.iter() {
        if state.mdms().contains_key(&id) {
            if member.standing == Standing::Learner {
                steps.push(Step::Change(MembersChange::Promote { id }));
            }
        } else if id != this {
            steps.push(Step::Change(MembersChange::Remove { id }));
        } else if let Some(to) = successor(state, members, this) {
            steps.push(Step::HandOver(to));
        }
    }
    steps
}

fn successor(state: &State, members: &Members, this: MdmId) -> Option<MdmId> {
    let fits = |member: &Member| member.standing == Standing::Voter && member.role == MdmRole::Manager;
    members.iter().find(|(id, member)| *id != this && state.mdms().contains_key(id) && fits(member)).map(|(id, _)| id)
}

impl Node {
    /// Tells the shell where the other members are.
    pub(crate) fn announce_peers(&self, out: &mut Vec<Action>) {
        let peers: Vec<_> = self
            .raft
            .members()
            .iter()
            .filter(|(id, _)| *id != self.id)
            .map(|(id, member)| (id, member.addresses.clone()))
            .collect();
        if !self.raft.members().is_empty() {
            out.push(Action::Peers(peers));
        }
    }
}
