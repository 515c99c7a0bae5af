//! What answers mean: settled, or once more.

use mdm_api::ids::{PgId, SdsId};
use sds_api::block::BlockRange;
use sds_api::client::{ClientAnswer, ClientError, ClientReply};
use sds_api::client_codec::piece_checksums;

use super::operation::{NoSpacePolicy, Outcome};
use super::piece::{Piece, Slot, State, Work};
use super::{Action, Path, Ready, Session, Step};
use crate::io::IoError;
use crate::limits::{DAMAGED_ANSWERS_MAX, NO_SPACE_BACKOFF_MS, OUT_OF_RANGE_MS_MAX};
use crate::route::newest;

/// Why a good answer is not good.
enum Misfit {
    /// The bytes do not match their checksums.
    Damaged,
    /// It answers another question.
    Protocol,
}

impl Session {
    pub(super) fn on_reply(&mut self, step: &mut Step<'_>, sds: SdsId, reply: ClientReply) {
        let Some(slot) = self.sent.get(&reply.tag).copied() else {
            self.stats.late_answers += 1;
            return;
        };
        let Some(piece) = self.pieces.get(slot) else { return };
        let State::Sent { sds: asked, handle, .. } = piece.state else { return };
        if asked != sds {
            self.stats.late_answers += 1;
            return;
        }
        if let Some(Path::Open { attempts, .. }) = self.paths.get_mut(&sds) {
            *attempts = 0;
        }
        self.sent.remove(&reply.tag);
        match reply.result.map(|answer| accept(piece, answer)) {
            Ok(Ok(outcome)) => self.settle(step, slot, Ok(outcome)),
            Ok(Err(Misfit::Damaged)) => self.damaged(step, slot),
            Ok(Err(Misfit::Protocol)) => {
                self.settle(step, slot, Err(IoError::Protocol("an answer to another question")));
            }
            Err(error) => self.refused(step, (sds, handle), slot, error),
        }
    }

    fn refused(&mut self, step: &mut Step<'_>, from: (SdsId, u32), slot: Slot, error: ClientError) {
        match error {
            ClientError::WrongPrimary(config) => self.wrong_primary(step, slot, config),
            ClientError::Retry => self.back_off(step, slot),
            ClientError::StaleSnap(seq) => self.stale_snap(step, slot, seq),
            ClientError::Fenced => self.fail(step, IoError::Revoked),
            ClientError::ReadOnly => self.settle(step, slot, Err(IoError::ReadOnly)),
            ClientError::UnknownHandle => self.reopen(step, from, slot),
            ClientError::OutOfRange => self.out_of_range(step, slot),
            ClientError::Damaged => self.damaged(step, slot),
            ClientError::NoSpace => {
                self.stats.no_space += 1;
                match self.policy.no_space {
                    NoSpacePolicy::Hold => self.wait(slot, step.now.plus_ms(NO_SPACE_BACKOFF_MS)),
                    NoSpacePolicy::Fail => self.settle(step, slot, Err(IoError::NoSpace)),
                }
            }
            ClientError::Medium => self.settle(step, slot, Err(IoError::Medium)),
            // F24: only late copies are below the watermark, and their tags are not waited for. Of a request that is
            // waited for this says that the server lost count: nobody can tell whether it took effect.
            ClientError::Forgotten => {
                self.settle(step, slot, Err(IoError::Protocol("a request was forgotten before it was answered")));
            }
        }
    }

    /// F12: go where the server says, if it knows better; else wait for the map.
    fn wrong_primary(&mut self, step: &mut Step<'_>, slot: Slot, told: Option<Box<mdm_api::config::PgConfig>>) {
        self.stats.wrong_primary += 1;
        let Some(piece) = self.pieces.get(slot) else { return };
        let index = piece.group;
        let pg = PgId { pool: self.geometry.pool, index };
        let group = self.groups.entry(index).or_default();
        let known = newest(step.map, pg, group.told.as_ref()).map(|config| config.epoch);
        self.back_off(step, slot);
        if let Some(told) = told.filter(|told| told.pg == pg && known.is_none_or(|known| told.epoch > known)) {
            self.groups.entry(index).or_default().told = Some(*told);
            self.follow_group(step, index);
        }
    }

    /// The server has not ordered this change under the old sequence and never will.
    fn stale_snap(&mut self, step: &Step<'_>, slot: Slot, seq: mdm_api::epoch::SnapSeq) {
        self.certain(slot);
        self.learn_snap_seq(seq);
        if self.switching.is_some() {
            self.hold(slot);
        } else {
            self.back_off(step, slot);
        }
        self.switch_if_drained();
    }

    fn reopen(&mut self, step: &mut Step<'_>, (sds, handle): (SdsId, u32), slot: Slot) {
        if let Some(Path::Open { handle: open, attempts }) = self.paths.get(&sds).copied()
            && open == handle
        {
            self.paths.insert(sds, Path::Opening { attempts });
            step.out.push(Action::Open(sds));
        }
        self.back_off(step, slot);
    }

    /// The client's map has these bytes. The server's map may be behind, for a while.
    fn out_of_range(&mut self, step: &mut Step<'_>, slot: Slot) {
        let Some(piece) = self.pieces.get_mut(slot) else { return };
        let since = *piece.out_of_range_since.get_or_insert(step.now);
        if step.now.ms_since(since) < OUT_OF_RANGE_MS_MAX {
            return self.back_off(step, slot);
        }
        let size = self.geometry.size_bytes;
        let offset = piece.chunk * mdm_api::placement::CHUNK_BYTES + u64::from(piece.offset);
        let length = u64::from(piece.length);
        self.settle(step, slot, Err(IoError::OutOfRange { offset, length, size }));
    }

    /// P3: damaged bytes are asked for, or sent, again.
    fn damaged(&mut self, step: &mut Step<'_>, slot: Slot) {
        self.stats.damaged += 1;
        let Some(piece) = self.pieces.get_mut(slot) else { return };
        piece.damaged += 1;
        // Bytes that changed in this host's memory would be refused for ever.
        let spoiled = match &piece.work {
            Work::Write { data, checksums } => piece_checksums(piece.offset, [data]) != *checksums,
            _ => false,
        };
        if spoiled || piece.damaged >= DAMAGED_ANSWERS_MAX {
            self.settle(step, slot, Err(IoError::Damaged));
        } else {
            self.back_off(step, slot);
        }
    }

    /// It is known what became of a change.
    fn certain(&mut self, slot: Slot) {
        if let Some(piece) = self.pieces.get_mut(slot)
            && std::mem::take(&mut piece.uncertain)
        {
            self.uncertain -= 1;
        }
    }

    /// A piece has come to its end.
    fn settle(&mut self, step: &mut Step<'_>, slot: Slot, outcome: Result<Outcome, IoError>) {
        self.certain(slot);
        self.unlink(slot);
        let Some(piece) = self.pieces.remove(slot) else { return };
        if let Some(number) = piece.number {
            self.groups.entry(piece.group).or_default().answered(number);
            self.pump(piece.group);
        }
        self.switch_if_drained();
        let Some(operation) = self.operations.get_mut(&piece.io) else { return };
        operation.settle(piece.index, outcome);
        if operation.has_more() {
            self.ready.push_back(Ready::Feed(piece.io));
        } else if operation.live == 0 {
            self.finish(step, piece.io);
        }
    }
}

/// Checks that an answer fits its question, and its bytes their checksums (I21).
fn accept(piece: &Piece, answer: ClientAnswer) -> Result<Outcome, Misfit> {
    match (&piece.work, answer) {
        (Work::Read, ClientAnswer::Data { checksums, data }) => {
            if data.iter().map(bytes::Bytes::len).sum::<usize>() != piece.length as usize {
                return Err(Misfit::Protocol);
            }
            if piece_checksums(piece.offset, &data) != checksums {
                return Err(Misfit::Damaged);
            }
            Ok(Outcome::Data(data))
        }
        (Work::Write { .. } | Work::Zero, ClientAnswer::Done) => Ok(Outcome::Nothing),
        (Work::Status, ClientAnswer::Status(blocks)) => {
            let expected = BlockRange::touching(piece.offset, piece.length).map(|range| usize::from(range.count()));
            if expected == Some(blocks.len()) { Ok(Outcome::Status(blocks)) } else { Err(Misfit::Protocol) }
        }
        _ => Err(Misfit::Protocol),
    }
}
