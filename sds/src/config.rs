//! The configuration file of a data server: what may stand in it, and one clear line when it is wrong.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use sds_disk::EngineChoice;
use serde::Deserialize;

/// The keys that may stand in the file, for the message about one that may not.
const KEYS: &str = "name, data_directory, listen, metrics_listen, disk_engine, scrub_period_s";

/// How devices are driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskEngine {
    /// io_uring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring through tokio-uring.
    Uring,
    /// io_uring through a ring of our own.
    Ring,
    /// Threads.
    Blocking,
}

impl From<DiskEngine> for EngineChoice {
    fn from(engine: DiskEngine) -> Self {
        match engine {
            DiskEngine::Auto => Self::Automatic,
            DiskEngine::Uring => Self::Uring,
            DiskEngine::Ring => Self::Ring,
            DiskEngine::Blocking => Self::Blocking,
        }
    }
}

/// A configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name under which the server was added to the system.
    pub name: String,
    /// Where it keeps its key, its certificate and the list of its devices. Nobody else may read it.
    pub data_directory: PathBuf,
    /// `ip:port` for clients and other servers; 7072 by custom. If it is not 0.0.0.0 or [::], the system is told of it at
    /// each start.
    pub listen: SocketAddr,
    /// `ip:port` for Prometheus; no metrics without it.
    pub metrics_listen: Option<SocketAddr>,
    /// How devices are driven.
    #[serde(default)]
    pub disk_engine: DiskEngine,
    /// Seconds over which a scrub of each device is spread: all of it is read again and damage repaired from another copy.
    /// 0: never. A week by default.
    #[serde(default = "default_scrub_period_s")]
    pub scrub_period_s: u64,
}

fn default_scrub_period_s() -> u64 {
    sds_store::limits::SCRUB_PERIOD_MS / 1000
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
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let message = format!("line {line}: {}", error.message().replace('\n', " "));
            ConfigError::Parse { path: path.to_owned(), message }
        })
    }

    /// What the system is told of where to find this server; empty: it keeps what it has.
    pub fn addresses(&self) -> Vec<String> {
        if self.listen.ip().is_unspecified() { Vec::new() } else { vec![self.listen.to_string()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"sds1\"\ndata_directory = \"/d\"\nlisten = \"10.0.0.1:7072\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("sds.toml"), text)
    }

    #[test]
    fn a_file_with_the_least_that_is_needed_is_enough() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.addresses(), ["10.0.0.1:7072"]);
        assert_eq!((config.metrics_listen, config.disk_engine), (None, DiskEngine::Auto));
        assert_eq!(config.scrub_period_s, 7 * 24 * 3600);
        assert_eq!(parse(&format!("{GOOD}scrub_period_s = 0\n")).unwrap().scrub_period_s, 0);
        assert!(parse(&GOOD.replace("10.0.0.1", "0.0.0.0")).unwrap().addresses().is_empty());
    }

    #[test]
    fn an_unknown_key_or_engine_is_named_with_its_line_and_the_right_ones() {
        for (line, wrong) in [("lisen = \"x\"", "lisen"), ("disk_engine = \"fast\"", "fast")] {
            let error = parse(&format!("{GOOD}{line}\n")).unwrap_err().to_string();
            assert!(error.contains("sds.toml: line 4") && error.contains(wrong) && error.contains(KEYS), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
