//! Many who use a data client at once get their share, and hold nobody up.

use std::time::Duration;

use cluster::runs::{crowd, shares};

#[test]
fn limits_hold_and_no_volume_is_left_behind() {
    let outcome = shares::run(&shares::SHORT).unwrap();
    let (least, mean, _) = shares::spread(&outcome.free);
    assert!(least > mean / 2.0, "a volume got {least} of {mean} writes per second");
    // Five seconds of four requests: one more or less is one in twenty, and a busy machine may cost some.
    for part in outcome.by_requests.iter().chain(&outcome.by_bytes) {
        assert!((0.7..1.11).contains(part), "a volume got {part} of its limit");
    }
}

#[test]
fn idle_and_slow_connections_leave_other_volumes_in_peace() {
    let outcome = crowd::run(&crowd::SHORT).unwrap();
    assert!(outcome.sipped_bytes > 0);
    // What a busy machine may add to a 99th percentile is more than the crowd may; the full run compares.
    assert!(outcome.beside_slow.read < Duration::from_millis(500), "{outcome:?}");
    assert!(outcome.beside_slow.resident_bytes < 900 << 20, "{outcome:?}");
}
