//! Exactly once: which requests of which sessions are in the order already (I16).
//!
//! The table is a function of the entries: every replica of the group keeps the same one, it is in every saved state and is
//! handed to learners before their first entry, so a retried write takes effect once across restart and fail-over (F23).
//! A request leaves the table only when its client says that it was answered (the watermark); what comes later than that
//! is a late packet of a dead connection and is dropped (F24).

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use mdm_api::epoch::{AttachGeneration, RequestNumber, Seq};
use mdm_api::ids::{SdcId, VolumeId};
use mdm_api::mutants::{self, Mutant};
use sds_api::entry::WriteIdentity;

use crate::limits::{SESSION_WINDOW, SESSIONS_MAX};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Session {
    generation: AttachGeneration,
    /// All requests below were answered.
    watermark: RequestNumber,
    /// Where the others stand in the order.
    requests: BTreeMap<RequestNumber, Seq>,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing: it may be ordered.
    New,
    /// It is in the order.
    Ordered(Seq),
    /// It was answered long ago.
    Forgotten,
    /// Its session is over (I17).
    Fenced,
    /// Beyond the window, or one session too many: not now.
    Full,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<(VolumeId, SdcId), Session>,
}

impl Sessions {
    /// What is known of this request?
    pub(crate) fn check(&self, identity: &WriteIdentity) -> Seen {
        let Some(session) = self.sessions.get(&(identity.volume, identity.sdc)) else {
            let full = self.sessions.len() >= SESSIONS_MAX && !self.sessions.values().any(Session::is_guard);
            return if full { Seen::Full } else { Session::default().check(identity) };
        };
        if identity.session < session.generation {
            return Seen::Fenced;
        }
        if identity.session > session.generation {
            return Session::default().check(identity);
        }
        session.check(identity)
    }

    /// Takes an ordered request in.
    pub(crate) fn record(&mut self, identity: &WriteIdentity, seq: Seq) {
        let key = (identity.volume, identity.sdc);
        if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&key) {
            let guard = self.sessions.iter().find(|(_, session)| session.is_guard()).map(|(key, _)| *key);
            if let Some(guard) = guard {
                self.sessions.remove(&guard);
            }
        }
        let session = self.sessions.entry(key).or_default();
        if identity.session < session.generation {
            return;
        }
        if identity.session > session.generation {
            *session = Session { generation: identity.session, ..Session::default() };
        }
        session.watermark = session.watermark.max(identity.oldest_unacked);
        session.requests = session.requests.split_off(&session.watermark);
        if identity.request >= session.watermark {
            session.requests.insert(identity.request, seq);
        }
    }

    /// Entries beyond `after` are void.
    pub(crate) fn void(&mut self, after: Seq) {
        for session in self.sessions.values_mut() {
            session.requests.retain(|_, seq| *seq <= after);
        }
    }

    /// Sessions of the mapping below this generation are over. The entry that stays is a guard against late packets; the
    /// server's own check of generations is what counts, so guards may go when room is needed.
    pub(crate) fn fence(&mut self, volume: VolumeId, sdc: SdcId, below: AttachGeneration) {
        if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&(volume, sdc)) {
            return;
        }
        let session = self.sessions.entry((volume, sdc)).or_default();
        if session.generation < below {
            *session = Session { generation: below, ..Session::default() };
        }
    }

    /// Appends the table as of `through`.
    pub(crate) fn encode(&self, through: Seq, out: &mut Vec<u8>) {
        out.put_u32_le(self.sessions.len() as u32);
        for ((volume, sdc), session) in &self.sessions {
            out.put_u64_le(volume.0);
            out.put_u64_le(sdc.0);
            out.put_u64_le(session.generation.0);
            out.put_u64_le(session.watermark.0);
            let requests = || session.requests.iter().filter(|(_, seq)| **seq <= through);
            out.put_u32_le(requests().count() as u32);
            for (request, seq) in requests() {
                out.put_u64_le(request.0);
                out.put_u64_le(seq.0);
            }
        }
    }

    /// Takes a table off the front of `input`; none if it is not one.
    pub(crate) fn decode(input: &mut &[u8]) -> Option<Self> {
        let count = input.try_get_u32_le().ok()?;
        let mut sessions = BTreeMap::new();
        for _ in 0..count {
            let key = (VolumeId(input.try_get_u64_le().ok()?), SdcId(input.try_get_u64_le().ok()?));
            let generation = AttachGeneration(input.try_get_u64_le().ok()?);
            let watermark = RequestNumber(input.try_get_u64_le().ok()?);
            let mut requests = BTreeMap::new();
            for _ in 0..input.try_get_u32_le().ok()? {
                let request = RequestNumber(input.try_get_u64_le().ok()?);
                requests.insert(request, Seq(input.try_get_u64_le().ok()?));
            }
            sessions.insert(key, Session { generation, watermark, requests });
        }
        Some(Self { sessions })
    }
}

impl Session {
    fn check(&self, identity: &WriteIdentity) -> Seen {
        let watermark = self.watermark.max(identity.oldest_unacked);
        if let Some(seq) = self.requests.get(&identity.request) {
            return Seen::Ordered(*seq);
        }
        if identity.request < watermark {
            return if mutants::is_on(Mutant::TakeLateForNew) { Seen::New } else { Seen::Forgotten };
        }
        if identity.request.0 - watermark.0 >= SESSION_WINDOW { Seen::Full } else { Seen::New }
    }

    fn is_guard(&self) -> bool {
        self.requests.is_empty() && self.watermark == RequestNumber(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(session: u64, request: u64, oldest_unacked: u64) -> WriteIdentity {
        WriteIdentity {
            volume: VolumeId(1),
            sdc: SdcId(2),
            session: AttachGeneration(session),
            request: RequestNumber(request),
            oldest_unacked: RequestNumber(oldest_unacked),
        }
    }

    #[test]
    fn a_request_leaves_the_table_only_below_the_watermark() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.check(&identity(1, 1, 1)), Seen::New);
        sessions.record(&identity(1, 1, 1), Seq(10));
        sessions.record(&identity(1, 3, 1), Seq(11));
        assert_eq!(sessions.check(&identity(1, 1, 1)), Seen::Ordered(Seq(10)));
        assert_eq!(sessions.check(&identity(1, 2, 1)), Seen::New);
        sessions.record(&identity(1, 4, 3), Seq(12));
        assert_eq!(sessions.check(&identity(1, 1, 1)), Seen::Forgotten);
        assert_eq!(sessions.check(&identity(1, 3, 1)), Seen::Ordered(Seq(11)));
        assert_eq!(sessions.check(&identity(1, 3 + SESSION_WINDOW, 3)), Seen::Full);
    }

    #[test]
    fn a_voided_request_is_new_again() {
        let mut sessions = Sessions::default();
        sessions.record(&identity(1, 1, 1), Seq(10));
        sessions.record(&identity(1, 2, 1), Seq(11));
        sessions.void(Seq(10));
        assert_eq!(sessions.check(&identity(1, 1, 1)), Seen::Ordered(Seq(10)));
        assert_eq!(sessions.check(&identity(1, 2, 1)), Seen::New);
    }

    #[test]
    fn an_older_session_is_over_when_a_newer_one_is_known() {
        let mut sessions = Sessions::default();
        sessions.record(&identity(1, 1, 1), Seq(10));
        sessions.fence(VolumeId(1), SdcId(2), AttachGeneration(2));
        assert_eq!(sessions.check(&identity(1, 1, 1)), Seen::Fenced);
        assert_eq!(sessions.check(&identity(2, 1, 1)), Seen::New);
    }

    #[test]
    fn the_table_survives_its_encoding_as_of_a_point() {
        let mut sessions = Sessions::default();
        sessions.record(&identity(1, 1, 1), Seq(10));
        sessions.record(&identity(1, 2, 1), Seq(11));
        let mut bytes = Vec::new();
        sessions.encode(Seq(10), &mut bytes);
        let mut input = bytes.as_slice();
        let decoded = Sessions::decode(&mut input).unwrap();
        sessions.void(Seq(10));
        assert_eq!((decoded, input.len()), (sessions, 0));
        for cut in 0..bytes.len() {
            assert_eq!(Sessions::decode(&mut &bytes[..cut]), None);
        }
    }
}
