//! What a member has heard lately. Volatile: lost at a restart, and no harm done, because what is decided from it is only
//! ever proposed, and a new leader gives everybody one silence span before it judges.
//!
//! Every member feeds it with the heartbeats that it gets, so that a new leader starts from its own record. Bounded: one
//! entry for each server, device and dark group of the state; [`Observed::observe`] drops the others.

use std::collections::BTreeMap;

use mdm_api::control::Heartbeat;
use mdm_api::epoch::{Nanos, Revision};
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation, SdsId};

use crate::state::{PgRecord, State};

/// A server as it was last heard.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When its last heartbeat came.
    pub at: Nanos,
    /// Since when they come without a long gap, from one process.
    pub steady_since: Nanos,
    /// The last one.
    pub heartbeat: Heartbeat,
    /// When its connection here was last reset or refused, if no heartbeat came since.
    pub reset_at: Option<Nanos>,
    /// Chunks that it copies in a thousand seconds, smoothed.
    chunks_per_1000_s: u64,
}

/// What was heard and seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    heard: BTreeMap<SdsId, Heard>,
    /// Since when devices cannot be counted on.
    lost_since: BTreeMap<DeviceId, Nanos>,
    /// Since when groups have no primary.
    dark_since: BTreeMap<PgId, Nanos>,
    /// The registered processes, and since when they are known here as such.
    registered: BTreeMap<SdsId, (ProcessIncarnation, Nanos)>,
    /// Since when this member leads; while it does not, since it started.
    leader_since: Nanos,
}

impl Observed {
    /// This member leads from now on.
    pub fn lead(&mut self, now: Nanos) {
        self.leader_since = now;
        self.lost_since.clear();
        self.dark_since.clear();
    }

    /// Since when this member leads.
    pub fn leader_since(&self) -> Nanos {
        self.leader_since
    }

    /// A heartbeat came. `gap_ms`: a longer silence before it ends a steady time.
    pub fn heartbeat(&mut self, now: Nanos, heartbeat: Heartbeat, gap_ms: u64) {
        let Some(heard) = self.heard.get_mut(&heartbeat.sds) else {
            let fresh = Heard { at: now, steady_since: now, reset_at: None, chunks_per_1000_s: 0, heartbeat };
            self.heard.insert(fresh.heartbeat.sds, fresh);
            return;
        };
        // Two connections of one process may cross: what is older than what is known says nothing.
        let same = heard.heartbeat.incarnation == heartbeat.incarnation;
        if same && heartbeat.map_revision < heard.heartbeat.map_revision {
            heard.at = now;
            return;
        }
        if !same || now.ms_since(heard.at) > gap_ms {
            heard.steady_since = now;
        }
        heard.chunks_per_1000_s = copy_rate(heard, &heartbeat, now);
        heard.at = now;
        heard.reset_at = None;
        heard.heartbeat = heartbeat;
    }

    /// The server's connection to this member was reset, refused or closed.
    pub fn reset(&mut self, now: Nanos, sds: SdsId) {
        if let Some(heard) = self.heard.get_mut(&sds) {
            heard.reset_at = Some(now);
        }
    }

    /// Looks at the state: who is registered, and since when. To be called by every member, now and then.
    pub fn note_registered(&mut self, state: &State, now: Nanos) {
        self.registered.retain(|sds, _| state.sds().contains_key(sds));
        for (id, incarnation) in state.sds().values().filter_map(|sds| Some((sds.id, sds.incarnation?))) {
            let known = self.registered.entry(id).or_insert((incarnation, now));
            if known.0 != incarnation {
                *known = (incarnation, now);
            }
        }
    }

    /// Looks at the state: what is lost or dark, and since when. To be called before the reconcilers.
    pub fn observe(&mut self, state: &State, now: Nanos) {
        self.note_registered(state, now);
        self.heard.retain(|sds, _| state.sds().contains_key(sds));
        let lost: Vec<DeviceId> = state.devices().keys().filter(|device| !state.is_fit(**device)).copied().collect();
        self.lost_since.retain(|device, _| lost.binary_search(device).is_ok());
        for device in lost {
            self.lost_since.entry(device).or_insert(now);
        }
        let is_dark = |pg: &PgId| state.pg(*pg).is_some_and(|config| config.primary.is_none());
        self.dark_since.retain(|pg, _| is_dark(pg));
        for record in state.pgs().values().filter(|record| record.config.primary.is_none()) {
            self.dark_since.entry(record.config.pg).or_insert(now);
        }
    }

    /// Since when the server's present process is known here as registered.
    pub fn registered_since(&self, sds: SdsId) -> Nanos {
        self.registered.get(&sds).map_or(Nanos(0), |(_, since)| *since)
    }

    /// What was heard of a server.
    pub fn heard(&self, sds: SdsId) -> Option<&Heard> {
        self.heard.get(&sds)
    }

    /// All that was heard.
    pub fn all_heard(&self) -> impl Iterator<Item = (&SdsId, &Heard)> {
        self.heard.iter()
    }

    /// The last heartbeat of this very process.
    pub fn heartbeat_of(&self, sds: SdsId, incarnation: ProcessIncarnation) -> Option<&Heartbeat> {
        self.heard
            .get(&sds)
            .map(|heard| &heard.heartbeat)
            .filter(|heartbeat| heartbeat.incarnation == Some(incarnation))
    }

    /// How long the device has not been one to count on, in milliseconds; 0 if it is.
    pub fn lost_ms(&self, device: DeviceId, now: Nanos) -> u64 {
        self.lost_since.get(&device).map_or(0, |since| now.ms_since(*since))
    }

    /// How long the group has had no primary, in milliseconds; 0 if it has.
    pub fn dark_ms(&self, pg: PgId, now: Nanos) -> u64 {
        self.dark_since.get(&pg).map_or(0, |since| now.ms_since(*since))
    }

    /// Up to which revision of the map the group's fences hold, as its present primary itself has said; `None`: it has not
    /// said that it is active.
    ///
    /// Relies on what a server means by `fenced_through`: every group that it leads as of `map_revision` is active, and
    /// orders nothing of a generation that was fenced up to there. A primary is active only after the whole ISR has
    /// promised its term (I7, I11), so from then on no earlier primary orders anything either.
    pub fn active_through(&self, state: &State, record: &PgRecord) -> Option<Revision> {
        let sds = state.sds_of(record.config.primary?)?;
        let heartbeat = self.heartbeat_of(sds.id, record.config.primary_incarnation)?;
        let through = heartbeat.fenced_through.min(heartbeat.map_revision);
        (through >= record.appointed_at).then_some(through)
    }

    /// Chunks that the server copies in a thousand seconds, smoothed.
    pub fn chunks_per_1000_s(&self, sds: SdsId) -> u64 {
        self.heard.get(&sds).map_or(0, |heard| heard.chunks_per_1000_s)
    }
}

/// The rate at which the server copies, from two of its reports, smoothed over about eight of them.
fn copy_rate(heard: &Heard, next: &Heartbeat, now: Nanos) -> u64 {
    let before: BTreeMap<PgId, u64> =
        heard.heartbeat.resync.iter().map(|report| (report.pg, report.chunks_done)).collect();
    let done: u64 = next
        .resync
        .iter()
        .filter_map(|report| before.get(&report.pg).map(|before| report.chunks_done.saturating_sub(*before)))
        .sum();
    let ms = now.ms_since(heard.at).max(1);
    let rate = done.saturating_mul(1_000_000) / ms;
    if heard.chunks_per_1000_s == 0 { rate } else { (heard.chunks_per_1000_s.saturating_mul(7) + rate) / 8 }
}
