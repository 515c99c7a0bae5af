//! The life of one volume on this host, as a machine: events in, actions out.
//!
//! ```text
//!            Mount(id)                                        last id gone
//!   nothing ──────────▶ UP: look, map, attach, make, check, ◀──────────────▶ DOWN: unmount, detach, unmap, forget
//!                       mount, grow; then the answer                                │
//!                            │ ids left, nobody waits                               ▼
//!                            ▼                                                   nothing
//!                          REST: look now and then; drop a mount whose mapping was taken away
//! ```
//!
//! Always true:
//! - One step is under way at a time, and what comes next is decided from facts, not from what was meant to happen.
//! - The record is on disk before anything is mapped, and before an answer that rests on it.
//! - A mount is answered with success only when the file system of *this* mapping's device is seen at the mount point.
//! - A file system is made only on a blank volume, or over an unfinished one that nobody has mounted.
//! - Another host's mapping is taken away only by the policy, and then the volume is mapped here only after the system has
//!   said that the other can write no more (I17).
//! - Who waits is answered by his deadline; a mount that failed leaves no id behind, and one that is waited for has its id.

mod climb;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;

use mdm_api::epoch::Nanos;

use super::content::Content;
use super::facts::{Facts, Here};
use super::labels::{FileSystem, MakeState};
use super::record::{IDS_MAX, Record};
use words::word;
pub use words::{Action, Answer, Event, Failure, Outcome, Policy, Preempt, Step};

/// First pause after a step failed; doubled for each further failure.
const PAUSE_MS_MIN: u64 = 100;
/// Longest pause: somebody may have to act, and should not have to wait long afterwards.
const PAUSE_MS_MAX: u64 = 5000;
/// How often another host's mapping is looked at again.
const CONFLICT_PAUSE_MS: u64 = 200;

#[derive(Clone, Debug)]
enum Wants {
    Mounted(String),
    Unmounted,
    Cleared,
}

#[derive(Clone, Debug)]
struct Waiter {
    wants: Wants,
    deadline: Nanos,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Up,
    Down,
    Inspect,
    Rest,
}

/// What comes next on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    Do(Step),
    Wait { pause_ms: u64, why: String },
    There,
    Impossible(String),
}

/// One volume on this host.
pub struct Machine {
    policy: Policy,
    record: Record,
    /// The record on disk says the same.
    is_kept: bool,
    /// There is one on disk.
    is_on_disk: bool,
    waiters: BTreeMap<u64, Waiter>,
    working: Option<Step>,
    facts: Option<Facts>,
    content: Option<Content>,
    is_checked: bool,
    /// The file system is known to fill a device of this size.
    grown_to_bytes: u64,
    wants_look: bool,
    not_before: Nanos,
    failure_count: u32,
    trouble: String,
}

impl Machine {
    /// A volume, with what was on disk of it.
    pub fn new(policy: Policy, record: Record, is_on_disk: bool) -> Self {
        Self {
            policy,
            record,
            is_kept: true,
            is_on_disk,
            waiters: BTreeMap::new(),
            working: None,
            facts: None,
            content: None,
            is_checked: false,
            grown_to_bytes: 0,
            // What an earlier process left is looked at once.
            wants_look: is_on_disk,
            not_before: Nanos(0),
            failure_count: 0,
            trouble: String::new(),
        }
    }

    /// The mounts that hold it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// True if nothing of it is here and nobody waits: the machine may be thrown away.
    pub fn is_idle(&self) -> bool {
        self.working.is_none()
            && self.waiters.is_empty()
            && self.record.ids.is_empty()
            && self.is_kept
            && !self.is_on_disk
    }

    /// One event.
    pub fn step(&mut self, now: Nanos, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Mount { token, id, deadline } => self.mount(now, token, id, deadline, &mut out),
            Event::Unmount { token, id, deadline } => {
                self.give_up(&id);
                self.withdraw(&mut out);
                self.waiters.insert(token, Waiter { wants: Wants::Unmounted, deadline });
                self.hurry(now);
            }
            Event::Release { token, deadline } => {
                self.is_kept &= self.record.ids.is_empty();
                self.record.ids.clear();
                self.withdraw(&mut out);
                self.waiters.insert(token, Waiter { wants: Wants::Unmounted, deadline });
                self.hurry(now);
            }
            Event::Clear { token, deadline } if self.record.ids.is_empty() => {
                self.waiters.insert(token, Waiter { wants: Wants::Cleared, deadline });
                self.hurry(now);
            }
            Event::Clear { token, .. } => {
                let count = self.record.ids.len();
                let text = format!("volume '{}' is in use: {count} mounts of this host hold it", self.record.name);
                out.push(Action::Answer { token, answer: Err(text) });
            }
            Event::Abandon { token } => self.abandon(now, token),
            Event::Unused => self.unused(now, &mut out),
            Event::Inspect => self.wants_look = true,
            Event::EngineStarted => self.recount(),
            Event::Done(outcome) => self.ended(now, outcome, &mut out),
            Event::Tick => {}
        }
        self.expire(now, &mut out);
        self.proceed(now, &mut out);
        self.answer_done(&mut out);
        if let Some(at) = self.wake_at(now) {
            out.push(Action::Wake(at));
        }
        out
    }

    fn mount(&mut self, now: Nanos, token: u64, id: String, deadline: Nanos, out: &mut Vec<Action>) {
        if !self.record.ids.contains_key(&id) && self.record.ids.len() >= IDS_MAX {
            let text = format!("volume '{}' has {IDS_MAX} mounts on this host already", self.record.name);
            out.push(Action::Answer { token, answer: Err(text) });
            return;
        }
        self.record.add(&id);
        self.is_kept = false;
        self.waiters.insert(token, Waiter { wants: Wants::Mounted(id), deadline });
        self.hurry(now);
    }

    /// Somebody waits from now on: what was put off is tried at once.
    fn hurry(&mut self, now: Nanos) {
        self.not_before = now;
        self.failure_count = 0;
    }

    /// Docker has hung up: it takes the mount for failed and will not unmount it.
    fn abandon(&mut self, now: Nanos, token: u64) {
        if let Some(Waiter { wants: Wants::Mounted(id), .. }) = self.waiters.remove(&token) {
            self.give_up(&id);
            self.hurry(now);
        }
    }

    /// Takes a mount back that came to nothing.
    fn give_up(&mut self, id: &str) {
        if self.record.take(id) {
            self.is_kept = false;
        }
    }

    /// Who waits for a mount that was unmounted meanwhile waits in vain: nothing would hold what he was handed.
    fn withdraw(&mut self, out: &mut Vec<Action>) {
        let tokens: Vec<u64> = self.waiters.keys().copied().collect();
        for token in tokens {
            let Some(Waiter { wants: Wants::Mounted(id), .. }) = self.waiters.get(&token) else { continue };
            if self.awaited(id) > self.record.ids.get(id).copied().unwrap_or(0) {
                let text = format!("volume '{}' was unmounted while mount {id} of it was under way", self.record.name);
                self.waiters.remove(&token);
                out.push(Action::Answer { token, answer: Err(text) });
            }
        }
    }

    /// How many wait for a mount under this name.
    fn awaited(&self, id: &str) -> u32 {
        let waits = |waiter: &&Waiter| matches!(&waiter.wants, Wants::Mounted(other) if other == id);
        u32::try_from(self.waiters.values().filter(waits).count()).unwrap_or(u32::MAX)
    }

    /// An engine is heard for the first time: what an earlier one counted is over, whether its containers live on or not.
    fn recount(&mut self) {
        let counts: BTreeMap<String, u32> = self.record.ids.keys().map(|id| (id.clone(), self.awaited(id))).collect();
        self.is_kept &= counts == self.record.ids;
        self.record.ids = counts;
    }

    fn unused(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let left_over: Vec<String> = self.record.ids.keys().filter(|id| self.awaited(id) == 0).cloned().collect();
        for id in left_over {
            out.push(Action::Say(format!(
                "mount {id} is in no container any more, and Docker has not said so: forgotten"
            )));
            self.record.ids.remove(&id);
            self.is_kept = false;
            self.hurry(now);
        }
    }

    fn expire(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let late: Vec<u64> =
            self.waiters.iter().filter(|(_, waiter)| waiter.deadline <= now).map(|(token, _)| *token).collect();
        for token in late {
            let Some(waiter) = self.waiters.remove(&token) else { continue };
            let trouble = if self.trouble.is_empty() { self.under_way() } else { self.trouble.clone() };
            let answer = match waiter.wants {
                // The id is gone; the rest goes on by itself, and nobody has to ask for it again.
                Wants::Unmounted => Ok(Answer::Done),
                Wants::Cleared => Err(format!("volume '{}' is not free yet: {trouble}", self.record.name)),
                Wants::Mounted(id) => {
                    self.give_up(&id);
                    Err(format!("volume '{}' could not be mounted in time: {trouble}", self.record.name))
                }
            };
            out.push(Action::Answer { token, answer });
        }
    }

    fn under_way(&self) -> String {
        match &self.working {
            Some(step) => format!("still under way: {}", word(step)),
            None => "nothing was possible yet".to_owned(),
        }
    }

    fn goal(&self) -> Goal {
        let someone = |wanted: fn(&Wants) -> bool| self.waiters.values().any(|waiter| wanted(&waiter.wants));
        if someone(|wants| matches!(wants, Wants::Mounted(_))) {
            Goal::Up
        } else if self.record.ids.is_empty() && (self.is_on_disk || someone(|wants| matches!(wants, Wants::Cleared))) {
            Goal::Down
        } else if self.wants_look && !self.record.ids.is_empty() {
            Goal::Inspect
        } else {
            Goal::Rest
        }
    }

    fn proceed(&mut self, now: Nanos, out: &mut Vec<Action>) {
        while self.working.is_none() && now >= self.not_before {
            if !self.is_kept {
                self.start(Step::Keep(self.record.clone()), out);
                return;
            }
            let goal = self.goal();
            let next = match goal {
                Goal::Up => self.up(),
                Goal::Down => self.down(),
                Goal::Inspect => self.inspect(out),
                Goal::Rest => return,
            };
            match (next, goal) {
                (Next::Do(step), _) => self.start(step, out),
                (Next::Wait { pause_ms, why }, _) => {
                    self.trouble = why;
                    self.facts = None;
                    self.not_before = now.plus_ms(pause_ms);
                }
                (Next::Impossible(why), _) => self.fail_mounts(now, &why, out),
                (Next::There, Goal::Up) => self.mounted(out),
                (Next::There, Goal::Down) => self.gone(out),
                (Next::There, _) => {
                    self.is_grown();
                    self.facts = None;
                    self.wants_look = false;
                }
            }
        }
    }

    fn start(&mut self, step: Step, out: &mut Vec<Action>) {
        self.working = Some(step.clone());
        out.push(Action::Do(step));
    }

    fn mounted(&mut self, out: &mut Vec<Action>) {
        let system = self.facts.as_ref().and_then(|facts| facts.system.as_ref().ok()?.as_ref());
        let in_data = system.is_some_and(|system| system.spec.state == MakeState::Made);
        self.is_grown();
        self.facts = None;
        self.wants_look = false;
        self.trouble.clear();
        self.waiters.retain(|token, waiter| match waiter.wants {
            Wants::Mounted(_) => {
                out.push(Action::Answer { token: *token, answer: Ok(Answer::Mounted { in_data }) });
                false
            }
            Wants::Unmounted | Wants::Cleared => true,
        });
    }

    /// The file system was seen to fill its device.
    fn is_grown(&mut self) {
        if let Some(Ok(Some(device))) = self.facts.as_ref().map(|facts| &facts.device) {
            self.grown_to_bytes = device.size_bytes;
        }
    }

    fn gone(&mut self, out: &mut Vec<Action>) {
        if self.is_on_disk {
            self.start(Step::Forget, out);
            return;
        }
        self.facts = None;
        self.wants_look = false;
        self.trouble.clear();
        self.waiters.retain(|token, waiter| match waiter.wants {
            Wants::Cleared => {
                out.push(Action::Answer { token: *token, answer: Ok(Answer::Done) });
                false
            }
            Wants::Unmounted | Wants::Mounted(_) => true,
        });
    }

    /// Unmounting is answered when it is on disk, and all is undone if it was the last.
    fn answer_done(&mut self, out: &mut Vec<Action>) {
        let is_settled = self.is_kept && (!self.record.ids.is_empty() || (!self.is_on_disk && self.working.is_none()));
        if is_settled {
            self.waiters.retain(|token, waiter| match waiter.wants {
                Wants::Unmounted => {
                    out.push(Action::Answer { token: *token, answer: Ok(Answer::Done) });
                    false
                }
                Wants::Cleared | Wants::Mounted(_) => true,
            });
        }
        // Who waits for the volume to be free waits in vain once somebody mounts it.
        if !self.record.ids.is_empty() {
            let name = &self.record.name;
            self.waiters.retain(|token, waiter| match waiter.wants {
                Wants::Cleared => {
                    let text = format!("volume '{name}' is in use on this host");
                    out.push(Action::Answer { token: *token, answer: Err(text) });
                    false
                }
                Wants::Unmounted | Wants::Mounted(_) => true,
            });
        }
    }

    fn fail_mounts(&mut self, now: Nanos, why: &str, out: &mut Vec<Action>) {
        let failed: Vec<(u64, String)> = self
            .waiters
            .iter()
            .filter_map(|(token, waiter)| match &waiter.wants {
                Wants::Mounted(id) => Some((*token, id.clone())),
                Wants::Unmounted | Wants::Cleared => None,
            })
            .collect();
        for (token, id) in failed {
            self.waiters.remove(&token);
            self.give_up(&id);
            out.push(Action::Answer { token, answer: Err(why.to_owned()) });
        }
        self.facts = None;
        self.hurry(now);
    }

    /// A step has ended.
    fn ended(&mut self, now: Nanos, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(step) = self.working.take() else { return };
        if let Outcome::Failed(failure) = outcome {
            self.facts = None;
            self.trouble.clone_from(&failure.text);
            let pause = PAUSE_MS_MIN.saturating_mul(1 << self.failure_count.min(16)).min(PAUSE_MS_MAX);
            self.failure_count = self.failure_count.saturating_add(1);
            self.not_before = now.plus_ms(pause);
            out.push(Action::Say(format!("cannot {}: {}", word(&step), failure.text)));
            if failure.is_final && self.goal() == Goal::Up {
                self.fail_mounts(now, &failure.text, out);
            }
            return;
        }
        self.failure_count = 0;
        self.learn(step, outcome);
    }

    fn learn(&mut self, step: Step, outcome: Outcome) {
        match (step, outcome) {
            (Step::Keep(record), _) => {
                self.is_on_disk = true;
                self.is_kept = record == self.record;
            }
            (Step::Forget, _) => {
                self.is_on_disk = false;
                // Ids that came meanwhile have to be written again.
                self.is_kept = self.record.ids.is_empty();
            }
            (Step::Look, Outcome::Seen(facts)) => {
                self.facts = Some(*facts);
                self.content = None;
                self.is_checked = false;
            }
            (Step::Map { access, limits, .. }, Outcome::Mapped { revision }) => {
                if let Some(Ok(Some(system))) = self.facts.as_mut().map(|facts| &mut facts.system) {
                    system.here = Some(Here { access, limits, is_going: false, revision });
                }
            }
            (Step::Limit { limits, .. }, _) => {
                if let Some(Ok(Some(system))) = self.facts.as_mut().map(|facts| &mut facts.system)
                    && let Some(here) = &mut system.here
                {
                    here.limits = limits;
                }
            }
            (Step::Attach { .. }, Outcome::Attached(device)) => {
                if let Some(facts) = &mut self.facts {
                    facts.device = Ok(Some(device));
                }
            }
            (Step::Probe { .. }, Outcome::Probed(content)) => self.content = Some(content),
            (Step::Label { state, .. }, _) => {
                if let Some(Ok(Some(system))) = self.facts.as_mut().map(|facts| &mut facts.system) {
                    system.spec.state = state;
                }
            }
            (Step::Make { device, spec }, _) => {
                let size_bytes = device.size_bytes;
                self.content = Some(match spec.filesystem {
                    FileSystem::Ext4 => Content::Ext4 { size_bytes },
                    FileSystem::Xfs => Content::Xfs { size_bytes },
                });
                self.is_checked = true;
            }
            (Step::Check { .. }, _) => self.is_checked = true,
            (Step::Mount { device, .. }, _) => {
                if let Some(facts) = &mut self.facts {
                    facts.mounted = Some(device.number);
                }
            }
            (Step::Grow { device, .. }, _) => self.grown_to_bytes = device.size_bytes,
            // What is left after these is seen anew.
            _ => self.facts = None,
        }
    }

    fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        let deadline = self.waiters.values().map(|waiter| waiter.deadline).min();
        let waits = self.working.is_none() && self.not_before > now && (!self.is_kept || self.goal() != Goal::Rest);
        let retry = waits.then_some(self.not_before);
        deadline.into_iter().chain(retry).min()
    }
}
