//! Which page of metadata to damage, so that it matters whether its older home is believed: one of which the journal has
//! forgotten everything that came between the two. As long as it speaks of that, a replay makes the older home as good as the
//! newer one.

use std::collections::BTreeMap;

use sds_store::layout::Geometry;
use sds_store::meta::page::generation;
use sds_store::superblock::{CheckpointRoot, Copy, SuperBlock};

use crate::disk::{Disk, PAGE};
use crate::host::Host;
use crate::plan::Fault;
use crate::world::World;

/// Checkpoints of the devices that may be damaged, and how far the journal was durable then: by slot, the latest last.
#[derive(Debug, Default)]
pub(super) struct Memory(Vec<(usize, u64, u64)>);

/// What the super block at the beginning of a device says.
fn root(disk: &Disk) -> Option<CheckpointRoot> {
    let (_, bytes) = disk.held(0, PAGE).next()?;
    if let Copy::Good(block) = SuperBlock::decode(bytes) { Some(block.checkpoint) } else { None }
}

/// The newest home of each metadata page that has one: the checkpoint that wrote it, and which page of the device it is.
fn newest(disk: &Disk, geometry: &Geometry) -> Vec<(u64, u64)> {
    let (from, to) = (geometry.page_home(0, 0), geometry.page_home(geometry.page_count, 0));
    let mut newest: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (place, bytes) in disk.held(from, to) {
        let Some(written) = generation(bytes) else { continue };
        let home = newest.entry((place * PAGE - from) / PAGE / 2).or_default();
        *home = (*home).max((written, place));
    }
    newest.into_values().collect()
}

impl World {
    /// Notes how far the journals are that may be damaged, where it matters.
    pub(super) fn remember_journals(&mut self) {
        let plan = &self.core.plan;
        if plan.linger == 0 || !plan.faults.contains(&Fault::RotMetadata) {
            return;
        }
        let node = self.core.directory.sds_nodes[plan.damaged_sds];
        let Host::Sds(host) = &self.hosts[node] else { return };
        for (slot, root) in host.slots.iter().enumerate().filter_map(|(slot, place)| Some((slot, root(&place.disk)?))) {
            self.faults.memory.0.push((slot, root.generation, root.durable));
        }
    }

    /// The newest home of a page, and the slot of its device, if the journal has forgotten all that came before that home was
    /// written. Of several the one that was written longest ago.
    pub(super) fn forgotten_home(&self) -> Option<(usize, u64)> {
        let plan = &self.core.plan;
        let geometry = Geometry::new(plan.device_bytes, plan.journal_bytes)?;
        let Host::Sds(host) = &self.hosts[self.core.directory.sds_nodes[plan.damaged_sds]] else { return None };
        let mut found = host.slots.iter().enumerate().filter_map(|(slot, place)| {
            let tail = root(&place.disk)?.tail;
            let forgotten = self.faults.memory.0.iter().filter(|(at, _, durable)| *at == slot && *durable <= tail);
            let through = forgotten.map(|(_, generation, _)| *generation).max()?;
            let homes = newest(&place.disk, &geometry).into_iter().filter(|(written, _)| *written <= through);
            homes.min().map(|(_, page)| (slot, page))
        });
        found.next()
    }

    /// False if the fault would matter more a little later: where writes move on, rot of metadata waits for a page that was
    /// left alone for long enough.
    pub(super) fn is_moment_of(&self, fault: Fault) -> bool {
        fault != Fault::RotMetadata || self.core.plan.linger == 0 || self.is_sound() && self.forgotten_home().is_some()
    }
}
