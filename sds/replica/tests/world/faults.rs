//! Faults by seed, and the end of every run: heal, wait, compare.

use mdm_api::ids::DeviceId;
use sds_replica::Event;

use super::clients::{CHUNKS, HALVES, layer};
use super::{Happening, MS, Options, World, node_of};

impl Options {
    /// Every seed draws its own mix.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = super::rng::Rng(seed ^ 0x5eed);
        Self {
            nodes: rng.between(2, 3) as usize,
            clients: 2,
            faults: true,
            skewed_clocks: rng.chance(70),
            late_duplicates: rng.chance(50),
            min_isr: if rng.chance(15) { 2 } else { 1 },
            retained_bytes: if rng.chance(50) { 0 } else { 1 << 20 },
            fault_ms: rng.between(3000, 8000),
            slow_network: rng.chance(40),
        }
    }
}

impl World {
    pub fn fault(&mut self) {
        if self.now >= self.faults_until {
            return;
        }
        let delay = self.rng.between(30, 900) * MS;
        self.at(delay, Happening::Fault);
        let nodes = self.options.nodes;
        let node = self.rng.below(nodes as u64) as usize;
        let other = (node + 1 + self.rng.below(nodes as u64 - 1) as usize) % nodes;
        match self.rng.below(14) {
            0..=3 => self.crash_and_restart(node),
            4 => {
                for node in 0..nodes {
                    self.crash_and_restart(node);
                }
            }
            5 | 6 => {
                let ms = self.rng.between(20, 2500);
                self.cut(node, other, ms);
                if self.rng.chance(60) {
                    self.cut(other, node, ms);
                }
            }
            7 => {
                self.manager.cut[node] = Some(self.now);
                let ms = self.rng.between(100, 3000);
                self.at(ms * MS, Happening::EndOfManagerCut { node });
            }
            8 => {
                let fit: Vec<DeviceId> = self.manager.config.isr.clone();
                let chosen = fit[self.rng.below(fit.len() as u64) as usize];
                if self.nodes[node_of(chosen)].registered && self.nodes[node_of(chosen)].up {
                    self.manager.appoint(chosen, None);
                    self.note(|| format!("manager moves the role to {chosen}"));
                    self.publish();
                }
            }
            9 => self.nodes[node].slow = !self.nodes[node].slow,
            10 | 11 => {
                if self.nodes[node].up {
                    self.step(node, Event::WantState);
                    let through = self.rng.chance(50).then(|| self.committed_at(node));
                    self.nodes[node].store.checkpoint(through);
                }
            }
            12 => self.spoil(node),
            _ => {
                if self.fit_to_lead(other) {
                    self.manager.move_to(super::device(other));
                    self.note(|| format!("manager asks for a move to {other}"));
                    self.publish();
                }
            }
        }
    }

    fn fit_to_lead(&self, node: usize) -> bool {
        self.manager.config.isr.contains(&super::device(node)) && self.nodes[node].registered && self.nodes[node].up
    }

    fn crash_and_restart(&mut self, node: usize) {
        let kept = self.rng.below(6) as usize;
        self.crash(node, kept);
        let delay = if self.rng.chance(50) { self.rng.between(5, 200) } else { self.rng.between(200, 3000) };
        self.at(delay * MS, Happening::Restart { node });
    }

    /// A block rots on one node.
    fn spoil(&mut self, node: usize) {
        self.allow_medium = true;
        let block = self.rng.below(HALVES / 2) as u16;
        let layer = layer(self.rng.below(CHUNKS));
        if self.nodes[node].store.layers().get(&layer).is_some_and(|held| held.blocks.contains_key(&block)) {
            self.nodes[node].store.bad.insert((layer, block));
            if self.nodes[node].up && self.rng.chance(50) {
                self.step(node, Event::BadBlock { layer, block });
            }
        }
    }

    /// Faults stop: everything comes back, everybody is answered, all copies are the same, no write is lost.
    pub fn finish(&mut self) {
        for (a, b) in self.cut.keys().copied().collect::<Vec<_>>() {
            // What was swallowed is not sent again: such a connection has to go.
            let connection = self.connection(a, b);
            self.end_cut(a, b, connection);
        }
        for node in 0..self.options.nodes {
            self.manager.cut[node] = None;
            self.nodes[node].slow = false;
            self.nodes[node].store.bad.clear();
            self.start(node);
            for peer in 0..node {
                self.at(MS, Happening::Connect { a: node, b: peer });
            }
        }
        let healthy = self.run(30_000, |world| world.is_healthy() && world.all_answered());
        assert!(healthy, "liveness: not healthy 30 s after the last fault: {:?}", self.state());
        let reads: Vec<u64> = (0..CHUNKS).map(|chunk| self.begin(0, chunk, 0, HALVES, false)).collect();
        for read in reads {
            self.wait(0, read).expect("all blocks are readable");
        }
        let told = self.run(2_000, |world| {
            let committed: Vec<_> = (0..world.options.nodes).map(|node| world.committed_at(node)).collect();
            committed.iter().all(|seq| *seq == committed[0])
        });
        assert!(told, "everybody hears of the last commit: {:?}", self.state());
        self.check_registers();
        self.check_copies();
        for node in &self.nodes {
            for primary in 0..self.options.nodes {
                for member in 0..self.options.nodes {
                    let open = node.context.credits.under_way(super::device(primary), super::device(member));
                    assert_eq!(open.journal_bytes, 0, "credits are returned");
                }
            }
        }
    }

    pub fn check_copies(&self) {
        let first = self.nodes[0].store.layers();
        for (node, other) in self.nodes.iter().enumerate().skip(1) {
            let other = other.store.layers();
            assert_eq!(first.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "same layers");
            for (key, layer) in first {
                assert_eq!(layer.version, other[key].version, "version of {key:?} on node {node}");
                assert!(layer.blocks == other[key].blocks, "I23: content of {key:?} on node {node}");
            }
        }
    }

    pub fn state(&self) -> String {
        let nodes: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{:?}", node.replica.as_ref().map(sds_replica::Replica::status)))
            .collect();
        let open: usize = self.clients.iter().map(|c| c.ops.values().filter(|op| op.result.is_none()).count()).sum();
        format!("{:?}\n{}\nopen operations {open}, cut {:?}", self.manager.config, nodes.join("\n"), self.cut)
    }
}
