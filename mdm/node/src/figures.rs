//! Figures of a member for its metrics.

use mdm_core::view::{PgHealth, pg_health};

use crate::node::Node;

/// What a member counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// True if it leads.
    pub leads: bool,
    /// Raft's term.
    pub term: u64,
    /// Last committed entry that it knows of.
    pub committed: u64,
    /// Last entry that it has applied.
    pub applied: u64,
    /// Revision of its map.
    pub revision: u64,
    /// Members of the group.
    pub members: usize,
    /// Placement groups with all copies in sync.
    pub healthy_pgs: usize,
    /// Placement groups that serve with fewer copies.
    pub degraded_pgs: usize,
    /// Placement groups that nobody serves.
    pub dark_pgs: usize,
    /// Data servers that are taken to be alive.
    pub connected_sds: usize,
    /// Volumes.
    pub volumes: usize,
    /// Mappings.
    pub mappings: usize,
    /// Control connections.
    pub connections: usize,
    /// Followers of the map.
    pub followers: usize,
    /// Proposals that are undecided.
    pub proposals: usize,
    /// Answers that wait for more than a commit.
    pub deferred: usize,
    /// Messages of other members that were not understood or not wanted.
    pub dropped_messages: u64,
}

impl Node {
    /// The figures now. Looks at every placement group: for once a second, not for every event.
    pub fn figures(&self) -> Figures {
        let raft = self.raft.status();
        let mut figures = Figures {
            leads: self.leads_current(),
            term: raft.term,
            committed: raft.committed,
            applied: raft.applied,
            revision: self.state.revision().0,
            members: self.state.mdms().len(),
            connected_sds: self.state.sds().values().filter(|sds| sds.connected).count(),
            volumes: self.state.volumes().len(),
            mappings: self.state.mappings().len(),
            connections: self.connections.len(),
            followers: self.connections.followers(),
            proposals: self.proposals.len(),
            deferred: self.deferred.len(),
            dropped_messages: raft.dropped_messages,
            ..Figures::default()
        };
        for record in self.state.pgs().values() {
            match pg_health(&self.state, record) {
                PgHealth::Healthy => figures.healthy_pgs += 1,
                PgHealth::Degraded => figures.degraded_pgs += 1,
                PgHealth::Dark => figures.dark_pgs += 1,
            }
        }
        figures
    }
}
