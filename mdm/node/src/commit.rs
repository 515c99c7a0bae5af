//! What Raft says: entries that were committed, snapshots, who leads.

use bytes::Bytes;
use mdm_api::command::CommandAnswer;
use mdm_api::control::Response;
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::MdmId;
use mdm_core::{Command, Effect, LogEntry, State};
use mdm_raft::{Action as RaftAction, DropReason};

use crate::deferred::{Until, waits_for};
use crate::event::{Action, Moment, Notice};
use crate::kind::kind_of;
use crate::leadership::Leadership;
use crate::node::{Node, answer_all, busy};
use crate::proposals::Purpose;

/// An entry as bytes of the log.
pub(crate) fn encode(entry: &LogEntry) -> Bytes {
    Bytes::from(rmp_serde::to_vec_named(entry).expect("entries have no unserialisable parts"))
}

impl Node {
    pub(crate) fn raft_action(&mut self, moment: Moment, action: RaftAction, out: &mut Vec<Action>) {
        match action {
            RaftAction::Send { to, bytes, is_snapshot } => out.push(Action::SendPeer { to, bytes, is_snapshot }),
            RaftAction::Persist { id, ops } => out.push(Action::Persist { id, ops }),
            RaftAction::Apply { index, term, command } => self.committed(moment, index, term, &command, out),
            RaftAction::ApplyMembers { index, term, change, refused } => {
                let (decided, lost) = self.proposals.applied(index, term);
                self.lost(lost.into_iter().chain(decided).collect(), out);
                let text = match refused {
                    None => format!("the group of metadata managers has changed: {change:?}"),
                    Some(why) => format!("a change of the group was overtaken and not made: {change:?}: {why}"),
                };
                out.push(Action::Notice(Notice::Told(text)));
                self.announce_peers(out);
            }
            RaftAction::Restore { index, state, .. } => self.restore(index, &state, out),
            RaftAction::ReadReady { token, .. } => self.read_ready(moment, token, out),
            RaftAction::Proposed { token, index, term } => {
                let lost = self.proposals.placed(token, index, term);
                self.lost(lost.into_iter().collect(), out);
            }
            RaftAction::Dropped { token, reason, .. } => self.dropped(moment, token, reason, out),
            RaftAction::TransferStarted { .. } => {}
            RaftAction::LeaderChanged { leader, term, is_self } => {
                self.leader_changed(moment, leader, term, is_self, out);
            }
            RaftAction::WantSnapshot { through_index } => {
                let state = Bytes::from(self.state.to_bytes());
                self.raft_event(moment, mdm_raft::Event::SnapshotTaken { index: through_index, state });
            }
            RaftAction::Refused { by, reason } => Self::warn(format!("{by} does not hear this member: {reason}"), out),
            RaftAction::PeerRefused { peer, reason } => {
                Self::warn(format!("the metadata manager {peer} is not heard: {reason}"), out);
            }
            RaftAction::Halted { reason } => self.halt(
                format!(
                    "this metadata manager must not take part any more: {reason}. Remove it with `scli mdm remove`, \
                     empty its data directory and join it again with `mdm join`"
                ),
                out,
            ),
        }
    }

    fn committed(&mut self, moment: Moment, index: u64, term: u64, command: &[u8], out: &mut Vec<Action>) {
        let entry: LogEntry = match rmp_serde::from_slice(command) {
            Ok(entry) => entry,
            Err(error) => {
                // To skip what others carry out would make this member's state another one than theirs.
                let text = format!("entry {index} of the log is not understood ({error}): install the newer version");
                self.halt(text, out);
                return;
            }
        };
        let applied = mdm_core::apply(&mut self.state, &entry);
        self.has_applied = true;
        let refused = applied.result.as_ref().err().cloned();
        out.push(Action::Notice(Notice::Applied { kind: kind_of(&entry.command), refused }));
        let (decided, lost) = self.proposals.applied(index, term);
        self.lost(lost, out);
        for effect in applied.effects {
            if let Effect::DeviceRefused { device, reason } = effect {
                let mut decided = Vec::new();
                self.deferred.device_refused(device, &reason, &mut decided);
                answer_all(decided, out);
            }
        }
        if let Some(purpose) = decided {
            self.decided(moment, purpose, &entry.command, applied.result, out);
        }
    }

    /// A proposal of this member was carried out.
    fn decided(
        &mut self,
        moment: Moment,
        purpose: Purpose,
        command: &Command,
        result: Result<CommandAnswer, CommandError>,
        out: &mut Vec<Action>,
    ) {
        match (purpose, result) {
            (Purpose::Own(slot), result) => {
                if let Some(leadership) = &mut self.leadership {
                    leadership.free(slot);
                }
                if let Err(error) = result {
                    Self::warn(format!("a step of the leader was refused: {error}"), out);
                }
            }
            (Purpose::Request(key), Ok(answer)) => {
                let until = waits_for(&answer).or_else(|| removed_volume(command, &answer));
                match until {
                    None => self.answer_ok(key, Response::Command(answer), out),
                    Some(until) => {
                        // Decided at the end of this step if it holds already.
                        if let Err(error) = self.deferred.wait(key, until, Some(answer), moment.now) {
                            self.answer(key, Err(error), out);
                        }
                    }
                }
            }
            (Purpose::JoinToken { key, secret }, Ok(_)) => self.give_join_token(key, secret, out),
            (Purpose::Join { key, csr_pem, kind }, Ok(answer)) => match answer {
                CommandAnswer::Object { id } => self.sign(key, kind.role(id), csr_pem, out),
                other => {
                    let error = CommandError::new(ErrorCode::Internal, format!("Unexpected answer {other:?}"), "");
                    self.answer(key, Err(error), out);
                }
            },
            (purpose, Err(error)) => {
                if let Some(key) = purpose.key() {
                    self.answer(key, Err(error), out);
                }
            }
        }
    }

    fn restore(&mut self, index: u64, bytes: &[u8], out: &mut Vec<Action>) {
        match State::from_bytes(bytes) {
            Ok(state) => {
                self.state = state;
                self.has_applied = true;
                let (decided, lost) = self.proposals.applied(index, 0);
                self.lost(lost.into_iter().chain(decided).collect(), out);
                self.announce_peers(out);
            }
            Err(error) => self.halt(error.to_string(), out),
        }
    }

    fn dropped(&mut self, moment: Moment, token: u64, reason: DropReason, out: &mut Vec<Action>) {
        if let Some(read) = self.reads.remove(&token) {
            self.read_dropped(read, reason, out);
        }
        let Some(purpose) = self.proposals.dropped(token) else { return };
        match (purpose, reason) {
            (Purpose::Own(slot), _) => {
                if let Some(leadership) = &mut self.leadership {
                    leadership.refused(slot, moment.now);
                }
            }
            (purpose, reason) => {
                if let Some(key) = purpose.key() {
                    self.refuse_dropped(key, reason, out);
                }
            }
        }
    }

    /// Tells a caller why Raft did not take what it asked for.
    pub(crate) fn refuse_dropped(&self, key: crate::event::RequestKey, reason: DropReason, out: &mut Vec<Action>) {
        match reason {
            DropReason::Busy => self.answer(key, Err(busy("The metadata manager has too much under way")), out),
            DropReason::TooLarge => {
                let error =
                    CommandError::new(ErrorCode::InvalidArgument, "The command is too large", "make it smaller");
                self.answer(key, Err(error), out);
            }
            _ => self.redirect(key, out),
        }
    }

    fn leader_changed(
        &mut self,
        moment: Moment,
        leader: Option<MdmId>,
        term: u64,
        is_self: bool,
        out: &mut Vec<Action>,
    ) {
        (self.leader, self.term) = (leader, term);
        out.push(Action::Notice(Notice::LeaderChanged { leader, term, is_self }));
        if is_self {
            self.observed.lead(moment.now);
            self.leadership = Some(Leadership::new(moment.now));
            self.ask_current(moment);
        } else if self.leadership.take().is_some() {
            let purposes = self.proposals.take_all();
            self.lost(purposes, out);
            for key in self.deferred.take_all() {
                self.redirect(key, out);
            }
        }
    }
}

/// The removal of a volume is complete when its record is gone.
fn removed_volume(command: &Command, answer: &CommandAnswer) -> Option<Until> {
    match (command, answer) {
        (Command::Admin(mdm_api::command::AdminCommand::RemoveVolume { .. }), CommandAnswer::Object { id }) => {
            Some(Until::Removed { volume: mdm_api::ids::VolumeId(*id) })
        }
        _ => None,
    }
}
