//! What a replica shows of itself to whoever watches over it: metrics, and checkers of invariants in tests. Nothing here
//! changes anything.

use mdm_api::config::PgConfig;
use mdm_api::epoch::{Nanos, Seq, Term};
use sds_api::block::{BlockRange, LayerKey};
use sds_api::entry::Entry;

use crate::Context;
use crate::replica::Replica;
use crate::role::Role;

impl Replica {
    /// Its role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The configuration that it acts on.
    pub fn config(&self) -> Option<&PgConfig> {
        self.config.as_ref()
    }

    /// The newest promise that is durable (I7).
    pub fn durable_promise(&self) -> Term {
        self.promise_durable
    }

    /// The newest promise.
    pub fn promised(&self) -> Term {
        self.promised
    }

    /// The term of the primary that it follows: it has answered that one's question, and no other since (I7).
    pub fn follows(&self) -> Option<Term> {
        self.follower.term()
    }

    /// The last entry that it has for good (I8).
    pub fn durable(&self) -> Seq {
        self.log.durable()
    }

    /// The last committed entry, as far as this replica knows.
    pub fn committed(&self) -> Seq {
        self.log.committed()
    }

    /// Its last entry.
    pub fn last(&self) -> Seq {
        self.log.last().seq
    }

    /// True if the store found signs of lost entries (I12).
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// True if its content is complete as of [`Replica::last`].
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Entries in `(after, through]` that are in memory, in order.
    pub fn entries(&self, after: Seq, through: Seq) -> impl Iterator<Item = &Entry> {
        self.log.range(after, through)
    }

    /// True if it would answer a read that had its bytes in hand at this moment (I13).
    pub fn may_answer_reads(&self, now: Nanos, context: &Context) -> bool {
        self.role == Role::Primary && self.is_covered_by_all(now, context)
    }

    /// A layer that is being copied while writes to it are ordered and not committed (I23).
    pub fn copies_undrained(&self) -> Option<LayerKey> {
        let leader = self.leader.as_ref()?;
        let mut captured = leader.members.values().filter_map(|member| member.resync.as_ref()?.captured());
        captured.find(|layer| leader.overlaps.newest_write(layer.chunk, BlockRange::WHOLE).is_some())
    }

    /// True while it feeds a learner.
    pub fn is_feeding(&self) -> bool {
        self.leader.as_ref().is_some_and(|leader| leader.members.values().any(|member| member.resync.is_some()))
    }
}
