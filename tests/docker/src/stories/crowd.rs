//! Hundreds of operations at once on three hosts, while daemons are killed under them: nothing is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::caller::Caller;
use crate::host::{Daemon, Host};
use crate::site::Site;
use crate::stories::many::Chance;
use crate::stories::walk::first;

/// At a time.
const CLIENTS: usize = 200;
/// Of so many clients one wants a volume that others want too, on several hosts; the others have one of their own each.
const SHARES: usize = 10;
/// Volumes that are wanted by several.
const SHARED: usize = 8;

fn name(client: usize) -> String {
    if client.is_multiple_of(SHARES) {
        format!("crowd-all-{}", client / SHARES % SHARED)
    } else {
        format!("crowd-{client}")
    }
}

/// One client: makes, mounts, unmounts and removes a volume, and goes on whatever comes of it. Gives what was refused, and
/// why.
fn client(caller: &Caller, number: usize) -> Vec<String> {
    let body = json!({"Name": name(number), "ID": format!("client-{number}"), "Opts": {"size": "32MiB"}});
    let mut refusals = Vec::new();
    for endpoint in ["Create", "Mount", "Unmount", "Remove"] {
        // Errors and hang-ups are expected: daemons are being killed.
        let why = match caller.call(endpoint, &body) {
            Ok(answer) => answer["Err"].as_str().unwrap_or_default().to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if !why.is_empty() {
            // Numbers are of the one case; what is left is the kind.
            let words = why.split(|byte: char| byte.is_ascii_digit()).collect::<Vec<_>>().join("");
            refusals.push(format!("{endpoint}: {words}"));
        }
    }
    refusals
}

/// Everybody at once; daemons of random hosts are killed and started meanwhile, up to so many times.
fn crowd(site: &mut Site, kills: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut chance = Chance::new(CLIENTS as u64 + kills as u64);
    let callers = site.hosts.iter().map(Host::caller).collect::<anyhow::Result<Vec<_>>>()?;
    let mut killed = 0;
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let each = callers.iter().cycle().take(CLIENTS).enumerate();
        let clients: Vec<_> = each.map(|(number, caller)| scope.spawn(move || client(caller, number))).collect();
        while killed < kills && clients.iter().any(|client| !client.is_finished()) {
            // Anywhere in the middle of it.
            std::thread::sleep(Duration::from_millis(chance.below(500)));
            let victim = usize::try_from(chance.below(site.hosts.len() as u64))?;
            let daemon = if chance.below(3) == 0 { Daemon::Sdc } else { Daemon::Plugin };
            let host = site.hosts.get_mut(victim).context("a host")?;
            host.kill(daemon)?;
            host.start(daemon)?;
            killed += 1;
        }
        for client in clients {
            for why in client.join().map_err(|_| anyhow::anyhow!("a client panicked"))? {
                *refused.entry(why).or_default() += 1;
            }
        }
        Ok(())
    })?;
    let served = CLIENTS * 4 - refused.values().sum::<usize>();
    println!(
        "docker:   {CLIENTS} clients: {served} of {} calls succeeded, {killed} daemons were killed, {:.1} s",
        CLIENTS * 4,
        begun.elapsed().as_secs_f64()
    );
    for (why, count) in refused.iter().filter(|_| kills == 0) {
        println!("docker:     {count} times {why}");
    }
    // Undisturbed some still wait longer for others than a mount may take.
    ensure!(kills > 0 || served > CLIENTS * 2, "undisturbed, and so few succeeded");
    Ok(())
}

/// Volumes that are still there because their removal was not heard.
fn remove_all(site: &Site) -> anyhow::Result<usize> {
    let caller = first(site)?.caller()?;
    let mut removed = 0;
    for number in 0..CLIENTS {
        let answer = caller.call("Remove", &json!({"Name": name(number)}))?;
        match answer["Err"].as_str().unwrap_or_default() {
            "" => removed += 1,
            why => ensure!(why.contains("there is no volume"), "{why}"),
        }
    }
    Ok(removed)
}

/// D5: killed at random, everything is taken back by itself, and the same once more finds nothing to clean.
pub fn a_crowd_that_is_killed_at_random_leaves_nothing(site: &mut Site) -> anyhow::Result<()> {
    for kills in [12, 12, 0] {
        site.demand_clean()?;
        crowd(site, kills)?;
        let begun = Instant::now();
        site.demand_clean()?;
        let seconds = begun.elapsed().as_secs_f64();
        println!("docker:   nothing is left {seconds:.1} s later; {} volumes were still to remove", remove_all(site)?);
    }
    Ok(())
}
