//! How engines find the plugin where it does not listen in their folder of sockets: a `.spec` file with its address, or a
//! `.json` file with its address and what TLS needs.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;

use crate::config::Config;

/// A file that is there while this lives.
pub struct Announced {
    path: PathBuf,
}

impl Drop for Announced {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the discovery file cannot be removed");
        }
    }
}

/// What the file is to say.
fn text(config: &Config, path: &Path) -> anyhow::Result<String> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    let name = path.file_stem().and_then(|stem| stem.to_str()).context("discovery_file has no name")?;
    match (ending, &config.tls_listen) {
        (Some("spec"), _) => Ok(format!("unix://{}\n", config.socket.display())),
        (Some("json"), Some(address)) => {
            let file = |file: &Option<PathBuf>, key: &str| match file {
                Some(file) => Ok(file.display().to_string()),
                // Without an authority an engine would not verify whom it speaks to.
                None => bail!("discovery_file as .json needs {key}"),
            };
            let object = json!({
                "Name": name,
                "Addr": format!("https://{address}"),
                "TLSConfig": {
                    "InsecureSkipVerify": false,
                    "CAFile": file(&config.discovery_ca, "discovery_ca")?,
                    "CertFile": file(&config.discovery_certificate, "discovery_certificate")?,
                    "KeyFile": file(&config.discovery_key, "discovery_key")?,
                },
            });
            Ok(format!("{object:#}\n"))
        }
        (Some("json"), None) => bail!("discovery_file as .json needs tls_listen"),
        _ => bail!("discovery_file must end in .spec or .json"),
    }
}

/// Writes the file, if the configuration asks for one.
pub fn announce(config: &Config) -> anyhow::Result<Option<Announced>> {
    let Some(path) = &config.discovery_file else { return Ok(None) };
    let text = text(config, path)?;
    let context = || format!("cannot write {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(context)?;
    }
    let fresh = path.with_extension("new");
    let mut file = std::fs::File::create(&fresh).with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)?;
    file.sync_all().with_context(context)?;
    std::fs::rename(&fresh, path).with_context(context)?;
    Ok(Some(Announced { path: path.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_say_what_engines_read_and_never_skip_verification() {
        let mut config = Config { socket: "/s.sock".into(), ..Config::default() };
        assert_eq!(text(&config, Path::new("/e/ashlar.spec")).expect("good"), "unix:///s.sock\n");
        assert!(text(&config, Path::new("/e/ashlar.json")).is_err(), "no address");
        config.tls_listen = Some("10.0.0.1:7000".to_owned());
        assert!(text(&config, Path::new("/e/ashlar.json")).is_err(), "no authority");
        config.discovery_ca = Some("/ca".into());
        config.discovery_certificate = Some("/c".into());
        config.discovery_key = Some("/k".into());
        let json: serde_json::Value =
            serde_json::from_str(&text(&config, Path::new("/e/ashlar.json")).expect("good")).expect("JSON");
        assert_eq!(json["Addr"], "https://10.0.0.1:7000");
        assert_eq!(json["TLSConfig"]["InsecureSkipVerify"], false);
        assert!(text(&config, Path::new("/e/ashlar.txt")).is_err());
    }
}
