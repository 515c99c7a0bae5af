//! The leader's failure detector: who is taken to be dead, and who is back.
//!
//! Judges by silence alone, and never before a new leader has listened for one silence span. A connection that was reset, or
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
    let last = own.map_or(observed.leader_since(), |heard| heard.at.max(observed.leader_since()));
    let silent_ms = now.ms_since(last);
    if let Some(heard) = own.filter(|_| silent_ms < 2 * timing.heartbeat_ms) {
        // One heartbeat from a flapping server is not yet a life: some in a row are.
        let steady = now.ms_since(heard.steady_since) >= 3 * timing.heartbeat_ms && heard.at >= observed.leader_since();
        return if steady { Verdict::Alive } else { Verdict::Unknown };
    }
    let replaced = heard.is_some() && own.is_none();
    let reset = own.is_some_and(|heard| heard.reset_at.is_some());
    let shunned = live_others(observed, timing, now, sds)
        .filter(|other| other.heartbeat.unreachable.contains(&sds.id))
        .count();
    let limit_ms = if replaced || reset || shunned >= 2 { timing.remove_after_reset_ms } else { timing.dead_after_ms };
    // One silence span for everybody after a change of leader, shortened or not: resets of that time are the change's.
    if silent_ms < limit_ms || now.ms_since(observed.leader_since()) < timing.dead_after_ms {
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
    live_others(observed, timing, now, sds).any(|other| {
        other.heartbeat.leases_with.contains(&sds.id) && !other.heartbeat.unreachable.contains(&sds.id)
    })
}

/// Somebody waits for a fence: a server that does not answer is not spared (5.4).
fn is_fence_pending(state: &State) -> bool {
    state.mappings().values().any(|mapping| !mapping.fenced)
}
