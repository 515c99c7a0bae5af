//! Faults of several steps: situations that independent faults would reach too seldom. Each comes from a rule that matters in
//! it and nowhere else; what it breaks is mended like the rest.

use mdm_api::command::{AdminCommand, ObjectRef};

use super::Undo;
use crate::clock::{MS, SECOND, Time};
use crate::host::Host;
use crate::net::NodeId;
use crate::world::World;

/// Members of the metadata manager in three parts, none of which has a majority without another.
#[derive(Clone, Debug)]
pub(super) struct Electors {
    /// These have missed the newest entries.
    behind: Vec<NodeId>,
    /// This one has them, and will have nothing.
    wiped: NodeId,
    /// These have them.
    ahead: Vec<NodeId>,
}

/// Long enough for others to have decided what to do without those who are cut off.
const LONG_MS: (Time, Time) = (1500, 9000);

fn both_ways(left: &[NodeId], right: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    left.iter().flat_map(|from| right.iter().flat_map(|to| [(*from, *to), (*to, *from)])).collect()
}

impl World {
    fn cut_long(&mut self, links: Vec<(NodeId, NodeId)>) -> bool {
        let duration = self.faults.rng.between(LONG_MS.0, LONG_MS.1) * MS;
        self.cut_for(links, duration)
    }

    /// A server is cut off by something that answers in its place, as a firewall does: everybody takes it to be dead at
    /// once, while it lives and may hold leases (I14).
    pub(super) fn reject(&mut self) -> bool {
        let directory = self.core.directory.clone();
        let node = self.pick(&directory.sds_nodes);
        let with_clients = self.faults.rng.one_in(2);
        let is_meant = |other: &NodeId| *other != node && (with_clients || !directory.sdc_nodes.contains(other));
        let others: Vec<NodeId> = self.everybody().into_iter().filter(is_meant).collect();
        for conn in self.core.net.conns_of(node) {
            if self.core.net.other_end(conn, node).is_some_and(|other| others.contains(&other)) {
                self.core.with_net(|net, now, out| net.disturb(now, conn, false, out));
            }
        }
        self.cut_long(both_ways(&[node], &others))
    }

    /// A server is cut off from the metadata manager alone, while a client is being unmapped (F6, F9, F26).
    pub(super) fn cut_from_members(&mut self) -> bool {
        let directory = self.core.directory.clone();
        let node = self.pick(&directory.sds_nodes);
        let after = self.faults.rng.below(6 * SECOND);
        self.undo_after(after, Undo::Unmap);
        self.cut_long(both_ways(&[node], &directory.mdm_nodes))
    }

    /// A server and a client hear only each other (F8).
    pub(super) fn alone_with_client(&mut self) -> bool {
        let directory = self.core.directory.clone();
        let pair = [self.pick(&directory.sds_nodes), self.pick(&directory.sdc_nodes)];
        let others: Vec<NodeId> = self.everybody().into_iter().filter(|other| !pair.contains(other)).collect();
        self.cut_long(both_ways(&pair, &others))
    }

    /// Two servers are cut from each other, so that writes wait, and a client is unmapped meanwhile (I17).
    pub(super) fn unmap_while_cut(&mut self) -> bool {
        let servers = self.core.directory.sds_nodes.clone();
        let left = self.pick(&servers);
        let others: Vec<NodeId> = servers.into_iter().filter(|other| *other != left).collect();
        let right = self.pick(&others);
        let after = self.faults.rng.below(SECOND);
        self.undo_after(after, Undo::Unmap);
        self.cut_long(both_ways(&[left], &[right]))
    }

    /// A server goes; a client does not hear another one, which does what it is asked; the first one comes back, learns
    /// anew, and is soon the only one that can be asked again (I16).
    pub(super) fn lose_answers(&mut self) -> bool {
        let directory = self.core.directory.clone();
        let (server, client) = (self.pick(&directory.sds_nodes), self.pick(&directory.sdc_nodes));
        let others: Vec<NodeId> = directory.sds_nodes.into_iter().filter(|other| *other != server).collect();
        let learner = self.pick(&others);
        if !self.core.reach[server].running || !self.core.reach[learner].running {
            return false;
        }
        let deaf = self.faults.rng.between(200, 1500) * MS;
        let away = deaf + self.faults.rng.between(100, 800) * MS;
        let goes = away + self.faults.rng.between(1500, 4000) * MS;
        self.crash(learner, false);
        self.undo_after(deaf, Undo::Cut(vec![(server, client)], goes + 4 * SECOND - deaf));
        self.undo_after(away, Undo::Start(learner));
        self.undo_after(goes, Undo::Crash(server));
        true
    }

    /// A server learns late what is decided, while another one goes and comes back in (I5, I9).
    pub(super) fn late_news(&mut self) -> bool {
        let directory = self.core.directory.clone();
        let server = self.pick(&directory.sds_nodes);
        let others: Vec<NodeId> = directory.sds_nodes.into_iter().filter(|other| *other != server).collect();
        let learner = self.pick(&others);
        if !self.core.reach[learner].running {
            return false;
        }
        let slowness = self.faults.rng.between(100, 1000);
        let links: Vec<(NodeId, NodeId)> = directory.mdm_nodes.into_iter().map(|member| (member, server)).collect();
        for (from, to) in &links {
            self.core.net.link(*from, *to).slowness = slowness;
        }
        let away = self.faults.rng.between(400, 1500) * MS;
        self.crash(learner, false);
        self.undo_after(away, Undo::Start(learner));
        self.undo_after(away + 6 * SECOND, Undo::Links(links));
        true
    }

    /// What a client sends to a server is held up. It gives its connection up and asks again over a new one, over which
    /// nothing is held up: what it sent before comes later, some of it after newer requests were answered (F24).
    pub(super) fn late_packets(&mut self) -> bool {
        let directory = self.core.directory.clone();
        let (client, server) = (self.pick(&directory.sdc_nodes), self.pick(&directory.sds_nodes));
        self.core.net.link(client, server).slowness = self.faults.rng.between(1000, 20_000);
        let gives_up = self.faults.rng.between(50, 1500) * MS;
        self.undo_after(gives_up, Undo::LeaveBehind(client, server));
        true
    }

    /// The second half of it.
    pub(super) fn leave_behind(&mut self, client: NodeId, server: NodeId) {
        self.core.net.link(client, server).slowness = 1;
        for conn in self.core.net.conns_of(client) {
            if self.core.net.other_end(conn, client) == Some(server) {
                self.core.with_net(|net, now, out| net.abandon(now, conn, client, out));
            }
        }
    }

    /// Some members miss what is decided; then of those who know it one loses its log and the others are cut off. Nobody may
    /// lead until they are back.
    pub(super) fn lag_and_wipe(&mut self) -> bool {
        let mut members = self.core.directory.mdm_nodes.clone();
        let is_wiped = |node: &NodeId| matches!(&self.hosts[*node], Host::Mdm(host) if host.is_wiped);
        let all_run = members.iter().all(|node| self.core.reach[*node].running);
        if members.len() < 3 || !all_run || members.iter().any(is_wiped) {
            return false;
        }
        let mut take = || members.remove(self.faults.rng.index(members.len()));
        let wiped = take();
        let behind: Vec<NodeId> = (0..self.core.directory.mdm_nodes.len() / 2).map(|_| take()).collect();
        let electors = Electors { behind, wiped, ahead: members };
        let away = [&electors.ahead[..], &[wiped]].concat();
        for (from, to) in both_ways(&electors.behind, &away) {
            self.core.with_net(|net, now, out| net.cut(now, from, to, out));
        }
        let volume = ObjectRef(self.core.directory.volumes[0].to_string());
        for more in [1, 2] {
            let size_bytes = (self.core.plan.chunks + more) << 20;
            self.operator().command(AdminCommand::ResizeVolume { volume: volume.clone(), size_bytes });
        }
        let after = self.faults.rng.between(2000, 6000) * MS;
        self.undo_after(after, Undo::Wipe(electors));
        true
    }

    /// The second half of it.
    pub(super) fn wipe_elector(&mut self, electors: Electors) {
        let Electors { behind, wiped, ahead } = electors;
        let is_wiped = |node: &NodeId| matches!(&self.hosts[*node], Host::Mdm(host) if host.is_wiped);
        let all_run = self.core.directory.mdm_nodes.iter().all(|node| self.core.reach[*node].running);
        let mut heard = vec![wiped];
        if all_run && !self.faults.is_over && !self.core.directory.mdm_nodes.iter().any(is_wiped) {
            self.cut_long(both_ways(&ahead, &[&behind[..], &[wiped]].concat()));
            self.wipe_log(wiped);
            self.undo_after(100 * MS, Undo::Start(wiped));
        } else {
            heard.extend(ahead);
        }
        self.undo(Undo::Links(both_ways(&behind, &heard)));
    }
}
