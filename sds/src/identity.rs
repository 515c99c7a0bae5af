//! Who this server is: what it got when it joined, kept for this user alone, and the lock on the folder that holds it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use mdm_api::client::pki::{self, Identity};
use mdm_api::client::token::JoinToken;
use mdm_api::client::{Connector, LOCK_PATIENCE, MdmClient, Members, lock_patiently};
use mdm_api::control::{JoinRole, Joined, PeerRole, Request, Response};
use mdm_api::ids::{SdsId, SystemId};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// How long the system may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `join` keeps.
#[derive(Clone, Serialize, Deserialize)]
pub struct Membership {
    /// The system.
    pub system: SystemId,
    /// This server there.
    pub sds: SdsId,
    /// Certificate of this server.
    certificate_pem: String,
    /// Its key.
    key_pem: String,
    /// The authority.
    authority_pem: String,
    /// Where the metadata managers were when it joined.
    pub members: Vec<String>,
}

impl Membership {
    /// For TLS.
    pub fn identity(&self) -> Identity {
        Identity {
            certificate_pem: self.certificate_pem.clone(),
            key_pem: self.key_pem.clone(),
            authority_pem: self.authority_pem.clone(),
        }
    }

    /// What was kept.
    pub fn load(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("identity");
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged: join anew", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "{} does not exist: this server has not joined a system: run 'sds join --config FILE --token TOKEN'",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// The data directory, made if it does not exist, and locked: one process works in it.
pub fn lock(directory: &Path) -> anyhow::Result<File> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make the data directory {}", directory.display()))?;
    let path = directory.join("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}: check the rights on the data directory", path.display()))?;
    match lock_patiently(file, LOCK_PATIENCE).with_context(|| format!("cannot lock {}", path.display()))? {
        Some(file) => Ok(file),
        None => bail!("{} is locked: another sds runs with this data directory: stop it first", path.display()),
    }
}

/// Replaces a file in one step, readable for this user alone.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&beside).with_context(context)?;
    file.write_all(bytes).with_context(context)?;
    file.sync_all().with_context(context)?;
    std::fs::rename(&beside, path).with_context(context)?;
    let parent = path.parent().context("a file has a folder")?;
    File::open(parent).and_then(|folder| folder.sync_all()).with_context(context)
}

/// Joins the system of the token.
pub fn join(config_path: &Path, token: &str) -> anyhow::Result<Membership> {
    let config = Config::read(config_path)?;
    let token = JoinToken::parse(token)?;
    let _lock = lock(&config.data_directory)?;
    let path = config.data_directory.join("identity");
    if path.exists() {
        bail!(
            "{} exists: this server has joined already; to join another system use another data_directory",
            path.display()
        );
    }
    let (key_pem, csr_pem) = pki::new_request()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let joined = runtime.block_on(ask(&token, config.name.clone(), csr_pem))?;
    let membership = Membership {
        system: joined.system,
        sds: SdsId(joined.id),
        certificate_pem: joined.certificate_pem,
        key_pem,
        authority_pem: joined.authority_pem,
        members: joined.members.into_iter().map(|member| member.address).collect(),
    };
    write_private(&path, &serde_json::to_vec_pretty(&membership)?)?;
    Ok(membership)
}

async fn ask(token: &JoinToken, name: String, csr_pem: String) -> anyhow::Result<Joined> {
    let authority_pem = pki::certificate_pem(&token.authority_der);
    let connector = Connector::new(pki::client_config(&authority_pem, None)?, PeerRole::Joiner, Some(token.system));
    let members = Members::new(token.members.iter().map(|member| member.address.clone()).collect());
    let client = MdmClient::start(connector, members, None);
    let request = Request::Join { role: JoinRole::Sds { name }, secret: token.secret.clone(), csr_pem };
    match client.request(request, PATIENCE).await? {
        Response::Joined(joined) => Ok(joined),
        _ => bail!("the metadata manager gave an answer to another question: upgrade the older side"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_secret_is_readable_for_this_user_alone() {
        let folder = std::env::temp_dir().join(format!("sds-identity-{}", std::process::id()));
        let lock = lock(&folder).unwrap();
        assert!(super::lock(&folder).unwrap_err().to_string().contains("stop it first"));
        write_private(&folder.join("identity"), b"x").unwrap();
        for (name, mode) in [("identity", 0o600), ("", 0o700)] {
            let found = std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{name}");
        }
        drop(lock);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
