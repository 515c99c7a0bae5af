//! From what is broken at a moment to the rows of the failure matrix.

use std::collections::BTreeSet;

use mdm_api::ids::DeviceId;

use crate::net::NodeId;
use crate::world::World;

impl World {
    /// Notes the rows that the present state of hosts and links is an example of.
    pub fn mark(&mut self) {
        let Some(state) = self.state() else { return };
        let node_of = |device: &DeviceId| self.core.directory.devices.get(device).map(|(node, _)| *node);
        let groups: BTreeSet<(Option<NodeId>, Vec<NodeId>, bool)> = state
            .pgs()
            .values()
            .map(|record| {
                let config = &record.config;
                let primary = config.primary.as_ref().and_then(node_of);
                let others = config.isr.iter().filter(|device| Some(**device) != config.primary).filter_map(node_of);
                (primary, others.collect(), !config.learners.is_empty())
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
        for (primary, others, is_resyncing) in &groups {
            let Some(primary) = primary else {
                hit.insert("dark");
                continue;
            };
            let both = down(primary) && others.iter().any(down);
            let mut note = |holds: bool, row| {
                if holds {
                    hit.insert(row);
                }
            };
            note(dark(primary), "F2");
            note(down(primary) && !dark(primary), "F1");
            note(others.iter().any(down), "F3");
            note(others.iter().any(down), "F31");
            note(both, "F4a");
            note(both, "F4b");
            note(others.is_empty() && down(primary), "F4c");
            note(reach[*primary].paused, "F30");
            note(down(primary) && *is_resyncing, "F28");
            note(*is_resyncing && self.core.directory.sds_nodes.iter().any(down), "F29");
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
}
