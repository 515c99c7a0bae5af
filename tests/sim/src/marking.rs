//! From what is broken at a moment to the rows of the failure matrix.

use std::collections::BTreeSet;

use mdm_api::ids::{DeviceId, PgId};
use mdm_api::timing::Timing;

use crate::clock::MS;
use crate::host::Host;
use crate::net::NodeId;
use crate::world::World;

impl World {
    /// Notes the rows that the present state of hosts and links is an example of.
    pub fn mark(&mut self) {
        let Some(state) = self.state() else { return };
        let node_of = |device: &DeviceId| self.core.directory.devices.get(device).map(|(node, _)| *node);
        let groups: BTreeSet<(Option<NodeId>, Vec<NodeId>)> = state
            .pgs()
            .values()
            .map(|record| {
                let config = &record.config;
                let primary = config.primary.as_ref().and_then(node_of);
                let others = config.isr.iter().filter(|device| Some(**device) != config.primary).filter_map(node_of);
                (primary, others.collect())
            })
            .collect();
        let mut hit = BTreeSet::new();
        let reach = &self.core.reach;
        let down = |node: &NodeId| !reach[*node].running;
        let dark = |node: &NodeId| !reach[*node].powered;
        let cut = |a: NodeId, b: NodeId| self.core.net.is_cut(a, b) && self.core.net.is_cut(b, a);
        let members = &self.core.directory.mdm_nodes;
        let alone = |node: NodeId| members.iter().all(|member| cut(node, *member));
        if members.iter().filter(|member| down(member)).count() * 2 >= members.len() {
            hit.insert("F22");
        }
        for (primary, others) in &groups {
            let Some(primary) = primary else {
                hit.insert("dark");
                continue;
            };
            let mut note = |holds: bool, row| {
                if holds {
                    hit.insert(row);
                }
            };
            note(dark(primary), "F2");
            note(down(primary) && !dark(primary), "F1");
            note(others.iter().any(down), "F3");
            let is_cut_off = alone(*primary);
            let is_split = others.iter().any(|other| cut(*primary, *other));
            note(is_cut_off && !is_split, "F6");
            note(is_split && !is_cut_off, "F7");
            note(is_split && is_cut_off, "F8");
            note(others.iter().any(|other| alone(*other)), "F9");
            note(self.core.directory.sdc_nodes.iter().any(|client| cut(*client, *primary)), "F11");
        }
        hit.into_iter().for_each(|row| self.core.marks.hit(row));
    }

    /// A server starts: what of the groups that it keeps was down with it?
    pub fn mark_start(&mut self, node: NodeId) {
        let Some(state) = self.state() else { return };
        let node_of = |device: &DeviceId| self.core.directory.devices.get(device).map(|(node, _)| *node);
        let runs = |device: &DeviceId| node_of(device).is_some_and(|node| self.core.reach[node].running);
        let mut hit = BTreeSet::new();
        for record in state.pgs().values() {
            let config = &record.config;
            let is_mine = |device: &&DeviceId| node_of(device) == Some(node);
            let mine = config.isr.iter().find(is_mine).copied();
            let others_run = config.isr.iter().any(runs);
            match mine {
                Some(mine) if config.isr.len() > 1 && !others_run => {
                    let led = record.leader.is_some_and(|leader| leader.device == mine);
                    hit.insert(if led { "F4a" } else { "F4b" });
                }
                Some(mine) => {
                    let is_secondary = config.primary.is_some_and(|primary| primary != mine && runs(&primary));
                    let soon = self.core.now - self.core.hosts[node].ended_at < Timing::DEFAULT.lease_ms * MS;
                    if is_secondary && soon {
                        hit.insert("F31");
                    }
                }
                None if config.learners.iter().any(|device| is_mine(&device)) && !others_run => {
                    hit.insert("F4c");
                }
                None => {}
            }
        }
        hit.into_iter().for_each(|row| self.core.marks.hit(row));
    }

    /// A server is about to end: was it feeding somebody, or being fed?
    pub fn mark_end(&mut self, node: NodeId) {
        let mut hit = BTreeSet::new();
        for (other, host) in self.hosts.iter().enumerate() {
            let Host::Sds(host) = host else { continue };
            let Some(shard) = host.shard() else { continue };
            for (_, _, replica) in shard.leaders().filter(|(.., replica)| replica.is_feeding()) {
                let learners = replica.config().map(|config| config.learners.as_slice()).unwrap_or_default();
                let places = &self.core.directory.devices;
                if other == node {
                    hit.insert("F28");
                } else if learners.iter().any(|device| places.get(device).is_some_and(|(place, _)| *place == node)) {
                    hit.insert("F29");
                }
            }
        }
        hit.into_iter().for_each(|row| self.core.marks.hit(row));
    }

    /// A device is about to fail: does it lead, or follow?
    pub fn mark_device(&mut self, node: NodeId, slot: usize) {
        let Host::Sds(host) = &self.hosts[node] else { return };
        let (Some(device), Some(state)) = (host.slots[slot].device(), self.state()) else { return };
        let configs = || state.pgs().values().map(|record| &record.config);
        let leads = configs().any(|config| config.primary == Some(device));
        let follows = configs().any(|config| config.primary != Some(device) && config.isr.contains(&device));
        self.core.marks.hit_if("F13", leads);
        self.core.marks.hit_if("F14", follows);
    }

    /// A server goes on after a pause: is it still what it takes itself for?
    pub fn mark_resume(&mut self, node: NodeId) {
        let Host::Sds(host) = &self.hosts[node] else { return };
        let (Some(shard), Some(state)) = (host.shard(), self.state()) else { return };
        let deposed = |(pg, device): (PgId, DeviceId)| state.pg(pg).is_some_and(|now| now.primary != Some(device));
        let is_deposed = shard.leaders().any(|(pg, device, _)| deposed((pg, device)));
        self.core.marks.hit_if("F30", is_deposed);
    }
}
