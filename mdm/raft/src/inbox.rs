//! Messages from peers: whose they are, whether they are heard, and what a refusal means.

use bytes::Bytes;
use mdm_api::mutants::{self, Mutant};
use raft::eraftpb::{Message, MessageType};

use crate::MdmId;
use crate::guard::{self, Guard};
use crate::identity::{Envelope, Payload, Refusal, Start, Verdict};
use crate::message;
use crate::node::RaftNode;
use crate::settings::{Action, HaltReason};

/// Refusals that were reported are remembered up to this many, so that each is reported once.
const MAX_REPORTED: usize = 64;

impl RaftNode {
    pub(crate) fn receive(&mut self, from: MdmId, bytes: &Bytes, out: &mut Vec<Action>) {
        let envelope = match Envelope::decode(bytes) {
            Ok(envelope) if envelope.from == from && envelope.to == self.settings.id && from != self.settings.id => {
                envelope
            }
            _ => {
                self.dropped_messages += 1;
                return;
            }
        };
        let verdict = self.stable.peers.judge(&self.members, self.settings.system, &envelope);
        if let Payload::Refused { reason, start } = envelope.payload {
            self.refused(from, reason, start, verdict, out);
            return;
        }
        match verdict {
            Verdict::Refuse(reason) => self.refuse(&envelope, reason, out),
            Verdict::Member { new_start } => {
                if new_start {
                    // What this peer showed must not be forgotten by a crash, if anything follows from it.
                    self.pending.write_stable = true;
                    self.pending.hold = true;
                }
                self.consider(&envelope, true, out);
            }
            Verdict::Unknown => self.consider(&envelope, false, out),
        }
    }

    /// Tells a peer that it is not heard, and the shell once.
    fn refuse(&mut self, envelope: &Envelope, reason: Refusal, out: &mut Vec<Action>) {
        let peer = envelope.from;
        if self.refused_peers.len() >= MAX_REPORTED {
            self.refused_peers.clear();
        }
        if self.refused_peers.insert((peer, reason, envelope.start.nonce)) {
            out.push(Action::PeerRefused { peer, reason });
        }
        self.send_payload(peer, Payload::Refused { reason, start: envelope.start }, false, out);
    }

    /// A peer does not hear us. Its word about an earlier start of this log means nothing now.
    fn refused(&mut self, by: MdmId, reason: Refusal, start: Start, verdict: Verdict, out: &mut Vec<Action>) {
        if start != self.stable.start {
            return;
        }
        match verdict {
            // It belongs to another system, and so do we to it.
            Verdict::Refuse(Refusal::OtherSystem) if reason == Refusal::OtherSystem => {
                out.push(Action::Refused { by, reason });
            }
            // One whose own log is not to be trusted says nothing about ours.
            Verdict::Refuse(_) => {}
            Verdict::Member { .. } | Verdict::Unknown => {
                out.push(Action::Refused { by, reason });
                if reason.is_final() {
                    self.halt(HaltReason::Refused { by, reason }, out);
                }
            }
        }
    }

    fn consider(&mut self, envelope: &Envelope, is_member: bool, out: &mut Vec<Action>) {
        let Payload::Raft(bytes) = &envelope.payload else { return };
        let Ok(message) = message::decode(bytes, envelope.from.0, self.settings.id.0) else {
            self.dropped_messages += 1;
            return;
        };
        let kind = message.get_msg_type();
        // An unknown sender may be a leader that joined while we were away, so its requests are heard. But a log that never
        // heard from any leader votes for nobody: it may be one that was wiped and does not know it.
        let vote = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        let is_blank = self.members.is_empty() && !mutants::is_on(Mutant::WipedVoter);
        if !is_member && (!guard::is_request(kind) || vote && is_blank) {
            self.dropped_messages += 1;
            return;
        }
        match guard::check(&self.raw, &message) {
            Guard::Pass if kind == MessageType::MsgTimeoutNow && self.outstanding.is_some() => {
                self.deferred = Some(message);
            }
            Guard::Pass => self.step_library(message),
            Guard::Drop => self.dropped_messages += 1,
            Guard::LostLog { committed } => self.halt(HaltReason::LostLog { committed }, out),
        }
    }

    /// Gives the library a message. What it does not want (an answer that comes too late, say) is counted.
    pub(crate) fn step_library(&mut self, message: Message) {
        if self.raw.step(message).is_err() {
            self.dropped_messages += 1;
        }
    }
}

#[cfg(test)]
#[path = "inbox_tests.rs"]
mod tests;
