//! The first table of a pool.

use std::collections::BTreeMap;

use mdm_api::ids::DeviceId;

use super::{ONE, PoolTable, Slot, mix};
use crate::state::FaultUnit;

/// The members of each group, the one to be its primary first. An error says how many fault units there are, if fewer
/// than copies.
pub fn initial_table(
    slots: &BTreeMap<DeviceId, Slot>,
    copies: usize,
    pg_count: u32,
) -> Result<Vec<Vec<DeviceId>>, usize> {
    let mut devices_of: BTreeMap<FaultUnit, Vec<DeviceId>> = BTreeMap::new();
    for (device, slot) in slots {
        devices_of.entry(slot.unit).or_default().push(*device);
    }
    if devices_of.len() < copies {
        return Err(devices_of.len());
    }
    let mut builder = Builder {
        table: PoolTable::new(slots.clone(), copies, pg_count, std::iter::empty()),
        devices_of,
        unit_pairs: BTreeMap::new(),
        device_pairs: BTreeMap::new(),
        primaries: BTreeMap::new(),
    };
    Ok((0..pg_count).map(|index| builder.group(index, copies, pg_count)).collect())
}

struct Builder {
    table: PoolTable,
    devices_of: BTreeMap<FaultUnit, Vec<DeviceId>>,
    /// How many groups two units, and two devices, share.
    unit_pairs: BTreeMap<(FaultUnit, FaultUnit), u32>,
    device_pairs: BTreeMap<(DeviceId, DeviceId), u32>,
    primaries: BTreeMap<DeviceId, u64>,
}

impl Builder {
    fn group(&mut self, index: u32, copies: usize, pg_count: u32) -> Vec<DeviceId> {
        let groups_left = i64::from(pg_count - index);
        let mut units: Vec<FaultUnit> = Vec::with_capacity(copies);
        let mut members: Vec<DeviceId> = Vec::with_capacity(copies);
        while units.len() < copies {
            let unit = self.choose_unit(index, groups_left, &units);
            let device = self.choose_device(index, unit, &members);
            for other in &units {
                *self.unit_pairs.entry(ordered(unit, *other)).or_insert(0) += 1;
            }
            for other in &members {
                *self.device_pairs.entry(ordered(device, *other)).or_insert(0) += 1;
            }
            self.table.place(device);
            units.push(unit);
            members.push(device);
        }
        // The primary: who leads the smallest part of what it keeps.
        let leads = |device: &DeviceId| {
            let target = self.table.targets.get(device).copied().unwrap_or(1).max(1);
            let leads = self.primaries.get(device).copied().unwrap_or(0);
            ((leads + 1) * ONE * ONE / target, mix(u64::from(index) ^ device.0))
        };
        members.sort_by_key(leads);
        *self.primaries.entry(members[0]).or_insert(0) += 1;
        members
    }

    fn choose_unit(&self, index: u32, groups_left: i64, taken: &[FaultUnit]) -> FaultUnit {
        let one = i64::try_from(ONE).unwrap_or(i64::MAX);
        let deficit =
            |unit: &FaultUnit| self.devices_of[unit].iter().map(|device| self.table.deficit(*device)).sum::<i64>();
        let open: Vec<(FaultUnit, i64)> =
            self.devices_of.keys().filter(|unit| !taken.contains(unit)).map(|unit| (*unit, deficit(unit))).collect();
        let best = open.iter().map(|(_, deficit)| *deficit).max().unwrap_or(0);
        // A unit that needs one of every group that is left (rounding aside) must be in this one too.
        let must = best > (groups_left - 1) * one + one / 2;
        let near = open.iter().filter(|(_, deficit)| if must { *deficit == best } else { *deficit > best - one });
        let shared = |unit: FaultUnit| -> u32 {
            taken.iter().map(|other| self.unit_pairs.get(&ordered(unit, *other)).copied().unwrap_or(0)).sum()
        };
        let seed = |unit: FaultUnit| {
            let number = match unit {
                FaultUnit::FaultSet(id) => id.0,
                FaultUnit::Sds(id) => id.0,
            };
            mix(u64::from(index) ^ number)
        };
        near.map(|(unit, _)| *unit)
            .min_by_key(|unit| (shared(*unit), seed(*unit), *unit))
            .expect("there are at least as many units as copies, so one is left")
    }

    fn choose_device(&self, index: u32, unit: FaultUnit, members: &[DeviceId]) -> DeviceId {
        let one = i64::try_from(ONE).unwrap_or(i64::MAX);
        let devices = &self.devices_of[&unit];
        let best = devices.iter().map(|device| self.table.deficit(*device)).max().unwrap_or(0);
        let shared = |device: DeviceId| -> u32 {
            members.iter().map(|other| self.device_pairs.get(&ordered(device, *other)).copied().unwrap_or(0)).sum()
        };
        devices
            .iter()
            .filter(|device| self.table.deficit(**device) > best - one)
            .copied()
            .min_by_key(|device| (shared(*device), mix(u64::from(index) ^ device.0), *device))
            .expect("a unit is made of devices")
    }
}

fn ordered<T: Ord>(a: T, b: T) -> (T, T) {
    if a < b { (a, b) } else { (b, a) }
}
