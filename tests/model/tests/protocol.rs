//! The model holds in every state that it reaches, and does not without any one of its rules.

use model::{Bounds, PROMISES, Protocol, Rule, STORIES};
use stateright::{Checker, HasDiscoveries, Model};

const THREADS: usize = 2;
/// Two changes of roles or members, without a restart.
const TWO_CHANGES: Bounds = Bounds { configs: 3, writes: 1, restarts: 0 };
/// One, with a restart.
const A_RESTART: Bounds = Bounds { configs: 2, writes: 1, restarts: 1 };
/// Both, which takes minutes and gigabytes.
const ALL: Bounds = Bounds { configs: 3, writes: 1, restarts: 1 };

fn check(bounds: Bounds) -> Vec<&'static str> {
    let checker = Protocol { bounds, without: None }.checker().threads(THREADS).spawn_bfs().join();
    println!("{bounds:?}: {} states, at most {} steps deep", checker.unique_state_count(), checker.max_depth());
    for promise in PROMISES {
        checker.assert_no_discovery(promise);
    }
    STORIES.into_iter().filter(|story| checker.discovery(story).is_some()).collect()
}

#[test]
fn no_order_of_events_breaks_a_promise() {
    let told = [check(A_RESTART), check(TWO_CHANGES)].concat();
    let untold: Vec<&str> = STORIES.into_iter().filter(|story| !told.contains(story)).collect();
    assert!(untold.is_empty(), "the model never comes to: {untold:?}");
}

/// As far as a machine of today goes: `cargo test --release --workspace --test protocol -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes and gigabytes of memory"]
fn no_order_of_more_events_breaks_a_promise() {
    check(ALL);
}

/// Where what goes wrong is within reach.
fn bounds_for(rule: Rule) -> Bounds {
    match rule {
        Rule::WaitAfterRestart => ALL,
        Rule::StopAfterRelease => Bounds { configs: 4, ..TWO_CHANGES },
        _ => TWO_CHANGES,
    }
}

#[test]
fn without_any_rule_something_goes_wrong() {
    let mut missed = Vec::new();
    for rule in Rule::ALL {
        let checker = Protocol { bounds: bounds_for(rule), without: Some(rule) }.checker().threads(THREADS);
        let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let broken = PROMISES.into_iter().find_map(|promise| Some((promise, checker.discovery(promise)?)));
        let states = checker.unique_state_count();
        match broken {
            Some((promise, path)) => {
                println!("{rule:?}: after {states} states not \"{promise}\": {:?}", path.into_actions());
            }
            None => missed.push(rule),
        }
    }
    assert!(missed.is_empty(), "nothing goes wrong without {missed:?}");
}
