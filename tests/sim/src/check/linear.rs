//! Is the history of a register one that a single copy could have had?
//!
//! Every write has a value of its own, so the requests fall into clusters: a write and the reads that saw it. A cluster
//! covers a *zone* between its earliest end and its latest start. If the earliest end comes first the value must have stood
//! all that time (a forward zone); else all of the cluster has a moment in common (a backward zone). A history is
//! linearizable if no two forward zones overlap and no backward zone lies within a forward one (Gibbons and Korach, 1997).
//! That takes O(n log n). Zeroing is the one write whose value is not its own: registers that were zeroed are searched.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Cell, History, Kind, Outcome};

/// One request at one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// True if it writes.
    pub writes: bool,
    /// What it wrote or saw.
    pub value: u64,
    /// When it began.
    pub start: u64,
    /// When it ended; [`u64::MAX`] if nobody knows.
    pub end: u64,
    /// It certainly took effect.
    pub certain: bool,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Registers that were checked.
    pub registers: u64,
    /// Requests at registers.
    pub steps: u64,
    /// Registers whose search was given up.
    pub undecided: u64,
}

/// States of a search before it is given up.
const STATES_MAX: usize = 60_000;

/// Checks every register.
pub fn check(history: &History) -> Result<Figures, String> {
    let mut registers: BTreeMap<Cell, Vec<Step>> = BTreeMap::new();
    for op in &history.ops {
        if op.kind == Kind::Read && op.outcome != Outcome::Done {
            continue;
        }
        for (cell, value) in &op.cells {
            let step = Step {
                writes: op.kind == Kind::Write,
                value: *value,
                start: op.start,
                end: op.end,
                certain: op.outcome == Outcome::Done,
            };
            registers.entry(*cell).or_default().push(step);
        }
    }
    let mut figures = Figures::default();
    for (cell, steps) in &registers {
        figures.registers += 1;
        figures.steps += steps.len() as u64;
        match register(steps) {
            Ok(true) => {}
            Ok(false) => figures.undecided += 1,
            Err(text) => return Err(format!("{cell:?}: {text}\n{}", story(steps))),
        }
    }
    Ok(figures)
}

/// Checks one register; `Ok(false)`: too many ways to look at.
pub fn register(steps: &[Step]) -> Result<bool, String> {
    let seen: BTreeSet<u64> = steps.iter().filter(|step| !step.writes).map(|step| step.value).collect();
    // What may have happened and was never seen did not.
    let relevant = |step: &&Step| !step.writes || step.certain || seen.contains(&step.value);
    let steps: Vec<Step> = steps.iter().filter(relevant).copied().collect();
    if steps.iter().any(|step| step.writes && step.value == 0) { search(&steps) } else { zones(&steps).map(|()| true) }
}

#[derive(Clone, Copy, Debug)]
struct Cluster {
    value: u64,
    written: Option<u64>,
    first_end: u64,
    last_start: u64,
}

fn zones(steps: &[Step]) -> Result<(), String> {
    let initial = Cluster { value: 0, written: Some(0), first_end: 0, last_start: 0 };
    let mut clusters: BTreeMap<u64, Cluster> = BTreeMap::from([(0, initial)]);
    for step in steps {
        let new = Cluster { value: step.value, written: None, first_end: u64::MAX, last_start: 0 };
        let cluster = clusters.entry(step.value).or_insert(new);
        cluster.first_end = cluster.first_end.min(step.end);
        cluster.last_start = cluster.last_start.max(step.start);
        if step.writes {
            cluster.written = Some(step.start);
        }
    }
    for step in steps.iter().filter(|step| !step.writes) {
        match clusters[&step.value].written {
            None => return Err(format!("{:x} was read and never written", step.value)),
            Some(start) if step.end < start => return Err(format!("{:x} was read before it was written", step.value)),
            Some(_) => {}
        }
    }
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) =
        clusters.into_values().partition(|cluster| cluster.first_end < cluster.last_start);
    forward.sort_by_key(|cluster| cluster.first_end);
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_start {
            return Err(format!("{:x} and {:x} both stood at one time", pair[0].value, pair[1].value));
        }
    }
    for cluster in backward {
        let after = forward.partition_point(|zone| zone.first_end < cluster.last_start);
        if let Some(zone) = after.checked_sub(1).map(|at| forward[at])
            && cluster.first_end < zone.last_start
        {
            return Err(format!("{:x} came while {:x} stood", cluster.value, zone.value));
        }
    }
    Ok(())
}

/// Tries orders, one step at a time: of the steps still to be placed any that began before the first of them ended may be next.
fn search(steps: &[Step]) -> Result<bool, String> {
    let mut order: Vec<Step> = steps.to_vec();
    order.sort_by_key(|step| step.start);
    let words = order.len().div_ceil(64);
    let mut stack = vec![(vec![0_u64; words], 0_u64)];
    let mut met: BTreeSet<(Vec<u64>, u64)> = BTreeSet::new();
    while let Some((placed, value)) = stack.pop() {
        let is_placed = |at: usize| placed[at / 64] & 1 << (at % 64) != 0;
        let open = (0..order.len()).filter(|at| !is_placed(*at));
        let horizon = open.clone().map(|at| order[at].end).min().unwrap_or(u64::MAX);
        if open.clone().all(|at| !order[at].certain && order[at].writes) {
            return Ok(true);
        }
        for at in open.take_while(|at| order[*at].start < horizon) {
            let step = order[at];
            if !step.writes && step.value != value {
                continue;
            }
            let mut next = placed.clone();
            next[at / 64] |= 1 << (at % 64);
            let next = (next, if step.writes { step.value } else { value });
            if met.len() >= STATES_MAX {
                return Ok(false);
            }
            if met.insert(next.clone()) {
                stack.push(next);
            }
            // One that does not change the value may as well come at once.
            if !step.writes {
                break;
            }
        }
        // A fenced write that never took effect is passed over.
        let fenced = (0..order.len()).find(|at| !is_placed(*at) && order[*at].end == horizon);
        if let Some(at) = fenced.filter(|at| order[*at].writes && !order[*at].certain) {
            let mut next = placed.clone();
            next[at / 64] |= 1 << (at % 64);
            if met.insert((next.clone(), value)) {
                stack.push((next, value));
            }
        }
    }
    Err("no order of its requests explains what was read".to_owned())
}

fn story(steps: &[Step]) -> String {
    let mut steps = steps.to_vec();
    steps.sort_by_key(|step| step.start);
    let lines: Vec<String> = steps
        .iter()
        .map(|step| {
            let end = if step.end == u64::MAX { "?".to_owned() } else { step.end.to_string() };
            let sure = if step.certain { "" } else { " (maybe)" };
            format!(
                "  {:>6} .. {end:>6} {} {:x}{sure}",
                step.start,
                if step.writes { "write" } else { "read " },
                step.value
            )
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, start: u64, end: u64) -> Step {
        Step { writes: true, value, start, end, certain: true }
    }

    fn read(value: u64, start: u64, end: u64) -> Step {
        Step { writes: false, value, start, end, certain: true }
    }

    fn maybe(value: u64, start: u64, end: u64) -> Step {
        Step { certain: false, ..write(value, start, end) }
    }

    /// Both ways must agree; the second is told that there was a zeroing long ago.
    fn both(steps: &[Step]) -> bool {
        let found = zones(steps).is_ok();
        assert_eq!(search(steps).is_ok(), found, "{steps:?}");
        found
    }

    #[test]
    fn stale_reads_lost_writes_and_reads_from_the_future_are_found() {
        assert!(both(&[write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(2, 7, 8)]));
        assert!(!both(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]), "a lost write, or a stale read");
        assert!(!both(&[write(1, 1, 2), read(2, 3, 4), write(2, 5, 6)]), "from the future");
        assert!(!both(&[write(1, 1, 2), read(0, 3, 4)]), "an acknowledged write is gone");
        assert!(both(&[write(1, 1, 10), read(0, 2, 3), read(1, 4, 5)]));
        assert!(!both(&[write(1, 1, 10), read(1, 2, 3), read(0, 4, 5)]), "back again");
        assert!(!both(&[write(1, 1, 2), write(2, 3, 10), read(2, 4, 5), read(1, 6, 7)]));
    }

    #[test]
    fn a_write_without_an_answer_may_take_effect_late_or_never_and_a_fenced_one_not_after_its_fence() {
        let end = u64::MAX;
        assert!(both(&[write(1, 1, 2), maybe(2, 3, end), read(1, 4, 5), read(2, 6, 7)]));
        assert!(!both(&[write(1, 1, 2), maybe(2, 3, end), read(2, 4, 5), read(1, 6, 7)]));
        assert_eq!(register(&[write(1, 1, 2), maybe(2, 3, end), read(1, 4, 5)]), Ok(true));
        assert!(!both(&[write(1, 1, 2), maybe(2, 3, 5), read(1, 6, 7), read(2, 8, 9)]), "after its fence");
    }

    #[test]
    fn a_zeroed_register_is_searched() {
        let zero = |start, end| write(0, start, end);
        assert_eq!(
            register(&[write(1, 1, 2), zero(3, 4), read(0, 5, 6), write(2, 7, 8), zero(9, 10), read(0, 11, 12)]),
            Ok(true)
        );
        assert!(register(&[write(1, 1, 2), zero(3, 4), read(1, 5, 6)]).is_err());
        let unknown = Step { certain: false, ..zero(3, u64::MAX) };
        assert_eq!(register(&[write(1, 1, 2), unknown, read(1, 5, 6), read(0, 7, 8)]), Ok(true));
        assert!(register(&[write(1, 1, 2), unknown, read(0, 5, 6), read(1, 7, 8)]).is_err());
        let fenced = Step { certain: false, ..zero(3, 4) };
        assert_eq!(register(&[write(1, 1, 2), fenced, read(1, 5, 6)]), Ok(true));
    }

    #[test]
    fn both_ways_agree_on_random_histories() {
        let mut rng = crate::rng::Rng::new(5);
        let mut found = [0; 2];
        for _ in 0..3000 {
            let mut steps = Vec::new();
            for value in 1..=2 {
                let start = rng.between(1, 20) * 2;
                steps.push(write(value, start, start + 1 + 2 * rng.below(6)));
            }
            for _ in 0..2 {
                let start = rng.between(1, 24) * 2 + 50;
                steps.push(read(rng.below(3), start - 50, start - 49 + 2 * rng.below(6)));
            }
            // Moments are different ones.
            let mut moments: Vec<(u64, usize, bool)> = Vec::new();
            for (index, step) in steps.iter().enumerate() {
                moments.extend([(step.start, index, false), (step.end, index, true)]);
            }
            moments.sort_unstable();
            for (moment, (_, index, is_end)) in moments.into_iter().enumerate() {
                let at = moment as u64 + 1;
                if is_end { steps[index].end = at } else { steps[index].start = at }
            }
            found[usize::from(both(&steps))] += 1;
        }
        assert!(found[0] > 200 && found[1] > 200, "{found:?}");
    }
}
