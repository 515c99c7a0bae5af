//! Each device's fair share, and what a pool can hold.
//!
//! A fault unit holds at most one copy of each group. One that is larger than all the others together allow gets exactly
//! one copy of every group, and the rest is shared among the rest, by size.

use std::collections::BTreeMap;

use mdm_api::ids::DeviceId;

use super::Slot;
use crate::state::FaultUnit;

/// One replica, in the fraction that shares are counted in.
pub(crate) const ONE: u64 = 1 << 20;

/// Weights of the fault units, largest first.
fn units(slots: &BTreeMap<DeviceId, Slot>) -> Vec<(FaultUnit, u128)> {
    let mut weights: BTreeMap<FaultUnit, u128> = BTreeMap::new();
    for slot in slots.values() {
        *weights.entry(slot.unit).or_insert(0) += u128::from(slot.weight);
    }
    let mut units: Vec<(FaultUnit, u128)> = weights.into_iter().collect();
    units.sort_by_key(|(unit, weight)| (std::cmp::Reverse(*weight), *unit));
    units
}

/// How many replicas, in 2^-20ths, each device should have. With fewer units than copies every unit has every group.
pub(crate) fn targets(slots: &BTreeMap<DeviceId, Slot>, copies: usize, pg_count: u32) -> BTreeMap<DeviceId, u64> {
    let units = units(slots);
    let whole = u128::from(pg_count) * u128::from(ONE);
    let mut left: u128 = units.iter().map(|(_, weight)| weight).sum();
    let mut copies_left = copies as u128;
    let mut share: BTreeMap<FaultUnit, (u128, u128)> = BTreeMap::new();
    for (unit, weight) in units {
        // Largest first: once one is within its share, all that follow are.
        let fair = if weight * copies_left >= left { whole } else { whole * copies_left * weight / left };
        if fair == whole {
            left -= weight;
            copies_left = copies_left.saturating_sub(1);
        }
        share.insert(unit, (fair, weight));
    }
    let of = |slot: &Slot| {
        let (fair, weight) = share.get(&slot.unit).copied().unwrap_or((0, 1));
        u64::try_from(fair * u128::from(slot.weight) / weight.max(1)).unwrap_or(u64::MAX)
    };
    slots.iter().map(|(device, slot)| (*device, of(slot))).collect()
}

/// Bytes of data that the devices can hold, with all copies: no unit counts for more than one copy of everything.
pub fn usable_bytes(slots: &BTreeMap<DeviceId, Slot>, copies: u8) -> u64 {
    let mut left: u128 = slots.values().map(|slot| u128::from(slot.weight)).sum();
    let mut copies = u128::from(copies);
    for (_, weight) in units(slots) {
        if copies <= 1 || weight * copies <= left {
            break;
        }
        left -= weight;
        copies -= 1;
    }
    u64::try_from(left / copies.max(1)).unwrap_or(u64::MAX)
}
