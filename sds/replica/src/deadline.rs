//! When a replica wants to be stepped though nothing happens.

use mdm_api::epoch::Nanos;

use crate::Context;
use crate::leader::{Moving, Stage};
use crate::limits::{RECHECK_IDLE_MS, RECHECK_MS};
use crate::replica::Replica;
use crate::role::{ActivationStep, Role};

impl Replica {
    /// Step it with a `Tick` at this time at the latest; never, if nothing waits for time. To be asked after each step.
    pub fn deadline(&self, context: &Context) -> Nanos {
        let Some(leader) = &self.leader else {
            return if self.found.is_empty() { Nanos::NEVER } else { self.now.plus_ms(RECHECK_IDLE_MS) };
        };
        if self.is_at(ActivationStep::WaitGrants) {
            return self.lead_from(context).max(self.now);
        }
        if leader.moving == Moving::Released {
            return self.now.plus_ms(RECHECK_MS); // To ask for the heir again.
        }
        let settled = self.role == Role::Primary
            && self.log.committed() == self.log.last().seq
            && leader.requests.is_empty()
            && leader.proposed.is_none()
            && leader.adding.is_none()
            && leader.members.values().all(|member| {
                member.stage == Stage::Streaming && member.resync.is_none() && member.has_heard(self.log.committed())
            })
            && leader
                .members
                .keys()
                .all(|device| self.config.as_ref().is_some_and(|config| config.isr.contains(device)));
        self.now.plus_ms(if settled { RECHECK_IDLE_MS } else { RECHECK_MS })
    }
}
