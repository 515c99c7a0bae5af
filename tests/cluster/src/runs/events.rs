//! How long a client waits, as distributions: the same event again and again, each time the longest gap between the
//! completions of a writer that visits every chunk in turn.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::gaps::{Writer, percentile};
use crate::runs::faults::Fault;
use crate::runs::{HEALING, let_pass, show};
use crate::system::{Options, System, with_system};

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Events of each kind.
    pub events: usize,
}

/// Thirty of each.
pub const FULL: Extent = Extent { events: 30 };

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing, for as long as a killed leader is watched.
    Nothing,
    /// A data server's process is killed.
    Process,
    /// A data server, a data client and the leading metadata manager are cut off at once, without a word.
    Host,
    /// Two data servers no longer reach each other.
    Cut,
    /// The leading metadata manager is killed.
    Leader,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Nothing, Self::Process, Self::Host, Self::Cut, Self::Leader];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Process => "a data server's process killed",
            Self::Host => "a host cut off: data server, data client, leading metadata manager",
            Self::Cut => "two data servers cut from each other",
            Self::Leader => "the leading metadata manager killed",
        }
    }

    /// How long it lasts: longer than the longest pause that it may bring.
    fn span(self) -> Duration {
        Duration::from_secs(match self {
            Self::Nothing | Self::Leader | Self::Process => 4,
            Self::Host | Self::Cut => 8,
        })
    }

    fn fault(self, system: &System, number: usize) -> anyhow::Result<Option<Fault>> {
        let (server, other) = (format!("sds{}", number % 3 + 1), format!("sds{}", (number + 1) % 3 + 1));
        Ok(match self {
            Self::Nothing => None,
            Self::Process => Some(Fault::Kill(server)),
            Self::Host => Some(Fault::Host(vec![server, "sdc2".to_owned(), system.leader()?])),
            Self::Cut => Some(Fault::Cut(server, other)),
            Self::Leader => Some(Fault::Kill(system.leader()?)),
        })
    }
}

/// The longest gaps of one kind of event, in order.
#[derive(Clone, Debug)]
pub struct Gaps {
    /// What happened.
    pub event: Event,
    sorted: Vec<Duration>,
}

impl Gaps {
    fn new(event: Event, mut gaps: Vec<Duration>) -> Self {
        gaps.sort();
        Self { event, sorted: gaps }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The gap that so many of a hundred do not exceed.
    pub fn percentile(&self, of_hundred: usize) -> Duration {
        percentile(&self.sorted, of_hundred)
    }
}

/// Runs it.
pub fn run(extent: &Extent) -> anyhow::Result<Vec<Gaps>> {
    let volumes = vec!["demo:256MiB", "other:64MiB"];
    let options = Options { sdc: 2, isolate: true, volumes, ..Options::default() };
    with_system(&options, |system| {
        system.wait_healthy(HEALING)?;
        // The host that is cut off has users too; they must find everything as it was.
        system.scli(&["volume", "unmap", "other", "--sdc", "sdc1"])?;
        system.scli(&["volume", "map", "other", "--sdc", "sdc2"])?;
        let others = Writer::start(&system.nbd_at("other", "sdc2")?)?;
        let writer = Writer::start(&system.nbd("demo")?)?;
        let found = Event::ALL.into_iter().map(|event| watch(system, &writer, event, extent.events));
        let found = found.collect::<anyhow::Result<Vec<_>>>()?;
        writer.finish().context("the writer")?;
        others.finish().context("the writer on the host that was cut off")?;
        Ok(found)
    })
}

fn watch(system: &System, writer: &Writer, event: Event, count: usize) -> anyhow::Result<Gaps> {
    let mut gaps = Vec::new();
    for number in 0..count {
        let fault = event.fault(system, number)?;
        let since = Instant::now();
        if let Some(fault) = &fault {
            fault.strike(system)?;
        }
        let_pass(event.span());
        let gap = writer.longest_since(since);
        if let Some(fault) = &fault {
            fault.undo(system)?;
            let healing = system.wait_healthy(HEALING)?;
            println!("{}: longest gap {}, healthy after {}", fault.name(), show(gap), show(healing));
        }
        gaps.push(gap);
    }
    Ok(Gaps::new(event, gaps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_of_thirty_is_one_of_them() {
        let gaps = Gaps::new(Event::Cut, (1..=30).rev().map(Duration::from_millis).collect());
        assert_eq!(gaps.percentile(50), Duration::from_millis(15));
        assert_eq!(gaps.percentile(99), Duration::from_millis(30));
        assert_eq!(Gaps::new(Event::Cut, vec![]).percentile(50), Duration::ZERO);
    }
}
