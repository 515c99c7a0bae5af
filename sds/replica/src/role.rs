//! The roles of a replica and the ways between them.
//!
//! ```text
//!            named learner                    AddIsr committed
//!   Idle ───────────────────▶ Learner ───────────────────────────▶ Secondary
//!    ▲ │                        ▲  ▲                                │  ▲  │
//!    │ │ named in-sync (new PG, │  └────── RemoveIsr committed ─────┘  │  │ named primary of a
//!    │ │ restarted replica)     │                                      │  │ new term
//!    │ └────────────────────────┼──────────────────────────────────────┘  ▼
//!    │                          │           ┌───────────────────── Activating
//!    │                          │           │ EpochStart committed    │  ▲
//!    │  no longer named         │           ▼                         │  │ named primary of a
//!    └── (from any role) ───────┴──────── Primary ────────────────────┘  │ newer term
//!                      deposed: Secondary or Learner as the new          │
//!                      configuration says, or ───────────────────────────┘
//!   Failed: the device is gone; from any role, for good (I22).
//! ```

/// Where an activation stands (architecture 5.3, steps 2 to 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActivationStep {
    /// The promise of the new term is being made durable (I7).
    PersistPromise,
    /// Leases that this server granted to earlier primaries run out (I14).
    WaitGrants,
    /// Waiting for the tails of the whole ISR.
    CollectTails,
    /// Members are being brought to this replica's tail.
    Reconcile,
    /// The first entry of the term is on its way (I11).
    CommitEpochStart,
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not a member, or still to be told.
    Idle,
    /// Catching up.
    Learner,
    /// In-sync, not leading.
    Secondary,
    /// On the way to serving.
    Activating(ActivationStep),
    /// Serving.
    Primary,
    /// The device has failed.
    Failed,
}

impl Role {
    /// True if the way from `self` to `next` is in the picture.
    pub fn may_become(self, next: Self) -> bool {
        use ActivationStep as Step;
        match (self, next) {
            (Self::Failed, _) => false,
            (_, Self::Failed | Self::Idle) => true,
            // A new configuration may say anything but that a learner leads: it is not in the ISR (I3), and it becomes
            // Secondary at the latest together with its appointment.
            (_, Self::Learner | Self::Secondary) => true,
            (Self::Activating(from), Self::Activating(to)) => {
                to == Step::PersistPromise
                    || matches!(
                        (from, to),
                        (Step::PersistPromise, Step::WaitGrants)
                            | (Step::WaitGrants, Step::CollectTails)
                            | (Step::CollectTails, Step::Reconcile)
                            | (Step::Reconcile, Step::CommitEpochStart)
                    )
            }
            (Self::Idle | Self::Secondary | Self::Primary, Self::Activating(step)) => step == Step::PersistPromise,
            (Self::Learner, Self::Activating(_)) => false,
            (Self::Activating(step), Self::Primary) => step == Step::CommitEpochStart,
            (_, Self::Primary) => false,
        }
    }

    /// True while it leads or is about to.
    pub fn leads(self) -> bool {
        matches!(self, Self::Activating(_) | Self::Primary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ways_in_the_picture_are_open() {
        use ActivationStep::{CollectTails, CommitEpochStart, PersistPromise, Reconcile, WaitGrants};
        let steps = [PersistPromise, WaitGrants, CollectTails, Reconcile, CommitEpochStart];
        let mut roles = vec![Role::Idle, Role::Learner, Role::Secondary, Role::Primary, Role::Failed];
        roles.extend(steps.map(Role::Activating));
        let mut open = Vec::new();
        for from in &roles {
            for to in &roles {
                if from.may_become(*to) && !matches!(to, Role::Idle | Role::Learner | Role::Secondary | Role::Failed) {
                    open.push((*from, *to));
                }
            }
        }
        let activating = Role::Activating;
        let mut expected = vec![
            (Role::Idle, activating(PersistPromise)),
            (Role::Secondary, activating(PersistPromise)),
            (Role::Primary, activating(PersistPromise)),
        ];
        for (index, step) in steps.into_iter().enumerate() {
            expected.push((activating(step), activating(PersistPromise)));
            if let Some(next) = steps.get(index + 1) {
                expected.push((activating(step), activating(*next)));
            }
        }
        expected.push((activating(CommitEpochStart), Role::Primary));
        let sorted = |mut list: Vec<(Role, Role)>| {
            list.sort_by_key(|pair| format!("{pair:?}"));
            list.dedup();
            list
        };
        assert_eq!(sorted(open), sorted(expected));
        assert!(roles.iter().all(|role| !Role::Failed.may_become(*role)));
    }
}
