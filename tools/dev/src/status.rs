//! `dev status`: nodes, volumes, health.

use std::io::Write;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use mdm_api::command::SystemView;
use sdc_api::{LocalAnswer, LocalRequest, LocalStatus, client};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::node::{Life, life};
use crate::state::{Node, Role, State};

/// How to show it.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What a look at the system gives.
pub struct Look {
    view: Result<SystemView, String>,
    clients: Vec<(String, Result<LocalStatus, String>)>,
}

/// Looks once.
pub fn look(state: &State) -> Look {
    let view = Admin::login(state, Duration::from_secs(3)).and_then(|admin| admin.view(Duration::from_secs(3)));
    let clients = state.saved.nodes.iter().filter(|n| n.role == Role::Sdc).map(|node| {
        let answer = client::ask(node.address.as_ref(), &LocalRequest::Status, Duration::from_secs(3));
        let status = match answer {
            Ok(LocalAnswer::Status(status)) => Ok(*status),
            Ok(LocalAnswer::Refused(error)) => Err(error.to_string()),
            Ok(other) => Err(format!("unexpected answer: {other:?}")),
            Err(error) => Err(error.to_string()),
        };
        (node.name.clone(), status)
    });
    Look { view: view.map_err(|error| format!("{error:#}")), clients: clients.collect() }
}

impl Look {
    /// A node's state in a word: `healthy` only if its process runs and the system counts on it.
    fn state_of(&self, node: &Node) -> &'static str {
        let life = life(node);
        if life != Life::Running {
            return life.word();
        }
        let Ok(view) = &self.view else { return "unknown" };
        let fine = match node.role {
            Role::Mdm => view.cluster.members.iter().any(|m| m.mdm.name == node.name && m.connected && m.mdm.voter),
            Role::Sds => view.sds.iter().any(|s| s.name == node.name && s.connected),
            Role::Sdc => self.clients.iter().any(|(name, status)| *name == node.name && status.is_ok()),
        };
        if fine { "healthy" } else { "joining" }
    }

    /// Degraded and dark groups and chunks still to be copied.
    fn groups(&self) -> Option<(u64, u64, u64)> {
        let pools = &self.view.as_ref().ok()?.storage_pools;
        let sum = |field: fn(&mdm_api::command::StoragePoolView) -> u64| pools.iter().map(field).sum();
        Some((sum(|p| p.degraded_pgs.into()), sum(|p| p.dark_pgs.into()), sum(|p| p.rebuild_chunks_left)))
    }

    /// True if every node is healthy and every group has all its copies.
    pub fn healthy(&self, state: &State) -> bool {
        self.groups().is_some_and(|groups| groups == (0, 0, 0))
            && state.saved.nodes.iter().all(|node| self.state_of(node) == "healthy")
    }

    fn volumes(&self) -> Vec<Value> {
        let volumes =
            self.clients.iter().filter_map(|(_, status)| status.as_ref().ok()).flat_map(|status| &status.volumes);
        volumes
            .map(|v| {
                json!({
                    "name": v.name, "size_bytes": v.size_bytes, "nbd_uri": v.nbd_uri, "device": v.device,
                    "problem": v.problem,
                })
            })
            .collect()
    }

    fn json(&self, state: &State) -> Value {
        let nodes: Vec<Value> = state
            .saved
            .nodes
            .iter()
            .map(|node| {
                json!({
                    "name": node.name,
                    "role": node.role.program(),
                    "pid": if life(node) == Life::Dead { None } else { node.process.map(|p| p.pid) },
                    "address": node.address,
                    "state": self.state_of(node),
                    "log": node.log,
                })
            })
            .collect();
        let groups = self.groups();
        json!({
            "healthy": self.healthy(state),
            "nodes": nodes,
            "volumes": self.volumes(),
            "leader": self.view.as_ref().ok().and_then(|view| {
                let leader = view.cluster.leader?;
                view.cluster.members.iter().find(|m| m.mdm.id == leader).map(|m| m.mdm.name.clone())
            }),
            "placement_groups": groups.map(|(degraded, dark, chunks)| json!({
                "degraded": degraded, "dark": dark, "rebuild_chunks_left": chunks,
            })),
            "problem": self.view.as_ref().err(),
        })
    }
}

/// `dev status`.
pub fn show(state: &State, format: Format) -> anyhow::Result<()> {
    let look = look(state);
    let text = match format {
        Format::Json => serde_json::to_string_pretty(&look.json(state))?,
        Format::Table => look.table(state),
    };
    match writeln!(std::io::stdout(), "{text}") {
        // A reader that has seen enough (`| grep -q`) is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

impl Look {
    fn table(&self, state: &State) -> String {
        let mut nodes = Table::new();
        nodes.load_preset(NOTHING).set_header(["NODE", "STATE", "PID", "ADDRESS", "LOG"]);
        for node in &state.saved.nodes {
            let alive = node.process.filter(|_| life(node) != Life::Dead);
            let pid = alive.map_or("-".to_owned(), |process| process.pid.to_string());
            let log = node.log.display().to_string();
            nodes.add_row([&node.name, self.state_of(node), &pid, &node.address, &log].map(str::to_owned));
        }
        let mut volumes = Table::new();
        volumes.load_preset(NOTHING).set_header(["VOLUME", "SIZE", "DEVICE", "NBD"]);
        for volume in self.volumes() {
            let text = |key: &str| volume[key].as_str().unwrap_or("-").to_owned();
            let mib = volume["size_bytes"].as_u64().unwrap_or(0) >> 20;
            volumes.add_row([text("name"), format!("{mib} MiB"), text("device"), text("nbd_uri")]);
        }
        format!("{nodes}\n\n{volumes}\n\n{}", self.verdict(state))
    }

    fn verdict(&self, state: &State) -> String {
        match (self.groups(), &self.view) {
            (Some((0, 0, 0)), _) if self.healthy(state) => "All healthy.".to_owned(),
            (Some((degraded, dark, chunks)), _) => {
                format!("Placement groups: {degraded} degraded, {dark} not served; {chunks} chunks to be copied.")
            }
            (None, Err(error)) => format!("The system does not answer: {error}"),
            (None, Ok(_)) => String::new(),
        }
    }
}
