//! The configuration file of a metadata manager: what may stand in it, and one clear line when it is wrong.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The keys that may stand in the file, for the message about one that may not.
const KEYS: &str = "name, data_directory, listen, peer_listen, address, peer_address, metrics_listen";

/// A configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this member, unique in the system.
    pub name: String,
    /// Where it keeps its log, its key and its certificate. Nobody else may read it.
    pub data_directory: PathBuf,
    /// `ip:port` for control connections (scli, servers, clients); 6611 by custom.
    pub listen: SocketAddr,
    /// `ip:port` for the other members; 9011 by custom.
    pub peer_listen: SocketAddr,
    /// `host:port` by which others reach `listen`; needed where that is 0.0.0.0 or [::].
    pub address: Option<String>,
    /// `host:port` by which the other members reach `peer_listen`.
    pub peer_address: Option<String>,
    /// `ip:port` for Prometheus; no metrics without it.
    pub metrics_listen: Option<SocketAddr>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not readable.
    #[error("cannot read the configuration {path}: {source}: give an existing file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not understood.
    #[error("{path}: {message}: the keys are {KEYS}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where, in one line.
        message: String,
    },
    /// Others could not reach this member.
    #[error("{path}: {listen} is no address that others can reach: set {key} = \"HOST:PORT\" as well")]
    Unreachable {
        /// The file.
        path: PathBuf,
        /// What was given.
        listen: SocketAddr,
        /// What is missing.
        key: &'static str,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let message = format!("line {line}: {}", error.message().replace('\n', " "));
            ConfigError::Parse { path: path.to_owned(), message }
        })?;
        let unreachable = |listen: SocketAddr, key| ConfigError::Unreachable { path: path.to_owned(), listen, key };
        if config.listen.ip().is_unspecified() && config.address.is_none() {
            return Err(unreachable(config.listen, "address"));
        }
        if config.peer_listen.ip().is_unspecified() && config.peer_address.is_none() {
            return Err(unreachable(config.peer_listen, "peer_address"));
        }
        Ok(config)
    }

    /// By what others reach the control port.
    pub fn public_address(&self) -> String {
        self.address.clone().unwrap_or_else(|| self.listen.to_string())
    }

    /// By what the other members reach this one.
    pub fn public_peer_address(&self) -> String {
        self.peer_address.clone().unwrap_or_else(|| self.peer_listen.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "name = \"mdm1\"\ndata_directory = \"/d\"\nlisten = \"10.0.0.1:6611\"\npeer_listen = \"10.0.0.1:9011\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("mdm.toml"), text)
    }

    #[test]
    fn a_file_with_the_least_that_is_needed_is_enough() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.public_address(), "10.0.0.1:6611");
        assert_eq!(config.public_peer_address(), "10.0.0.1:9011");
        assert_eq!(config.metrics_listen, None);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_right_ones() {
        let error = parse(&format!("{GOOD}lisen = \"x\"\n")).unwrap_err().to_string();
        assert!(error.contains("mdm.toml: line 5") && error.contains("lisen") && error.contains("data_directory"));
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn an_address_that_nobody_can_reach_is_refused() {
        let error = parse(&GOOD.replace("10.0.0.1:6611", "0.0.0.0:6611")).unwrap_err().to_string();
        assert!(error.contains("address = "), "{error}");
        parse(&format!("{}address = \"mdm1:6611\"\n", GOOD.replace("10.0.0.1:6611", "0.0.0.0:6611"))).unwrap();
    }
}
