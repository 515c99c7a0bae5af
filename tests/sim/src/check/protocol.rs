//! What replicas do, step by step: one order for each group, nothing lost of it, nobody serving out of turn.
//!
//! The checker sees all servers at once, which no server does. It keeps what was committed as it happened and compares
//! every replica that had an event with it (I5 to I12, I16, I17, I23); who may answer reads is compared across servers (I13
//! to I15).

use std::collections::BTreeMap;

use mdm_api::config::PgConfig;
use mdm_api::epoch::{AttachGeneration, RequestNumber, Seq, Term, Version};
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation, SdcId, VolumeId};
use sds_api::entry::{Entry, EntryBody, WriteIdentity};
use sds_node::Shard;
use sds_replica::{ActivationStep, Replica, Role};

use crate::marks::Marks;
use crate::rng::mix;

/// A request as long as it may be sent again.
type Request = (PgId, VolumeId, SdcId, AttachGeneration, RequestNumber);

/// What is remembered of a replica, also while its server is down.
#[derive(Clone, Copy, Debug)]
struct Seen {
    process: Option<ProcessIncarnation>,
    committed: Seq,
    promise: Term,
    /// Committed while it was in sync: it may never come back with less (I8).
    holds: Seq,
    /// The term that it is being activated in, and its tail when that began.
    activation: Option<(Term, Seq)>,
    serves: Option<Term>,
}

/// A replica that has just begun to serve.
#[derive(Clone, Copy, Debug)]
pub struct Risen {
    /// The group.
    pub pg: PgId,
    /// The device.
    pub device: DeviceId,
    /// Under which term.
    pub term: Term,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Protocol {
    order: BTreeMap<(PgId, Seq), (Version, u64)>,
    committed: BTreeMap<PgId, Seq>,
    requests: BTreeMap<Request, Seq>,
    seen: BTreeMap<(PgId, DeviceId), Seen>,
    serving: BTreeMap<PgId, Term>,
    /// What each replica has for good, also while its server is down.
    durable: BTreeMap<(PgId, DeviceId), Seq>,
    /// To be compared with all other servers.
    pub risen: Vec<Risen>,
}

/// What the look at one replica knows besides it.
pub struct Around<'a> {
    /// The newest configurations.
    pub newest: &'a BTreeMap<PgId, PgConfig>,
    /// Sessions of a mapping below these generations are fenced.
    pub fenced: &'a BTreeMap<(VolumeId, SdcId), AttachGeneration>,
    /// Devices were damaged: what they acknowledged may be gone.
    pub may_lose: bool,
    /// Something was done to a device that it may be suspected for.
    pub is_damaged: bool,
    /// What was reached.
    pub marks: &'a mut Marks,
}

impl Protocol {
    /// The newest term in which anybody has served the group.
    pub fn serving(&self, pg: PgId) -> Term {
        self.serving.get(&pg).copied().unwrap_or_default()
    }

    /// How far a group is committed.
    pub fn committed(&self, pg: PgId) -> Seq {
        self.committed.get(&pg).copied().unwrap_or_default()
    }

    /// True if a client's request has its place in the order.
    pub fn is_committed(&self, pg: PgId, identity: &WriteIdentity) -> bool {
        self.requests.contains_key(&name_of(pg, identity))
    }

    /// Looks at the replicas of a server that had an event.
    pub fn look(&mut self, shard: &Shard, around: &mut Around<'_>) -> Result<(), String> {
        for (pg, device) in shard.stepped() {
            match shard.replica(*pg, *device) {
                Some(replica) => {
                    let look = self.look_at(*pg, *device, shard.incarnation(), replica, around);
                    look.map_err(|text| format!("{text}: {pg} on {device}, {:?}", replica.status()))?;
                }
                // Forgotten in good order, or its device is gone for good.
                None => drop(self.seen.remove(&(*pg, *device))),
            }
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        pg: PgId,
        device: DeviceId,
        process: Option<ProcessIncarnation>,
        replica: &Replica,
        around: &mut Around<'_>,
    ) -> Result<(), String> {
        let fresh =
            Seen { process: None, committed: Seq(0), promise: Term(0), holds: Seq(0), activation: None, serves: None };
        let mut seen = self.seen.get(&(pg, device)).copied().unwrap_or(fresh);
        let in_sync = around.newest.get(&pg).is_some_and(|config| config.isr.contains(&device));
        if seen.process != process {
            let is_sound = in_sync && !replica.is_suspect() && !around.may_lose;
            if is_sound && replica.last() < seen.holds {
                return Err(format!("I8: entries through {} were acknowledged and committed", seen.holds));
            }
            if is_sound && replica.durable_promise() < seen.promise {
                return Err(format!("I7: the promise of term {} is gone", seen.promise));
            }
            around.marks.hit_if("I8", seen.holds > Seq(0));
            around.marks.hit_if("I7", seen.promise > Term(0));
            (seen.process, seen.committed) = (process, replica.committed());
            (seen.activation, seen.serves) = (None, None);
        }
        self.durable.insert((pg, device), replica.durable());
        seen.promise = seen.promise.max(replica.durable_promise());
        if let Some(term) = replica.follows().filter(|term| *term < seen.promise && !around.may_lose) {
            return Err(format!("I7: the primary of term {term} is followed, {} is promised", seen.promise));
        }
        if let Some(layer) = replica.copies_undrained() {
            return Err(format!("I23: {layer:?} is copied while writes to it are under way"));
        }
        if replica.is_suspect() {
            around.marks.hit("I12");
            if !around.is_damaged {
                return Err("I12: a replica is suspect, and nothing was damaged".to_owned());
            }
            if replica.role().leads() {
                return Err("I12: a suspect replica leads".to_owned());
            }
        }
        self.look_at_role(pg, device, replica, &mut seen, around)?;
        let commits = replica.committed();
        if commits > seen.committed {
            self.look_at_commit(pg, replica, seen.committed, around)?;
            seen.committed = commits;
        }
        self.seen.insert((pg, device), seen);
        if replica.role() == Role::Primary {
            let config = replica.config().filter(|config| config.primary == Some(device));
            for member in config.into_iter().flat_map(|config| config.isr.iter()) {
                if let Some(seen) = self.seen.get_mut(&(pg, *member)) {
                    seen.holds = seen.holds.max(commits);
                }
            }
        }
        Ok(())
    }

    fn look_at_role(
        &mut self,
        pg: PgId,
        device: DeviceId,
        replica: &Replica,
        seen: &mut Seen,
        around: &mut Around<'_>,
    ) -> Result<(), String> {
        let term = replica.promised();
        match replica.role() {
            Role::Activating(step) => {
                around.marks.hit_if("I14", step == ActivationStep::WaitGrants);
                if seen.activation.is_none_or(|(activating, _)| activating != term) {
                    seen.activation = Some((term, replica.last()));
                    // One that hears late of a term that is over by now gets nowhere with it.
                    let is_current = term > self.serving(pg);
                    if is_current && replica.last() < self.committed(pg) && !around.may_lose {
                        return Err(format!("I9: entries through {} are committed", self.committed(pg)));
                    }
                    around.marks.hit_if("I9", self.committed(pg) > Seq(0));
                }
            }
            Role::Primary if seen.serves != Some(term) => {
                if seen.activation.is_some_and(|(activated, tail)| activated == term && replica.committed() <= tail) {
                    return Err("I11: a primary serves before the first entry of its term is committed".to_owned());
                }
                around.marks.hit("I11");
                seen.serves = Some(term);
                let serving = self.serving.entry(pg).or_default();
                *serving = (*serving).max(term);
                self.risen.push(Risen { pg, device, term });
            }
            _ => {}
        }
        Ok(())
    }

    /// The replica has moved its commit on from `before`.
    fn look_at_commit(
        &mut self,
        pg: PgId,
        replica: &Replica,
        before: Seq,
        around: &mut Around<'_>,
    ) -> Result<(), String> {
        let through = replica.committed();
        let leads = replica.role().leads();
        if !leads && through > self.committed(pg) {
            return Err(format!("I10: committed through {through}, the group is at {}", self.committed(pg)));
        }
        around.marks.hit_if("I10", !leads);
        if leads && !around.may_lose {
            self.is_everywhere(pg, through, around.newest)?;
        }
        for entry in replica.entries(before, through) {
            let fenced = |identity: &WriteIdentity| {
                let below = around.fenced.get(&(identity.volume, identity.sdc));
                below.is_some_and(|below| identity.session < *below)
            };
            let place = (pg, entry.version.seq);
            let found = (entry.version, digest(entry));
            match self.order.get(&place) {
                None if leads => {
                    // The tail of an earlier term is another matter: it may have been ordered long before the fence. So is
                    // what a deposed primary hears of late: its successor committed that before the fence.
                    if entry.version.term == replica.promised() && entry.identity.as_ref().is_some_and(fenced) {
                        return Err(format!("I17: entry {} is of a session that is fenced", entry.version.seq));
                    }
                    self.order.insert(place, found);
                    if let Some(identity) = &entry.identity {
                        self.note_request(pg, identity, entry.version.seq)?;
                    }
                }
                // Committed by a primary that had let go of it before anybody looked.
                None => {}
                Some((version, _)) if *version != entry.version => {
                    return Err(format!("I6: entry {} is {version:?} elsewhere", entry.version.seq));
                }
                Some((_, content)) => {
                    around.marks.hit("I6");
                    let is_whole = !matches!(entry.body, EntryBody::Elsewhere { .. });
                    if is_whole && *content != found.1 {
                        return Err(format!("I6: {:?} names two entries", entry.version));
                    }
                }
            }
        }
        if leads {
            let known = self.committed.entry(pg).or_default();
            *known = (*known).max(through);
        }
        Ok(())
    }

    /// I5, I9: what is committed is durable on every member of the ISR, as the metadata manager knows it.
    fn is_everywhere(&self, pg: PgId, through: Seq, newest: &BTreeMap<PgId, PgConfig>) -> Result<(), String> {
        for member in newest.get(&pg).into_iter().flat_map(|config| &config.isr) {
            let durable = self.durable.get(&(pg, *member)).copied().unwrap_or_default();
            if durable < through {
                return Err(format!(
                    "I9: entries through {through} are committed, {member} has them through {durable}"
                ));
            }
        }
        Ok(())
    }

    fn note_request(&mut self, pg: PgId, identity: &WriteIdentity, seq: Seq) -> Result<(), String> {
        match self.requests.insert(name_of(pg, identity), seq) {
            Some(earlier) if earlier != seq => {
                Err(format!("I16: request {} is committed as {earlier} and as {seq}", identity.request))
            }
            _ => Ok(()),
        }
    }
}

fn name_of(pg: PgId, identity: &WriteIdentity) -> Request {
    (pg, identity.volume, identity.sdc, identity.session, identity.request)
}

fn digest(entry: &Entry) -> u64 {
    let mut hash = entry.version.term.0;
    let mut take = |word: u64| hash = mix(hash.rotate_left(7) ^ word);
    if let Some(identity) = &entry.identity {
        take(identity.volume.0);
        take(identity.sdc.0);
        take(identity.session.0);
        take(identity.request.0);
    }
    match &entry.body {
        EntryBody::Write { layer, blocks, checksums, .. } => {
            take(layer.chunk.index);
            take(u64::from(blocks.first()) << 16 | u64::from(blocks.count()));
            checksums.iter().for_each(|sum| take(u64::from(*sum)));
        }
        EntryBody::Zero { layer, blocks } => {
            take(layer.chunk.index | 1 << 63);
            take(u64::from(blocks.first()) << 16 | u64::from(blocks.count()));
        }
        EntryBody::EpochStart { epoch } => take(epoch.0),
        EntryBody::DropVtree { vtree } => take(vtree.0),
        EntryBody::Elsewhere { .. } => {}
    }
    hash
}
