//! Moves that even out a table, and no more than that.

use mdm_api::ids::{DeviceId, PgId};

use super::{ONE, PoolTable, mix};
use crate::state::FaultUnit;

/// One replica that should lie elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The group.
    pub pg: PgId,
    /// The member to go.
    pub from: DeviceId,
    /// The device to come.
    pub to: DeviceId,
}

impl PoolTable {
    /// The next move that evens out the table, or none if it is even to within two replicas: it gives to the device that
    /// has the most too few, and takes from the one that has the most too many of those whose place it may take. So a replica
    /// is moved that did not have to be only where the constraint leaves no straight way. `groups` are those that may be
    /// touched, with their members; `may` says which devices may receive. Counts the move in.
    pub fn next_move<'a>(
        &mut self,
        groups: impl Iterator<Item = (PgId, &'a [DeviceId])> + Clone,
        may: impl Fn(DeviceId) -> bool,
    ) -> Option<Move> {
        let two = 2 * i64::try_from(ONE).unwrap_or(i64::MAX);
        let mut receivers: Vec<(i64, DeviceId)> = self
            .slots
            .keys()
            .filter(|device| may(**device))
            .map(|device| (self.deficit(*device), *device))
            .filter(|(deficit, _)| *deficit > 0)
            .collect();
        receivers.sort_by_key(|(deficit, device)| (std::cmp::Reverse(*deficit), *device));
        for (deficit, to) in receivers {
            let Some(unit) = self.slots.get(&to).map(|slot| slot.unit) else { continue };
            let mut best: Option<(i64, u64, Move)> = None;
            for (pg, members) in groups.clone() {
                for from in members {
                    let surplus = -self.deficit(*from);
                    // Hysteresis: a smaller gain is not worth the copying, and could go back and forth.
                    if surplus + deficit < two || !self.slots.contains_key(from) || !self.fits(members, *from, unit) {
                        continue;
                    }
                    let key = (surplus, mix(u64::from(pg.index) ^ to.0));
                    if best.as_ref().is_none_or(|(most, seed, _)| (*most, *seed) < key) {
                        best = Some((key.0, key.1, Move { pg, from: *from, to }));
                    }
                }
            }
            if let Some((_, _, found)) = best {
                self.unplace(found.from);
                self.place(found.to);
                return Some(found);
            }
        }
        None
    }

    /// True if a device of that unit may take the place of `from` among the members.
    fn fits(&self, members: &[DeviceId], from: DeviceId, unit: FaultUnit) -> bool {
        members
            .iter()
            .filter(|member| **member != from)
            .all(|member| self.slots.get(member).is_some_and(|slot| slot.unit != unit))
    }
}
