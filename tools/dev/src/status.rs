//! `dev status`: nodes, volumes, health.

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
    if format == Format::Json {
        println!("{}", serde_json::to_string_pretty(&look.json(state))?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["NODE", "STATE", "PID", "ADDRESS", "LOG"]);
    for node in &state.saved.nodes {
        let pid = node.process.filter(|_| life(node) != Life::Dead).map_or("-".to_owned(), |p| p.pid.to_string());
        let row =
            [&node.name, look.state_of(node), &pid, &node.address, &node.log.display().to_string()].map(str::to_owned);
        table.add_row(row);
    }
    println!("{table}\n");
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["VOLUME", "SIZE", "DEVICE", "NBD"]);
    for volume in look.volumes() {
        let text = |key: &str| volume[key].as_str().unwrap_or("-").to_owned();
        let mib = volume["size_bytes"].as_u64().unwrap_or(0) >> 20;
        table.add_row([text("name"), format!("{mib} MiB"), text("device"), text("nbd_uri")]);
    }
    println!("{table}\n");
    match (look.groups(), &look.view) {
        (Some((0, 0, 0)), _) if look.healthy(state) => println!("All healthy."),
        (Some((degraded, dark, chunks)), _) => {
            println!("Placement groups: {degraded} degraded, {dark} not served; {chunks} chunks to be copied.");
        }
        (None, Err(error)) => println!("The system does not answer: {error}"),
        (None, Ok(_)) => {}
    }
    Ok(())
}
