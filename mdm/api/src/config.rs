//! The configuration of a placement group: who keeps it, who leads it.
//!
//! Only a committed command of the metadata manager makes one (I1). `epoch` grows with every change; `term` becomes the
//! new epoch whenever the appointment of the primary changes, including the same device under a new process (I2).

use serde::{Deserialize, Serialize};

use crate::epoch::{Epoch, Term};
use crate::ids::{DeviceId, PgId, ProcessIncarnation};

/// Who keeps a placement group. Replicas are named by device: the unit of failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgConfig {
    /// Which group.
    pub pg: PgId,
    /// Version of this configuration.
    pub epoch: Epoch,
    /// Version of the primary's appointment.
    pub term: Term,
    /// The primary; `None` while no member of the ISR is fit to lead: the group is dark.
    pub primary: Option<DeviceId>,
    /// The process start of the primary's server that is appointed; another start is not (I2).
    pub primary_incarnation: ProcessIncarnation,
    /// In-sync replicas: each holds every acknowledged write. Never empty, holds the primary (I3). Sorted.
    pub isr: Vec<DeviceId>,
    /// Replicas that are catching up, disjoint from `isr` (I3). Sorted.
    pub learners: Vec<DeviceId>,
    /// The previous primary's process is certified dead: a newer process holds its devices. The new primary need not wait
    /// out the leases that it granted (I14).
    pub previous_certified_dead: bool,
    /// A planned move: the in-sync member that is to lead next. The primary drains, releases its leases, and asks for it
    /// ([`PgChangeKind::HandOver`]).
    #[serde(default)]
    pub heir: Option<DeviceId>,
}

impl PgConfig {
    /// True if the device is a member in any role.
    pub fn names(&self, device: DeviceId) -> bool {
        self.isr.contains(&device) || self.learners.contains(&device)
    }

    /// What every configuration satisfies. The text names the first violation.
    pub fn check(&self) -> Result<(), &'static str> {
        let sorted = |list: &[DeviceId]| list.windows(2).all(|pair| pair[0] < pair[1]);
        if self.isr.is_empty() {
            return Err("I3: the ISR is empty");
        }
        if self.primary.is_some_and(|primary| !self.isr.contains(&primary)) {
            return Err("I3: the primary is not in the ISR");
        }
        if self.heir.is_some_and(|heir| !self.isr.contains(&heir) || self.primary.is_none_or(|primary| primary == heir))
        {
            return Err("the heir of the role is not another in-sync member than the primary");
        }
        if self.learners.iter().any(|learner| self.isr.contains(learner)) {
            return Err("I3: a learner is in the ISR");
        }
        if !sorted(&self.isr) || !sorted(&self.learners) {
            return Err("members are not sorted and unique");
        }
        if self.term.0 > self.epoch.0 {
            return Err("I2: the term is newer than the epoch");
        }
        Ok(())
    }
}

/// What a primary asks of the metadata manager. Compare-and-set: refused unless `epoch` is the current one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgChange {
    /// Which group.
    pub pg: PgId,
    /// The epoch that the proposer acted on.
    pub epoch: Epoch,
    /// The proposer: must be the primary, in its appointed process.
    pub proposer: DeviceId,
    /// The proposer's process.
    pub incarnation: ProcessIncarnation,
    /// What to change.
    pub kind: PgChangeKind,
}

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PgChangeKind {
    /// Drop an in-sync replica that does not acknowledge; it becomes a learner (I9).
    RemoveIsr(DeviceId),
    /// Take a learner that is fully synchronous into the ISR (I5).
    AddIsr(DeviceId),
    /// The last step of a planned move: the proposer has released its leases and serves no more under its term. The heir
    /// leads next; if it has been lost meanwhile, whoever can, the proposer included.
    HandOver,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_breaks_an_invariant_is_named() {
        let good = PgConfig {
            pg: PgId::default(),
            epoch: Epoch(3),
            term: Term(2),
            primary: Some(DeviceId(1)),
            primary_incarnation: ProcessIncarnation(9),
            isr: vec![DeviceId(1), DeviceId(2)],
            learners: vec![DeviceId(3)],
            previous_certified_dead: false,
            heir: Some(DeviceId(2)),
        };
        assert_eq!(good.check(), Ok(()));
        assert!(PgConfig { isr: vec![], ..good.clone() }.check().is_err());
        assert!(PgConfig { primary: Some(DeviceId(3)), ..good.clone() }.check().is_err());
        assert!(PgConfig { learners: vec![DeviceId(2)], ..good.clone() }.check().is_err());
        assert!(PgConfig { isr: vec![DeviceId(2), DeviceId(1)], ..good.clone() }.check().is_err());
        for heir in [1, 3, 4].map(DeviceId) {
            assert!(PgConfig { heir: Some(heir), ..good.clone() }.check().is_err());
        }
        assert!(PgConfig { primary: None, ..good.clone() }.check().is_err(), "nobody hands a dark group over");
        assert!(PgConfig { term: Term(4), ..good }.check().is_err());
    }
}
