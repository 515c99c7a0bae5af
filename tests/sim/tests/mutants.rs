//! The net holds: code that is broken on purpose, in one way at a time, is found by the simulator within so many seeds.
//!
//! Run on demand: `cargo test --release -p sim --features mutants --test mutants -- --nocapture`. `MUTANT=name` runs one.
//! The table that it prints stands in `docs/simulation.md`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mdm_api::mutants::{Mutant, choose};
use sim::run::{Options, guarded};

/// Seeds within which each is found.
const SEEDS_MAX: u64 = 2000;
const FIRST_SEED: u64 = 1;
const THREADS: usize = 2;

/// The first seed that fails with this mutant, counted from 1, and what it says.
fn find(mutant: Mutant) -> Option<(u64, String)> {
    (FIRST_SEED..FIRST_SEED + SEEDS_MAX).find_map(|seed| {
        choose(Some(mutant));
        let outcome = guarded(seed, &Options::default());
        choose(None);
        let failure = outcome.failure?;
        // A seed that fails without the mutant as well has found something else.
        if guarded(seed, &Options::default()).failure.is_some() {
            return None;
        }
        let line = failure.lines().next().unwrap_or_default().chars().take(110).collect();
        Some((seed - FIRST_SEED + 1, line))
    })
}

#[test]
fn every_mutant_is_found() {
    let wanted = std::env::var("MUTANT").ok();
    let is_wanted = |mutant: &Mutant| wanted.as_ref().is_none_or(|name| *name == format!("{mutant:?}"));
    let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(is_wanted).collect();
    assert!(!mutants.is_empty(), "there is no such mutant");
    // Assertions of the broken code are one way to be found; they need not be told.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<Option<(u64, String)>>> = Mutex::new(vec![None; mutants.len()]);
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = find(*mutant);
                    total.fetch_add(result.as_ref().map_or(SEEDS_MAX, |(seeds, _)| *seeds), Ordering::Relaxed);
                    match &result {
                        Some((seeds, text)) => println!("| {mutant:?} | {seeds} | {text} |"),
                        None => println!("| {mutant:?} | not within {SEEDS_MAX} | |"),
                    }
                    let place = mutants.iter().position(|other| other == mutant).expect("it is of the list");
                    found.lock().expect("nobody panics with it")[place] = result;
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let found = found.into_inner().expect("nobody panics with it");
    let missed: Vec<&Mutant> =
        mutants.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(m, _)| m).collect();
    println!("{} of {} found, {} seeds", found.len() - missed.len(), found.len(), total.load(Ordering::Relaxed));
    assert!(missed.is_empty(), "not found within {SEEDS_MAX} seeds: {missed:?}");
}
