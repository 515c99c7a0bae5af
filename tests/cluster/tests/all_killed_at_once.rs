//! Everything dies in the same moment: what was acknowledged is there when it returns.

use cluster::runs::blackout;

#[test]
fn what_fsync_acknowledged_survives_the_death_of_everything_at_once() {
    let outcome = blackout::run(&blackout::SHORT).unwrap();
    assert!(outcome.records > 0 && outcome.writes > 0, "{outcome:?}");
}
