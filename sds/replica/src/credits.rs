//! Space is granted before anything is accepted (I24).
//!
//! A device lets each primary's device have so much under way to it: allocation units and journal bytes that are sent and
//! still not durable there. The server around the replicas computes the shares from its stores' free space (granted plus own
//! at most free minus reserve) and sets them here; replicas carry them to primaries with every acknowledgement, and
//! primaries keep account of what is under way, over all groups of a pair of devices.
//!
//! Always true: `under_way` of a pair is the sum of what the replicas of its primary device reserved and did not return.

use std::collections::BTreeMap;

use mdm_api::ids::DeviceId;
use sds_api::block::{AU_BLOCKS, BLOCK_BYTES, BlockRange};
use sds_api::entry::{Entry, EntryBody};
use sds_api::peer::CreditGrant;

/// What an entry takes at most on a device.
pub fn cost(entry: &Entry) -> CreditGrant {
    match &entry.body {
        EntryBody::Write { blocks, .. } => write_cost(Some(*blocks)),
        _ => write_cost(None),
    }
}

/// The same for a write of these blocks; none: an entry without payload.
pub(crate) fn write_cost(blocks: Option<BlockRange>) -> CreditGrant {
    let touched = |range: BlockRange| u64::from((range.end() - 1) / AU_BLOCKS - range.first() / AU_BLOCKS + 1);
    let payload = blocks.map_or(0, BlockRange::bytes);
    // Headers are shorter than a block (const-checked in `limits`), and payloads whole blocks; one more for the frame.
    CreditGrant { aus: blocks.map_or(0, touched), journal_bytes: (2 * BLOCK_BYTES + payload) as u64 }
}

/// May an entry be accepted?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// Yes.
    Covered,
    /// Not before something under way is done or the share grows.
    Wait,
    /// The device is out of allocation units, and nothing is under way to wait for.
    NoSpace,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    granted: CreditGrant,
    under_way: CreditGrant,
}

/// The accounts of one server.
#[derive(Clone, Debug, Default)]
pub struct Credits {
    /// (primary device here, member device) -> what the member lets it have under way.
    accounts: BTreeMap<(DeviceId, DeviceId), Account>,
    /// (member device here, primary device) -> what it lets that one have under way.
    shares: BTreeMap<(DeviceId, DeviceId), CreditGrant>,
}

impl Credits {
    /// Set by the server: what `granter`, a device of this server, lets `primary` have under way. Also for primaries of
    /// this server, the granter itself included.
    pub fn set_share(&mut self, granter: DeviceId, primary: DeviceId, share: CreditGrant) {
        self.shares.insert((granter, primary), share);
        if granter == primary {
            self.granted(primary, granter, share);
        }
    }

    /// What to tell a primary.
    pub fn share(&self, granter: DeviceId, primary: DeviceId) -> CreditGrant {
        self.shares.get(&(granter, primary)).copied().unwrap_or_default()
    }

    /// Told by a member.
    pub fn granted(&mut self, primary: DeviceId, member: DeviceId, grant: CreditGrant) {
        self.accounts.entry((primary, member)).or_default().granted = grant;
    }

    /// Is there room for `cost` more towards the member?
    pub fn covers(&self, primary: DeviceId, member: DeviceId, cost: CreditGrant) -> Cover {
        let account = self.accounts.get(&(primary, member)).copied().unwrap_or_default();
        if account.under_way.aus + cost.aus > account.granted.aus {
            return if account.under_way.aus == 0 { Cover::NoSpace } else { Cover::Wait };
        }
        if account.under_way.journal_bytes + cost.journal_bytes > account.granted.journal_bytes {
            return Cover::Wait;
        }
        Cover::Covered
    }

    /// Counts `cost` as under way.
    pub fn reserve(&mut self, primary: DeviceId, member: DeviceId, cost: CreditGrant) {
        let under_way = &mut self.accounts.entry((primary, member)).or_default().under_way;
        under_way.aus += cost.aus;
        under_way.journal_bytes += cost.journal_bytes;
    }

    /// Counts it as done with.
    pub fn settle(&mut self, primary: DeviceId, member: DeviceId, cost: CreditGrant) {
        if let Some(account) = self.accounts.get_mut(&(primary, member)) {
            assert!(
                account.under_way.aus >= cost.aus && account.under_way.journal_bytes >= cost.journal_bytes,
                "I24: more returned than was reserved"
            );
            account.under_way.aus -= cost.aus;
            account.under_way.journal_bytes -= cost.journal_bytes;
        }
    }

    /// What is under way towards a member, for metrics and tests.
    pub fn under_way(&self, primary: DeviceId, member: DeviceId) -> CreditGrant {
        self.accounts.get(&(primary, member)).map(|account| account.under_way).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_never_exceeds_the_grant() {
        let (primary, member) = (DeviceId(1), DeviceId(2));
        let mut credits = Credits::default();
        let one = CreditGrant { aus: 1, journal_bytes: 100 };
        assert_eq!(credits.covers(primary, member, one), Cover::NoSpace);
        credits.granted(primary, member, CreditGrant { aus: 1, journal_bytes: 150 });
        assert_eq!(credits.covers(primary, member, one), Cover::Covered);
        credits.reserve(primary, member, one);
        assert_eq!(credits.covers(primary, member, one), Cover::Wait);
        assert_eq!(credits.covers(primary, member, CreditGrant { aus: 0, journal_bytes: 51 }), Cover::Wait);
        credits.settle(primary, member, one);
        assert_eq!(credits.under_way(primary, member), CreditGrant::default());
        credits.granted(primary, member, CreditGrant { aus: 0, journal_bytes: 150 });
        assert_eq!(credits.covers(primary, member, one), Cover::NoSpace);
    }
}
