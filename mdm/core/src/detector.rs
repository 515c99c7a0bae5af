//! The leader's failure detector: who is taken to be dead, and who is back.
//!
//! Judges by silence alone, and never before this member has listened for one silence span: as the leader, or before it led,
//! if it heard another server all that time. A connection that was reset, or
//! several servers that cannot reach one, shorten the span: a killed process is found in a fraction of a second, because
//! its host resets what was connected to it, while one that is merely cut off from here is given the whole of it. A
//! server that others still exchange leases with is spared for a while (F6), unless a fence waits for it.

use mdm_api::epoch::Nanos;
use mdm_api::model::Sds;
use mdm_api::timing::Timing;

use crate::command::{Command, OwnCommand};
use crate::limits::CORROBORATION_MS_MAX;
use crate::observed::{Heard, Observed};
use crate::state::State;

/// What to propose now. To be asked at every tick, some tens of milliseconds apart, while leading.
pub fn propose(state: &State, observed: &Observed, timing: &Timing, now: Nanos) -> Vec<Command> {
    let judge = |sds: &Sds| {
        let incarnation = sds.incarnation?;
        let command = match (sds.connected, judge(state, observed, timing, now, sds)) {
            (true, Verdict::Dead) => OwnCommand::SdsDown { sds: sds.id, incarnation },
            (false, Verdict::Alive) => OwnCommand::SdsUp { sds: sds.id, incarnation },
            _ => return None,
        };
        Some(Command::Own(command))
    };
    state.sds().values().filter_map(judge).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Heard, steadily.
    Alive,
    /// Silent, but not for long enough.
    Unknown,
    /// Silent for too long.
    Dead,
}

fn judge(state: &State, observed: &Observed, timing: &Timing, now: Nanos, sds: &Sds) -> Verdict {
    let heard = observed.heard(sds.id);
    // Heartbeats of another process of that server say nothing for the one that is registered; rather the contrary.
    let own = heard.filter(|heard| heard.heartbeat.incarnation == sds.incarnation);
    // Nobody is silent before it was there: a process has one span from its registration to its first heartbeat.
    let listened = has_listened(observed, timing, now, sds);
    let registered = observed.registered_since(sds.id);
    let since = if listened { registered } else { registered.max(observed.leader_since()) };
    let last = own.map_or(since, |heard| heard.at.max(since));
    let silent_ms = now.ms_since(last);
    if let Some(heard) = own.filter(|_| silent_ms < 2 * timing.heartbeat_ms) {
        // One heartbeat from a flapping server is no life: some in a row are.
        let steady = now.ms_since(heard.steady_since) >= 3 * timing.heartbeat_ms && heard.at >= observed.leader_since();
        return if steady { Verdict::Alive } else { Verdict::Unknown };
    }
    // What was heard of before the registration was its predecessor, or itself without a name.
    let replaced = own.is_none() && heard.is_some_and(|heard| heard.at > observed.registered_since(sds.id));
    let reset = own.is_some_and(|heard| heard.reset_at.is_some());
    let shunned =
        live_others(observed, timing, now, sds).filter(|other| other.heartbeat.unreachable.contains(&sds.id)).count();
    // Nothing shortens the span right after a change of leader: resets of that time may be the change's.
    let is_new = now.ms_since(observed.leader_since()) < timing.dead_after_ms;
    let is_shortened = !is_new && (replaced || reset || shunned >= 2);
    let limit_ms = if is_shortened { timing.remove_after_reset_ms } else { timing.dead_after_ms };
    if silent_ms < limit_ms || (is_new && !listened) {
        return Verdict::Unknown;
    }
    if silent_ms < limit_ms + CORROBORATION_MS_MAX
        && !replaced
        && is_corroborated(observed, timing, now, sds)
        && !is_fence_pending(state)
    {
        return Verdict::Unknown;
    }
    Verdict::Dead
}

/// True if this member has heard another server for a whole silence span: its own ears were open.
fn has_listened(observed: &Observed, timing: &Timing, now: Nanos, sds: &Sds) -> bool {
    live_others(observed, timing, now, sds).any(|other| now.ms_since(other.steady_since) >= timing.dead_after_ms)
}

/// Servers other than this one that are heard now.
fn live_others<'a>(
    observed: &'a Observed,
    timing: &'a Timing,
    now: Nanos,
    sds: &'a Sds,
) -> impl Iterator<Item = &'a Heard> {
    observed
        .all_heard()
        .filter(move |(id, heard)| **id != sds.id && now.ms_since(heard.at) < 2 * timing.heartbeat_ms)
        .map(|(_, heard)| heard)
}

/// F6: somebody who is heard still exchanges leases with it, and can reach it.
fn is_corroborated(observed: &Observed, timing: &Timing, now: Nanos, sds: &Sds) -> bool {
    live_others(observed, timing, now, sds)
        .any(|other| other.heartbeat.leases_with.contains(&sds.id) && !other.heartbeat.unreachable.contains(&sds.id))
}

/// Somebody waits for a fence: a server that does not answer is not spared (5.4).
fn is_fence_pending(state: &State) -> bool {
    state.mappings().values().any(|mapping| !mapping.fenced)
}

#[cfg(test)]
mod tests {
    use mdm_api::ids::SdsId;

    use super::*;
    use crate::testing::{GIB, World, id};

    const TIMING: Timing = Timing::DEFAULT;

    struct Watch {
        world: World,
        observed: Observed,
        now: Nanos,
    }

    impl Watch {
        fn new() -> Self {
            let mut world = World::new(3, 1, 2, 8);
            world.add_volume("v", GIB);
            let mut watch = Self { world, observed: Observed::default(), now: Nanos(0).plus_ms(50_000) };
            watch.observed.lead(watch.now);
            watch.pass(2000, &[], &[]);
            assert!(watch.verdicts().is_empty());
            watch
        }

        fn sds(&self, index: usize) -> SdsId {
            *self.world.state.sds().keys().nth(index).unwrap()
        }

        /// Time passes; all but the silent servers heartbeat; nobody exchanges leases with those that are `cut`.
        fn pass(&mut self, ms: u64, silent: &[SdsId], cut: &[SdsId]) {
            let end = self.now.plus_ms(ms);
            while self.now < end {
                self.now = self.now.plus_ms(TIMING.heartbeat_ms);
                for sds in self.world.state.sds().keys().copied().filter(|sds| !silent.contains(sds)) {
                    let mut heartbeat = self.world.heartbeat(sds);
                    heartbeat.leases_with.retain(|other| !cut.contains(other));
                    self.observed.heartbeat(self.now, heartbeat, TIMING.dead_after_ms);
                }
            }
        }

        fn verdicts(&self) -> Vec<Command> {
            propose(&self.world.state, &self.observed, &TIMING, self.now)
        }

        fn is_dead(&self, sds: SdsId) -> bool {
            let incarnation = self.world.process(sds);
            self.verdicts() == [Command::Own(OwnCommand::SdsDown { sds, incarnation })]
        }
    }

    // F2.
    #[test]
    fn silence_alone_takes_the_whole_span() {
        let mut watch = Watch::new();
        let dead = watch.sds(0);
        watch.pass(1050, &[dead], &[dead]);
        assert!(watch.verdicts().is_empty());
        watch.pass(300, &[dead], &[dead]);
        assert!(watch.is_dead(dead));
    }

    // F1.
    #[test]
    fn a_reset_connection_shortens_it() {
        let mut watch = Watch::new();
        let dead = watch.sds(0);
        watch.observed.reset(watch.now, dead);
        assert!(watch.verdicts().is_empty());
        watch.pass(450, &[dead], &[dead]);
        assert!(watch.is_dead(dead));
    }

    #[test]
    fn a_connection_that_is_made_anew_in_time_is_no_death() {
        let mut watch = Watch::new();
        let flapping = watch.sds(0);
        watch.observed.reset(watch.now, flapping);
        watch.pass(150, &[], &[]);
        watch.pass(450, &[flapping], &[flapping]);
        assert!(watch.verdicts().is_empty());
    }

    #[test]
    fn a_new_leader_that_has_heard_nobody_gives_everybody_one_silence_span() {
        let mut watch = Watch::new();
        let (dead, all) = (watch.sds(0), [watch.sds(0), watch.sds(1), watch.sds(2)]);
        watch.pass(5000, &all, &all);
        watch.observed.lead(watch.now);
        watch.observed.reset(watch.now, dead);
        watch.pass(1050, &[dead], &[dead]);
        assert!(watch.verdicts().is_empty());
        watch.pass(300, &[dead], &[dead]);
        assert!(watch.is_dead(dead));
    }

    // A leader's host that dies takes a data server with it.
    #[test]
    fn a_new_leader_that_has_heard_the_others_all_along_need_not_wait_for_who_is_silent() {
        let mut watch = Watch::new();
        let dead = watch.sds(0);
        watch.pass(900, &[dead], &[dead]);
        watch.observed.lead(watch.now);
        watch.observed.reset(watch.now, dead);
        assert!(watch.verdicts().is_empty(), "a reset of that time shortens nothing");
        watch.pass(450, &[dead], &[dead]);
        assert!(watch.is_dead(dead));
    }

    // F6.
    #[test]
    fn a_server_that_others_still_have_leases_with_is_spared_but_not_for_ever() {
        let mut watch = Watch::new();
        let cut_off = watch.sds(0);
        watch.pass(9000, &[cut_off], &[]);
        assert!(watch.verdicts().is_empty());
        watch.pass(3000, &[cut_off], &[]);
        assert!(watch.is_dead(cut_off));
    }

    // F6, F26.
    #[test]
    fn a_pending_fence_ends_the_sparing() {
        let mut watch = Watch::new();
        let cut_off = watch.sds(0);
        let sdc = watch.world.add_sdc(1);
        let volume = *watch.world.state.volumes().keys().next().unwrap();
        watch.world.map(volume, sdc).unwrap();
        watch.world.daemon(mdm_api::command::DaemonCommand::OpenMapping { volume, sdc, opener: 1 }).unwrap();
        watch.pass(3000, &[cut_off], &[]);
        assert!(watch.verdicts().is_empty());
        let unmap = mdm_api::command::AdminCommand::UnmapVolume { volume: id(volume.0), sdc: None };
        watch.world.admin(unmap).unwrap();
        assert!(watch.is_dead(cut_off));
    }

    #[test]
    fn a_server_that_is_heard_again_comes_back_when_it_is_steady() {
        let mut watch = Watch::new();
        let away = watch.sds(0);
        watch.pass(3000, &[away], &[away]);
        watch.world.down(away);
        watch.pass(150, &[], &[]);
        assert!(watch.verdicts().is_empty());
        watch.pass(600, &[], &[]);
        let incarnation = watch.world.process(away);
        assert_eq!(watch.verdicts(), [Command::Own(OwnCommand::SdsUp { sds: away, incarnation })]);
    }

    #[test]
    fn a_new_process_that_has_not_registered_speaks_against_the_old_one() {
        let mut watch = Watch::new();
        let restarted = watch.sds(0);
        for _ in 0..4 {
            watch.pass(150, &[restarted], &[]);
            let mut heartbeat = watch.world.heartbeat(restarted);
            heartbeat.incarnation = None;
            watch.observed.heartbeat(watch.now, heartbeat, TIMING.dead_after_ms);
        }
        assert!(watch.is_dead(restarted));
    }

    // F1: found by simulation: each restart cost its server a death and half a second until it counted as alive.
    #[test]
    fn a_process_that_has_just_registered_has_a_span_until_its_first_heartbeat() {
        let mut watch = Watch::new();
        let restarted = watch.sds(0);
        let mut heartbeat = watch.world.heartbeat(restarted);
        heartbeat.incarnation = None;
        watch.observed.heartbeat(watch.now, heartbeat, TIMING.dead_after_ms);
        watch.world.register(restarted);
        watch.observed.observe(&watch.world.state, watch.now);
        watch.pass(1050, &[restarted], &[restarted]);
        assert_eq!(watch.verdicts(), []);
        watch.pass(300, &[restarted], &[restarted]);
        assert!(watch.is_dead(restarted));
    }
}
