//! What was proposed and is not decided yet, and what is to be done when it is.
//!
//! A proposal has a token until Raft gives it a place in the log, then the place; it took effect only if the entry that is
//! applied at that place is of the same term. What a deposed leader proposed has an unknown outcome: the asker is sent to
//! the new leader, where the same request id gives the same answer.

use std::collections::BTreeMap;

use mdm_api::control::PeerRole;

use crate::event::RequestKey;
use crate::leadership::Slot;

/// Why something was proposed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A request, to be answered with the command's result.
    Request(RequestKey),
    /// The leader's own business.
    Own(Slot),
    /// A new join token.
    JoinToken { key: RequestKey, secret: String },
    /// A record for who joins; then its certificate is signed.
    Join { key: RequestKey, csr_pem: String, kind: JoinKind },
}

/// As what somebody joins: how the new record's number becomes a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinKind {
    Mdm,
    Sdc,
}

impl JoinKind {
    pub(crate) fn role(self, id: u64) -> PeerRole {
        match self {
            Self::Mdm => PeerRole::Mdm(mdm_api::ids::MdmId(id)),
            Self::Sdc => PeerRole::Sdc(mdm_api::ids::SdcId(id)),
        }
    }
}

impl Purpose {
    /// The request that waits for it.
    pub(crate) fn key(&self) -> Option<RequestKey> {
        match self {
            Self::Request(key) | Self::JoinToken { key, .. } | Self::Join { key, .. } => Some(*key),
            Self::Own(_) => None,
        }
    }
}

/// All that is undecided. Bounded by the requests that the shell lets in and by one of each of the leader's own.
#[derive(Default)]
pub(crate) struct Proposals {
    next_token: u64,
    asked: BTreeMap<u64, Purpose>,
    logged: BTreeMap<u64, (u64, Purpose)>,
}

impl Proposals {
    /// A number that was never used before.
    pub(crate) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Something is about to be proposed.
    pub(crate) fn asked(&mut self, purpose: Purpose) -> u64 {
        let token = self.token();
        self.asked.insert(token, purpose);
        token
    }

    /// It has its place in the log.
    pub(crate) fn placed(&mut self, token: u64, index: u64, term: u64) -> Option<Purpose> {
        let purpose = self.asked.remove(&token)?;
        // A place that is taken again belonged to an earlier term: what stood there is lost.
        self.logged.insert(index, (term, purpose)).map(|(_, lost)| lost)
    }

    /// It was not taken.
    pub(crate) fn dropped(&mut self, token: u64) -> Option<Purpose> {
        self.asked.remove(&token)
    }

    /// An entry was applied: what was proposed there and is now decided, and what is lost because the place, or one
    /// before it, went to another entry.
    pub(crate) fn applied(&mut self, index: u64, term: u64) -> (Option<Purpose>, Vec<Purpose>) {
        let later = self.logged.split_off(&(index + 1));
        let mut passed = std::mem::replace(&mut self.logged, later);
        let decided = match passed.remove(&index) {
            Some((proposed, purpose)) if proposed == term => Some(purpose),
            Some((_, purpose)) => return (None, passed.into_values().map(|(_, p)| p).chain([purpose]).collect()),
            None => None,
        };
        (decided, passed.into_values().map(|(_, purpose)| purpose).collect())
    }

    /// This member does not lead any more: the outcome of all is unknown.
    pub(crate) fn take_all(&mut self) -> Vec<Purpose> {
        let asked = std::mem::take(&mut self.asked).into_values();
        let logged = std::mem::take(&mut self.logged).into_values().map(|(_, purpose)| purpose);
        asked.chain(logged).collect()
    }

    /// How many are undecided.
    pub(crate) fn len(&self) -> usize {
        self.asked.len() + self.logged.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ConnectionId;

    fn request(id: u64) -> Purpose {
        Purpose::Request(RequestKey { connection: ConnectionId(1), id })
    }

    #[test]
    fn only_an_entry_of_the_same_term_at_the_same_place_decides_a_proposal() {
        let mut proposals = Proposals::default();
        for id in 1..=3 {
            let token = proposals.asked(request(id));
            assert!(proposals.placed(token, 10 + id, 4).is_none());
        }
        let (decided, lost) = proposals.applied(11, 4);
        assert!(decided == Some(request(1)) && lost.is_empty());
        // 12 was passed over by an entry of the group itself, 13 is another leader's.
        let (decided, lost) = proposals.applied(13, 5);
        assert!(decided.is_none() && lost == [request(2), request(3)]);
        assert_eq!(proposals.len(), 0);
    }
}
