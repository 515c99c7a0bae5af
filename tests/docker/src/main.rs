//! Docker volumes on a real engine: stories, told one after the other on one site.
//!
//! | module | owns |
//! |---|---|
//! | [`shell`] | running commands, with their words in the error |
//! | [`caller`] | asking a plugin as Docker does |
//! | [`calls`] | what an engine asked of a plugin |
//! | [`host`] | a host with a data client, the plugin and a dockerd of its own |
//! | [`site`] | a system and several hosts |
//! | [`stories`] | what is tried, and what must come of it |
//!
//! Always true: only processes of the site are signalled; whatever was made is gone at the end, however it ends; a story that
//! fails shows the last words of every daemon, and the others are still told.

mod caller;
mod calls;
mod host;
mod shell;
mod site;
mod stories;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

/// Docker volumes on a real engine.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// Tell the long stories too.
    #[arg(long)]
    long: bool,
    /// Only stories whose name has one of these in it.
    names: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_named = |name: &str| arguments.names.iter().any(|wanted| name.contains(wanted.as_str()));
    let is_told = |story: &&stories::Story| {
        if arguments.names.is_empty() { arguments.long || !story.is_long } else { is_named(story.name) }
    };
    let told: Vec<&stories::Story> = stories::ALL.iter().filter(is_told).collect();
    let started = Instant::now();
    let result = site::with_site(&stories::plan(), |site| {
        println!("docker: the site is up after {:.1} s", started.elapsed().as_secs_f64());
        let mut failed = Vec::new();
        for story in &told {
            let begun = Instant::now();
            let told = (story.tell)(site).and_then(|()| site.demand_clean());
            let seconds = begun.elapsed().as_secs_f64();
            match told {
                Ok(()) => println!("docker: {:<40} passed {seconds:6.1} s", story.name),
                Err(error) => {
                    println!("docker: {:<40} FAILED {seconds:6.1} s: {error:#}", story.name);
                    failed.push(story.name);
                }
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("failed: {}", failed.join(", "))) }
    });
    match result {
        Ok(()) => {
            println!("docker: {} stories, {:.1} s", told.len(), started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("docker: {error:#}");
            ExitCode::FAILURE
        }
    }
}
