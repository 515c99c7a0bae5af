//! The state that a replica saves with its store and hands to learners: term history and table of requests as of one
//! entry, and whether the content was complete then.

use bytes::{Buf, BufMut, Bytes};
use mdm_api::epoch::{Seq, Term, Version};
use sds_api::peer::{HISTORY_TERMS_MAX, TermStart};

use crate::dedup::Sessions;
use crate::log::Log;

/// Version of the encoding. 1: the first.
const STATE_VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedState {
    pub(crate) through: Version,
    pub(crate) complete: bool,
    pub(crate) history: Vec<TermStart>,
    pub(crate) sessions: Sessions,
}

/// The state as of the last committed entry.
pub(crate) fn encode(log: &Log, sessions: &Sessions, complete: bool) -> Bytes {
    let through = log.version_at(log.committed());
    let history = log.history_through(through.seq);
    let mut out = vec![STATE_VERSION, u8::from(complete)];
    out.put_u64_le(through.term.0);
    out.put_u64_le(through.seq.0);
    out.put_u32_le(history.len() as u32);
    for start in &history {
        out.put_u64_le(start.term.0);
        out.put_u64_le(start.first.0);
    }
    sessions.encode(through.seq, &mut out);
    Bytes::from(out)
}

/// None if the bytes are not a state that this software knows.
pub(crate) fn decode(bytes: &[u8]) -> Option<SavedState> {
    let mut input = bytes;
    if input.try_get_u8().ok()? != STATE_VERSION {
        return None;
    }
    let complete = match input.try_get_u8().ok()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let through = Version { term: Term(input.try_get_u64_le().ok()?), seq: Seq(input.try_get_u64_le().ok()?) };
    let count = input.try_get_u32_le().ok()? as usize;
    if count > HISTORY_TERMS_MAX {
        return None;
    }
    let mut history = Vec::with_capacity(count);
    for _ in 0..count {
        history.push(TermStart { term: Term(input.try_get_u64_le().ok()?), first: Seq(input.try_get_u64_le().ok()?) });
    }
    let sessions = Sessions::decode(&mut input)?;
    input.is_empty().then_some(SavedState { through, complete, history, sessions })
}
