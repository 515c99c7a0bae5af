//! Faults: drawn, carried out, and ended.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::command::{AdminCommand, ObjectRef};
use mdm_api::ids::{SdcId, VolumeId};
use mdm_raft::StoreId;

use crate::clock::{MS, SECOND, Time};
use crate::cluster::map_command;
use crate::core::What;
use crate::host::Host;
use crate::host::sds::SdsHost;
use crate::net::NodeId;
use crate::plan::Fault;
use crate::rng::{Rng, mix};
use crate::world::World;
use sds_store::layout::Geometry;

mod homes;
mod sequences;

use homes::Memory;
use sequences::Electors;

/// Faults at a time; a world in which everything is broken for ever tests nothing.
const ACTIVE_MAX: usize = 6;
/// A fault that waits for its moment is tried as often, and so long after.
const TRIES_MAX: u64 = 16;
const TRY_AGAIN: Time = 500 * MS;
/// A device that was damaged is found, and replaced in all groups, within this.
const DAMAGE_SETTLES: Time = 8 * SECOND;

/// What ends a fault, or goes on with it.
#[derive(Clone, Debug)]
enum Undo {
    Start(NodeId),
    Power(NodeId),
    Resume(NodeId),
    Links(Vec<(NodeId, NodeId)>),
    Disk(NodeId, usize),
    Files(NodeId),
    Map(VolumeId, SdcId),
    Crash(NodeId),
    Cut(Vec<(NodeId, NodeId)>, Time),
    Unmap,
    Wipe(Electors),
    LeaveBehind(NodeId, NodeId),
}

/// What is broken, and what is to break.
pub struct Faults {
    /// Where the fault at hand draws from: each has a source of its own.
    rng: Rng,
    pace: Rng,
    seed: u64,
    /// Faults that were drawn.
    pub drawn: u64,
    tries: u64,
    memory: Memory,
    /// Faults that do not happen, by their number.
    pub skip: BTreeSet<u64>,
    active: BTreeMap<u64, Undo>,
    next: u64,
    is_over: bool,
    unmaps: BTreeMap<u64, (VolumeId, SdcId)>,
    /// How often each kind was carried out.
    pub counts: BTreeMap<Fault, u64>,
}

impl Faults {
    /// None yet.
    pub fn new(mut rng: Rng) -> Self {
        let (pace, seed) = (rng.fork(), rng.word());
        let (drawn, skip) = (0, BTreeSet::new());
        Self {
            rng,
            pace,
            seed,
            drawn,
            tries: 0,
            memory: Memory::default(),
            skip,
            active: BTreeMap::new(),
            next: 0,
            is_over: true,
            unmaps: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }
}

impl World {
    /// From now on things break.
    pub fn begin_faults(&mut self) {
        self.faults.is_over = false;
        self.core.schedule(self.core.now, What::Fault);
    }

    /// The next fault.
    pub fn fault(&mut self) {
        if self.faults.is_over {
            return;
        }
        self.settle_unmaps();
        self.remember_journals();
        if self.faults.active.len() >= ACTIVE_MAX {
            return self.core.schedule(self.core.now + SECOND, What::Fault);
        }
        let number = self.faults.drawn;
        self.faults.rng = Rng::new(mix(self.faults.seed ^ number));
        let fault = *self.faults.rng.pick(&self.core.plan.faults.clone());
        if self.faults.tries < TRIES_MAX && !self.faults.skip.contains(&number) && !self.is_moment_of(fault) {
            // Nothing else comes meanwhile.
            self.faults.tries += 1;
            return self.core.schedule(self.core.now + TRY_AGAIN, What::Fault);
        }
        (self.faults.drawn, self.faults.tries) = (number + 1, 0);
        if !self.faults.skip.contains(&number) && self.carry_out(fault) {
            self.core.trace.line(self.core.now, || format!("fault {number} is done: {fault:?}"));
            *self.faults.counts.entry(fault).or_default() += 1;
            self.mark();
        }
        let mut pause = self.faults.pace.around(self.core.plan.fault_every) + MS;
        if fault.destroys() {
            pause += DAMAGE_SETTLES; // one copy is lost: what comes next must find it noticed
        }
        self.core.schedule(self.core.now + pause, What::Fault);
    }

    /// How long a fault lasts: mostly short, sometimes long.
    fn duration(&mut self) -> Time {
        let mean = *self.faults.rng.pick(&[100 * MS, 700 * MS, 2 * SECOND, 6 * SECOND]);
        self.faults.rng.around(mean).min(15 * SECOND) + MS
    }

    fn until(&mut self, undo: Undo) {
        let duration = self.duration();
        self.undo_after(duration, undo);
    }

    fn undo_after(&mut self, duration: Time, undo: Undo) {
        self.faults.next += 1;
        let number = self.faults.next;
        self.faults.active.insert(number, undo);
        self.core.schedule(self.core.now + duration, What::EndFault(number));
    }

    /// A fault ends.
    pub fn end_fault(&mut self, number: u64) {
        if let Some(undo) = self.faults.active.remove(&number) {
            self.undo(undo);
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(node) => self.start(node),
            Undo::Power(node) => self.power_on(node),
            Undo::Resume(node) => self.resume(node),
            Undo::Links(links) => {
                for (from, to) in links {
                    let link = self.core.net.link(from, to);
                    (link.slowness, link.loss_ppm) = (1, 0);
                    if link.cut {
                        self.core.with_net(|net, now, out| net.heal(now, from, to, out));
                    }
                }
            }
            Undo::Disk(node, slot) => {
                if let Some(host) = self.sds(node) {
                    let condition = &mut host.slots[slot].disk.condition;
                    (condition.slowness, condition.read_errors_ppm) = (1, 0);
                }
            }
            // The rest of a sequence does not come if faults end before.
            Undo::Crash(_) | Undo::Cut(..) | Undo::Unmap if self.faults.is_over => {}
            Undo::Crash(node) => {
                self.crash_node(node);
            }
            Undo::Cut(links, duration) => {
                self.cut_for(links, duration);
            }
            Undo::Unmap => {
                self.unmap();
            }
            Undo::Wipe(electors) => self.wipe_elector(electors),
            Undo::LeaveBehind(client, server) => self.leave_behind(client, server),
            Undo::Files(node) => {
                if let Host::Mdm(host) = &mut self.hosts[node] {
                    host.slowness = 1;
                }
            }
            Undo::Map(volume, sdc) => {
                self.operator().command(map_command(volume, sdc));
            }
        }
    }

    /// Ends all faults and mends what can be mended.
    pub fn heal(&mut self) {
        self.faults.is_over = true;
        self.core.trace.line(self.core.now, || "all faults end".to_owned());
        for (_, undo) in std::mem::take(&mut self.faults.active) {
            self.undo(undo);
        }
        self.core.net.flips = 0;
    }

    /// True while an unmapping has no answer yet.
    pub fn unmaps_are_under_way(&self) -> bool {
        self.faults.unmaps.keys().any(|number| self.answer(*number).is_none())
    }

    /// I17: once an unmapping was answered nothing of the client takes effect.
    pub fn settle_unmaps(&mut self) {
        for (number, (volume, sdc)) in self.faults.unmaps.clone() {
            let Some(answer) = self.take_answer(number) else { continue };
            self.faults.unmaps.remove(&number);
            if matches!(answer, Some(Ok(_))) {
                self.core.watch.fence(&mut self.core.history, volume, sdc);
                self.core.marks.hit("F26");
                self.core.marks.hit("I17");
            }
            if !self.faults.is_over {
                self.undo_after(200 * MS, Undo::Map(volume, sdc));
            }
        }
    }

    fn sds(&mut self, node: NodeId) -> Option<&mut SdsHost> {
        match &mut self.hosts[node] {
            Host::Sds(host) => Some(host),
            _ => None,
        }
    }

    fn pick(&mut self, nodes: &[NodeId]) -> NodeId {
        *self.faults.rng.pick(nodes)
    }

    fn everybody(&self) -> Vec<NodeId> {
        let directory = &self.core.directory;
        [&directory.mdm_nodes[..], &directory.sds_nodes, &directory.sdc_nodes].concat()
    }

    /// False if it makes no sense now.
    fn carry_out(&mut self, fault: Fault) -> bool {
        self.core.trace.line(self.core.now, || format!("fault: {fault:?}"));
        let directory = self.core.directory.clone();
        let everybody = self.everybody();
        match fault {
            Fault::CrashSds => self.crash_one(&directory.sds_nodes),
            Fault::CrashMdm => self.crash_one(&directory.mdm_nodes),
            Fault::CrashSdc => self.crash_one(&directory.sdc_nodes),
            Fault::PowerOne => {
                let node = self.pick(&everybody);
                self.cut_power(node);
                true
            }
            Fault::PowerAll => {
                self.core.marks.hit("F5");
                let with_clients = self.faults.rng.one_in(2);
                for node in everybody {
                    if with_clients || !directory.sdc_nodes.contains(&node) {
                        self.cut_power(node);
                    }
                }
                true
            }
            Fault::Pause => {
                let node = self.pick(&everybody);
                if !self.core.reach[node].running || self.core.reach[node].paused {
                    return false;
                }
                self.pause(node);
                self.until(Undo::Resume(node));
                true
            }
            Fault::Cut => {
                let links = self.pair(true);
                self.cut(links)
            }
            Fault::CutOneWay => {
                let links = self.pair(false);
                self.core.marks.hit("F10");
                self.cut(links)
            }
            Fault::Isolate => {
                let node = self.pick(&everybody);
                let chance = self.faults.rng.between(1, 3);
                let mut links = Vec::new();
                for other in everybody.into_iter().filter(|other| *other != node) {
                    if self.faults.rng.below(3) < chance {
                        links.extend([(node, other), (other, node)]);
                    }
                }
                self.cut(links)
            }
            Fault::Swizzle => {
                for node in everybody.clone() {
                    if self.faults.rng.one_in(2) {
                        let others = everybody.iter().copied().filter(|other| *other != node);
                        let links = others.flat_map(|other| [(node, other), (other, node)]).collect();
                        self.cut(links);
                    }
                }
                true
            }
            Fault::Reset | Fault::HalfOpen => self.disturb(&everybody, fault == Fault::HalfOpen),
            Fault::SlowLink | Fault::LossyLink => {
                let links = self.pair(true);
                let (slowness, loss) = (self.faults.rng.between(5, 500), self.faults.rng.between(10_000, 400_000));
                for (from, to) in &links {
                    let link = self.core.net.link(*from, *to);
                    match fault {
                        Fault::SlowLink => link.slowness = slowness,
                        _ => link.loss_ppm = loss,
                    }
                }
                self.core.marks.hit("F10");
                self.until(Undo::Links(links));
                true
            }
            Fault::FlipBit => {
                self.core.net.flips += 1;
                true
            }
            Fault::WipeMdm => self.wipe_member(),
            Fault::Reject => self.reject(),
            Fault::CutFromMembers => self.cut_from_members(),
            Fault::AloneWithClient => self.alone_with_client(),
            Fault::UnmapWhileCut => self.unmap_while_cut(),
            Fault::LoseAnswers => self.lose_answers(),
            Fault::LagAndWipe => self.lag_and_wipe(),
            Fault::LateNews => self.late_news(),
            Fault::LatePackets => self.late_packets(),
            Fault::Unmap => self.unmap(),
            Fault::Resize => {
                let volume = *self.faults.rng.pick(&directory.volumes);
                let size_bytes = (self.core.plan.chunks + self.faults.rng.below(4)) << 20;
                let volume = ObjectRef(volume.to_string());
                self.operator().command(AdminCommand::ResizeVolume { volume, size_bytes });
                true
            }
            Fault::ForgetDevices => {
                let node = self.pick(&directory.sds_nodes);
                self.sds(node).map(SdsHost::forget_devices).is_some()
            }
            Fault::SlowDisk => {
                self.core.marks.hit("F19");
                let slowness = *self.faults.rng.pick(&[5, 50, 300]);
                let node = self.pick(&[&directory.sds_nodes[..], &directory.mdm_nodes].concat());
                self.slow_disk(node, slowness)
            }
            _ => self.damage(fault),
        }
    }

    fn crash_one(&mut self, nodes: &[NodeId]) -> bool {
        let node = self.pick(nodes);
        self.crash_node(node)
    }

    fn crash_node(&mut self, node: NodeId) -> bool {
        if !self.core.reach[node].running {
            return false;
        }
        self.crash(node, false);
        self.until(Undo::Start(node));
        true
    }

    /// A member's log is wiped, and it comes back under its old id. At most one in a run: what the others acknowledged must
    /// have a majority without it.
    fn wipe_member(&mut self) -> bool {
        let members = self.core.directory.mdm_nodes.clone();
        let is_wiped = |node: &NodeId| matches!(&self.hosts[*node], Host::Mdm(host) if host.is_wiped);
        let all_run = members.iter().all(|node| self.core.reach[*node].running);
        if members.len() < 3 || !all_run || members.iter().any(is_wiped) || !self.faults.active.is_empty() {
            return false;
        }
        let node = self.pick(&members);
        self.wipe_log(node);
        self.until(Undo::Start(node));
        true
    }

    fn wipe_log(&mut self, node: NodeId) {
        let store = StoreId(self.faults.rng.word());
        self.crash(node, false);
        if let Host::Mdm(host) = &mut self.hosts[node] {
            host.wipe(store);
            host.is_wiped = true;
        }
    }

    fn cut_power(&mut self, node: NodeId) {
        if self.core.reach[node].powered {
            self.crash(node, true);
            self.until(Undo::Power(node));
        }
    }

    fn pair(&mut self, both_ways: bool) -> Vec<(NodeId, NodeId)> {
        let everybody = self.everybody();
        let left = self.pick(&everybody);
        let others: Vec<NodeId> = everybody.into_iter().filter(|other| *other != left).collect();
        let right = self.pick(&others);
        if both_ways { vec![(left, right), (right, left)] } else { vec![(left, right)] }
    }

    fn cut(&mut self, links: Vec<(NodeId, NodeId)>) -> bool {
        let duration = self.duration();
        self.cut_for(links, duration)
    }

    fn cut_for(&mut self, links: Vec<(NodeId, NodeId)>, duration: Time) -> bool {
        for (from, to) in &links {
            self.core.with_net(|net, now, out| net.cut(now, *from, *to, out));
        }
        self.core.trace.line(self.core.now, || format!("cut {links:?}"));
        self.undo_after(duration, Undo::Links(links));
        true
    }

    fn disturb(&mut self, nodes: &[NodeId], half: bool) -> bool {
        let node = self.pick(nodes);
        let conns = self.core.net.conns_of(node);
        if conns.is_empty() {
            return false;
        }
        let conn = *self.faults.rng.pick(&conns);
        self.core.with_net(|net, now, out| net.disturb(now, conn, half, out));
        true
    }

    fn unmap(&mut self) -> bool {
        let mappings = self.core.directory.mappings.clone();
        let (volume, sdc) = *self.faults.rng.pick(&mappings);
        if self.faults.unmaps.values().any(|under_way| *under_way == (volume, sdc)) {
            return false;
        }
        let command =
            AdminCommand::UnmapVolume { volume: ObjectRef(volume.to_string()), sdc: Some(ObjectRef(sdc.to_string())) };
        let number = self.operator().command(command);
        self.faults.unmaps.insert(number, (volume, sdc));
        true
    }

    fn slow_disk(&mut self, node: NodeId, slowness: u64) -> bool {
        match &mut self.hosts[node] {
            Host::Sds(host) => {
                let slot = self.faults.rng.index(host.slots.len());
                host.slots[slot].disk.condition.slowness = slowness;
                self.until(Undo::Disk(node, slot));
            }
            Host::Mdm(host) => {
                host.slowness = slowness * 10;
                self.until(Undo::Files(node));
            }
            _ => return false,
        }
        true
    }

    /// What may take data: only from devices of one server, and only while every group has another copy in sync and
    /// nothing else is broken.
    fn damage(&mut self, fault: Fault) -> bool {
        let node = self.core.directory.sds_nodes[self.core.plan.damaged_sds];
        if fault.destroys() && !self.is_sound() {
            return false;
        }
        let Host::Sds(host) = &self.hosts[node] else { return false };
        let Some(geometry) = Geometry::new(self.core.plan.device_bytes, self.core.plan.journal_bytes) else {
            return false;
        };
        let slot = self.faults.rng.index(host.slots.len());
        let forgotten = (fault == Fault::RotMetadata).then(|| self.forgotten_home()).flatten();
        let slot = forgotten.map_or(slot, |(slot, _)| slot);
        self.core.watch.is_damaged = true;
        if matches!(fault, Fault::WipeDevice | Fault::RollBackDevice) {
            return self.change_device(fault, node, slot);
        }
        if matches!(fault, Fault::WriteError | Fault::FlushError | Fault::Hang | Fault::Full) {
            self.mark_device(node, slot);
        }
        let Host::Sds(host) = &mut self.hosts[node] else { return false };
        let disk = &mut host.slots[slot].disk;
        let kept = match fault {
            Fault::ReadErrors => {
                disk.condition.read_errors_ppm = 20_000;
                // A copy that is the only one may be asked for just then.
                self.core.watch.may_miss_blocks = true;
                self.until(Undo::Disk(node, slot));
                return true;
            }
            Fault::WriteError => {
                disk.condition.fails_writes = true;
                return true;
            }
            Fault::FlushError => {
                disk.condition.fails_flush = true;
                return true;
            }
            Fault::Full => {
                disk.condition.full = true;
                return true;
            }
            Fault::Hang => {
                disk.condition.hangs = true;
                self.core.marks.hit("F19");
                return true;
            }
            Fault::BadSector => disk.spoil(),
            Fault::Misdirect => {
                disk.condition.misdirects = true;
                Some(0)
            }
            Fault::RotMetadata => match forgotten {
                Some((_, page)) => {
                    self.core.marks.hit("stale");
                    disk.rot_page(page)
                }
                None => disk.rot(geometry.page_offset, geometry.data_offset),
            },
            _ => disk.rot(0, disk.size()),
        };
        if let (Fault::Rot | Fault::RotMetadata, Some(page)) = (fault, kept) {
            let place = page * crate::disk::PAGE;
            let ring = geometry.journal_offset..geometry.journal_offset + geometry.journal_bytes;
            self.core.marks.hit_if("F17", ring.contains(&place));
            self.core.marks.hit_if("F18", !ring.contains(&place) && place < geometry.data_offset);
        }
        self.core.watch.may_lose_blocks |= kept.is_some();
        if fault == Fault::RotMetadata && kept.is_some() {
            // Pages are looked at when a device is opened; back at once, it is in sync still, and nothing is compared.
            self.crash(node, false);
            self.undo_after(50 * MS, Undo::Start(node));
        }
        kept.is_some()
    }

    /// True if nothing else is broken: what one device loses is elsewhere.
    fn is_sound(&self) -> bool {
        self.faults.active.is_empty() && self.is_redundant()
    }

    /// What is at the place of a device is not the device any more: wiped, or an older state of it.
    fn change_device(&mut self, fault: Fault, node: NodeId, slot: usize) -> bool {
        let recorded = self.recorded_openings(node, slot);
        let Host::Sds(host) = &mut self.hosts[node] else { return false };
        let place = &mut host.slots[slot];
        if place.is_sick() {
            return false;
        }
        if fault == Fault::RollBackDevice && !place.has_older_state(recorded) {
            return true; // noted, for later
        }
        place.is_lost = true;
        self.faults.memory = Memory::default();
        self.crash(node, false);
        if let Host::Sds(host) = &mut self.hosts[node] {
            let place = &mut host.slots[slot];
            if fault == Fault::WipeDevice { place.disk.wipe() } else { place.roll_back() }
        }
        self.until(Undo::Start(node));
        true
    }

    /// How often the device was opened, as the system knows, if the process that has it open now is the one that said so.
    pub fn recorded_openings(&self, node: NodeId, slot: usize) -> Option<u64> {
        let Host::Sds(host) = &self.hosts[node] else { return None };
        let record = self.state()?.devices().get(&host.slots[slot].device()?)?;
        let process = host.shard()?.incarnation();
        (process.is_some() && record.opened_by == process).then_some(record.open_count)
    }

    /// True if every group has all its copies in sync.
    pub fn is_redundant(&self) -> bool {
        let Some(state) = self.state() else { return false };
        let copies = usize::from(self.core.plan.copies).min(self.core.plan.sds);
        state.pgs().len() == self.core.plan.pg_count as usize
            && state.pgs().values().all(|record| {
                let config = &record.config;
                config.primary.is_some()
                    && config.isr.len() >= copies
                    && config.isr.iter().all(|device| state.is_fit(*device))
            })
    }
}
