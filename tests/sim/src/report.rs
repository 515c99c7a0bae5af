//! What many seeds came to.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::SECOND;
use crate::marks::{ELSEWHERE, INVARIANTS, Marks, ROWS};
use crate::plan::Fault;
use crate::run::Outcome;

/// The sums of many seeds.
#[derive(Debug, Default)]
pub struct Report {
    seeds: u64,
    unsafe_seeds: u64,
    stuck_seeds: u64,
    events: u64,
    simulated_s: u64,
    answered: u64,
    unanswered: u64,
    medium_errors: u64,
    bad_blocks: u64,
    repaired_blocks: u64,
    copied_bytes: u64,
    lost_groups: u64,
    configs: u64,
    frames: u64,
    registers: u64,
    steps: u64,
    undecided: u64,
    copies: u64,
    lost_sectors: u64,
    torn: u64,
    rotten: u64,
    disk_errors: u64,
    faults: BTreeMap<Fault, u64>,
    marks: Marks,
}

impl Report {
    /// Takes a seed in.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        if let Some(failure) = &outcome.failure {
            let is_stuck = failure.contains("liveness: ");
            self.stuck_seeds += u64::from(is_stuck);
            self.unsafe_seeds += u64::from(!is_stuck);
        }
        self.events += outcome.events;
        self.simulated_s += outcome.simulated / SECOND;
        self.answered += outcome.answered;
        self.unanswered += outcome.unanswered;
        self.medium_errors += outcome.medium_errors;
        self.bad_blocks += outcome.bad_blocks;
        self.repaired_blocks += outcome.repaired_blocks;
        self.copied_bytes += outcome.copied_bytes;
        self.lost_groups += outcome.lost_groups;
        self.configs += outcome.configs;
        self.frames += outcome.frames;
        self.registers += outcome.figures.registers;
        self.steps += outcome.figures.steps;
        self.undecided += outcome.figures.undecided;
        self.copies += outcome.copies;
        self.lost_sectors += outcome.damage.lost_sectors;
        self.torn += outcome.damage.torn;
        self.rotten += outcome.damage.rotten + outcome.damage.misdirected;
        self.disk_errors += outcome.damage.read_errors + outcome.damage.write_errors;
        outcome.faults.iter().for_each(|(fault, count)| *self.faults.entry(*fault).or_default() += count);
        self.marks.add(&outcome.marks);
    }

    /// How many seeds.
    pub fn seeds(&self) -> u64 {
        self.seeds
    }

    /// True if anything was tested at all.
    pub fn is_worth_something(&self) -> bool {
        self.seeds > 0 && self.answered > 0 && self.faults.values().sum::<u64>() > 0
    }

    /// For people; the last line names the rate.
    pub fn print(&self, took: Duration) {
        let faults: Vec<String> = self.faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        println!("faults: {}", faults.join(", "));
        println!("rows of the failure matrix and invariants, and how often each was hit:");
        for (row, what) in ROWS.iter().chain(&INVARIANTS) {
            println!("  {row:<4} {:>9}  {what}", self.marks.count(row));
        }
        for (row, why) in ELSEWHERE.into_iter().filter(|(row, _)| self.marks.count(row) == 0) {
            println!("  {row:<4} elsewhere: {why}");
        }
        let missing = self.marks.missing();
        let missing = if missing.is_empty() { "none".to_owned() } else { missing.join(" ") };
        println!("  rows and invariants that were not reached: {missing}");
        for other in ["shrunk", "grown", "appointed", "handed over", "moved in vain", "dark", "stale"] {
            println!("  {other:<13} {:>4}", self.marks.count(other));
        }
        println!(
            "{} requests answered, {} unanswered, {} registers with {} steps checked ({} undecided), {} copies of chunks compared",
            self.answered, self.unanswered, self.registers, self.steps, self.undecided, self.copies
        );
        println!(
            "{} sectors lost in power cuts, {} pages torn, {} disk errors, {} pages damaged, {} reads without a good copy, {} groups lost with a failed device",
            self.lost_sectors, self.torn, self.disk_errors, self.rotten, self.medium_errors, self.lost_groups
        );
        println!(
            "{} configurations looked at, {} frames delivered, {} KiB copied to learners",
            self.configs,
            self.frames,
            self.copied_bytes >> 10
        );
        let seconds = took.as_secs_f64().max(0.001);
        let rate = (self.seeds as f64 / seconds * 3600.0) as u64;
        // No failure in n seeds bounds the chance of one at 3/n (95 %).
        let bound = match self.unsafe_seeds + self.stuck_seeds {
            0 => format!("bound 3/{}", self.seeds),
            _ => "no bound".to_owned(),
        };
        // Wrong or stale bytes and lost writes are broken promises, each of which ends its seed.
        let broken = self.unsafe_seeds;
        let faults: u64 = self.faults.values().sum();
        println!(
            "{} seeds, {} simulated hours, {} operations checked, {faults} faults of {} kinds, {} black-outs, acknowledged \
             lost or stale {broken}, corrupt injected/detected/repaired/served {}/{}/{}/{broken}, liveness failures {}, \
             {bound}, {} events/s, {rate} seeds/h",
            self.seeds,
            self.simulated_s / 3600,
            self.steps,
            self.faults.len(),
            self.faults.get(&Fault::PowerAll).copied().unwrap_or(0),
            self.rotten,
            self.bad_blocks,
            self.repaired_blocks,
            self.stuck_seeds,
            (self.events as f64 / seconds) as u64,
        );
    }
}
