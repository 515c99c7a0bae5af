//! What may befall the nodes of a system: killed, paused, cut off; and how it is undone.

use anyhow::Context;

use crate::runs::Moments;
use crate::system::System;

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill(String),
    /// SIGSTOP.
    Pause(String),
    /// Nothing passes between the two.
    Cut(String, String),
    /// Everything of a host is cut off from everybody at once: as if its power were gone.
    Host(Vec<String>),
}

impl Fault {
    /// In words.
    pub fn name(&self) -> String {
        match self {
            Self::Kill(node) => format!("{node} killed"),
            Self::Pause(node) => format!("{node} paused"),
            Self::Cut(one, other) if other == "all" => format!("{one} cut off"),
            Self::Cut(one, other) => format!("{one} and {other} cut"),
            Self::Host(nodes) => format!("the host of {} cut off", nodes.join(", ")),
        }
    }

    /// Its kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Pause(_) => "pause",
            Self::Cut(..) | Self::Host(_) => "cut",
        }
    }

    /// One of those that a system with two copies and a majority of metadata managers survives.
    pub fn random(moments: &mut Moments, system: &System) -> anyhow::Result<Self> {
        let (sds, mdm) = (system.nodes("sds")?, system.nodes("mdm")?);
        let mut one = |nodes: &[String]| -> anyhow::Result<String> {
            let at = usize::try_from(moments.number(nodes.len() as u64))?;
            nodes.get(at).cloned().context("a system has servers and metadata managers")
        };
        let (server, other, manager) = (one(&sds)?, one(&sds)?, one(&mdm)?);
        let all = || "all".to_owned();
        Ok(match moments.number(9) {
            0 | 1 => Self::Kill(server),
            2 => Self::Kill(manager),
            3 | 4 => Self::Pause(server),
            5 => Self::Pause(manager),
            6 if server != other => Self::Cut(server, other),
            6 | 7 => Self::Cut(server, all()),
            _ => Self::Cut(manager, all()),
        })
    }

    /// Strikes.
    pub fn strike(&self, system: &System) -> anyhow::Result<()> {
        match self {
            Self::Kill(node) => system.kill(node),
            Self::Pause(node) => system.dev(&["pause", node]).map(drop),
            Self::Cut(one, other) => system.dev(&["cut", one, other]).map(drop),
            Self::Host(nodes) => at_once(nodes, |node| system.dev(&["cut", node, "all"]).map(drop)),
        }
    }

    /// Undoes it.
    pub fn undo(&self, system: &System) -> anyhow::Result<()> {
        match self {
            Self::Kill(node) => system.start(node),
            Self::Pause(node) => system.dev(&["resume", node]).map(drop),
            Self::Cut(..) | Self::Host(_) => system.dev(&["heal"]).map(drop),
        }
    }
}

fn at_once(nodes: &[String], strike: impl Fn(&str) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let strike = &strike;
    std::thread::scope(|scope| {
        let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(move || strike(node))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
    })
}
