//! Random worlds: every seed draws faults, and no acknowledged write is lost, no read is stale, all copies end the same.
//!
//! `SEEDS=n` runs more of them, `SEED=s` one with its trace.

mod world;

use std::panic::AssertUnwindSafe;

use world::{MS, Options, World};

fn run(seed: u64, trace: bool) -> World {
    let mut world = World::new(seed, Options::drawn(seed));
    world.trace = trace;
    let end = world.faults_until / MS;
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        world.run(end, |_| false);
        world.finish();
    }));
    if let Err(panic) = result {
        world.log.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}\n{}", world.state());
        std::panic::resume_unwind(panic);
    }
    world
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_acknowledged_write_is_lost_and_no_read_is_stale() {
    if let Some(seed) = number("SEED") {
        run(seed, true);
        return;
    }
    let first = number("FIRST_SEED").unwrap_or(1);
    let count = number("SEEDS").unwrap_or(300);
    let (mut operations, mut commits, mut copies, mut resets) = (0, 0, 0, 0);
    for seed in first..first + count {
        let world = run(seed, false);
        operations += world.clients.iter().map(|client| client.ops.len()).sum::<usize>();
        commits += world.committed.len();
        copies += world.copies;
        resets += world.resets;
    }
    println!("{count} seeds, {operations} operations, {commits} entries, {copies} copies, {resets} resets");
    assert!(operations as u64 > 50 * count && resets > count / 10, "a run that tested nothing");
}
