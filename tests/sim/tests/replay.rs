//! A seed is all there is to know of a run.

use std::process::Command;

use sim::run::{Options, run};

/// Seeds of several kinds of clusters.
const SEEDS: [u64; 4] = [1, 2, 3, 4];

fn in_another_process(seed: u64) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sim")).args(["--seed", &seed.to_string()]).output().expect("sim runs");
    let text = String::from_utf8(output.stdout).expect("sim prints text");
    let line = text.lines().find(|line| line.contains("trace")).expect("sim tells the trace");
    line.rsplit(' ').next().expect("a line has words").to_owned()
}

#[test]
fn the_same_seed_is_the_same_run_in_one_process_and_in_two() {
    for seed in SEEDS {
        let (first, second) = (run(seed, &Options::default()), run(seed, &Options::default()));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.events, second.events);
        let elsewhere = in_another_process(seed);
        assert_eq!(format!("{:016x}", first.hash), elsewhere, "seed {seed}");
        assert_eq!(elsewhere, in_another_process(seed), "seed {seed}");
    }
}

#[test]
fn different_seeds_are_different_runs() {
    assert_ne!(run(1, &Options::default()).hash, run(2, &Options::default()).hash);
}

#[test]
fn a_run_without_seeds_fails() {
    let status = Command::new(env!("CARGO_BIN_EXE_sim")).args(["--seeds", "0"]).status().expect("sim runs");
    assert!(!status.success());
}
