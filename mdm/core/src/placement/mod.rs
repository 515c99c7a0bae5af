//! Which devices keep which groups.
//!
//! First the constraint: two copies of a group never lie in one fault unit (a fault set, or a server that is in none).
//! Then balance: each device's share of replicas follows its size, as far as the constraint allows. Then mesh: every device
//! shares groups with as many others as possible, so that a rebuild reads from all of them. Then the fewest moves: a
//! table that is good enough is left alone. Integers only, and ties are broken by a fixed mix, so that every member of the
//! metadata manager's group comes to the same table.

mod balance;
mod initial;
mod share;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use mdm_api::ids::{DeviceId, StoragePoolId};
use mdm_api::model::DeviceState;

use crate::state::{FaultUnit, State};

pub use balance::Move;
pub use initial::initial_table;
pub use share::usable_bytes;
pub(crate) use share::{ONE, targets};

/// A device as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What it fails with.
    pub unit: FaultUnit,
    /// Its size: what its share follows. Never 0.
    pub weight: u64,
}

/// The replicas of one pool, as they lie and as they should.
#[derive(Clone, Debug)]
pub struct PoolTable {
    /// Devices that are in use and to stay.
    pub slots: BTreeMap<DeviceId, Slot>,
    /// Replicas that each should have, in 2^-20ths.
    targets: BTreeMap<DeviceId, u64>,
    /// Replicas that each has, the ones on their way included.
    loads: BTreeMap<DeviceId, u64>,
}

/// The devices of a pool that placement may use: in use and to stay. Their server may be away for the moment.
pub fn slots(state: &State, pool: StoragePoolId) -> BTreeMap<DeviceId, Slot> {
    state
        .devices()
        .values()
        .filter(|device| device.pool == pool && device.state == DeviceState::Normal)
        .filter_map(|device| {
            let unit = state.fault_unit(device.id)?;
            Some((device.id, Slot { unit, weight: device.size_bytes.max(1) }))
        })
        .collect()
}

impl PoolTable {
    /// The table of a pool.
    pub fn of(state: &State, pool: StoragePoolId) -> Self {
        let slots = slots(state, pool);
        let (copies, pg_count) =
            state.storage_pools().get(&pool).map_or((1, 0), |pool| (usize::from(pool.copies), pool.pg_count));
        let members = state.pgs_of(pool).flat_map(|record| {
            // A replacement counts where it goes, not where it comes from.
            let leaving = record.replacing.map(|replacing| replacing.from);
            record.members().filter(move |member| Some(*member) != leaving)
        });
        Self::new(slots, copies, pg_count, members)
    }

    fn new(
        slots: BTreeMap<DeviceId, Slot>,
        copies: usize,
        pg_count: u32,
        members: impl Iterator<Item = DeviceId>,
    ) -> Self {
        let targets = targets(&slots, copies, pg_count);
        let mut loads = BTreeMap::new();
        for member in members {
            *loads.entry(member).or_insert(0) += 1;
        }
        Self { slots, targets, loads }
    }

    /// How many replicas, in 2^-20ths, the device has too few (negative: too many).
    pub(crate) fn deficit(&self, device: DeviceId) -> i64 {
        let target = self.targets.get(&device).copied().unwrap_or(0);
        let load = self.loads.get(&device).copied().unwrap_or(0);
        i64::try_from(target).unwrap_or(i64::MAX) - i64::try_from(load * ONE).unwrap_or(i64::MAX)
    }

    /// The best device for one more copy beside the ones that stay in those units: of those that `may`, one that has the
    /// most too few; among equals, one that `seed` picks. Counts it in.
    pub fn choose(&mut self, taken: &[FaultUnit], seed: u64, may: impl Fn(DeviceId) -> bool) -> Option<DeviceId> {
        let fits = |slot: &Slot| !taken.contains(&slot.unit);
        let candidates = self.slots.iter().filter(|(device, slot)| fits(slot) && may(**device));
        // Within one replica of the best, the seed decides: neighbours in the table do not all go to one device.
        let best = candidates.clone().map(|(device, _)| self.deficit(*device)).max()?;
        let one = i64::try_from(ONE).unwrap_or(i64::MAX);
        let near = candidates.filter(|(device, _)| self.deficit(**device) > best - one);
        let chosen = near.map(|(device, _)| *device).max_by_key(|device| (mix(seed ^ device.0), *device))?;
        self.place(chosen);
        Some(chosen)
    }

    pub(crate) fn place(&mut self, device: DeviceId) {
        *self.loads.entry(device).or_insert(0) += 1;
    }

    pub(crate) fn unplace(&mut self, device: DeviceId) {
        if let Some(load) = self.loads.get_mut(&device) {
            *load = load.saturating_sub(1);
        }
    }
}

/// A well-known 64-bit finaliser (SplitMix64, Steele et al. 2014).
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
