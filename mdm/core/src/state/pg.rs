//! A placement group as the metadata manager keeps it: the configuration that everybody sees, and what its next primary
//! must be told or may not be.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::config::PgConfig;
use mdm_api::epoch::{Epoch, Revision, Term};
use mdm_api::ids::{DeviceId, FaultSetId, PgId, ProcessIncarnation, SdsId};
use serde::{Deserialize, Serialize};

/// What fails together, and so never holds two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FaultUnit {
    /// A fault set.
    FaultSet(FaultSetId),
    /// A server that is in none.
    Sds(SdsId),
}

/// Who was made primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appointment {
    /// The device.
    pub device: DeviceId,
    /// The process.
    pub incarnation: ProcessIncarnation,
}

/// A recorded intent: `to` takes the place of `from` once it is in sync. Over when either has left the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// Who is to go: an in-sync member that is moved, or a lost one that is rebuilt elsewhere.
    pub from: DeviceId,
    /// Who is to come.
    pub to: DeviceId,
}

/// A placement group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgRecord {
    /// The configuration.
    pub config: PgConfig,
    /// The revision in which the present term began. A primary that follows the map to it knows every earlier fence.
    pub appointed_at: Revision,
    /// Who was last appointed; kept while the group is dark.
    pub leader: Option<Appointment>,
    /// True if no process other than `leader`'s can hold a lease of this group. Without it the death of `leader` alone does
    /// not free its successor from waiting (I14): an earlier one may still hold a grant.
    pub settled: bool,
    /// In-sync members whose journal ended in a torn frame when they were last opened, and since which revision: not
    /// appointed by themselves before all members have been heard, until a primary has compared logs with them.
    pub uncertain: BTreeMap<DeviceId, Revision>,
    /// Members whose copy here may miss acknowledged writes (I12): never primary; out of the ISR unless they are the last.
    pub suspects: BTreeSet<DeviceId>,
    /// What is being moved or rebuilt.
    pub replacing: Option<Replacement>,
}

impl PgRecord {
    /// A group that was never written: every member is in sync with nothing, and nobody was ever granted a lease. Epochs
    /// count in revisions of the map, so that a table that is discarded and made anew goes on where it was (I1, I6).
    pub fn fresh(pg: PgId, members: &[DeviceId], primary: Appointment, revision: Revision) -> Self {
        let mut isr = members.to_vec();
        isr.sort_unstable();
        let config = PgConfig {
            pg,
            epoch: Epoch(revision.0),
            term: Term(revision.0),
            primary: Some(primary.device),
            primary_incarnation: primary.incarnation,
            isr,
            learners: Vec::new(),
            previous_certified_dead: true,
            heir: None,
        };
        Self {
            config,
            appointed_at: revision,
            leader: Some(primary),
            settled: true,
            uncertain: BTreeMap::new(),
            suspects: BTreeSet::new(),
            replacing: None,
        }
    }

    /// In-sync members, then learners.
    pub fn members(&self) -> impl Iterator<Item = DeviceId> {
        self.config.isr.iter().chain(&self.config.learners).copied()
    }

    pub(crate) fn add_learner(&mut self, device: DeviceId) {
        if let Err(at) = self.config.learners.binary_search(&device) {
            self.config.learners.insert(at, device);
        }
    }

    pub(crate) fn drop_learner(&mut self, device: DeviceId) {
        self.config.learners.retain(|learner| *learner != device);
        self.forget(device);
    }

    pub(crate) fn add_isr(&mut self, device: DeviceId) {
        self.config.learners.retain(|learner| *learner != device);
        if let Err(at) = self.config.isr.binary_search(&device) {
            self.config.isr.insert(at, device);
        }
        // It was brought to the primary's state chunk by chunk: whatever it had missed, it has now.
        self.suspects.remove(&device);
        self.uncertain.remove(&device);
    }

    /// Takes a member out of the ISR. The last one stays (I3).
    pub(crate) fn remove_isr(&mut self, device: DeviceId) -> bool {
        if self.config.isr == [device] || !self.config.isr.contains(&device) {
            return false;
        }
        self.config.isr.retain(|member| *member != device);
        self.uncertain.remove(&device);
        if self.config.primary == Some(device) {
            self.config.primary = None;
        }
        if self.config.heir == Some(device) || self.config.primary.is_none() {
            self.config.heir = None;
        }
        true
    }

    /// Forgets what was noted about a device that is no member any more.
    pub(crate) fn forget(&mut self, device: DeviceId) {
        if self.config.names(device) {
            return;
        }
        self.uncertain.remove(&device);
        self.suspects.remove(&device);
        if self.replacing.is_some_and(|replacing| replacing.from == device || replacing.to == device) {
            self.replacing = None;
        }
    }
}
