//! The daemon's configuration: one file, every key explained here.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// `sdc.toml`. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host's name in the system; made from the host name by `join` if left out.
    pub name: Option<String>,
    /// Where the identity and the GUID are kept; only root reads it.
    pub data_directory: PathBuf,
    /// Where tools of this host reach the daemon.
    #[serde(default = "control_socket")]
    pub control_socket: PathBuf,
    /// Where volumes are served over NBD.
    #[serde(default = "nbd_socket")]
    pub nbd_socket: PathBuf,
    /// Permission bits of the NBD socket.
    #[serde(default = "nbd_mode")]
    pub nbd_mode: u32,
    /// Where volumes are served over NBD to other hosts, with TLS; nowhere if left out.
    pub nbd_network: Option<NbdNetwork>,
    /// What is known of attached devices while the host is up; beside the NBD socket if left out.
    pub run_directory: Option<PathBuf>,
    /// host:port where Prometheus finds metrics; nowhere if left out.
    pub metrics_listen: Option<String>,
    /// Which mapped volumes become block devices by themselves.
    #[serde(default)]
    pub attach: AttachPolicy,
    /// The volumes, by name, for the policy `listed`.
    #[serde(default)]
    pub attach_volumes: Vec<String>,
}

/// The port for other hosts. Whoever has a certificate of the authority may use every volume that is mapped to this host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdNetwork {
    /// ip:port.
    pub listen: std::net::SocketAddr,
    /// This server's certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authority of the clients' certificates, PEM.
    pub authority: PathBuf,
}

/// Which mapped volumes become block devices by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachPolicy {
    /// All of them.
    #[default]
    All,
    /// Those named in `attach_volumes`.
    Listed,
    /// None; the control protocol attaches.
    None,
}

fn control_socket() -> PathBuf {
    PathBuf::from(sdc_api::SOCKET_DEFAULT)
}

fn nbd_socket() -> PathBuf {
    PathBuf::from("/run/ashlar/nbd.sock")
}

fn nbd_mode() -> u32 {
    0o600
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}: name another with --config", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        if config.attach != AttachPolicy::Listed && !config.attach_volumes.is_empty() {
            anyhow::bail!("in {}: attach_volumes goes with attach = \"listed\"", path.display());
        }
        Ok(config)
    }

    /// Where records of attached devices are.
    pub fn run_directory(&self) -> PathBuf {
        match &self.run_directory {
            Some(directory) => directory.clone(),
            None => self.nbd_socket.with_extension("devices"),
        }
    }

    /// True if the policy wants this volume attached.
    pub fn attaches(&self, volume: &str) -> bool {
        match self.attach {
            AttachPolicy::All => true,
            AttachPolicy::Listed => self.attach_volumes.iter().any(|name| name == volume),
            AttachPolicy::None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_refused_with_the_right_ones() {
        let error = toml::from_str::<Config>("data_directory = '/x'\nnbd_sokcet = '/y'").unwrap_err().to_string();
        assert!(error.contains("nbd_sokcet") && error.contains("nbd_socket"), "{error}");
    }

    #[test]
    fn a_port_for_other_hosts_needs_its_certificates() {
        let text = "data_directory = '/x'\n[nbd_network]\nlisten = '10.0.0.1:10809'\n";
        let error = toml::from_str::<Config>(text).unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
        let whole = format!("{text}certificate = '/c'\nkey = '/k'\nauthority = '/a'");
        let config: Config = toml::from_str(&whole).unwrap();
        assert_eq!(config.nbd_network.map(|network| network.listen.port()), Some(10809));
    }

    #[test]
    fn the_policy_decides_what_is_attached() {
        let listed = "data_directory = '/x'\nattach = 'listed'\nattach_volumes = ['a']";
        let config: Config = toml::from_str(listed).unwrap();
        assert!(config.attaches("a") && !config.attaches("b"));
        let config: Config = toml::from_str("data_directory = '/x'").unwrap();
        assert!(config.attaches("anything"));
    }
}
