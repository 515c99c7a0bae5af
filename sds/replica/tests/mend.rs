//! What a scrub finds is repaired, whoever finds it, whatever happens to those who are asked.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod world;

use sds_replica::Event;
use world::clients::layer;
use world::{Options, World};

/// Two copies with four blocks of data, on which nobody waits for anything.
fn written() -> World {
    let mut world = World::healthy(Options::quiet(2));
    let op = world.begin(0, 0, 0, 8, true);
    world.wait(0, op).unwrap();
    world.run(200, |_| false);
    world
}

fn spoil(world: &mut World, node: usize, block: u16) {
    world.nodes[node].store.bad.insert((layer(0), block));
}

fn find(world: &mut World, node: usize, block: u16) {
    world.step(node, Event::BadBlock { layer: layer(0), block });
}

#[test]
fn a_bad_block_is_repaired_in_every_role_without_anybody_reading_it() {
    for is_primary in [true, false] {
        let mut world = written();
        let primary = world.primary().unwrap();
        let node = if is_primary { primary } else { 1 - primary };
        for block in 0..4 {
            spoil(&mut world, node, block);
            find(&mut world, node, block);
        }
        assert!(world.run(2_000, |world| world.nodes[node].store.bad.is_empty()), "primary: {is_primary}");
        world.run(100, |_| false);
        assert_eq!(world.bad_blocks, [true; 4], "primary: {is_primary}");
        world.check_copies();
    }
}

#[test]
fn what_was_found_is_kept_while_there_is_nobody_to_ask() {
    let mut world = written();
    let node = 1 - world.primary().unwrap();
    spoil(&mut world, node, 2);
    world.crash(1 - node, 0);
    find(&mut world, node, 2);
    world.run(500, |_| false);
    assert!(!world.nodes[node].store.bad.is_empty(), "nobody has a good copy to give");
    world.start(1 - node);
    assert!(world.run(10_000, |world| world.nodes[node].store.bad.is_empty()), "{}", world.state());
}

#[test]
fn a_block_that_is_bad_everywhere_is_said_to_be_lost_and_nothing_is_made_up() {
    let mut world = written();
    let primary = world.primary().unwrap();
    for node in [primary, 1 - primary] {
        spoil(&mut world, node, 1);
        find(&mut world, node, 1);
    }
    world.run(3_000, |_| false);
    assert!(world.bad_blocks.contains(&false) && !world.bad_blocks.contains(&true), "{:?}", world.bad_blocks);
    assert!(world.nodes.iter().all(|node| node.store.bad.contains(&(layer(0), 1))));
}

#[test]
fn a_write_in_between_is_not_undone_by_a_repair() {
    for delay_ms in 0..20 {
        let mut world = written();
        let node = 1 - world.primary().unwrap();
        spoil(&mut world, node, 1);
        let op = world.begin(0, 0, 2, 2, true);
        world.run(delay_ms, |_| false);
        find(&mut world, node, 1);
        world.wait(0, op).unwrap();
        assert!(world.run(3_000, |world| world.nodes[node].store.bad.is_empty()), "{delay_ms}: {}", world.state());
        world.run(200, |_| false);
        world.check_copies();
    }
}
