//! What comes next, on the way up to a mounted volume, down to nothing, and in a look at one that rests.

use super::{Machine, Next, Preempt, Step};
use crate::core::content::Content;
use crate::core::facts::{Device, Facts, Here, Holder, InSystem};
use crate::core::labels::{FileSystem, MakeState};
use crate::core::machine::{Action, CONFLICT_PAUSE_MS};

/// Pause before what could not be asked is asked again.
const ASK_PAUSE_MS: u64 = 200;
/// A file system that leaves less than this of its device is as large as it can be.
const GROWTH_BYTES_MIN: u64 = 1 << 20;

impl Machine {
    /// Up: towards a mounted file system.
    pub(super) fn up(&self) -> Next {
        let Some(facts) = &self.facts else { return Next::Do(Step::Look) };
        let system = match &facts.system {
            Ok(Some(system)) => system,
            Ok(None) => return Next::Impossible(format!("there is no volume '{}'", self.record.name)),
            Err(why) => return Next::Wait { pause_ms: ASK_PAUSE_MS, why: why.clone() },
        };
        let device = match &facts.device {
            Ok(device) => device.as_ref(),
            Err(why) => return Next::Wait { pause_ms: ASK_PAUSE_MS, why: why.clone() },
        };
        let here = match self.mapped(system) {
            Ok(here) => here,
            Err(next) => return *next,
        };
        let is_stale = facts.mounted.is_some_and(|number| device.is_some_and(|device| device.number != number));
        if is_stale {
            return Next::Do(Step::DropMount);
        }
        if here.access != system.spec.access() && facts.mounted.is_none() {
            // Made read-only or writable since.
            return match device {
                Some(_) => Next::Do(Step::Detach { volume: system.volume }),
                None => Next::Do(Step::Unmap { volume: system.volume, from: None }),
            };
        }
        if here.limits != system.spec.limits {
            return Next::Do(Step::Limit { volume: system.volume, limits: system.spec.limits });
        }
        let Some(device) = device else {
            return Next::Do(Step::Attach { volume: system.volume, revision: here.revision });
        };
        if facts.mounted.is_some() {
            return self.grow(system, device).map_or(Next::There, Next::Do);
        }
        self.fill(system, device)
    }

    /// The mapping of this host, or what leads to it.
    fn mapped(&self, system: &InSystem) -> Result<Here, Box<Next>> {
        match system.here {
            Some(here) if here.is_going => {
                let why = "it is still being unmapped from this host".to_owned();
                Err(Box::new(Next::Wait { pause_ms: CONFLICT_PAUSE_MS, why }))
            }
            Some(here) => Ok(here),
            None => Err(Box::new(match self.facts.as_ref().and_then(|facts| facts.mounted) {
                // The mount of a mapping that was taken away: nothing of it must survive the new one.
                Some(_) => Next::Do(Step::DropMount),
                None => self.conflict(system).unwrap_or_else(|| {
                    let spec = &system.spec;
                    let allow_multiple = spec.shared || spec.read_only;
                    let (access, limits) = (spec.access(), spec.limits);
                    Next::Do(Step::Map { volume: system.volume, access, limits, allow_multiple })
                }),
            })),
        }
    }

    /// What to do about another host that has the volume.
    fn conflict(&self, system: &InSystem) -> Option<Next> {
        use mdm_api::model::AccessMode::ReadOnly;
        let reads_only = system.spec.read_only && system.holders.iter().all(|holder| holder.access == ReadOnly);
        if system.spec.shared || reads_only {
            return None;
        }
        let holder = system.holders.first()?;
        let wait = |why| Some(Next::Wait { pause_ms: CONFLICT_PAUSE_MS, why });
        if holder.is_going {
            return wait(format!("it is still being unmapped from host {}", holder.name));
        }
        let is_lost = holder.silent_ms >= self.policy.grace_ms;
        match self.policy.preempt {
            Preempt::Always => Some(self.preempt(system, holder)),
            Preempt::WhenUnreachable if is_lost => Some(self.preempt(system, holder)),
            Preempt::WhenUnreachable => wait(format!(
                "it is mapped to host {}, which was heard of {} ms ago; it is taken away from there after {} ms of silence",
                holder.name, holder.silent_ms, self.policy.grace_ms
            )),
            Preempt::Never => wait(format!(
                "it is mapped to host {}, and the policy is never to take one away: stop what uses it there, or \
                 `scli volume unmap`",
                holder.name
            )),
        }
    }

    fn preempt(&self, system: &InSystem, holder: &Holder) -> Next {
        Next::Do(Step::Unmap { volume: system.volume, from: Some(holder.sdc) })
    }

    /// From an attached device to a mounted file system.
    fn fill(&self, system: &InSystem, device: &Device) -> Next {
        let spec = &system.spec;
        let mount = |filesystem| Next::Do(Step::Mount { device: device.clone(), spec: spec.clone(), filesystem });
        if spec.shared && !spec.read_only {
            // A cluster's file system is made and checked by those who run the cluster.
            return match self.content {
                None => Next::Do(Step::Probe { device: device.clone() }),
                Some(Content::Ext4 { .. } | Content::Xfs { .. }) => Next::Impossible(format!(
                    "volume '{}' is shared, and has a file system that only one host may write: use a cluster file \
                     system, or read-only=true",
                    self.record.name
                )),
                Some(Content::Blank) => Next::Impossible(format!(
                    "volume '{}' is shared and blank: make its cluster file system first",
                    self.record.name
                )),
                Some(Content::Other) => mount(None),
            };
        }
        let Some(content) = self.content else { return Next::Do(Step::Probe { device: device.clone() }) };
        let make = || Next::Do(Step::Make { device: device.clone(), spec: spec.clone() });
        let label = |state| Next::Do(Step::Label { volume: system.volume, state });
        let impossible = |why: &str| Next::Impossible(format!("volume '{}' {why}", self.record.name));
        let filesystem = match (spec.state, content) {
            (_, Content::Blank) if spec.read_only => {
                return impossible("is read-only and blank: nothing can be mounted");
            }
            (MakeState::Making, _) if spec.read_only => {
                return impossible("is read-only, and its file system was never finished");
            }
            (MakeState::New | MakeState::Given, Content::Blank) => return label(MakeState::Making),
            // Begun, and never finished, so never mounted.
            (MakeState::Making, _) if !self.is_checked => return make(),
            (MakeState::Making, _) => return label(MakeState::Made),
            (MakeState::Made, Content::Blank) => {
                return impossible("has lost its file system: it is blank, and was not when it was last used");
            }
            (_, Content::Other) => {
                return impossible("holds something that is no ext4 and no xfs: it is left as it is");
            }
            (_, Content::Ext4 { .. }) => FileSystem::Ext4,
            (_, Content::Xfs { .. }) => FileSystem::Xfs,
        };
        if !self.is_checked && !spec.read_only {
            return Next::Do(Step::Check { device: device.clone(), filesystem });
        }
        mount(Some(filesystem))
    }

    /// What makes a mounted file system fill its device, where it does not.
    fn grow(&self, system: &InSystem, device: &Device) -> Option<Step> {
        let spec = &system.spec;
        if spec.read_only || spec.shared || device.size_bytes <= self.grown_to_bytes {
            return None;
        }
        let Some(content) = self.content else { return Some(Step::Probe { device: device.clone() }) };
        let filesystem = match content {
            Content::Ext4 { .. } => FileSystem::Ext4,
            Content::Xfs { .. } => FileSystem::Xfs,
            Content::Blank | Content::Other => return None,
        };
        let room = device.size_bytes.saturating_sub(content.size_bytes()?);
        (room >= GROWTH_BYTES_MIN).then(|| Step::Grow { device: device.clone(), filesystem })
    }

    /// Down: towards nothing.
    pub(super) fn down(&self) -> Next {
        let Some(facts) = &self.facts else { return Next::Do(Step::Look) };
        if facts.mounted.is_some() {
            // Whether its mapping is still there or not: a lost one is dropped, a living one unmounted in good order.
            return Next::Do(if is_lost(facts) { Step::DropMount } else { Step::Unmount });
        }
        let system = match &facts.system {
            Ok(Some(system)) => system,
            Ok(None) => return Next::There,
            Err(why) => return Next::Wait { pause_ms: ASK_PAUSE_MS, why: why.clone() },
        };
        // A client that is not there has no users any more; what it left it takes away when it is back.
        if let Ok(Some(_)) = &facts.device {
            return Next::Do(Step::Detach { volume: system.volume });
        }
        match system.here {
            None => Next::There,
            Some(here) if here.is_going => {
                let why = "it is being unmapped from this host".to_owned();
                Next::Wait { pause_ms: ASK_PAUSE_MS, why }
            }
            Some(_) => Next::Do(Step::Unmap { volume: system.volume, from: None }),
        }
    }

    /// A look at a volume that containers hold, and for which nobody waits.
    pub(super) fn inspect(&self, out: &mut Vec<Action>) -> Next {
        let Some(facts) = &self.facts else { return Next::Do(Step::Look) };
        if facts.mounted.is_none() {
            return Next::There;
        }
        if is_lost(facts) {
            out.push(Action::Say(format!(
                "volume '{}' was taken away from this host: its stale mount is dropped, what still uses it gets errors",
                self.record.name
            )));
            return Next::Do(Step::DropMount);
        }
        match (&facts.system, &facts.device) {
            (Ok(Some(system)), Ok(Some(device))) => self.grow(system, device).map_or(Next::There, Next::Do),
            _ => Next::There,
        }
    }
}

/// True if what is mounted belongs to no mapping of this host any more. What could not be asked is not lost.
fn is_lost(facts: &Facts) -> bool {
    let Some(number) = facts.mounted else { return false };
    let unmapped = match &facts.system {
        Ok(None) => true,
        Ok(Some(system)) => system.here.is_none_or(|here| here.is_going),
        Err(_) => false,
    };
    let replaced = matches!(&facts.device, Ok(Some(device)) if device.number != number);
    unmapped || replaced
}
