//! One seed from beginning to end: build, load and faults, healing, and the last checks.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::command::{AdminCommand, ObjectRef};
use mdm_api::ids::DeviceId;
use mdm_api::model::DeviceState;

use sds_replica::Role;
use sds_store::request::Verdict;

use crate::check::copies::{Content, Copy, compare};
use crate::check::linear::{self, Figures};
use crate::check::{describe, seconds};
use crate::clock::{SECOND, Time};
use crate::cluster;
use crate::core::Input;
use crate::disk::{Damage, Disk};
use crate::host::Host;
use crate::host::sds::Slot;
use crate::marks::Marks;
use crate::panics::caught;
use crate::plan::{Fault, Plan};
use crate::trace::Trace;
use crate::world::World;

/// Everything answers within this after the faults have ended.
const ANSWERED_WITHIN: Time = 60 * SECOND;
/// All copies are made again within this.
const REDUNDANT_WITHIN: Time = 180 * SECOND;

/// Requests that every seed answers at least.
const REQUESTS_MIN: u64 = 300;

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What is wrong.
    pub failure: Option<String>,
    /// The number of the run.
    pub hash: u64,
    /// Events that happened.
    pub events: u64,
    /// Simulated time.
    pub simulated: Time,
    /// Client requests that were answered.
    pub answered: u64,
    /// Client requests without an answer.
    pub unanswered: u64,
    /// Reads without a good copy.
    pub medium_errors: u64,
    /// Blocks that were found to be bad.
    pub bad_blocks: u64,
    /// Of these, blocks that were repaired from a peer.
    pub repaired_blocks: u64,
    /// Bytes that went to learners.
    pub copied_bytes: u64,
    /// Groups whose last copy was on a device that failed.
    pub lost_groups: u64,
    /// Configurations that were looked at.
    pub configs: u64,
    /// Frames delivered.
    pub frames: u64,
    /// Of the check of histories.
    pub figures: Figures,
    /// Faults that were drawn until the end, or the failure.
    pub fault_count: u64,
    /// Faults by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// What was done to devices.
    pub damage: Damage,
    /// What was reached.
    pub marks: Marks,
    /// Copies that were compared.
    pub copies: u64,
}

/// How a seed is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Faults that do not happen, by their number.
    pub skip: BTreeSet<u64>,
    /// Prints what happens.
    pub prints: bool,
}

/// Runs a seed. An assertion of the code that does not hold is a failure like others.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let plan = Plan::draw(seed);
    let trace = Trace::new(options.prints);
    trace.line(0, || format!("{plan:?}"));
    let mut world = World::new(seed, plan, trace);
    world.faults.skip.clone_from(&options.skip);
    let mut outcome = Outcome::default();
    let result = caught(|| world.live(&mut outcome));
    let is_whole = result.is_ok();
    let result = result.unwrap_or_else(|text| Err(world.panicked(&text)));
    if let Err(text) = result {
        world.core.watch.fail(world.core.now, text);
    }
    world.summarise(&mut outcome);
    if is_whole {
        world.sum_up_servers(&mut outcome);
    }
    outcome
}

impl World {
    fn live(&mut self, outcome: &mut Outcome) -> Result<(), String> {
        cluster::build(self)?;
        self.wait(60 * SECOND, "the new cluster is not redundant", World::is_redundant)?;
        self.core.directory.load = true;
        self.wake_clients();
        self.begin_faults();
        self.run_for(self.core.plan.fault_time);
        self.core.directory.load = false;
        self.heal();
        self.replace_wiped_member()?;
        self.map_again()?;
        self.replace_failed(outcome)?;
        let is_excused = outcome.lost_groups > 0 || self.core.watch.may_lose_blocks;
        if !is_excused {
            self.wait(ANSWERED_WITHIN, "not every request was answered", World::is_quiet)?;
            self.wait(REDUNDANT_WITHIN, "redundancy did not come back", World::is_redundant)?;
        } else {
            self.run_until(REDUNDANT_WITHIN, |world| world.is_quiet() && world.is_redundant());
        }
        if !is_excused {
            self.reach_least_load()?;
        }
        let chunks = self.core.plan.chunks;
        for host in &mut self.hosts {
            if let Host::Sdc(host) = host {
                host.volumes.iter_mut().for_each(|volume| volume.read_everything(chunks));
            }
        }
        self.wake_clients();
        if is_excused {
            self.run_until(ANSWERED_WITHIN, World::is_quiet);
        } else {
            self.wait(ANSWERED_WITHIN, "the last reads were not answered", World::is_quiet)?;
        }
        self.run_for(2 * SECOND);
        if self.core.watch.failure.is_some() {
            return Ok(());
        }
        self.collect_marks();
        self.find_bad_blocks()?;
        if self.is_redundant() {
            self.compare_copies(outcome)?;
        }
        outcome.figures = linear::check(&self.core.history).map_err(|text| format!("not linearizable (P2): {text}"))?;
        Ok(())
    }

    /// A seed whose faults left the clients little time has its requests afterwards: no seed tests next to nothing.
    fn reach_least_load(&mut self) -> Result<(), String> {
        if self.core.history.answered >= REQUESTS_MIN {
            return Ok(());
        }
        self.core.directory.load = true;
        self.wake_clients();
        self.wait(ANSWERED_WITHIN, "too few requests were answered", |world| {
            world.core.history.answered >= REQUESTS_MIN
        })?;
        self.core.directory.load = false;
        self.wait(ANSWERED_WITHIN, "not every request was answered", World::is_quiet)
    }

    /// Everything that was unmapped meanwhile is mapped again.
    fn map_again(&mut self) -> Result<(), String> {
        let end = self.core.now + ANSWERED_WITHIN;
        self.run_until(ANSWERED_WITHIN, |world| !world.unmaps_are_under_way());
        for (volume, sdc) in self.core.directory.mappings.clone() {
            loop {
                self.settle_unmaps();
                match cluster::command(self, cluster::map_command(volume, sdc)) {
                    Ok(_) => break,
                    Err(text) if text.contains("already mapped") => break,
                    Err(text) if self.core.now > end || self.core.watch.failure.is_some() => {
                        return Err(format!("liveness: {text}: {}", self.situation()));
                    }
                    Err(_) => self.run_for(SECOND / 2),
                }
            }
        }
        self.settle_unmaps();
        Ok(())
    }

    fn wait(&mut self, bound: Time, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        if self.run_until(bound, holds) || self.core.watch.failure.is_some() {
            return Ok(());
        }
        Err(format!("liveness: {what} within {}: {}", seconds(bound), self.situation()))
    }

    fn wake_clients(&mut self) {
        for node in self.core.directory.sdc_nodes.clone() {
            self.core.later(node, 0, Input::Wake);
            let now = self.core.local(node);
            self.core.arm(node, now);
        }
    }

    fn is_quiet(&self) -> bool {
        self.hosts.iter().all(|host| match host {
            Host::Sdc(host) => host.volumes.iter().all(|volume| volume.is_quiet()),
            _ => true,
        })
    }

    /// Devices that failed are taken out and new ones put in their place, as people do.
    fn replace_failed(&mut self, outcome: &mut Outcome) -> Result<(), String> {
        self.run_for(8 * SECOND);
        for (place, node) in self.core.directory.sds_nodes.clone().into_iter().enumerate() {
            let Host::Sds(host) = &mut self.hosts[node] else { continue };
            let sick: Vec<usize> = (0..host.slots.len()).filter(|at| host.slots[*at].is_sick()).collect();
            let devices = self.core.directory.devices.clone();
            for at in (0..self.slots_of(node)).filter(|at| !sick.contains(at)).collect::<Vec<_>>() {
                let failed = devices.iter().find(|(_, place)| **place == (node, at)).map(|(id, _)| *id);
                if let Some(id) = failed.filter(|id| self.device_state(*id) == Some(DeviceState::Failed)) {
                    self.replace(outcome, place, id)?;
                }
            }
            for at in sick {
                let sick = devices.iter().find(|(_, place)| **place == (node, at)).map(|(id, _)| *id);
                if let Some(id) = sick {
                    self.replace(outcome, place, id)?;
                }
            }
        }
        Ok(())
    }

    fn slots_of(&self, node: usize) -> usize {
        match &self.hosts[node] {
            Host::Sds(host) => host.slots.len(),
            _ => 0,
        }
    }

    fn device_state(&self, device: DeviceId) -> Option<DeviceState> {
        self.state()?.devices().get(&device).map(|record| record.state)
    }

    fn replace(&mut self, outcome: &mut Outcome, place: usize, device: DeviceId) -> Result<(), String> {
        let lost =
            self.state().map_or(0, |state| state.pgs().values().filter(|record| record.config.isr == [device]).count());
        if lost > 0 {
            outcome.lost_groups += lost as u64;
            return Ok(());
        }
        let node = self.core.directory.sds_nodes[place];
        let (size, rng) = (self.core.plan.device_bytes, self.core.rng.fork());
        let Host::Sds(host) = &mut self.hosts[node] else { return Ok(()) };
        let slot = host.slots.len();
        host.slots.push(Slot::new(format!("/dev/d{slot}"), Disk::new(size, rng)));
        let remove = AdminCommand::RemoveDevice { device: ObjectRef(device.to_string()), force: false };
        // It is refused while a group has no other copy; then the new device helps first.
        let _ = cluster::command(self, remove);
        cluster::add_device(self, place, slot)?;
        // F32: once the system has let go of it, it comes back.
        let is_gone = |world: &Self| world.device_state(device).is_none();
        if self.core.rng.one_in(2) && self.run_until(REDUNDANT_WITHIN / 2, is_gone) {
            let Some((node, at)) = self.core.directory.devices.get(&device).copied() else { return Ok(()) };
            if let Host::Sds(host) = &mut self.hosts[node] {
                host.remember(device, at);
            }
            self.core.marks.hit("F32");
            self.crash(node, false);
            self.start(node);
        }
        Ok(())
    }

    /// What waits for what, for people.
    pub fn situation(&self) -> String {
        let mut lines = Vec::new();
        let mut degraded = BTreeSet::new();
        if let Some(state) = self.state() {
            for record in state.pgs().values().filter(|record| {
                record.config.primary.is_none() || record.config.isr.len() < usize::from(self.core.plan.copies)
            }) {
                lines.push(describe(&record.config));
                degraded.insert(record.config.pg);
            }
            for device in state.devices().values().filter(|device| !state.is_fit(device.id)) {
                lines.push(format!(
                    "device {} of {:?}: {:?} opened by {:?}",
                    device.id, device.sds, device.state, device.opened_by
                ));
                let server = state.sds().get(&device.sds).map(|sds| (sds.incarnation, sds.connected));
                lines.push(format!("  its server's registered process, and whether it is connected: {server:?}"));
            }
        }
        // What waits at a primary may wait for any other copy.
        for host in &self.hosts {
            if let Host::Sds(host) = host
                && let Some(shard) = host.shard()
            {
                degraded.extend(shard.replicas().filter(|(.., status)| status.requests > 0).map(|(pg, ..)| pg));
            }
        }
        for (node, host) in self.hosts.iter().enumerate() {
            let Host::Sds(host) = host else { continue };
            let Some(shard) = host.shard() else {
                lines.push(format!("host {node} does not run"));
                continue;
            };
            let leads =
                |pg, device| self.state().is_some_and(|state| state.pg(pg).is_some_and(|c| c.primary == Some(device)));
            let busy = shard.replicas().filter(|(pg, device, status)| {
                let is_behind = leads(*pg, *device) && status.role != Role::Primary;
                status.requests > 0 || is_behind || degraded.contains(pg)
            });
            lines.extend(busy.map(|(pg, device, status)| format!("host {node} {pg} on {device}: {status:?}")));
            let figures = shard.figures();
            for device in figures.devices {
                let space = device.store.map(|(space, _)| space);
                lines.push(format!("host {node} {} {:?} {space:?}", device.device, device.trouble));
            }
            lines.extend(shard.describe_stores().into_iter().map(|text| format!("host {node} store {text}")));
        }
        for host in &self.hosts {
            if let Host::Sdc(host) = host {
                lines.extend(host.volumes.iter().filter(|volume| !volume.is_quiet()).map(|volume| volume.describe()));
            }
        }
        lines.truncate(40);
        lines.join("\n  ")
    }

    /// What servers and sessions counted.
    pub fn collect_marks(&mut self) {
        let mut hits = Vec::new();
        for host in &mut self.hosts {
            match host {
                Host::Sds(host) => {
                    let seen = host.counted();
                    hits.push(("F15", seen.repaired_blocks > 0));
                    hits.push(("I21", seen.bad_blocks > 0));
                    hits.push(("I22", seen.device_failures > 0));
                    hits.push(("I20", seen.checkpoints > 0));
                    hits.push(("I19", seen.quarantined > 0));
                }
                Host::Sdc(host) => {
                    for volume in &mut host.volumes {
                        let Some(stats) = volume.session().map(|session| session.stats()) else { continue };
                        hits.push(("F23", stats.retries > 0));
                    }
                }
                _ => {}
            }
        }
        let volumes = self.core.directory.mappings.iter().map(|(volume, _)| volume).collect::<BTreeSet<_>>();
        hits.push(("F25", volumes.len() < self.core.directory.mappings.len()));
        hits.into_iter().filter(|(_, holds)| *holds).for_each(|(row, _)| self.core.marks.hit(row));
    }

    /// P3: repairs hide a block that was spoilt by the store itself.
    fn find_bad_blocks(&self) -> Result<(), String> {
        let count = |host: &Host| match host {
            Host::Sds(host) => host.counted().bad_blocks,
            _ => 0,
        };
        let bad: u64 = self.hosts.iter().map(count).sum();
        if bad > 0 && !self.core.watch.is_damaged {
            return Err(format!("{bad} blocks were bad, and nothing was damaged (P3)"));
        }
        Ok(())
    }

    /// All servers end; their devices are opened and every in-sync copy is compared with the others.
    fn compare_copies(&mut self, outcome: &mut Outcome) -> Result<(), String> {
        let Some(state) = self.state() else { return Ok(()) };
        let configs: Vec<_> = state.pgs().values().map(|record| record.config.clone()).collect();
        for node in self.core.directory.sds_nodes.clone() {
            self.crash(node, false);
        }
        let places = self.core.directory.devices.clone();
        let mut contents: BTreeMap<DeviceId, BTreeMap<_, Content>> = BTreeMap::new();
        let members: BTreeSet<DeviceId> = configs.iter().flat_map(|config| config.isr.clone()).collect();
        for device in members {
            let Some((node, slot)) = places.get(&device).copied() else { continue };
            let Host::Sds(host) = &mut self.hosts[node] else { continue };
            let disk = &mut host.slots[slot].disk;
            disk.condition = crate::disk::Condition::default();
            let mut copy = Copy::open(disk).map_err(|text| format!("device {device} does not open: {text}"))?;
            if let Verdict::Suspect { why } = copy.verdict {
                if self.core.watch.may_lose_blocks {
                    continue; // I12: it would leave its groups, and be made anew
                }
                return Err(format!("device {device} is suspect, and nothing was damaged (I12): {why}"));
            }
            for config in configs.iter().filter(|config| config.isr.contains(&device)) {
                match copy.content(config.pg, self.core.watch.may_lose_blocks) {
                    Ok(content) => {
                        contents.entry(device).or_default().insert(config.pg, content);
                    }
                    Err(text) => return Err(format!("{} of {device} cannot be read: {text}", config.pg)),
                }
            }
        }
        for config in &configs {
            for pair in config.isr.windows(2) {
                let of = |device: &DeviceId| contents.get(device).and_then(|groups| groups.get(&config.pg));
                if let (Some(left), Some(right)) = (of(&pair[0]), of(&pair[1])) {
                    outcome.copies += left.len() as u64;
                    self.core.marks.hit_if("I23", !left.is_empty());
                    compare(config.pg, (pair[0], left), (pair[1], right))?;
                }
            }
        }
        Ok(())
    }

    fn summarise(&mut self, outcome: &mut Outcome) {
        let core = &mut self.core;
        outcome.failure = core.watch.failure.take().map(|(at, text)| format!("at {}: {text}", seconds(at)));
        outcome.events = core.events;
        outcome.simulated = core.now;
        outcome.answered = core.history.answered;
        outcome.unanswered = core.history.pending() as u64;
        outcome.medium_errors = core.history.medium_errors;
        outcome.configs = core.watch.configs;
        outcome.frames = core.net.frames;
        outcome.marks = core.marks.clone();
        outcome.faults = self.faults.counts.clone();
        outcome.fault_count = self.faults.drawn;
        for word in [outcome.events, outcome.answered, core.net.bytes] {
            core.trace.word(word);
        }
        outcome.hash = core.trace.hash();
    }

    /// What servers counted. Not asked for after an assertion: who knows what they are like then.
    fn sum_up_servers(&self, outcome: &mut Outcome) {
        for host in &self.hosts {
            if let Host::Sds(host) = host {
                host.slots.iter().for_each(|slot| outcome.damage.add(&slot.disk.damage));
                let seen = host.counted();
                outcome.bad_blocks += seen.bad_blocks;
                outcome.repaired_blocks += seen.repaired_blocks;
                outcome.copied_bytes += seen.copied_bytes;
            }
        }
    }
}
