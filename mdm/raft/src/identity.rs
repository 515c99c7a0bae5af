//! Who a message is from, and whether its sender's log is the one that the group knows.
//!
//! Raft is safe only while a member remembers what it promised. Two accidents make it forget: its log is wiped and it comes
//! back under its old id, or its disk is rolled back (an old copy, a restored virtual machine). Both are recognised here:
//!
//! * every log has a random store id, registered in the members table when the member joins: another one is a wiped log;
//! * every start of a log counts up and draws a nonce, and every record in it has a position. What a peer showed is
//!   remembered, durably before it is acted upon. A count that goes back, a count with two nonces, or a start from a
//!   position before one that was shown already, is a log that was rolled back.
//!
//! Limit, in principle: a member that was rolled back to a moment of its current start is recognised only by peers that
//! it has talked to since that moment.
//!
//! A refused sender is told so, with its own start echoed, so that the word about an old start cannot stop a newer one.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use mdm_api::ids::{MdmId, SystemId};
use mdm_api::mutants::{self, Mutant};

use crate::codec::{DecodeError, Put, Reader, seal, unseal};
use crate::limits::{MAX_MEMBERS, MAX_MESSAGE_BYTES};
use crate::members::Members;

/// The random identity of one log, made by the caller when the log is created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoreId(pub u64);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreId({self})")
    }
}

/// One start of one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Start {
    /// Counts the starts of this log, from 1.
    pub count: u64,
    /// Random, drawn at each start.
    pub nonce: u64,
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// The sender belongs to another system.
    #[error("it belongs to another system")]
    OtherSystem,
    /// The sender's log is not the one that was registered.
    #[error("its log was wiped: remove the member and add it again under a new id")]
    OtherStore,
    /// The sender's log is older than what it showed before.
    #[error("its log was rolled back to an earlier state: remove the member and add it again under a new id")]
    RolledBack,
    /// The sender is no member any more.
    #[error("it was removed from the group")]
    Removed,
}

impl Refusal {
    /// Whether a member that is told this must stop for good: it does not know what it promised, or it is not asked.
    pub fn is_final(self) -> bool {
        match self {
            Self::OtherSystem => false,
            Self::OtherStore | Self::RolledBack | Self::Removed => true,
        }
    }
}

/// What a message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A message of the consensus protocol, encoded.
    Raft(Bytes),
    /// Nothing but who and where the sender is.
    Here,
    /// A message of yours was refused.
    Refused {
        /// Why.
        reason: Refusal,
        /// The start that sent it.
        start: Start,
    },
}

/// A message between members, with all that is needed to judge its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The system.
    pub system: SystemId,
    /// The sender.
    pub from: MdmId,
    /// The receiver.
    pub to: MdmId,
    /// The sender's log.
    pub store: StoreId,
    /// The start of the sender's log.
    pub start: Start,
    /// Position of the last record that was durable when the log was started.
    pub start_position: u64,
    /// Position of the last record that is durable now.
    pub position: u64,
    /// What it says.
    pub payload: Payload,
}

const MAGIC: u32 = 0x4d52_4153;
/// Version 1: the first.
const VERSION: u8 = 1;

impl Envelope {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(128);
        out.put_u32(MAGIC);
        out.put_u8(VERSION);
        for field in [
            self.system.0,
            self.from.0,
            self.to.0,
            self.store.0,
            self.start.count,
            self.start.nonce,
            self.start_position,
            self.position,
        ] {
            out.put_u64(field);
        }
        match &self.payload {
            Payload::Raft(bytes) => {
                out.put_u8(1);
                out.put_bytes(bytes);
            }
            Payload::Here => out.put_u8(3),
            Payload::Refused { reason, start } => {
                out.put_u8(2);
                out.put_u8(match reason {
                    Refusal::OtherSystem => 1,
                    Refusal::OtherStore => 2,
                    Refusal::RolledBack => 3,
                    Refusal::Removed => 4,
                });
                out.put_u64(start.count);
                out.put_u64(start.nonce);
            }
        }
        seal(out)
    }

    /// Reads what [`Envelope::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(unseal(bytes)?);
        if reader.u32()? != MAGIC {
            return Err(DecodeError::Magic);
        }
        match reader.u8()? {
            VERSION => {}
            version => return Err(DecodeError::Version(version)),
        }
        let (system, from, to) = (SystemId(reader.u64()?), MdmId(reader.u64()?), MdmId(reader.u64()?));
        let store = StoreId(reader.u64()?);
        let start = Start { count: reader.number("start count")?, nonce: reader.u64()? };
        let (start_position, position) = (reader.number("position")?, reader.number("position")?);
        let payload = match reader.u8()? {
            1 => Payload::Raft(Bytes::copy_from_slice(reader.bytes("message", MAX_MESSAGE_BYTES)?)),
            2 => {
                let reason = match reader.u8()? {
                    1 => Refusal::OtherSystem,
                    2 => Refusal::OtherStore,
                    3 => Refusal::RolledBack,
                    4 => Refusal::Removed,
                    _ => return Err(DecodeError::Unknown("refusal")),
                };
                Payload::Refused { reason, start: Start { count: reader.u64()?, nonce: reader.u64()? } }
            }
            3 => Payload::Here,
            _ => return Err(DecodeError::Unknown("payload")),
        };
        reader.end()?;
        Ok(Self { system, from, to, store, start, start_position, position, payload })
    }
}

/// The most that one peer has shown of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    start: Start,
    position: u64,
}

/// What the peers have shown of their logs. Part of the stable file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenPeers {
    peers: BTreeMap<MdmId, Seen>,
}

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A member whose log is the registered one.
    Member {
        /// Its start was not known before: it must be durable before anything that follows from the message is sent.
        new_start: bool,
    },
    /// Nobody that this member knows of: it may be a leader that was added while this member was away. Requests are
    /// heard, answers count for nothing.
    Unknown,
    /// Not to be heard.
    Refuse(Refusal),
}

impl SeenPeers {
    /// Judges the sender of `envelope`, and remembers what it shows.
    pub fn judge(&mut self, members: &Members, system: SystemId, envelope: &Envelope) -> Verdict {
        if envelope.system != system {
            return Verdict::Refuse(Refusal::OtherSystem);
        }
        if members.was_removed(envelope.from) {
            return Verdict::Refuse(Refusal::Removed);
        }
        let Some(member) = members.get(envelope.from) else {
            return Verdict::Unknown;
        };
        if mutants::is_on(Mutant::WipedVoter) {
            return Verdict::Member { new_start: false };
        }
        if member.store != envelope.store {
            return Verdict::Refuse(Refusal::OtherStore);
        }
        let shown = Seen { start: envelope.start, position: envelope.position.max(envelope.start_position) };
        let Some(seen) = self.peers.get_mut(&envelope.from) else {
            self.peers.insert(envelope.from, shown);
            return Verdict::Member { new_start: true };
        };
        if shown.start.count > seen.start.count {
            if envelope.start_position < seen.position {
                return Verdict::Refuse(Refusal::RolledBack);
            }
            *seen = shown;
            return Verdict::Member { new_start: true };
        }
        if shown.start != seen.start {
            return Verdict::Refuse(Refusal::RolledBack);
        }
        seen.position = seen.position.max(shown.position);
        Verdict::Member { new_start: false }
    }

    /// Forgets those who are not in the table any more.
    pub fn keep_members(&mut self, members: &Members) {
        self.peers.retain(|id, _| members.get(*id).is_some());
    }

    /// Appends it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_count(self.peers.len());
        for (id, seen) in &self.peers {
            for field in [id.0, seen.start.count, seen.start.nonce, seen.position] {
                out.put_u64(field);
            }
        }
    }

    /// Reads what [`SeenPeers::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut peers = BTreeMap::new();
        for _ in 0..reader.count("peers", MAX_MEMBERS, 32)? {
            let id = MdmId(reader.u64()?);
            let start = Start { count: reader.u64()?, nonce: reader.u64()? };
            peers.insert(id, Seen { start, position: reader.u64()? });
        }
        Ok(Self { peers })
    }
}
