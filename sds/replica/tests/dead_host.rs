//! How long a group stands still when a host vanishes: its peers hear nothing, and no connection is reset.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod world;

use sds_replica::Role;
use world::{MS, Options, World};

fn pair(seed: u64) -> World {
    let mut world = World::new(seed, Options::quiet(2));
    assert!(world.run(10_000, World::is_healthy), "{}", world.state());
    world
}

/// Nothing reaches the node or comes from it, and nobody is told.
fn vanish(world: &mut World, node: usize) {
    world.cut(node, 1 - node, 60_000);
    world.cut(1 - node, node, 60_000);
    world.manager.cut[node] = Some(world.now);
}

// F2: 1.2 s until the server is taken to be dead, 0.3 s until its member is left.
#[test]
fn the_new_primary_does_not_wait_for_the_dead_one_as_long_as_for_one_that_may_live() {
    for seed in 1..=8 {
        let mut world = pair(seed);
        let (old, began) = (world.primary().unwrap(), world.now);
        vanish(&mut world, old);
        assert!(world.run(5_000, |world| world.role(1 - old) == Role::Primary), "{}", world.state());
        let ms = (world.now - began) / MS;
        assert!(ms <= 1800, "seed {seed}: {ms} ms");
    }
}

// F3, by silence.
#[test]
fn a_primary_leaves_a_member_that_is_taken_to_be_dead_when_it_has_not_answered_for_a_moment() {
    for seed in 1..=8 {
        let mut world = pair(seed);
        let (primary, began) = (world.primary().unwrap(), world.now);
        vanish(&mut world, 1 - primary);
        world.run(1_000, |_| false);
        let op = world.begin(0, 0, 0, 1, true);
        world.wait(0, op).unwrap();
        let ms = (world.now - began) / MS;
        assert!(ms <= 1500, "seed {seed}: {ms} ms");
    }
}

// F6: the metadata manager alone does not hear it.
#[test]
fn a_member_that_answers_stays_whoever_is_taken_to_be_dead() {
    let mut world = pair(7);
    let primary = world.primary().unwrap();
    world.manager.cut[1 - primary] = Some(world.now);
    for _ in 0..40 {
        let op = world.begin(0, 0, 0, 1, true);
        world.wait(0, op).unwrap();
        world.run(100, |_| false);
    }
    assert_eq!(world.manager.config.isr.len(), 2, "{}", world.state());
}
