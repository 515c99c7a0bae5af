//! The metadata manager, as much of it as one group needs: one configuration, compare-and-set.

use mdm_api::config::{PgChange, PgChangeKind, PgConfig};
use mdm_api::epoch::{Epoch, Term};
use mdm_api::ids::{DeviceId, ProcessIncarnation};
use sds_replica::MemberHome;

use super::{Happening, MS, World, device, node_of, pg, server};

pub struct Manager {
    pub config: PgConfig,
    /// Grows with the configuration and with registrations.
    pub revision: u64,
    registered: Vec<ProcessIncarnation>,
    /// Since when each node is down.
    down: Vec<Option<u64>>,
    /// Since when each node is cut off from the manager.
    pub cut: Vec<Option<u64>>,
    /// Nodes that are taken to be dead.
    dead: Vec<bool>,
    /// Nodes that proposals and deaths may be decided for; off: nothing is decided.
    pub awake: bool,
    wanted: Vec<bool>,
}

impl Manager {
    pub fn new(nodes: usize) -> Self {
        Self {
            config: PgConfig {
                pg: pg(),
                epoch: Epoch(1),
                term: Term(1),
                primary: None,
                primary_incarnation: ProcessIncarnation(0),
                isr: (0..nodes).map(device).collect(),
                learners: vec![],
                previous_certified_dead: false,
                heir: None,
            },
            revision: 1,
            registered: vec![ProcessIncarnation(0); nodes],
            down: vec![None; nodes],
            cut: vec![None; nodes],
            dead: vec![false; nodes],
            awake: true,
            wanted: vec![false; nodes],
        }
    }

    pub fn homes(&self, config: &PgConfig) -> Vec<MemberHome> {
        let members = config.isr.iter().chain(&config.learners);
        members
            .map(|device| MemberHome {
                device: *device,
                server: server(node_of(*device)),
                incarnation: self.registered[node_of(*device)],
                is_down: self.dead[node_of(*device)],
            })
            .collect()
    }

    pub fn is_cut(&self, node: usize) -> bool {
        self.cut[node].is_some()
    }

    pub fn down(&mut self, node: usize, now: u64) {
        self.down[node] = Some(now);
    }

    pub fn wanted(&mut self, node: usize) {
        self.wanted[node] = true;
    }

    fn change(&mut self, change: impl FnOnce(&mut PgConfig)) {
        self.config.epoch = self.config.epoch.next();
        change(&mut self.config);
        self.config.isr.sort();
        self.config.learners.sort();
        self.revision += 1;
        self.config.check().unwrap();
    }

    /// Appoints a member of the ISR in its newest process.
    pub fn appoint(&mut self, primary: DeviceId, drop: Option<DeviceId>) {
        let previous = self.config.primary;
        let certified = previous.is_none_or(|old| self.registered[node_of(old)] != self.config.primary_incarnation);
        let incarnation = self.registered[node_of(primary)];
        self.change(|config| {
            config.term = Term(config.epoch.0);
            config.primary = Some(primary);
            config.primary_incarnation = incarnation;
            config.previous_certified_dead = certified;
            config.heir = None;
            if let Some(drop) = drop.filter(|drop| *drop != primary && config.isr.contains(drop)) {
                config.isr.retain(|device| *device != drop);
                config.learners.push(drop);
            }
        });
    }

    /// Asks the primary to hand over to another member of the ISR.
    pub fn move_to(&mut self, heir: DeviceId) {
        let is_other = self.config.primary.is_some_and(|primary| primary != heir);
        if is_other && self.config.isr.contains(&heir) && self.config.heir.is_none() {
            self.change(|config| config.heir = Some(heir));
        }
    }
}

impl World {
    pub fn register(&mut self, node: usize, incarnation: ProcessIncarnation) {
        if !self.is(node, incarnation) {
            return;
        }
        if self.manager.is_cut(node) {
            self.at(20 * MS, Happening::Register { node, incarnation });
            return;
        }
        self.manager.registered[node] = incarnation;
        self.manager.down[node] = None;
        self.manager.revision += 1;
        self.nodes[node].registered = true;
    }

    pub fn propose(&mut self, change: &PgChange) {
        let config = &self.manager.config;
        let current = change.epoch == config.epoch
            && config.primary == Some(change.proposer)
            && config.primary_incarnation == change.incarnation;
        if !current || !self.manager.awake {
            return;
        }
        self.note(|| format!("manager takes {:?}", change.kind));
        match change.kind {
            PgChangeKind::RemoveIsr(device) => self.manager.change(|config| {
                if config.isr.contains(&device) && config.isr.len() > 1 {
                    config.isr.retain(|member| *member != device);
                    config.learners.push(device);
                    config.heir = config.heir.filter(|heir| *heir != device);
                }
            }),
            PgChangeKind::HandOver => {
                let heir = self.manager.config.heir;
                let next = heir.filter(|heir| self.fit(*heir)).unwrap_or(change.proposer);
                self.manager.appoint(next, None);
            }
            PgChangeKind::AddIsr(device) => self.manager.change(|config| {
                if config.learners.contains(&device) {
                    config.learners.retain(|member| *member != device);
                    config.isr.push(device);
                }
            }),
        }
        self.publish();
    }

    fn fit(&self, device: DeviceId) -> bool {
        let node = node_of(device);
        self.nodes[node].up && self.nodes[node].registered && !self.manager.is_cut(node)
    }

    /// True if the node is down or cut off for long enough to be taken for dead.
    fn is_silent(&self, node: usize) -> bool {
        let silent = |since: Option<u64>| since.is_some_and(|since| self.now - since >= 1200 * MS);
        silent(self.manager.down[node]) || silent(self.manager.cut[node])
    }

    /// True if the primary on that node is not one any more: taken for dead, or started anew.
    fn counts_as_dead(&self, node: usize) -> bool {
        self.is_silent(node) || self.manager.registered[node] != self.manager.config.primary_incarnation
    }

    pub fn scan(&mut self) {
        self.at(20 * MS, Happening::Scan);
        let dead: Vec<bool> = (0..self.options.nodes).map(|node| self.is_silent(node)).collect();
        if self.manager.awake && dead != self.manager.dead {
            self.manager.dead = dead;
            self.manager.revision += 1;
        }
        let config = self.manager.config.clone();
        let headless = config.primary.is_none_or(|primary| self.counts_as_dead(node_of(primary)));
        if headless && self.manager.awake {
            let fit: Vec<DeviceId> = config.isr.iter().copied().filter(|device| self.fit(*device)).collect();
            if !fit.is_empty() && (config.primary.is_some() || fit.len() == config.isr.len()) {
                let chosen = fit[self.rng.below(fit.len() as u64) as usize];
                let drop = config.primary.filter(|old| !self.fit(*old) && self.rng.chance(50));
                self.manager.appoint(chosen, drop);
                self.note(|| format!("manager appoints {chosen}, drops {drop:?}"));
            }
        }
        self.publish();
    }

    /// Hands the configuration to everybody who has not got it.
    pub fn publish(&mut self) {
        for node in 0..self.options.nodes {
            let wanted = std::mem::take(&mut self.manager.wanted[node]);
            let behind = self.nodes[node].revision < self.manager.revision || wanted;
            if !behind || !self.nodes[node].up || !self.nodes[node].registered || self.manager.is_cut(node) {
                continue;
            }
            let delay = self.rng.between(1, 15) * MS;
            let (incarnation, config) = (self.nodes[node].incarnation, self.manager.config.clone());
            let revision = self.manager.revision;
            self.at(delay, Happening::Config { node, incarnation, config, revision });
        }
    }
}
