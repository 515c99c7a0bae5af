//! Planned moves of the role: nobody waits, and nobody serves who has released.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod world;

use sds_replica::Role;
use world::{MS, Options, World, device};

/// Two copies with a value in the first two sectors; the primary, and the other.
fn written() -> (World, usize, usize, u64) {
    let mut world = World::healthy(Options::quiet(2));
    let op = world.begin(0, 0, 0, 2, true);
    world.wait(0, op).unwrap();
    let value = world.clients[0].ops[&op].value.unwrap();
    let primary = world.primary().unwrap();
    (world, primary, 1 - primary, value)
}

fn read(world: &mut World) -> Vec<u64> {
    let op = world.begin(1, 0, 0, 2, false);
    world.wait(1, op).unwrap()
}

#[test]
fn a_planned_move_needs_no_wait() {
    let (mut world, _, new, value) = written();
    let begun = world.now;
    world.manager.move_to(device(new));
    world.publish();
    assert!(world.run(2_000, |world| world.role(new) == Role::Primary), "{}", world.state());
    assert!(world.now - begun < 100 * MS, "{} ms", (world.now - begun) / MS);
    assert_eq!(read(&mut world), [value, value]);
    world.finish();
}

// I13: whoever leads next does not wait for the leases of the last one.
#[test]
fn a_primary_that_has_released_serves_nobody_until_the_role_has_moved() {
    let (mut world, old, new, value) = written();
    world.manager.move_to(device(new));
    world.publish();
    world.manager.awake = false;
    world.run(300, |_| false);
    assert_eq!(world.role(old), Role::Primary, "it asks in vain");
    let early = world.begin(1, 0, 0, 2, false);
    assert!(!world.run(2_000, |world| world.result(1, early).is_some()), "the old primary answers");
    world.manager.awake = true;
    assert_eq!(world.wait(1, early).unwrap(), [value, value]);
    assert_eq!(world.role(new), Role::Primary);
    world.finish();
}

#[test]
fn a_move_to_an_heir_that_is_lost_leaves_the_role_where_it_was() {
    let (mut world, old, heir, value) = written();
    world.crash(heir, 0);
    world.manager.move_to(device(heir));
    world.publish();
    assert!(world.run(5_000, |world| world.manager.config.isr == [device(old)]), "{}", world.state());
    assert_eq!(read(&mut world), [value, value]);
    assert_eq!(world.role(old), Role::Primary);
    world.start(heir);
    world.finish();
}
