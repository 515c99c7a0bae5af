//! What must hold, during a run and at its end.

pub mod copies;
pub mod linear;
pub mod protocol;

use std::collections::BTreeMap;

use mdm_api::config::PgConfig;
use mdm_api::epoch::{AttachGeneration, Epoch, Revision, Term};
use mdm_api::ids::{DeviceId, DeviceIncarnation, PgId, ProcessIncarnation, SdcId, VolumeId};
use mdm_core::State;
use sds_node::Shard;
use sds_replica::Role;

use crate::check::protocol::{Around, Protocol};
use crate::clock::{SECOND, Time};
use crate::history::History;
use crate::marks::Marks;
use crate::net::NodeId;
use crate::trace::Trace;

/// What is watched all the time.
#[derive(Debug, Default)]
pub struct Watch {
    /// The first violation, and when.
    pub failure: Option<(Time, String)>,
    /// Processes that ended by their own will.
    pub wants_restart: Vec<NodeId>,
    /// Devices may hold bad blocks: a read may end with "no good copy".
    pub may_lose_blocks: bool,
    /// Reads of devices fail now and then: the same, but nothing is lost.
    pub may_miss_blocks: bool,
    /// Something was done to a device for which blocks of it may be bad, or itself suspect.
    pub is_damaged: bool,
    /// Configurations that were looked at.
    pub configs: u64,
    revision: Revision,
    newest: BTreeMap<PgId, PgConfig>,
    by_epoch: BTreeMap<(PgId, Epoch), PgConfig>,
    terms: BTreeMap<(PgId, Term), (Option<DeviceId>, ProcessIncarnation)>,
    incarnations: BTreeMap<DeviceId, DeviceIncarnation>,
    retired: BTreeMap<DeviceId, Time>,
    seen_at: BTreeMap<NodeId, Revision>,
    serving: BTreeMap<(PgId, Term), (NodeId, DeviceId)>,
    sessions: BTreeMap<(VolumeId, SdcId), u32>,
    /// Generations of mappings as they were last seen, and those below which all are fenced.
    generations: BTreeMap<(VolumeId, SdcId), AttachGeneration>,
    fenced: BTreeMap<(VolumeId, SdcId), AttachGeneration>,
    next_session: u32,
    /// What replicas do.
    pub protocol: Protocol,
}

impl Watch {
    /// Something is wrong. Only the first counts.
    pub fn fail(&mut self, now: Time, text: String) {
        if self.failure.is_none() {
            self.failure = Some((now, text));
        }
    }

    /// A read had no good copy.
    pub fn medium_error(&mut self, now: Time, history: &mut History) {
        history.medium_errors += 1;
        if !self.may_lose_blocks && !self.may_miss_blocks {
            self.fail(now, "a read found no good copy, and nothing was damaged (P3)".to_owned());
        }
    }

    /// A client uses a volume under a new generation: nothing of the one before takes effect any more (I17).
    pub fn session_opened(&mut self, history: &mut History, volume: VolumeId, sdc: SdcId) {
        self.fence(history, volume, sdc);
        self.next_session += 1;
        self.sessions.insert((volume, sdc), self.next_session);
    }

    /// The newest session.
    pub fn session_of(&self, volume: VolumeId, sdc: SdcId) -> u32 {
        self.sessions.get(&(volume, sdc)).copied().unwrap_or(0)
    }

    /// The client is fenced from the volume.
    pub fn fence(&self, history: &mut History, volume: VolumeId, sdc: SdcId) {
        if let Some(session) = self.sessions.get(&(volume, sdc)) {
            history.fence(*session);
        }
    }

    /// A member's state may have moved on.
    pub fn look_at_state(&mut self, now: Time, node: NodeId, state: &State, marks: &mut Marks, trace: &mut Trace) {
        let seen = self.seen_at.entry(node).or_default();
        if *seen == state.revision() {
            return;
        }
        *seen = state.revision();
        let is_news = state.revision() > self.revision;
        let is_next = state.revision().0 == self.revision.0 + 1;
        for (pg, record) in state.pgs() {
            let config = &record.config;
            match self.by_epoch.get(&(*pg, config.epoch)) {
                Some(known) if known == config => {}
                Some(known) => {
                    return self.fail(now, format!("two configurations of one epoch: {known:?}, {config:?}"));
                }
                None => {
                    self.configs += 1;
                    trace.word(config.epoch.0);
                    trace.line(now, || format!("mdm@{node}: {}", describe(config)));
                    if let Err(text) = self.check(config, is_news, is_next, marks) {
                        return self.fail(now, format!("{text}: {config:?} after {:?}", self.newest.get(pg)));
                    }
                    self.by_epoch.insert((*pg, config.epoch), config.clone());
                }
            }
            if is_news {
                self.newest.insert(*pg, config.clone());
            }
        }
        if is_news {
            self.note_fences(state);
            self.revision = state.revision();
            let gone: Vec<DeviceId> =
                self.incarnations.keys().filter(|device| !state.devices().contains_key(device)).copied().collect();
            for device in gone {
                self.incarnations.remove(&device);
                self.retired.insert(device, now);
            }
            for (id, device) in state.devices() {
                self.incarnations.insert(*id, device.incarnation);
            }
        }
    }

    /// I17: from the moment at which any member takes a fence for done nothing of the older generations is ordered.
    fn note_fences(&mut self, state: &State) {
        let mappings = state.mappings();
        let is_there = |key: &(VolumeId, SdcId)| mappings.values().any(|found| (found.volume, found.sdc) == *key);
        let gone: Vec<_> = self.generations.keys().filter(|key| !is_there(key)).copied().collect();
        for key in gone {
            self.fenced.extend(self.generations.remove(&key).map(|generation| (key, generation)));
        }
        for mapping in mappings.values() {
            let key = (mapping.volume, mapping.sdc);
            self.generations.insert(key, mapping.generation);
            if mapping.fenced {
                self.fenced.insert(key, mapping.generation);
            }
        }
    }

    fn check(&mut self, config: &PgConfig, is_news: bool, is_next: bool, marks: &mut Marks) -> Result<(), String> {
        config.check().map_err(str::to_owned)?;
        marks.hit("I3");
        marks.hit_if("I4", !self.retired.is_empty());
        if let Some(device) = config.isr.iter().chain(&config.learners).find(|device| self.retired.contains_key(device))
        {
            return Err(format!("I4: the retired device {device} is in a configuration"));
        }
        let appointed = (config.primary, config.primary_incarnation);
        if config.primary.is_some() {
            let term = self.terms.entry((config.pg, config.term)).or_insert(appointed);
            if *term != appointed {
                return Err(format!("I2: one term with two primaries, {term:?}"));
            }
        }
        let Some(old) = self.newest.get(&config.pg).filter(|_| is_news) else { return Ok(()) };
        marks.hit("I1");
        marks.hit_if("I2", config.term > old.term && config.primary.is_some() && config.primary == old.primary);
        if config.epoch <= old.epoch || config.term < old.term {
            return Err("I1: epochs and terms grow".to_owned());
        }
        let is_new_table = config.isr.iter().all(|member| !old.names(*member));
        let joined: Vec<&DeviceId> = config.isr.iter().filter(|member| !old.isr.contains(member)).collect();
        if is_next && !is_new_table {
            if let Some(stranger) = joined.iter().find(|member| !old.learners.contains(member)) {
                return Err(format!("I5: {stranger} joins the ISR and was no learner"));
            }
            if !joined.is_empty() {
                marks.hit("grown");
                marks.hit("I5");
            }
            if config.isr.len() < old.isr.len() {
                marks.hit("shrunk");
            }
            if config.term > old.term {
                marks.hit("appointed");
                marks.hit_if("handed over", config.primary.is_some() && config.primary == old.heir);
            }
            marks.hit_if("moved in vain", old.heir.is_some() && config.heir.is_none() && config.primary != old.heir);
        }
        Ok(())
    }

    /// What a server did in its last step: at most one primary serves in a term, and none in a term that does not name it;
    /// and all that [`Protocol`] knows of.
    pub fn look_at_server(&mut self, now: Time, node: NodeId, shard: &Shard, marks: &mut Marks) {
        for (pg, device) in shard.stepped() {
            let Some(replica) = shard.replica(*pg, *device).filter(|replica| replica.role() == Role::Primary) else {
                continue;
            };
            let (pg, device, term) = (*pg, *device, replica.promised());
            let serving = self.serving.entry((pg, term)).or_insert((node, device));
            if *serving != (node, device) {
                let text = format!("I2: {pg} in term {term} is served by {serving:?} and {:?}", (node, device));
                return self.fail(now, text);
            }
            match self.terms.get(&(pg, term)) {
                Some((Some(primary), _)) if *primary == device => {}
                other => {
                    let text = format!("I1: {device} serves {pg} in term {term}, appointed is {other:?}");
                    return self.fail(now, text);
                }
            }
        }
        let mut around = Around {
            newest: &self.newest,
            fenced: &self.fenced,
            may_lose: self.may_lose_blocks,
            is_damaged: self.is_damaged,
            marks,
        };
        if let Err(text) = self.protocol.look(shard, &mut around) {
            self.fail(now, text);
        }
    }
}

/// A configuration in short.
pub fn describe(config: &PgConfig) -> String {
    let name = |device: &DeviceId| format!("{:x}", device.0 & 0xffff);
    let list = |devices: &[DeviceId]| devices.iter().map(name).collect::<Vec<_>>().join(" ");
    let primary = config.primary.as_ref().map_or("-".to_owned(), name);
    format!(
        "pg {:x} epoch {} term {} primary {primary} isr [{}] learners [{}]",
        config.pg.index,
        config.epoch,
        config.term,
        list(&config.isr),
        list(&config.learners)
    )
}

/// Seconds with a fraction.
pub fn seconds(time: Time) -> String {
    format!("{}.{:03}", time / SECOND, time % SECOND / 1_000_000)
}
