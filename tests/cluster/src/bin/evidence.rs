//! The long runs. Each writes what it measured into `docs/evidence/`: commit, command, machine, figures.
//!
//! `cargo run --release -p cluster --bin evidence -- RUN`; without one it names them.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use cluster::runs::{
    blackout, chaos, crowd, events, interop, kills, many, memory, pause, rebuild, restarts, shares, show,
};
use cluster::{programs, shell};

/// What a run measured, as text, and whether it is what is promised.
type Measured = anyhow::Result<(String, anyhow::Result<()>)>;

/// A run.
struct Run {
    name: &'static str,
    title: &'static str,
    run: fn() -> Measured,
}

const fn run(name: &'static str, title: &'static str, run: fn() -> Measured) -> Run {
    Run { name, title, run }
}

/// All of them.
const ALL: &[Run] = &[
    run("a2", "A tree is copied while servers and metadata managers are killed", a2),
    run("a3", "All processes are killed at once during writes", a3),
    run("a4", "Other people's clients, also while a server is killed", a4),
    run("a5", "The pause after a kill", a5),
    run("a7", "Memory under 30 minutes of random writes", a7),
    run("many", "A thousand volumes on one host", many_volumes),
    run("n3", "The data client ends and starts under a device of the fallback", n3),
    run("n4", "A crowd on one volume", n4),
    run("n5", "A hundred volumes written at once", n5),
    run("pauses", "How long a client waits, event by event", pauses),
    run("chaos", "Random kills, pauses and cuts under load", chaos_run),
    run("rebuild", "What comes back after an absence and after a loss", rebuild_runs),
];

/// Most that a daemon may grow between the looks, in percent.
const GROWTH_PERCENT_MAX: u64 = 110;
/// Most memory of a data server with two devices.
const SDS_BYTES_MAX: u64 = 400 << 20;
/// Most that the absence of all metadata managers may add to the longest gap.
const MDM_GAP_MAX: Duration = Duration::from_millis(50);
/// Largest median of the pauses after a killed server.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How much longer than its daemon's absence a request may take.
const RESENT_WITHIN: Duration = Duration::from_secs(12);
/// How far from the mean a volume's share may be, and how far from its limit what it gets.
const SHARE_OFF_MAX: f64 = 0.20;
/// As `SHARE_OFF_MAX`, for limits.
const LIMIT_OFF_MAX: f64 = 0.05;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [name] => evidence(name),
        _ => Err(anyhow::anyhow!("name one run: {}", names())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("evidence: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn names() -> String {
    ALL.iter().map(|run| run.name).collect::<Vec<_>>().join(", ")
}

fn evidence(name: &str) -> anyhow::Result<()> {
    let run = ALL.iter().find(|run| run.name == name);
    let run = run.with_context(|| format!("there is no run '{name}': choose one of {}", names()))?;
    // What was run is what is there now: the tree may move on meanwhile.
    let source = source()?;
    programs::folder()?;
    let started = Instant::now();
    let (text, verdict) = (run.run)()?;
    let folder = programs::root().join("docs").join("evidence");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{name}.md"));
    let text = format!("# {}\n\n{}{text}", run.title, preface(name, &source, started.elapsed())?);
    std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    print!("{text}");
    verdict
}

/// The commit, and whether the programs are of it.
fn source() -> anyhow::Result<String> {
    let root = programs::root();
    let git = |arguments: &[&str]| shell::run(std::process::Command::new("git").current_dir(&root).args(arguments));
    let mut text = format!("`{}`", git(&["rev-parse", "HEAD"])?.trim());
    if !git(&["status", "--porcelain", "--untracked-files=no"])?.trim().is_empty() {
        text.push_str(", with changes on top");
    }
    if std::env::var_os("ASHLAR_PROGRAMS").is_some() {
        text.push_str("; the programs were built earlier");
    }
    Ok(text)
}

/// What was run, of which commit, on what kind of machine.
fn preface(name: &str, source: &str, span: Duration) -> anyhow::Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let kernel: Vec<&str> = kernel.trim().split(['.', '-']).take(2).collect();
    let cores = std::thread::available_parallelism().context("cannot count the cores")?;
    Ok(format!(
        "| | |\n|---|---|\n| commit | {source} |\n\
         | command | `cargo run --release -p cluster --bin evidence -- {name}` |\n\
         | machine | {cores} virtual cores, Linux {}; all daemons and devices on one disk |\n| duration | {} |\n\n",
        kernel.join("."),
        show(span)
    ))
}

fn a2() -> Measured {
    let outcome = kills::run(&kills::FULL)?;
    let mut text = format!(
        "A tree of {} files and {} MiB was copied {} times onto a mounted ext4 without an I/O error; the last {} copies \
         equal the source (`diff -r`, after a fresh mount); `e2fsck -fn` is clean.\n\n| fault | all healthy after |\n|---|---|\n",
        outcome.tree.files,
        outcome.tree.bytes >> 20,
        outcome.copies,
        outcome.compared
    );
    for (what, span) in &outcome.faults {
        writeln!(text, "| {what} | {} |", show(*span))?;
    }
    Ok((text, Ok(())))
}

fn a3() -> Measured {
    let outcome = blackout::run(&blackout::FULL)?;
    let healing: Vec<String> = outcome.healing.iter().map(|span| show(*span)).collect();
    let text = format!(
        "{} black-outs. All of {} records that `fsync` had acknowledged and all of {} answered writes are there; \
         `e2fsck -fn` is clean after each; all copies are identical (the volumes were read with each data server down in \
         turn).\n\nFrom the start of all processes to full health: {}.\n",
        outcome.healing.len(),
        outcome.records,
        outcome.writes,
        healing.join(", ")
    );
    Ok((text, Ok(())))
}

fn a4() -> Measured {
    let outcome = interop::run(&interop::FULL)?;
    let text = format!(
        "`nbdcopy` and `qemu-img convert` each wrote an image of {} MiB and read it back identical. `fio --ioengine=nbd` \
         (random writes of 4 KiB to 1 MiB, depth 32, `verify=crc32c`): {} run undisturbed and {} run(s) during which \
         a server was killed and started {} times, all verified.\n",
        outcome.image_bytes >> 20,
        outcome.fio_runs.0,
        outcome.fio_runs.1,
        outcome.kills
    );
    Ok((text, Ok(())))
}

fn a5() -> Measured {
    let outcome = pause::run(&pause::FULL)?;
    let gaps: Vec<String> = outcome.kills.iter().map(|gap| show(*gap)).collect();
    let text = format!(
        "Longest time between completions of a 4 KiB write loop over every chunk in turn, depth 1; {} writes in all.\n\n\
         | | longest gap |\n|---|---|\n| nothing wrong | {} |\n| all metadata managers dead | {} |\n\
         | a server killed and left down 10 s, median of {} | {} |\n\nEach kill: {}.\n",
        outcome.writes,
        show(outcome.undisturbed),
        show(outcome.without_mdms),
        outcome.kills.len(),
        show(outcome.median()),
        gaps.join(", ")
    );
    let verdict = if outcome.median() > PAUSE_MAX {
        Err(anyhow::anyhow!("the median pause is above {}", show(PAUSE_MAX)))
    } else if outcome.without_mdms > outcome.undisturbed + MDM_GAP_MAX {
        Err(anyhow::anyhow!("without metadata managers the gap is more than {} longer", show(MDM_GAP_MAX)))
    } else {
        Ok(())
    };
    Ok((text, verdict))
}

fn a7() -> Measured {
    let usages = memory::run(&memory::FULL)?;
    let mut text = String::from(
        "Resident memory while `fio` writes 4 KiB at random at depth 32.\n\n| daemon | at 5 min | at 30 min |\n|---|---|---|\n",
    );
    let mut verdict = Ok(());
    for usage in &usages {
        writeln!(text, "| {} | {} MiB | {} MiB |", usage.name, usage.early_bytes >> 20, usage.late_bytes >> 20)?;
        if usage.late_bytes * 100 > usage.early_bytes * GROWTH_PERCENT_MAX {
            verdict = Err(anyhow::anyhow!("{} has grown by more than a tenth", usage.name));
        }
        if usage.name.starts_with("sds") && usage.late_bytes > SDS_BYTES_MAX {
            verdict = Err(anyhow::anyhow!("{} needs more than 400 MiB", usage.name));
        }
    }
    Ok((text, verdict))
}

/// What an event may cost at most, as the 99th percentile; of a killed leader: above what is seen without any fault.
fn pause_target(event: events::Event, nothing: Duration) -> Option<Duration> {
    match event {
        events::Event::Nothing => None,
        events::Event::Process => Some(Duration::from_secs(1)),
        events::Event::Host | events::Event::Cut => Some(Duration::from_secs(3)),
        events::Event::Leader => Some(nothing + MDM_GAP_MAX),
    }
}

fn pauses() -> Measured {
    let found = events::run(&events::FULL)?;
    let mut text = String::from(
        "Longest time between completions of a 4 KiB write loop over every chunk in turn, depth 1, for each event.\n\n\
         | event | events | p50 | p99 | target of p99 |\n|---|---|---|---|---|\n",
    );
    let nothing = found.first().map(|gaps| gaps.percentile(99)).unwrap_or_default();
    let mut verdict = Ok(());
    for gaps in &found {
        let (p50, p99) = (gaps.percentile(50), gaps.percentile(99));
        let target = pause_target(gaps.event, nothing);
        let wanted = target.map_or("-".to_owned(), show);
        writeln!(text, "| {} | {} | {} | {} | {wanted} |", gaps.event.name(), gaps.count(), show(p50), show(p99))?;
        if target.is_some_and(|target| p99 > target) {
            verdict = Err(anyhow::anyhow!("{}: p99 is above its target", gaps.event.name()));
        }
    }
    Ok((text, verdict))
}

fn rebuild_runs() -> Measured {
    let back = rebuild::after_an_absence()?;
    let part = back.copied_bytes as f64 / rebuild::OVERWRITTEN_BYTES as f64;
    let mut text = format!(
        "A replica that was away while {} MiB of a volume of 4 GiB were overwritten, in blocks of 4 KiB at random places: {:.1} MiB \
         were copied to it ({part:.2} of what was written), healthy {} after its start.\n\n\
         A device of 8 GiB with 4 GiB of data is lost with its server, of three; a writer of 4 KiB at random places, depth 1, is \
         watched before and meanwhile.\n\n\
         | run | copied | by each server | in | p50 before, meanwhile | p99 before, meanwhile | looks with progress, with time left | \
         half-way: said, was |\n|---|---|---|---|---|---|---|---|\n",
        rebuild::OVERWRITTEN_BYTES >> 20,
        back.copied_bytes as f64 / f64::from(1 << 20),
        show(back.span)
    );
    let mut ratios = Vec::new();
    for run in 1..=3 {
        let found = rebuild::of_a_lost_device()?;
        let by_server: Vec<String> = found.by_server.iter().map(|bytes| format!("{} MiB", bytes >> 20)).collect();
        let fine = crowd::show_fine;
        writeln!(
            text,
            "| {run} | {} MiB | {} | {} | {}, {} | {}, {} | {}, {} | {} |",
            found.copied_bytes >> 20,
            by_server.join(", "),
            show(found.span),
            fine(found.before.p50),
            fine(found.meanwhile.p50),
            fine(found.before.p99),
            fine(found.meanwhile.p99),
            found.looks.0,
            found.looks.1,
            found.estimate.map_or("-".to_owned(), |(said, was)| format!("{}, {}", show(said), show(was)))
        )?;
        ratios.push(found.meanwhile.p50.as_secs_f64() / found.before.p50.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(1).copied().unwrap_or_default();
    writeln!(text, "\nMedian of the ratios of p50: {median:.2}.")?;
    let verdict = if part > 1.2 {
        Err(anyhow::anyhow!("more than 1.2 times what was written was copied"))
    } else if median > 2.0 {
        Err(anyhow::anyhow!("writes take more than twice as long during a rebuild"))
    } else {
        Ok(())
    };
    Ok((text, verdict))
}

fn chaos_run() -> Measured {
    let outcome = chaos::run(&chaos::FULL)?;
    let faults: Vec<String> = outcome.faults.iter().map(|(kind, count)| format!("{count} {kind}s")).collect();
    let text = format!(
        "{} in {}, each undone after 0.5 to 6 s and followed by full health. No request failed.\n\n\
         - `fio` over NBD: {} requests in {} rounds, all verified (`verify=crc32c`).\n\
         - Registers that clients on two hosts share: {} requests at {} blocks, linearizable by the simulator's checker.\n\
         - A writer over every chunk in turn: {} writes, the longest gap {}.\n\
         - The longest time to full health after a fault was undone: {}.\n",
        faults.join(", "),
        show(outcome.span),
        outcome.fio.requests,
        outcome.fio.rounds,
        outcome.checked.steps,
        outcome.checked.registers,
        outcome.writes,
        show(outcome.longest_gap),
        show(outcome.longest_healing)
    );
    Ok((text, Ok(())))
}

fn many_volumes() -> Measured {
    let outcome = many::run(&many::FULL)?;
    let text = format!(
        "{} volumes mapped to one data client at once, each served, written and read. Made and mapped one by one in {}; all \
         were served {} after the last command. A block of each was written and read in {}. After a SIGKILL of the data client \
         all were served again, with what was written, {} after its start. Its resident memory: {} MiB before, {} MiB after.\n",
        many::FULL.volumes,
        show(outcome.making),
        show(outcome.serving),
        show(outcome.touching),
        show(outcome.returning),
        outcome.resident_bytes.0 >> 20,
        outcome.resident_bytes.1 >> 20
    );
    Ok((text, Ok(())))
}

fn n3() -> Measured {
    let outcome = restarts::run(&restarts::FULL)?;
    let text = format!(
        "Device: {}. {} orderly restarts and {} SIGKILLs of the data client while `fio` wrote the device at random at depth 16 \
         and verified it (`verify=crc32c`): {} requests in {} rounds, 0 errors. The daemon was away for at most {}; the longest \
         request took {}.\n",
        outcome.mechanism,
        restarts::FULL.restarts,
        restarts::FULL.kills,
        outcome.load.requests,
        outcome.load.rounds,
        show(outcome.longest_down),
        show(outcome.load.longest)
    );
    let verdict = if outcome.load.longest > outcome.longest_down + RESENT_WITHIN {
        Err(anyhow::anyhow!("a request took longer than the daemon was away and {} more", show(RESENT_WITHIN)))
    } else {
        Ok(())
    };
    Ok((text, verdict))
}

fn n4() -> Measured {
    let outcome = crowd::run(&crowd::FULL)?;
    let mut text = format!(
        "{} idle connections and {} slow readers on one volume; the 99th percentile of 4 KiB requests, depth 1, on another \
         (median of three looks of {} each). The slow readers took {} MiB meanwhile.\n\n\
         | | p99 of writes | p99 of reads | memory of the data client |\n|---|---|---|---|\n",
        crowd::FULL.idle,
        crowd::FULL.slow,
        crowd::FULL.requests,
        outcome.sipped_bytes >> 20
    );
    let looks = [
        ("nobody else", outcome.alone),
        ("beside the idle", outcome.beside_idle),
        ("beside the slow too", outcome.beside_slow),
    ];
    let mut verdict = Ok(());
    for (when, look) in looks {
        let (write, read) = (crowd::show_fine(look.write), crowd::show_fine(look.read));
        writeln!(text, "| {when} | {write} | {read} | {} MiB |", look.resident_bytes >> 20)?;
        if look.write >= outcome.alone.write * 2 || look.read >= outcome.alone.read * 2 {
            verdict = Err(anyhow::anyhow!("{when}: p99 is twice its normal value"));
        }
    }
    Ok((text, verdict))
}

fn n5() -> Measured {
    let outcome = shares::run(&shares::FULL)?;
    let (least, mean, most) = shares::spread(&outcome.free);
    let mut text = format!(
        "{} volumes, on each a `fio` job of random 16 KiB writes at depth 4, all at once. Without limits, over {}: {least:.1} to \
         {most:.1} writes per second, mean {mean:.1}: {:+.1} % to {:+.1} %.\n\nWith limits, over {}, as parts of the limit:\n\n\
         | limit | least | mean | most |\n|---|---|---|---|\n",
        shares::FULL.volumes,
        show(shares::FULL.free),
        (least / mean - 1.0) * 100.0,
        (most / mean - 1.0) * 100.0,
        show(shares::FULL.limited)
    );
    let off = |value: f64, whole: f64, part: f64| (value / whole - 1.0).abs() > part;
    let mut verdict = Ok(());
    if off(least, mean, SHARE_OFF_MAX) || off(most, mean, SHARE_OFF_MAX) {
        verdict = Err(anyhow::anyhow!("a volume's share is more than a fifth off the mean"));
    }
    let limited = [("4 requests per second", &outcome.by_requests), ("64 KiB per second", &outcome.by_bytes)];
    for (what, parts) in limited {
        let (least, mean, most) = shares::spread(parts);
        writeln!(text, "| {what} | {least:.3} | {mean:.3} | {most:.3} |")?;
        if off(least, 1.0, LIMIT_OFF_MAX) || off(most, 1.0, LIMIT_OFF_MAX) {
            verdict = Err(anyhow::anyhow!("{what} was not held within a twentieth"));
        }
    }
    Ok((text, verdict))
}
