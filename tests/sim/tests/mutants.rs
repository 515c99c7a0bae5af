//! The net holds: code that is broken on purpose, in one way at a time, is found by the simulator within so many seeds.
//!
//! Run on demand: `cargo test --release -p sim --features mutants --test mutants -- --nocapture`. `MUTANT=name` runs one,
//! `FIRST_SEED=n` begins elsewhere,
//! `TRACE=1` prints what happens. The table that it prints stands in `docs/simulation.md`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mdm_api::mutants::{Mutant, choose};
use sim::plan::{Fault, Plan};
use sim::run::{Options, run};

/// Seeds within which each is found.
const SEEDS_MAX: u64 = 2000;
const THREADS: usize = 2;

/// What came of the search for a mutant.
#[derive(Clone)]
struct Found {
    /// The first seed that fails, counted from the first.
    place: u64,
    /// How many were run until then.
    runs: u64,
    /// What it says.
    text: String,
}

/// False if a seed leaves out what this mutant must have to matter: it is counted, and not run. So a search never looks
/// better for it.
fn may_matter(mutant: Mutant, plan: &Plan) -> bool {
    let comes = |fault: Fault| plan.faults.contains(&fault);
    match mutant {
        Mutant::SkipLeaseWait => comes(Fault::Reject),
        Mutant::ReadWithoutLease => comes(Fault::AloneWithClient) && plan.sdcs > 1,
        Mutant::ForgetRequestsInResync => comes(Fault::LoseAnswers) && plan.retained_bytes < 1 << 20,
        Mutant::StaleMetadataHome => comes(Fault::RotMetadata) && plan.linger > 0,
        Mutant::WipedVoter => comes(Fault::LagAndWipe) && plan.mdms > 1,
        Mutant::GrowWithoutRequiring => comes(Fault::LateNews),
        Mutant::ForgetPromise => comes(Fault::CutFromMembers) && plan.copies > 2,
        Mutant::ServeUnverified => comes(Fault::Rot) || comes(Fault::Misdirect),
        Mutant::LinkBeforeStaged => plan.mix.large > 0,
        Mutant::TakeLateForNew => comes(Fault::LatePackets),
        _ => true,
    }
}

fn find(mutant: Mutant, first: u64) -> Option<Found> {
    let options = Options::default();
    let seeds = (first..first + SEEDS_MAX).filter(|seed| may_matter(mutant, &Plan::draw(*seed)));
    seeds.zip(1..).find_map(|(seed, runs)| {
        choose(Some(mutant));
        let outcome = run(seed, &Options { prints: std::env::var_os("TRACE").is_some(), ..options.clone() });
        choose(None);
        let failure = outcome.failure?;
        // A seed that fails without the mutant as well has found something else.
        if run(seed, &options).failure.is_some() {
            return None;
        }
        let text = failure.lines().next().unwrap_or_default().chars().take(110).collect();
        Some(Found { place: seed - first + 1, runs, text })
    })
}

#[test]
fn every_mutant_is_found() {
    let wanted = std::env::var("MUTANT").ok();
    let is_wanted = |mutant: &Mutant| wanted.as_ref().is_none_or(|name| *name == format!("{mutant:?}"));
    let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(is_wanted).collect();
    assert!(!mutants.is_empty(), "there is no such mutant");
    let first = std::env::var("FIRST_SEED").map_or(1, |text| text.parse().expect("FIRST_SEED is a number"));
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<Option<Found>>> = Mutex::new(vec![None; mutants.len()]);
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = find(*mutant, first);
                    total.fetch_add(result.as_ref().map_or(0, |found| found.runs), Ordering::Relaxed);
                    match &result {
                        Some(found) => println!("| {mutant:?} | {} | {} | {} |", found.place, found.runs, found.text),
                        None => println!("| {mutant:?} | not within {SEEDS_MAX} | | |"),
                    }
                    let place = mutants.iter().position(|other| other == mutant).expect("it is of the list");
                    found.lock().expect("nobody panics with it")[place] = result;
                }
            });
        }
    });
    let found = found.into_inner().expect("nobody panics with it");
    let missed: Vec<&Mutant> =
        mutants.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(m, _)| m).collect();
    println!("{} of {} found, in {} runs", found.len() - missed.len(), found.len(), total.load(Ordering::Relaxed));
    assert!(missed.is_empty(), "not found within {SEEDS_MAX} seeds: {missed:?}");
}
