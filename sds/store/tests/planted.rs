//! Bugs on purpose are found: a test that cannot fail proves nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sds_store::planted::{ALL, Bug};
use sds_store::store::Options;
use support::world::{number, options_of, run};
use support::{Machine, Random, open};

const SIZE: u64 = 16 << 20;
const JOURNAL: u64 = 256 << 10;
const STEPS: u64 = 3000;

/// The first seed that finds it.
fn found_by(bug: Bug, seeds: u64) -> Option<u64> {
    // Large writes are small here in every seed but the third, so that every way is gone.
    let is_found = |seed: &u64| {
        let options = Options { bug: Some(bug), ..options_of(*seed) };
        catch_unwind(AssertUnwindSafe(|| run(*seed, STEPS, options))).is_err()
    };
    (1..=seeds).find(is_found)
}

#[test]
fn every_planted_bug_is_found_by_the_enumeration() {
    let seeds = number("STORE_PLANTED_SEEDS", 150);
    for bug in ALL.into_iter().filter(|bug| *bug != Bug::TrustLoneSuper) {
        let seed = found_by(bug, seeds);
        println!("{bug:?}: found by seed {seed:?}");
        assert!(seed.is_some(), "{bug:?} is not found within {seeds} seeds");
    }
}

#[test]
fn a_lone_super_block_that_is_trusted_is_found() {
    let machine = Machine::fresh(SIZE, JOURNAL);
    let places = machine.store.super_block().geometry.super_offsets.map(|offset| offset / 4096);
    let opens = |bug| {
        let mut disk = machine.disk.crash(&mut Random(1));
        places.iter().skip(1).for_each(|block| disk.rot(*block));
        open(&mut disk, Options { bug, ..Options::default() }).is_ok()
    };
    assert_eq!((opens(None), opens(Some(Bug::TrustLoneSuper))), (false, true));
}
