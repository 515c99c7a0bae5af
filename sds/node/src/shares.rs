//! Space is shared out before it is used (I24), and so is what resync may take.
//!
//! A device lets each primary that writes to it have so much under way. A primary hears of a new share only with an
//! acknowledgement, so an idle one may hold an old share for long. Therefore no share is ever larger than a fixed part of
//! the device, and as much as all of them together is kept free: while old shares may still be used, that reserve covers
//! them; once free space is down to the reserve, new shares are empty. A share is a bound on what is under way, not an
//! amount to be used up: what an acknowledgement sets free may be used again at once, so each must carry a share that
//! knows of what it acknowledges.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::ids::DeviceId;
use sds_api::peer::CreditGrant;
use sds_store::request::Space;

use crate::limits::{RESYNC_SLOTS_BUSY, RESYNC_SLOTS_IDLE, SHARE_AUS_MIN, SHARE_JOURNAL_MIN};
use crate::shard::Shard;

impl Shard {
    /// Sets the shares of all primaries that write to devices of this server.
    pub(crate) fn set_shares(&mut self) {
        let mut primaries: BTreeMap<DeviceId, BTreeSet<DeviceId>> = BTreeMap::new();
        for (_, device, group) in self.groups.iter() {
            if let Some(primary) = group.told.as_ref().and_then(|told| told.config.primary) {
                primaries.entry(device).or_default().insert(primary);
            }
        }
        self.sharing = primaries;
        self.shared.clear();
        let devices: Vec<DeviceId> = self.sharing.keys().copied().collect();
        devices.into_iter().for_each(|device| self.share_out(device));
    }

    /// Something was handed to the store of a device: what it has left is shared out anew before anything of it is
    /// acknowledged, so that no primary goes on with space that is taken by now (I24).
    pub(crate) fn share_out(&mut self, device: DeviceId) {
        let (Some(primaries), Some(context)) = (self.sharing.get(&device), self.context.as_mut()) else { return };
        let Some(open) = self.devices.get(&device).and_then(|slot| slot.open()) else { return };
        let share = share(&open.store.space(), primaries.len() as u64);
        if self.shared.insert(device, share) == Some(share) {
            return; // as long as there is plenty
        }
        for primary in primaries {
            context.credits.set_share(device, *primary, share);
        }
    }

    /// Resync from as many devices as are open.
    pub(crate) fn count_devices(&mut self) {
        self.throttle.set_devices(self.devices.values().filter(|slot| slot.open().is_some()).count());
    }

    /// What resync may take at this moment: looked at in each step.
    pub(crate) fn pace_resync(&mut self) {
        let Some(context) = self.context.as_mut() else { return };
        let budget = &mut context.resync;
        self.throttle.advance(self.now, budget.in_use > 0, budget.copied);
        let slots = if self.throttle.is_busy(self.now) { RESYNC_SLOTS_BUSY } else { RESYNC_SLOTS_IDLE };
        budget.slots = slots * self.throttle.devices();
        budget.is_open = self.throttle.allows(self.now);
    }
}

/// What each of `primaries` may have under way.
fn share(space: &Space, primaries: u64) -> CreditGrant {
    // A unit may be the first of its chunk, and then takes a record too: the scarcer of the two is what is shared out.
    let (aus_total, aus_free) = (space.aus_total.min(space.records_total), space.aus_free.min(space.records_free));
    let aus = part(aus_total, aus_free, primaries, SHARE_AUS_MIN);
    let journal_bytes = part(space.journal_total, space.journal_free, primaries, SHARE_JOURNAL_MIN);
    CreditGrant { aus, journal_bytes }
}

/// One of `count` parts: never more than 1/16 of the whole among all (but at least the least useful part), and nothing of
/// what is kept free for parts that were given out before. No more than a quarter is kept: a store makes room in its journal
/// before it is that full, and not much sooner.
fn part(total: u64, free: u64, count: u64, least: u64) -> u64 {
    let most = (total / 16 / count).max(least);
    let reserve = (most * count).min(total / 4);
    (free.saturating_sub(reserve) / count).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_old_shares_together_always_fit_into_what_is_kept_free() {
        for total in [4096_u64, 65_536, 1 << 20] {
            for count in [1, 3, 12] {
                let full = part(total, total, count, 32);
                let reserve = (full * count).min(total / 4);
                // Down to the reserve nothing new is given out; what was given out before is at most the reserve.
                assert_eq!(part(total, reserve, count, 32), 0);
                assert!(full * count <= reserve || full == 32, "{total} {count}");
            }
        }
    }

    #[test]
    fn a_fresh_device_gives_everybody_room_for_a_whole_chunk() {
        let space = Space {
            aus_total: 60_000,
            aus_free: 60_000,
            records_total: 7500,
            records_free: 7500,
            journal_total: 64 << 20,
            journal_free: 60 << 20,
            ..Space::default()
        };
        let share = share(&space, 10);
        assert!(share.aus >= 17 && share.journal_bytes > (1 << 20) + 8192, "{share:?}");
    }

    // Found by simulation: a full device had accepted a write that it could not store.
    #[test]
    fn whoever_has_only_current_shares_is_never_refused() {
        for (total, count) in [(1141, 1), (1141, 3), (65_536, 12)] {
            let mut free = total;
            // Everybody writes as much as is allowed, is acknowledged, and goes on, until nobody may any more.
            let mut shares = vec![part(total, free, count, 32); count as usize];
            while shares.iter().any(|share| *share > 0) {
                for share in &mut shares {
                    assert!(*share <= free, "{total} {count}: {share} of {free}");
                    free -= *share;
                    *share = part(total, free, count, 32);
                }
            }
            assert!(free <= total / 2, "most of it can be used");
        }
    }

    // Found by simulation: what was kept free was counted in units, of which a device has many more than records.
    #[test]
    fn a_small_empty_device_gives_everybody_something() {
        let space = Space {
            aus_total: 1269,
            aus_free: 1269,
            records_total: 162,
            records_free: 160,
            journal_total: 16 << 20,
            journal_free: 15 << 20,
            ..Space::default()
        };
        for primaries in 1..=8 {
            let share = share(&space, primaries);
            assert!(share.aus > 1 && share.journal_bytes > 64 << 10, "{primaries}: {share:?}");
        }
    }
}
