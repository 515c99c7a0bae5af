//! Who this host is: its GUID, made once and kept for ever, and the certificate that it got when it joined.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use mdm_api::client::pki::{self, Identity};
use mdm_api::client::token::JoinToken;
use mdm_api::client::{Connector, MdmClient, Members};
use mdm_api::control::{JoinRole, PeerRole, Request, Response};
use mdm_api::ids::{Guid, SdcId, SystemId};
use serde::{Deserialize, Serialize};

/// What `join` keeps.
#[derive(Clone, Serialize, Deserialize)]
pub struct Membership {
    /// The system.
    pub system: SystemId,
    /// This client there.
    pub sdc: SdcId,
    /// Certificate of this client.
    certificate_pem: String,
    /// Its key.
    key_pem: String,
    /// The authority.
    authority_pem: String,
    /// Where the metadata managers were last known to be.
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

    fn path(directory: &Path) -> PathBuf {
        directory.join("identity.json")
    }

    /// What was kept.
    pub fn load(directory: &Path) -> anyhow::Result<Self> {
        let path = Self::path(directory);
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged: join anew", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(
                    "this host has not joined a system: run 'sdc join --token ..' with a token of 'scli system join-token'"
                )
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Keeps it, readable for this user alone.
    pub fn save(&self, directory: &Path) -> anyhow::Result<()> {
        write_private(&Self::path(directory), &serde_json::to_vec_pretty(self)?)
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&beside).with_context(context)?;
    file.write_all(bytes).with_context(context)?;
    file.sync_all().with_context(context)?;
    std::fs::rename(&beside, path).with_context(context)?;
    let parent = path.parent().context("a file has a folder")?;
    std::fs::File::open(parent).and_then(|folder| folder.sync_all()).with_context(context)
}

/// Makes the data directory.
pub fn prepare(directory: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(|| {
        format!("cannot make {}: run as a user who may, or change data_directory", directory.display())
    })
}

/// The host's GUID, made at first use.
pub fn guid(directory: &Path) -> anyhow::Result<Guid> {
    let path = directory.join("guid");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes)?;
            // Version 4, variant 1, as random GUIDs are marked (RFC 9562).
            bytes[6] = bytes[6] & 0x0f | 0x40;
            bytes[8] = bytes[8] & 0x3f | 0x80;
            let guid = Guid(bytes);
            write_private(&path, format!("{guid}\n").as_bytes())?;
            Ok(guid)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Joins a system. A host that joined before under the same GUID gets a new certificate for the same client.
pub async fn join(directory: &Path, name: Option<String>, token: &str) -> anyhow::Result<Membership> {
    prepare(directory)?;
    let token = JoinToken::parse(token)?;
    let guid = guid(directory)?;
    let name = name.or_else(|| Some(rustix::system::uname().nodename().to_string_lossy().into_owned()));
    let authority_pem = pki::certificate_pem(&token.authority_der);
    let (key_pem, csr_pem) = pki::new_request()?;
    let members: Vec<String> = token.members.iter().map(|member| member.address.clone()).collect();
    let connector = Connector::new(pki::client_config(&authority_pem, None)?, PeerRole::Joiner, Some(token.system));
    let client = MdmClient::start(connector, Members::new(members), None);
    let request = Request::Join { role: JoinRole::Sdc { guid, name }, secret: token.secret, csr_pem };
    let Response::Joined(joined) = client.request(request, Duration::from_secs(20)).await? else {
        bail!("unexpected answer to a join");
    };
    let membership = Membership {
        system: joined.system,
        sdc: SdcId(joined.id),
        certificate_pem: joined.certificate_pem,
        key_pem,
        authority_pem: joined.authority_pem,
        members: joined.members.into_iter().map(|member| member.address).collect(),
    };
    membership.save(directory)?;
    Ok(membership)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_made_once() {
        let directory = std::env::temp_dir().join(format!("ashlar-guid-{}", std::process::id()));
        prepare(&directory).unwrap();
        let first = guid(&directory).unwrap();
        assert_eq!(guid(&directory).unwrap(), first);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
