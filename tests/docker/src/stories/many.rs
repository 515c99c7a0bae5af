//! Many volumes at once, and how long things take.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::host::{Daemon, Host};
use crate::site::Site;
use crate::stories::walk::first;

/// The middle of some measurements.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn call(host: &Host, endpoint: &str, body: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
    Ok(host.request(&format!("/VolumeDriver.{endpoint}"), &body.to_string())?.1)
}

/// D7: a volume that has a file system, mounted on a host that does not have it.
pub fn a_warm_volume_is_mounted_within_300_ms(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    ensure!(call(host, "Create", &json!({"Name": "warm"}))?["Err"] == "");
    let mut times = Vec::new();
    for round in 0..21 {
        let id = round.to_string();
        let begun = Instant::now();
        let mounted = call(host, "Mount", &json!({"Name": "warm", "ID": id}))?;
        // The first makes the file system.
        if round > 0 {
            times.push(begun.elapsed());
        }
        ensure!(mounted["Err"] == "", "{mounted}");
        ensure!(call(host, "Unmount", &json!({"Name": "warm", "ID": id}))?["Err"] == "");
    }
    let (worst, middle) = (times.iter().max().copied().unwrap_or_default(), median(times));
    println!("docker:   mount of a warm volume: p50 {} ms, max {} ms of 20", middle.as_millis(), worst.as_millis());
    ensure!(call(host, "Remove", &json!({"Name": "warm"}))?["Err"] == "");
    // A machine that is busy with other things is given three times as much.
    ensure!(middle < Duration::from_millis(900), "{middle:?}");
    Ok(())
}

/// D7: the list of 10,000 volumes. Long: making them takes minutes.
pub fn ten_thousand_volumes_are_listed(site: &mut Site) -> anyhow::Result<()> {
    const COUNT: usize = 10_000;
    let host = first(site)?;
    let begun = Instant::now();
    let on_all = |endpoint: &str| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|lane| {
                    scope.spawn(move || {
                        (lane..COUNT).step_by(16).try_for_each(|index| {
                            let body = json!({"Name": format!("many-{index}"), "Opts": {"size": "1MiB"}});
                            let answer = call(host, endpoint, &body)?;
                            ensure!(answer["Err"] == "", "{answer}");
                            Ok(())
                        })
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        })
    };
    on_all("Create")?;
    println!("docker:   {COUNT} volumes were made in {:.1} s", begun.elapsed().as_secs_f64());
    let mut times = Vec::new();
    for _ in 0..11 {
        let begun = Instant::now();
        let answer = call(host, "List", &json!({}))?;
        times.push(begun.elapsed());
        ensure!(answer["Volumes"].as_array().is_some_and(|all| all.len() == COUNT));
    }
    println!("docker:   list of {COUNT} volumes: p50 {} ms", median(times).as_millis());
    let mut times = Vec::new();
    for round in 0..11 {
        let id = round.to_string();
        let begun = Instant::now();
        ensure!(call(host, "Mount", &json!({"Name": "many-7", "ID": id}))?["Err"] == "");
        times.push(begun.elapsed());
        ensure!(call(host, "Unmount", &json!({"Name": "many-7", "ID": id}))?["Err"] == "");
    }
    println!("docker:   mount of one among them: p50 {} ms", median(times).as_millis());
    on_all("Remove")
}

/// A small, repeatable source of chance.
pub struct Chance(u64);

impl Chance {
    /// The same for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ (seed + 1).wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    /// Any number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What one client does: makes, mounts, unmounts, removes, without caring for what comes of it.
fn act(host: &Host, lane: u64, count: u64) {
    let mut chance = Chance::new(lane);
    for round in 0..count {
        let name = format!("busy-{}", chance.below(12));
        let id = format!("{lane}-{round}");
        let endpoint = ["Create", "Mount", "Unmount", "Remove"][chance.below(4) as usize];
        // Errors and hang-ups are expected: daemons are being killed.
        let _whatever = call(host, endpoint, &json!({"Name": name, "ID": id, "Opts": {"size": "32MiB"}}));
        if endpoint == "Mount" && chance.below(2) == 0 {
            let _whatever = call(host, "Unmount", &json!({"Name": name, "ID": id}));
        }
    }
}

/// D5: operations on three hosts at once, while plugins and data clients are killed: nothing is left in the end, and a
/// second time nothing either.
fn churn(site: &mut Site, count: u64, kills: u64) -> anyhow::Result<()> {
    let mut chance = Chance::new(42 + count);
    for _ in 0..kills {
        let share = count / kills / 3 / 4;
        std::thread::scope(|scope| {
            for host in &site.hosts {
                for lane in 0..4 {
                    scope.spawn(move || act(host, lane, share.max(1)));
                }
            }
        });
        let victim = chance.below(site.hosts.len() as u64) as usize;
        let daemon = if chance.below(3) == 0 { Daemon::Sdc } else { Daemon::Plugin };
        let host = site.hosts.get_mut(victim).context("a host")?;
        std::thread::scope(|scope| {
            // Killed in the middle of what others of this host ask.
            let pid = host.pid(daemon);
            let view: &Host = host;
            for lane in 4..8 {
                scope.spawn(move || act(view, lane, 4));
            }
            std::thread::sleep(Duration::from_millis(20 + chance.below(200)));
            pid.and_then(|pid| {
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("no process id")?;
                Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
            })
        })?;
        host.reap(daemon)?;
        host.start(daemon)?;
    }
    site.demand_clean()?;
    let host = first(site)?;
    for index in 0..12 {
        let answer = call(host, "Remove", &json!({"Name": format!("busy-{index}")}))?;
        let why = answer["Err"].as_str().unwrap_or_default();
        ensure!(why.is_empty() || why.contains("there is no volume"), "{why}");
    }
    Ok(())
}

/// In every run.
pub fn nothing_is_left_by_operations_that_were_killed(site: &mut Site) -> anyhow::Result<()> {
    churn(site, 100, 3)
}
