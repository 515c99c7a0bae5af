//! A network namespace for each node, on one bridge; cuts that drop packets.
//!
//! A cut gives the sender a wrong hardware address for the receiver, for good: its packets leave, and nobody takes them.
//! That is silent, has a direction, and needs no packet filter in the kernel.

use std::process::Command;

use anyhow::{Context, bail};

use crate::state::{Network, Node, State};

/// A hardware address that nobody has (locally administered).
const NOWHERE: &str = "02:00:00:00:00:01";

fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip").args(arguments).output().context("cannot run 'ip': install iproute2")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes the bridge. Names and addresses come from the process id, so that several systems can stand beside each other.
pub fn create() -> anyhow::Result<Network> {
    let number = std::process::id() % 60_000;
    let network = Network {
        bridge: format!("ashbr{number}"),
        prefix: format!("10.{}.{}", 64 + number / 256 % 128, number % 256),
    };
    ip(&["link", "add", &network.bridge, "type", "bridge"])?;
    ip(&["addr", "add", &format!("{}.254/24", network.prefix), "dev", &network.bridge])?;
    ip(&["link", "set", &network.bridge, "up"])?;
    Ok(network)
}

/// Makes a node's namespace. `index` counts nodes from 1.
pub fn add_node(network: &Network, index: usize) -> anyhow::Result<(String, String)> {
    let namespace = format!("{}-{index}", network.bridge);
    let address = format!("{}.{index}", network.prefix);
    let outer = format!("{}v{index}", network.bridge.trim_start_matches("ash"));
    ip(&["netns", "add", &namespace])?;
    ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
    ip(&["link", "set", &outer, "master", &network.bridge, "up"])?;
    ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
    ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
    Ok((namespace, address))
}

/// Takes everything down; what is gone already is fine.
pub fn remove(state: &State) {
    for node in &state.saved.nodes {
        if let Some(namespace) = &node.namespace
            && let Err(error) = ip(&["netns", "del", namespace])
        {
            eprintln!("dev: {error:#}");
        }
    }
    if let Some(network) = &state.saved.network
        && let Err(error) = ip(&["link", "del", &network.bridge])
    {
        eprintln!("dev: {error:#}");
    }
}

/// Drops packets from a to b, and back unless `one_way`.
pub fn cut(state: &State, a: &str, b: &str, one_way: bool) -> anyhow::Result<()> {
    if state.saved.network.is_none() {
        bail!(
            "all nodes share this machine's network, where nothing can be cut: start the system with 'dev up --isolate' (as root)"
        );
    }
    let from = state.node(a)?;
    let others: Vec<&Node> = state.nodes(b)?.into_iter().filter(|node| node.name != a).collect();
    if others.is_empty() {
        bail!("'{a}' cannot be cut from itself");
    }
    for to in others {
        block(from, to)?;
        if !one_way {
            block(to, from)?;
        }
    }
    Ok(())
}

fn ends<'a>(from: &'a Node, to: &'a Node) -> anyhow::Result<(&'a str, &'a str)> {
    let namespace = from.namespace.as_deref().with_context(|| format!("{} has no namespace", from.name))?;
    Ok((namespace, to.ip.as_deref().with_context(|| format!("{} has no address", to.name))?))
}

fn block(from: &Node, to: &Node) -> anyhow::Result<()> {
    let (namespace, address) = ends(from, to)?;
    ip(&["-n", namespace, "neigh", "replace", address, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent"]).map(drop)
}

/// Undoes all cuts.
pub fn heal(state: &State) -> anyhow::Result<()> {
    for from in &state.saved.nodes {
        let Some(namespace) = &from.namespace else { continue };
        for line in ip(&["-n", namespace, "neigh", "show"])?.lines() {
            if line.contains(NOWHERE)
                && let Some(address) = line.split_whitespace().next()
            {
                ip(&["-n", namespace, "neigh", "del", address, "dev", "eth0"])?;
            }
        }
    }
    Ok(())
}
