//! How long a client waits when something dies.

use std::time::{Duration, Instant};

use crate::gaps::{Writer, median};
use crate::runs::{HEALING, let_pass, show};
use crate::system::{Options, System, with_system};

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Kills of a server.
    pub kills: usize,
    /// How long it stays away.
    pub away: Duration,
    /// How long the metadata managers are away, and how long the run without faults is that this is compared with.
    pub mdms_away: Duration,
}

/// One kill.
pub const SHORT: Extent = Extent { kills: 1, away: Duration::from_secs(4), mdms_away: Duration::from_secs(3) };
/// Ten kills.
pub const FULL: Extent = Extent { kills: 10, away: Duration::from_secs(10), mdms_away: Duration::from_secs(20) };

/// What came of it: longest times without a completion.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// For each kill of a server.
    pub kills: Vec<Duration>,
    /// With nothing wrong.
    pub undisturbed: Duration,
    /// With all metadata managers dead.
    pub without_mdms: Duration,
    /// Writes in all.
    pub writes: u64,
}

impl Outcome {
    /// The median of the kills.
    pub fn median(&self) -> Duration {
        median(&self.kills)
    }
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Outcome> {
    let options = Options { volumes: vec!["demo:256MiB"], ..Options::default() };
    with_system(&options, |system| {
        system.wait_healthy(HEALING)?;
        let writer = Writer::start(&system.nbd("demo")?)?;
        let mut outcome = Outcome { undisturbed: watch(&writer, extent.mdms_away), ..Outcome::default() };
        outcome.without_mdms = without_mdms(system, &writer, extent)?;
        for kill in 0..extent.kills {
            let server = format!("sds{}", kill % 3 + 1);
            let since = Instant::now();
            system.kill(&server)?;
            let_pass(extent.away);
            let gap = writer.longest_since(since);
            println!("{server} killed: longest gap {}", show(gap));
            outcome.kills.push(gap);
            system.start(&server)?;
            system.wait_healthy(HEALING)?;
        }
        outcome.writes = writer.finish()?;
        Ok(outcome)
    })
}

fn watch(writer: &Writer, span: Duration) -> Duration {
    let since = Instant::now();
    let_pass(span);
    writer.longest_since(since)
}

fn without_mdms(system: &System, writer: &Writer, extent: &Extent) -> anyhow::Result<Duration> {
    let managers = system.nodes("mdm")?;
    for manager in &managers {
        system.kill(manager)?;
    }
    let gap = watch(writer, extent.mdms_away);
    for manager in &managers {
        system.start(manager)?;
    }
    system.wait_healthy(HEALING)?;
    Ok(gap)
}
