//! `cargo sim`: replays one seed with a trace, or runs many and reports.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use sim::report::Report;
use sim::run::{Options, run};
use sim::shrink::{parse_ranges, ranges, shrink};

type Skip = BTreeSet<u64>;

/// Runs the whole system on virtual time, from seeds.
#[derive(Parser)]
#[command(name = "sim")]
struct Args {
    /// The seed to run, or the first of many.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds to run, one after another.
    #[arg(long)]
    seeds: Option<u64>,
    /// Stop after so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads; each runs seeds of its own.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Go on after a failing seed and list all of them.
    #[arg(long)]
    keep_going: bool,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
    /// With one seed: leave these faults out, by their numbers in the trace, as in 0-4,7.
    #[arg(long, value_parser = skipped, default_value = "")]
    skip: Skip,
    /// With one seed that fails: find out which faults it needs.
    #[arg(long)]
    shrink: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match (args.seed, args.seeds, args.minutes) {
        (Some(seed), None, None) if args.shrink => shrink_one(seed),
        (Some(seed), None, None) => one(seed, &Options { skip: args.skip.clone(), prints: args.trace }),
        _ => many(&args),
    }
}

fn skipped(text: &str) -> Result<Skip, String> {
    parse_ranges(text)
}

fn shrink_one(seed: u64) -> ExitCode {
    let Some(shrunk) = shrink(seed) else {
        println!("seed {seed} does not fail: nothing to shrink");
        return ExitCode::FAILURE;
    };
    println!("seed {seed} fails with {} faults, after {} runs: {}", shrunk.kept, shrunk.runs, shrunk.failure);
    println!("  replay: cargo sim --seed {seed} --skip {} --trace", ranges(&shrunk.skip));
    ExitCode::SUCCESS
}

fn one(seed: u64, options: &Options) -> ExitCode {
    let begun = Instant::now();
    let outcome = run(seed, options);
    println!(
        "seed {seed}: {} events, {} requests answered, trace {:016x}",
        outcome.events, outcome.answered, outcome.hash
    );
    let mut report = Report::default();
    report.add(&outcome);
    report.print(begun.elapsed());
    match outcome.failure {
        None => ExitCode::SUCCESS,
        Some(text) => {
            println!("seed {seed} FAILS {text}");
            ExitCode::FAILURE
        }
    }
}

fn many(args: &Args) -> ExitCode {
    let first = args.seed.unwrap_or(1);
    let count = args.seeds.unwrap_or(u64::MAX - first);
    let end = args.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failures: Mutex<Vec<(u64, String)>> = Mutex::default();
    let report: Mutex<Report> = Mutex::default();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let seed = first + index;
                    let outcome = run(seed, &Options::default());
                    if let (Some(text), Ok(mut failures)) = (&outcome.failure, failures.lock()) {
                        println!("seed {seed} FAILS {text}\n  replay: cargo sim --seed {seed} --trace, in short: cargo sim --seed {seed} --shrink");
                        failures.push((seed, text.clone()));
                        stop.fetch_or(!args.keep_going, Ordering::Relaxed);
                    }
                    if let Ok(mut report) = report.lock() {
                        report.add(&outcome);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    let report = report.into_inner().unwrap_or_default();
    if !failures.is_empty() {
        let seeds: Vec<String> = failures.iter().map(|(seed, _)| seed.to_string()).collect();
        println!("{} of {} seeds FAIL: {}", seeds.len(), report.seeds(), seeds.join(" "));
    }
    if !report.is_worth_something() {
        println!("nothing was tested");
        return ExitCode::FAILURE;
    }
    report.print(begun.elapsed());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
