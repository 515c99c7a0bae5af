//! `mdm join`: a further member. It shows the join token, is recorded, gets its certificate, and writes an empty log; its
//! first run receives everything else from the leader.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use mdm_api::client::pki::{self, Identity};
use mdm_api::client::token::JoinToken;
use mdm_api::client::{Connector, MdmClient, Members};
use mdm_api::control::{JoinRole, Joined, PeerRole, Request, Response};
use mdm_api::ids::MdmId;
use mdm_node::Node;
use mdm_raft::StoreId;

use crate::config::Config;
use crate::create::write_log;
use crate::directory::{Directory, MemberFile};
use crate::{moment, run};

/// How long the system may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a new member is known by.
#[derive(Clone, Debug, serde::Serialize)]
pub struct NewMember {
    /// The system's id.
    pub system_id: String,
    /// The member's id.
    pub mdm_id: String,
    /// Its control port.
    pub mdm_address: String,
}

/// Joins the system of the token.
pub fn join(config_path: &Path, token: &str, tie_breaker: bool) -> anyhow::Result<NewMember> {
    let config = Config::read(config_path)?;
    let token = JoinToken::parse(token)?;
    let directory = Directory::open(&config.data_directory, true, Duration::ZERO)?;
    directory.demand_empty()?;
    directory.clear_log()?;

    let (key_pem, csr_pem) = pki::new_request()?;
    let store_id = directory.joining_store(moment::random_id()?)?;
    let role = JoinRole::Mdm {
        name: config.name.clone(),
        tie_breaker,
        address: config.public_address(),
        peer_address: config.public_peer_address(),
        store_id,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let joined = runtime.block_on(ask(&token, role, csr_pem))?;
    let id = MdmId(joined.id);
    let peers = joined.peers.iter().filter(|peer| peer.id != id);
    let member = MemberFile {
        system: joined.system.to_string(),
        mdm: id.to_string(),
        store: format!("{store_id:016x}"),
        peers: peers.map(|peer| (peer.id.to_string(), peer.address.clone())).collect(),
    };
    let mut actions = Vec::new();
    let mut node = Node::join(run::settings(&member)?, StoreId(store_id), moment::now()?, &mut actions)?;
    write_log(&mut node, directory.log()?, actions)?;
    let identity = Identity { certificate_pem: joined.certificate_pem, key_pem, authority_pem: joined.authority_pem };
    directory.write_member(&member, &identity)?;
    Ok(NewMember { system_id: joined.system.to_string(), mdm_id: id.to_string(), mdm_address: config.public_address() })
}

async fn ask(token: &JoinToken, role: JoinRole, csr_pem: String) -> anyhow::Result<Joined> {
    let authority_pem = pki::certificate_pem(&token.authority_der);
    let connector = Connector::new(pki::client_config(&authority_pem, None)?, PeerRole::Joiner, Some(token.system));
    let members = Members::new(token.members.iter().map(|member| member.address.clone()).collect());
    let client = MdmClient::start(connector, members, None);
    let request = Request::Join { role, secret: token.secret.clone(), csr_pem };
    match client.request(request, PATIENCE).await? {
        Response::Joined(joined) => Ok(joined),
        _ => bail!("the metadata manager gave an answer to another question: upgrade the older side"),
    }
}
