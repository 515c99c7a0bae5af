//! `mdm create-system`: the first member of a new system, with its authority, its administrator and a join token.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use mdm_api::client::pki::{self, Authority, Identity};
use mdm_api::control::{MdmAddress, PeerRole};
use mdm_api::ids::SystemId;
use mdm_node::{Action, CreateSystem, Event, Node, first_mdm_id, join_secret_hash, mint_join_secret};

use crate::config::Config;
use crate::directory::{Directory, LogDirectory, MemberFile};
use crate::owner::join_token;
use crate::{moment, password, run};

/// Longest password file that is read.
const PASSWORD_BYTES_MAX: u64 = 4096;

/// What a new system is known by.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Created {
    /// The system's id, 16 hex digits.
    pub system_id: String,
    /// Its name.
    pub name: String,
    /// The first member's id.
    pub mdm_id: String,
    /// Its control port.
    pub mdm_address: String,
    /// Where the authority's certificate is: what tools verify the system by.
    pub authority: PathBuf,
    /// The administrator's account.
    pub user: String,
    /// What a new host joins with. A secret.
    pub join_token: String,
}

/// Reads a password: a file, or the standard input; a line's end at its end is not part of it.
pub fn read_password(file: Option<&Path>) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match file {
        Some(path) => std::fs::File::open(path)
            .and_then(|file| file.take(PASSWORD_BYTES_MAX).read_to_string(&mut text))
            .with_context(|| format!("cannot read the password file {}", path.display())),
        None => std::io::stdin()
            .take(PASSWORD_BYTES_MAX)
            .read_to_string(&mut text)
            .context("cannot read the password from the standard input"),
    };
    read?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password).to_owned();
    password::demand_strong(&password)?;
    Ok(password)
}

/// Creates the system in the configuration's data directory.
pub fn create(config_path: &Path, name: &str, password: &str) -> anyhow::Result<Created> {
    let config = Config::read(config_path)?;
    let directory = Directory::open(&config.data_directory, true, Duration::ZERO)?;
    directory.demand_empty()?;
    directory.clear_log()?;

    let system = SystemId(moment::random_id()?);
    let id = first_mdm_id(system);
    let authority = Authority::create(system)?;
    let (key_pem, request_pem) = pki::new_request()?;
    let certificate_pem = authority.sign(system, PeerRole::Mdm(id), &request_pem)?;
    let secret = mint_join_secret(&moment::random()?);
    let create = CreateSystem {
        system,
        name: name.to_owned(),
        authority_certificate_pem: authority.certificate_pem.clone(),
        authority_key_pem: authority.key_pem,
        mdm_name: config.name.clone(),
        mdm_address: config.public_address(),
        mdm_peer_address: config.public_peer_address(),
        mdm_store_id: moment::random_id()?,
        admin_password_hash: password::hash(password)?,
        join_token_hash: join_secret_hash(&secret),
    };
    let member = MemberFile {
        system: system.to_string(),
        mdm: id.to_string(),
        store: format!("{:016x}", create.mdm_store_id),
        peers: Vec::new(),
    };
    let mut actions = Vec::new();
    let mut node = Node::create(run::settings(&member)?, &create, moment::now()?, &mut actions)?;
    write_log(&mut node, directory.log()?, actions)?;

    let identity = Identity { certificate_pem, key_pem, authority_pem: authority.certificate_pem.clone() };
    directory.write_member(&member, &identity)?;
    let members = vec![MdmAddress { id, address: config.public_address() }];
    Ok(Created {
        system_id: system.to_string(),
        name: name.to_owned(),
        mdm_id: id.to_string(),
        mdm_address: config.public_address(),
        authority: directory.authority_path(),
        user: "admin".to_owned(),
        join_token: join_token(system, members, &authority.certificate_pem, secret)?,
    })
}

/// Makes a new member's log durable. It takes no part in anything: whatever it would send is for its first run.
pub(crate) fn write_log(node: &mut Node, mut log: LogDirectory, actions: Vec<Action>) -> anyhow::Result<()> {
    let mut next = actions;
    let mut rounds = 0;
    loop {
        let mut persisted = Vec::new();
        for action in next {
            match action {
                Action::Persist { id, ops } => {
                    log.execute(&ops).context("cannot write the log")?;
                    persisted.push(id);
                }
                Action::Halt { reason } => bail!(reason),
                _ => {}
            }
        }
        rounds += 1;
        if persisted.is_empty() || rounds > 8 {
            return Ok(());
        }
        next = Vec::new();
        for id in persisted {
            node.step(moment::now()?, Event::Persisted(id), &mut next);
        }
    }
}
