//! Which page of metadata to damage, so that it matters most whether its older home is believed.

use std::collections::BTreeMap;

use sds_store::layout::Geometry;
use sds_store::meta::page::generation;

use crate::disk::{Disk, PAGE};

/// The newest home of the metadata page that was written longest ago: the journal is the least likely to speak still of what
/// came between it and the other one, so nothing hides that the other one is stale.
pub(super) fn coldest(disk: &Disk, geometry: &Geometry) -> Option<u64> {
    let (from, to) = (geometry.page_home(0, 0), geometry.page_home(geometry.page_count, 0));
    let mut newest: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (place, bytes) in disk.held(from, to) {
        let Some(written) = generation(bytes) else { continue };
        let page = (place * PAGE - from) / PAGE / 2;
        let home = newest.entry(page).or_default();
        *home = (*home).max((written, place));
    }
    newest.into_values().min().map(|(_, place)| place)
}
