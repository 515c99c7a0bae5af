//! Leases between servers: who may serve reads, and until when (architecture 5.4).
//!
//! One table for each server, shared by all its replicas. As *holder* it knows which servers promised, until when, not to
//! help anybody else lead, and for which groups that promise does not hold. As *granter* it knows what it has granted and
//! so how long its own replicas must wait before they lead.
//!
//! Always true:
//! - A grant counts from the moment the question was sent at the holder, shortened by the drift margin, and from the moment
//!   it was received at the granter, in full: the holder stops first, whatever the message took and the clocks drift.
//! - A grant never covers a group for which the granter knows a term newer than the grantee's (I15): it is on the
//!   exclusion list of every grant until the grantee confirms that it took it in, and the grantee keeps it after that.
//! - Nothing here is kept over a restart: a new process waits a whole lease before it leads anything (I14, F31).

use std::collections::BTreeMap;

use mdm_api::epoch::{Nanos, Term};
use mdm_api::ids::{PgId, ProcessIncarnation, SdsId};
use mdm_api::mutants::{self, Mutant};
use mdm_api::timing::Timing;
use sds_api::peer::{LEASE_GROUPS_MAX, LeaseMessage};

/// A server in one process.
type Process = (SdsId, ProcessIncarnation);

#[derive(Clone, Debug)]
struct Held {
    incarnation: ProcessIncarnation,
    until: Nanos,
    /// Groups that the granter does not cover below this term.
    excluded: BTreeMap<PgId, Term>,
    /// What the next question confirms.
    unconfirmed: BTreeMap<PgId, Term>,
}

#[derive(Clone, Debug, Default)]
struct Granted {
    until: Nanos,
    exclude: BTreeMap<PgId, Term>,
}

/// The table of one server.
#[derive(Clone, Debug)]
pub struct Leases {
    server: SdsId,
    incarnation: ProcessIncarnation,
    timing: Timing,
    started: Nanos,
    held: BTreeMap<SdsId, Held>,
    granted: BTreeMap<Process, Granted>,
    /// Which process leads each group as far as replicas of this server have promised.
    followed: BTreeMap<PgId, Process>,
    /// Until when grants for a group bind this server, by the process that they were given to.
    bound: BTreeMap<PgId, BTreeMap<Process, Nanos>>,
}

impl Leases {
    /// For a process that starts now.
    pub fn new(server: SdsId, incarnation: ProcessIncarnation, timing: Timing, now: Nanos) -> Self {
        Self {
            server,
            incarnation,
            timing,
            started: now,
            held: BTreeMap::new(),
            granted: BTreeMap::new(),
            followed: BTreeMap::new(),
            bound: BTreeMap::new(),
        }
    }

    /// The spans in force.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// A question to another server; the server around sends one every `lease_renew_ms` to each that it shares groups with.
    pub fn ask(&self, now: Nanos, to: SdsId) -> LeaseMessage {
        let confirmed = self.held.get(&to).map_or_else(Vec::new, |held| first_groups(&held.unconfirmed));
        LeaseMessage::Ask { from: self.server, incarnation: self.incarnation, sent_at: now, confirmed }
    }

    /// Takes a message in; the answer, if there is one, goes back to its sender.
    pub fn receive(&mut self, now: Nanos, message: &LeaseMessage) -> Option<LeaseMessage> {
        match message {
            LeaseMessage::Ask { from, incarnation, sent_at, confirmed } => {
                Some(self.grant(now, (*from, *incarnation), *sent_at, confirmed))
            }
            LeaseMessage::Grant { from, incarnation, to_incarnation, sent_at, lease_ms, exclude } => {
                // A grant to an earlier process, or one that answers the future, is not for this one.
                if *to_incarnation == self.incarnation && *sent_at <= now && *sent_at >= self.started {
                    self.accept((*from, *incarnation), *sent_at, *lease_ms, exclude);
                }
                None
            }
        }
    }

    fn grant(&mut self, now: Nanos, holder: Process, sent_at: Nanos, confirmed: &[(PgId, Term)]) -> LeaseMessage {
        self.forget_expired(now);
        let lease_ms = self.timing.lease_ms;
        let granted = self.granted.entry(holder).or_default();
        for (pg, term) in confirmed {
            if granted.exclude.get(pg).is_some_and(|excluded| excluded <= term) {
                granted.exclude.remove(pg);
            }
        }
        let exclude = first_groups(&granted.exclude);
        if granted.exclude.len() > exclude.len() {
            // Not all exclusions fit: a grant without the rest would cover what must not be covered (I15). Grant nothing
            // this time; the confirmation of these makes room.
            return self.grant_message(holder, sent_at, 0, exclude);
        }
        granted.until = granted.until.max(now.plus_ms(lease_ms));
        let exclude = if mutants::is_on(Mutant::DropExclusionList) { Vec::new() } else { exclude };
        self.grant_message(holder, sent_at, lease_ms, exclude)
    }

    fn grant_message(
        &self,
        holder: Process,
        sent_at: Nanos,
        lease_ms: u64,
        exclude: Vec<(PgId, Term)>,
    ) -> LeaseMessage {
        LeaseMessage::Grant {
            from: self.server,
            incarnation: self.incarnation,
            to_incarnation: holder.1,
            sent_at,
            lease_ms,
            exclude,
        }
    }

    fn accept(&mut self, granter: Process, sent_at: Nanos, lease_ms: u64, exclude: &[(PgId, Term)]) {
        let fresh =
            Held { incarnation: granter.1, until: Nanos(0), excluded: BTreeMap::new(), unconfirmed: BTreeMap::new() };
        let held = self.held.entry(granter.0).or_insert_with(|| fresh.clone());
        if held.incarnation > granter.1 {
            return; // A late grant of a process that is gone.
        }
        if held.incarnation < granter.1 {
            *held = fresh;
        }
        for (pg, term) in exclude {
            let excluded = held.excluded.entry(*pg).or_insert(*term);
            *excluded = (*excluded).max(*term);
            held.unconfirmed.insert(*pg, *excluded);
        }
        // What the list no longer names was confirmed and taken off. A late list may name it again: harmless.
        held.unconfirmed.retain(|pg, _| exclude.iter().any(|(listed, _)| listed == pg));
        let usable_ms = lease_ms.min(self.timing.lease_ms) * (100 - self.timing.drift_margin_percent) / 100;
        held.until = held.until.max(sent_at.plus_ms(usable_ms));
    }

    /// True if that server's process covers the group for a primary of `term` at this moment (I13).
    pub fn covers(&self, now: Nanos, granter: SdsId, incarnation: ProcessIncarnation, pg: PgId, term: Term) -> bool {
        if granter == self.server {
            // The primary's own process: its replicas step down together, before any of them can lead.
            return incarnation == self.incarnation;
        }
        self.held.get(&granter).is_some_and(|held| {
            held.incarnation == incarnation
                && now < held.until
                && held.excluded.get(&pg).is_none_or(|excluded| *excluded <= term)
        })
    }

    /// Until when that server's process has granted, whatever the group; 0 if never.
    pub fn held_until(&self, granter: SdsId, incarnation: ProcessIncarnation) -> Nanos {
        match self.held.get(&granter) {
            _ if granter == self.server => Nanos::NEVER,
            Some(held) if held.incarnation == incarnation => held.until,
            _ => Nanos(0),
        }
    }

    /// A replica of this server follows the primary in that process: grants to it cover the group from here on.
    pub fn follow(&mut self, pg: PgId, primary: SdsId, incarnation: ProcessIncarnation) {
        self.followed.insert(pg, (primary, incarnation));
    }

    /// A replica of this server knows of `term`, newer than that of the primary it followed: no more grants for the group
    /// to that one (I15), and what was granted binds until it runs out (I14).
    pub fn supersede(&mut self, pg: PgId, term: Term) {
        let Some(holder) = self.followed.remove(&pg) else { return };
        if holder.0 == self.server {
            return;
        }
        let granted = self.granted.entry(holder).or_default();
        let excluded = granted.exclude.entry(pg).or_insert(term);
        *excluded = (*excluded).max(term);
        let until = self.bound.entry(pg).or_default().entry(holder).or_default();
        *until = (*until).max(granted.until);
    }

    /// The primary in that process will serve the group no more under the term that was followed: its grants do not bind.
    pub fn released(&mut self, pg: PgId, primary: SdsId, incarnation: ProcessIncarnation) {
        if self.followed.get(&pg) == Some(&(primary, incarnation)) {
            self.followed.remove(&pg);
        }
    }

    /// From when on a replica of this server may lead the group (I14). `certified_dead` tells of a process whether it is
    /// known to be gone: grants to it bind no more.
    pub fn may_lead_from(&self, pg: PgId, certified_dead: impl Fn(SdsId, ProcessIncarnation) -> bool) -> Nanos {
        // F31: this process may have granted just before it last died.
        let since_start = self.started.plus_ms(self.timing.lease_ms);
        let bound = self.bound.get(&pg).into_iter().flatten();
        bound
            .filter(|((server, incarnation), _)| !certified_dead(*server, *incarnation))
            .map(|(_, until)| *until)
            .fold(since_start, Nanos::max)
    }

    /// This server leads the group under `term`: exclusions of it up to that term are history.
    pub fn forget_exclusions(&mut self, pg: PgId, term: Term) {
        for held in self.held.values_mut() {
            if held.excluded.get(&pg).is_some_and(|excluded| *excluded <= term) {
                held.excluded.remove(&pg);
            }
        }
    }

    /// The newest term that any granter excluded the group for, if it is beyond `term`: somebody else leads by now.
    pub fn newer_term(&self, pg: PgId, term: Term) -> Option<Term> {
        self.held.values().filter_map(|held| held.excluded.get(&pg)).copied().filter(|excluded| *excluded > term).max()
    }

    fn forget_expired(&mut self, now: Nanos) {
        self.bound.retain(|_, holders| {
            holders.retain(|_, until| *until > now);
            !holders.is_empty()
        });
        // A process that has not asked for two leases holds none; if it lives and asks again while exclusions that it has
        // not confirmed are gone, they would be missed. So an entry goes only when a newer process of its server is known.
        let newest: BTreeMap<SdsId, ProcessIncarnation> = self.granted.keys().copied().collect();
        self.granted
            .retain(|(server, incarnation), granted| granted.until > now || newest.get(server) == Some(incarnation));
    }
}

fn first_groups(groups: &BTreeMap<PgId, Term>) -> Vec<(PgId, Term)> {
    groups.iter().take(LEASE_GROUPS_MAX).map(|(pg, term)| (*pg, *term)).collect()
}

#[cfg(test)]
mod tests {
    use mdm_api::ids::StoragePoolId;

    use super::*;

    const HOLDER: SdsId = SdsId(1);
    const GRANTER: SdsId = SdsId(2);
    const FIRST: ProcessIncarnation = ProcessIncarnation(1);

    fn group(index: u32) -> PgId {
        PgId { pool: StoragePoolId(1), index }
    }

    fn at(ms: u64) -> Nanos {
        Nanos(0).plus_ms(ms)
    }

    fn pair() -> (Leases, Leases) {
        let new = |server| Leases::new(server, FIRST, Timing::DEFAULT, at(0));
        (new(HOLDER), new(GRANTER))
    }

    /// One question and its answer; both clocks show the same.
    fn exchange(holder: &mut Leases, granter: &mut Leases, sent: Nanos, received: Nanos) {
        let ask = holder.ask(sent, GRANTER);
        let grant = granter.receive(received, &ask).expect("a question is answered");
        holder.receive(received, &grant);
    }

    fn covers(holder: &Leases, now: Nanos, index: u32, term: u64) -> bool {
        holder.covers(now, GRANTER, FIRST, group(index), Term(term))
    }

    #[test]
    fn a_lease_counts_from_the_question_and_binds_from_its_receipt() {
        let (mut holder, mut granter) = pair();
        granter.follow(group(0), HOLDER, FIRST);
        exchange(&mut holder, &mut granter, at(1000), at(1400));
        assert!(covers(&holder, at(1527), 0, 1), "600 ms less 12 %, from 1000");
        assert!(!covers(&holder, at(1528), 0, 1));
        granter.supersede(group(0), Term(2));
        assert_eq!(granter.may_lead_from(group(0), |_, _| false), at(2000));
        assert_eq!(granter.may_lead_from(group(0), |_, _| true), at(600), "a dead process reads nothing");
    }

    #[test]
    fn bulk_grant_excludes_promised_groups() {
        let (mut holder, mut granter) = pair();
        granter.follow(group(0), HOLDER, FIRST);
        granter.follow(group(1), HOLDER, FIRST);
        exchange(&mut holder, &mut granter, at(1000), at(1000));
        granter.supersede(group(0), Term(5));
        exchange(&mut holder, &mut granter, at(1100), at(1100));
        assert_eq!(granter.may_lead_from(group(0), |_, _| false), at(1600), "later grants do not bind");
        // Grants for the other group go on; the promised one is never covered again, also after the confirmation.
        for step in 1..6 {
            let now = at(1000 + 150 * step);
            exchange(&mut holder, &mut granter, now, now);
            assert!(!covers(&holder, now, 0, 4), "I15");
            assert!(covers(&holder, now, 0, 5) && covers(&holder, now, 1, 4));
        }
        assert!(granter.granted.values().all(|granted| granted.exclude.is_empty()), "confirmed, so no longer listed");
        assert_eq!(holder.newer_term(group(0), Term(4)), Some(Term(5)));
    }

    #[test]
    fn a_grant_reaches_only_the_process_that_asked() {
        let (mut holder, mut granter) = pair();
        let ask = holder.ask(at(1000), GRANTER);
        let grant = granter.receive(at(1000), &ask).expect("a question is answered");
        let mut restarted = Leases::new(HOLDER, ProcessIncarnation(2), Timing::DEFAULT, at(1010));
        restarted.receive(at(1020), &grant);
        assert!(!covers(&restarted, at(1020), 0, 1));
        // And one of a granter that has restarted since does not count for its new process.
        holder.receive(at(1020), &grant);
        assert!(covers(&holder, at(1020), 0, 1));
        assert!(!holder.covers(at(1020), GRANTER, ProcessIncarnation(2), group(0), Term(1)));
    }

    #[test]
    fn a_restarted_process_waits_a_whole_lease() {
        let leases = Leases::new(GRANTER, ProcessIncarnation(2), Timing::DEFAULT, at(5000));
        assert_eq!(leases.may_lead_from(group(0), |_, _| true), at(5600), "F31");
    }

    #[test]
    fn a_released_group_binds_nobody() {
        let (mut holder, mut granter) = pair();
        granter.follow(group(0), HOLDER, FIRST);
        exchange(&mut holder, &mut granter, at(1000), at(1000));
        granter.released(group(0), HOLDER, FIRST);
        granter.supersede(group(0), Term(2));
        assert_eq!(granter.may_lead_from(group(0), |_, _| false), at(600));
    }
}
