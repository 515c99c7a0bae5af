//! Hostile input to the decoders of the store, of the data protocol and of NBD: whatever lies on a device or comes over a
//! socket, nothing panics and nothing is taken for granted.
//!
//! Each target begins with samples that are right, breaks them in small ways, and where a checksum guards the rest, makes the
//! checksum right again, so that what is behind it is reached. What is decoded is encoded again and must come out the same.
//!
//! The same seed gives the same cases. A case that fails is written to a file and can be tried again with `--case`.

mod device;
mod mutate;
mod network;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;

use mutate::Random;
use targets::{TARGETS, Target};

/// Hostile input to every decoder.
#[derive(Parser)]
#[command(name = "fuzz", version)]
struct Arguments {
    /// Seconds for all targets together.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Only this target.
    #[arg(long)]
    target: Option<String>,
    /// Where the sequence of cases begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One case from a file, for the named target.
    #[arg(long, requires = "target")]
    case: Option<PathBuf>,
    /// Where cases that fail are written.
    #[arg(long, default_value = "target/fuzz")]
    failures: PathBuf,
}

/// Tries one case. False if it panicked.
fn holds(target: &Target, case: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.check)(case))).is_ok()
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let chosen: Vec<&Target> =
        TARGETS.iter().filter(|target| arguments.target.as_ref().is_none_or(|name| name == target.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        bail!("no such target; there are {}", names.join(", "));
    }
    if let (Some(path), [target]) = (&arguments.case, &chosen[..]) {
        let case = std::fs::read(path).with_context(|| path.display().to_string())?;
        return Ok(holds(target, &case));
    }
    let share = Duration::from_secs(arguments.seconds) / chosen.len() as u32;
    let mut all_hold = true;
    for target in chosen {
        let samples = (target.samples)();
        let mut random = Random(arguments.seed);
        let (begin, mut cases) = (Instant::now(), 0_u64);
        for sample in &samples {
            if !holds(target, sample) {
                bail!("{}: a sample that is right does not pass", target.name);
            }
        }
        while begin.elapsed() < share {
            let mut case = samples[random.below(samples.len() as u64) as usize].clone();
            let other = &samples[random.below(samples.len() as u64) as usize];
            mutate::mutate(&mut case, other, &mut random);
            (target.mend)(&mut case, &mut random);
            cases += 1;
            if !holds(target, &case) {
                std::fs::create_dir_all(&arguments.failures)?;
                let path = arguments.failures.join(format!("{}-{}-{cases}", target.name, arguments.seed));
                std::fs::write(&path, &case)?;
                println!("{}: FAILED: tests/fuzz/run --target {0} --case {}", target.name, path.display());
                all_hold = false;
                break;
            }
        }
        println!("{:<12} {cases} cases from {} samples", target.name, samples.len());
        if cases == 0 {
            bail!("{}: no case was tried", target.name);
        }
    }
    Ok(all_hold)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}
