//! Our bytes for the consensus library's messages and entries.
//!
//! The library comes with a protobuf codec whose decoder can be driven into unbounded recursion by crafted input
//! (RUSTSEC-2024-0437). It is never given bytes from peers or disks: fields are translated here by hand. Only the types
//! that members of this group send each other exist on the wire; proposals and reads are not forwarded inside the group.
//!
//! An entry is one of four things, told apart by its type and the first byte of its data:
//!
//! | entry | type | data |
//! |---|---|---|
//! | start of a leader's term | normal | empty |
//! | command | normal | 0, command |
//! | change of a member's record | normal | 1, change |
//! | change of who votes or receives | configuration | change, in the entry's context; the library's own form of it is remade by each member and not sent |

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot as RaftSnapshot};

use crate::codec::{DecodeError, Put, Reader};
use crate::limits::{MAX_COMMAND_BYTES, MAX_CONTEXT_BYTES, MAX_ENTRIES_PER_MESSAGE};
use crate::members::{Members, MembersChange};
use crate::snapshot::Snapshot;

const COMMAND: u8 = 0;
const CHANGE: u8 = 1;

/// What an entry means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A leader's first entry: it commits what came before.
    TermStart,
    /// A command for the state machine.
    Command(Bytes),
    /// A change of the members table.
    Change(MembersChange),
}

/// The data of an entry that carries a command.
pub(crate) fn command_data(command: &[u8]) -> Vec<u8> {
    tagged(COMMAND, command)
}

/// The data of an entry that changes a member's record, and not who votes.
pub(crate) fn change_data(change: &MembersChange) -> Vec<u8> {
    tagged(CHANGE, &change.encode())
}

fn tagged(tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(rest.len() + 1);
    data.push(tag);
    data.extend_from_slice(rest);
    data
}

/// What an entry means. Entries of unknown meaning do not pass [`decode_entry_body`].
pub(crate) fn meaning(entry: &Entry) -> Result<Meaning, DecodeError> {
    let is_configuration = entry.get_entry_type() == EntryType::EntryConfChangeV2;
    let change = match entry.data.split_first() {
        _ if is_configuration => MembersChange::decode(&entry.context)?,
        None => return Ok(Meaning::TermStart),
        Some((&COMMAND, _)) => return Ok(Meaning::Command(entry.data.slice(1..))),
        Some((&CHANGE, change)) => MembersChange::decode(change)?,
        Some(_) => return Err(DecodeError::Unknown("kind of entry")),
    };
    // What changes the library's configuration comes as such, and nothing else does: the two never differ.
    if change.is_about_votes() == is_configuration {
        Ok(Meaning::Change(change))
    } else {
        Err(DecodeError::Unknown("form of members change"))
    }
}

/// Appends an entry without its index and term.
pub(crate) fn encode_entry_body(entry: &Entry, out: &mut Vec<u8>) {
    if entry.get_entry_type() == EntryType::EntryConfChangeV2 {
        out.put_u8(2);
        out.extend_from_slice(&entry.context);
    } else {
        out.put_u8(1);
        out.extend_from_slice(&entry.data);
    }
}

/// Reads what [`encode_entry_body`] wrote, and checks that the entry means something.
pub(crate) fn decode_entry_body(index: u64, term: u64, body: &[u8]) -> Result<Entry, DecodeError> {
    let (kind, rest) = body.split_first().ok_or(DecodeError::Truncated)?;
    if rest.len() > MAX_COMMAND_BYTES + 1 {
        return Err(DecodeError::Limit("command"));
    }
    if index == 0 || term == 0 {
        return Err(DecodeError::Unknown("index or term"));
    }
    let mut entry = Entry { index, term, ..Default::default() };
    match kind {
        1 => entry.data = Bytes::copy_from_slice(rest),
        2 => {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.context = Bytes::copy_from_slice(rest);
        }
        _ => return Err(DecodeError::Unknown("kind of entry")),
    }
    meaning(&entry)?;
    Ok(entry)
}

/// The kinds of messages that members send each other, and their numbers.
const TYPES: [(MessageType, u8); 10] = [
    (MessageType::MsgAppend, 1),
    (MessageType::MsgAppendResponse, 2),
    (MessageType::MsgRequestVote, 3),
    (MessageType::MsgRequestVoteResponse, 4),
    (MessageType::MsgSnapshot, 5),
    (MessageType::MsgHeartbeat, 6),
    (MessageType::MsgHeartbeatResponse, 7),
    (MessageType::MsgTimeoutNow, 8),
    (MessageType::MsgRequestPreVote, 9),
    (MessageType::MsgRequestPreVoteResponse, 10),
];

/// A message as bytes; sender and receiver stand on the envelope. `None` for a kind that does not leave this member.
pub(crate) fn encode(message: &Message) -> Option<Bytes> {
    let kind = TYPES.iter().find(|(kind, _)| *kind == message.get_msg_type())?.1;
    let mut out = Vec::with_capacity(128);
    out.put_u8(kind);
    for field in
        [message.term, message.log_term, message.index, message.commit, message.commit_term, message.reject_hint]
    {
        out.put_u64(field);
    }
    out.put_u8(u8::from(message.reject));
    out.put_bytes(&message.context);
    if message.get_msg_type() == MessageType::MsgSnapshot {
        let metadata = message.get_snapshot().get_metadata();
        out.put_u64(metadata.index);
        out.put_u64(metadata.term);
        out.extend_from_slice(&message.get_snapshot().data);
    } else {
        out.put_count(message.entries.len());
        for entry in &message.entries {
            out.put_u64(entry.index);
            out.put_u64(entry.term);
            let mut body = Vec::new();
            encode_entry_body(entry, &mut body);
            out.put_bytes(&body);
        }
    }
    Some(Bytes::from(out))
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode(bytes: &[u8], from: u64, to: u64) -> Result<Message, DecodeError> {
    let mut reader = Reader::new(bytes);
    let number = reader.u8()?;
    let kind = TYPES.iter().find(|(_, n)| *n == number).ok_or(DecodeError::Unknown("kind of message"))?.0;
    let mut message = Message { from, to, ..Default::default() };
    message.set_msg_type(kind);
    message.term = reader.number("term")?;
    message.log_term = reader.number("term")?;
    message.index = reader.number("index")?;
    message.commit = reader.number("commit")?;
    message.commit_term = reader.number("term")?;
    message.reject_hint = reader.number("index")?;
    message.reject = reader.bool("rejection")?;
    message.context = Bytes::copy_from_slice(reader.bytes("context", MAX_CONTEXT_BYTES)?);
    if kind == MessageType::MsgSnapshot {
        let (index, term) = (reader.number("index")?, reader.number("term")?);
        let data = Bytes::copy_from_slice(reader.take(reader.left())?);
        let (members, _) = Snapshot::decode_body(&mut Reader::new(&data))?;
        message.set_snapshot(raft_snapshot(index, term, &members, data));
    } else {
        let mut entries = Vec::new();
        for _ in 0..reader.count("entries", MAX_ENTRIES_PER_MESSAGE, 21)? {
            let (index, term) = (reader.number("index")?, reader.number("term")?);
            entries.push(decode_entry_body(index, term, reader.bytes("entry", MAX_COMMAND_BYTES + 2)?)?);
        }
        message.set_entries(entries.into());
    }
    reader.end()?;
    Ok(message)
}

/// The library's form of a snapshot. Its body is ours, its configuration follows from the members table.
pub(crate) fn raft_snapshot(index: u64, term: u64, members: &Members, body: Bytes) -> RaftSnapshot {
    let mut snapshot = RaftSnapshot { data: body, ..Default::default() };
    let metadata = snapshot.mut_metadata();
    metadata.index = index;
    metadata.term = term;
    metadata.set_conf_state(conf_state(members));
    snapshot
}

/// The library's form of a members table.
pub(crate) fn conf_state(members: &Members) -> ConfState {
    ConfState::from((members.voters(), members.learners()))
}

#[cfg(test)]
#[path = "message_tests.rs"]
pub(crate) mod tests;
