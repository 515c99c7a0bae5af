//! The daemon's configuration: a file, every key explained here, and variables of the environment over it, since a managed
//! plugin is set by those alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::core::machine::{Policy, Preempt};

/// `docker.toml`. Unknown keys are refused. Each key can also be set as `ASHLAR_DOCKER_<KEY>`, lists separated by commas.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// host:port of the metadata managers; those that the data client knows if left out.
    pub mdm: Vec<String>,
    /// The system's certificate authority, PEM.
    pub ca: PathBuf,
    /// The account; it needs the role Configure.
    pub user: String,
    /// A file with its password and nothing else, readable for root alone.
    pub password_file: PathBuf,
    /// The data client of this host.
    pub sdc_socket: PathBuf,
    /// Where dockerd finds the plugin; the name of the file is the name of the driver.
    pub socket: PathBuf,
    /// A `.spec` or `.json` file to write at start and remove at the end, for engines that look there.
    pub discovery_file: Option<PathBuf>,
    /// host:port to serve on beside the socket, with mutual TLS only.
    pub tls_listen: Option<String>,
    /// Certificate of this side, PEM.
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Who signs the certificates of the engines that may connect, PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// What the discovery file tells engines to verify us against, to show and to sign with.
    pub discovery_ca: Option<PathBuf>,
    /// Certificate that engines show.
    pub discovery_certificate: Option<PathBuf>,
    /// Its key.
    pub discovery_key: Option<PathBuf>,
    /// Records of the volumes in use; must outlive a restart of the host.
    pub state_directory: PathBuf,
    /// Where volumes are mounted.
    pub mount_directory: PathBuf,
    /// Size of a volume that is created without one.
    pub default_size: String,
    /// File system of a volume that is created without one: ext4 or xfs.
    pub default_fstype: String,
    /// Pool of a volume that is created without one.
    pub default_pool: Option<String>,
    /// Protection domain of a volume that is created without one.
    pub default_protection_domain: Option<String>,
    /// When a volume is taken away from another host: never, when-unreachable or always.
    pub preempt: String,
    /// For how many seconds the system must not have heard of the other host.
    pub preempt_grace_s: u64,
    /// How long a mount may take, in seconds; less than dockerd waits (managed plugins: 30).
    pub mount_timeout_s: u64,
    /// How long an unmount may take before the rest is done in the background, in seconds.
    pub unmount_timeout_s: u64,
    /// How long a question to the metadata managers is held before a cached answer, in seconds.
    pub hold_s: u64,
    /// A mount that no container has any more is forgotten after so many seconds; 0: never.
    pub release_unused_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mdm: Vec::new(),
            ca: "/etc/ashlar/authority.pem".into(),
            user: "docker".to_owned(),
            password_file: "/etc/ashlar/docker-password".into(),
            sdc_socket: sdc_api::SOCKET_DEFAULT.into(),
            socket: "/run/docker/plugins/ashlar.sock".into(),
            discovery_file: None,
            tls_listen: None,
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
            discovery_ca: None,
            discovery_certificate: None,
            discovery_key: None,
            state_directory: "/var/lib/ashlar/docker".into(),
            mount_directory: "/var/lib/ashlar/docker/volumes".into(),
            default_size: "16GiB".to_owned(),
            default_fstype: "ext4".to_owned(),
            default_pool: None,
            default_protection_domain: None,
            preempt: "when-unreachable".to_owned(),
            preempt_grace_s: 10,
            mount_timeout_s: 25,
            unmount_timeout_s: 20,
            hold_s: 20,
            release_unused_s: 120,
        }
    }
}

/// Prefix of the variables.
const PREFIX: &str = "ASHLAR_DOCKER_";
/// Keys whose values are lists.
const LISTS: &[&str] = &["mdm"];
/// Keys whose values are numbers.
const NUMBERS: &[&str] = &["preempt_grace_s", "mount_timeout_s", "unmount_timeout_s", "hold_s", "release_unused_s"];

impl Config {
    /// Reads a file, if there is one, and the variables given.
    pub fn load(path: &Path, variables: impl Iterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let mut table = match std::fs::read_to_string(path) {
            Ok(text) => text.parse::<toml::Table>().with_context(|| format!("in {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => toml::Table::new(),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot read the configuration {}: name another with --config", path.display())
                });
            }
        };
        overlay(&mut table, variables)?;
        let config: Self = table.try_into().with_context(|| format!("in {} or its variables", path.display()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        self.policy()?;
        self.default_size_bytes()?;
        if !matches!(self.default_fstype.as_str(), "ext4" | "xfs") {
            bail!("default_fstype = \"{}\": choose ext4 or xfs", self.default_fstype);
        }
        for (name, seconds) in
            [("mount_timeout_s", self.mount_timeout_s), ("unmount_timeout_s", self.unmount_timeout_s)]
        {
            if !(1..=600).contains(&seconds) {
                bail!("{name} = {seconds}: choose 1 to 600");
            }
        }
        let tls = [&self.tls_certificate, &self.tls_key, &self.tls_client_ca];
        if self.tls_listen.is_some() && tls.iter().any(|file| file.is_none()) {
            bail!("tls_listen needs tls_certificate, tls_key and tls_client_ca: without TLS only the socket is served");
        }
        Ok(())
    }

    /// When a volume is taken away from another host.
    pub fn policy(&self) -> anyhow::Result<Policy> {
        let preempt = match self.preempt.as_str() {
            "never" => Preempt::Never,
            "when-unreachable" => Preempt::WhenUnreachable,
            "always" => Preempt::Always,
            other => bail!("preempt = \"{other}\": choose never, when-unreachable or always"),
        };
        Ok(Policy { preempt, grace_ms: self.preempt_grace_s.saturating_mul(1000) })
    }

    /// Size of a volume that is created without one.
    pub fn default_size_bytes(&self) -> anyhow::Result<u64> {
        let bytes = mdm_api::verbs::parse_size(&self.default_size)
            .with_context(|| format!("default_size = \"{}\"", self.default_size))?;
        if bytes == 0 {
            bail!("default_size is 0: give at least 1MiB");
        }
        Ok(bytes)
    }
}

/// Puts variables over a table.
fn overlay(table: &mut toml::Table, variables: impl Iterator<Item = (String, String)>) -> anyhow::Result<()> {
    for (name, value) in variables {
        let Some(key) = name.strip_prefix(PREFIX).map(str::to_lowercase) else { continue };
        // A managed plugin has all its variables, most of them empty.
        if value.is_empty() {
            continue;
        }
        let value = if LISTS.contains(&key.as_str()) {
            toml::Value::Array(value.split(',').map(|part| toml::Value::String(part.trim().to_owned())).collect())
        } else if NUMBERS.contains(&key.as_str()) {
            toml::Value::Integer(value.parse().with_context(|| format!("{name}={value}: give a whole number"))?)
        } else {
            toml::Value::String(value)
        };
        table.insert(key, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(given: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        let given: Vec<_> = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        given.into_iter()
    }

    #[test]
    fn variables_stand_over_the_file_and_empty_ones_mean_nothing() {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("docker.toml");
        std::fs::write(&path, "user = 'a'\nhold_s = 5\n").expect("write");
        let given =
            variables(&[("ASHLAR_DOCKER_USER", "b"), ("ASHLAR_DOCKER_MDM", "h:1, i:2"), ("ASHLAR_DOCKER_CA", "")]);
        let config = Config::load(&path, given).expect("good");
        assert_eq!((config.user.as_str(), config.hold_s), ("b", 5));
        assert_eq!(config.mdm, ["h:1", "i:2"]);
        assert_eq!(config.ca, Config::default().ca);
    }

    #[test]
    fn what_is_misspelt_or_unsafe_is_refused() {
        let nowhere = Path::new("/nonexistent/docker.toml");
        for (name, value) in [
            ("ASHLAR_DOCKER_PREMPT", "never"),
            ("ASHLAR_DOCKER_PREEMPT", "sometimes"),
            ("ASHLAR_DOCKER_TLS_LISTEN", "0.0.0.0:7000"),
            ("ASHLAR_DOCKER_DEFAULT_SIZE", "0"),
            ("ASHLAR_DOCKER_HOLD_S", "soon"),
        ] {
            assert!(Config::load(nowhere, variables(&[(name, value)])).is_err(), "{name}");
        }
        assert!(Config::load(nowhere, variables(&[])).is_ok());
    }
}
