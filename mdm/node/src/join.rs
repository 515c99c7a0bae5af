//! Joining: a host shows the join token's secret and gets a certificate, signed by the system's authority.
//!
//! The record comes first, the certificate after it is committed: nobody holds a certificate for an id that may be given
//! to another. Asked again after a lost answer, the same host finds its record and gets a new certificate for it.

use mdm_api::command::AdminCommand;
use mdm_api::control::{JoinRole, Joined, MdmAddress, PeerRole};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::model::MdmRole;
use mdm_api::ticket::equal;
use mdm_core::Command;

use crate::event::{Action, Moment, RequestKey, SignOrder};
use crate::node::Node;
use crate::proposals::{JoinKind, Purpose};
use crate::session::join_secret_hash;

impl Node {
    pub(crate) fn join_request(
        &mut self,
        moment: Moment,
        key: RequestKey,
        role: JoinRole,
        secret: &str,
        csr_pem: String,
        out: &mut Vec<Action>,
    ) {
        let is_invited =
            self.state.system().is_some_and(|record| equal(&record.join_token_hash, &join_secret_hash(secret)));
        if !is_invited {
            let error = CommandError::new(
                ErrorCode::PermissionDenied,
                "The join token is not valid any more",
                "get a new one with `scli system join-token`",
            );
            self.answer(key, Err(error), out);
            return;
        }
        let (command, kind) = match role {
            JoinRole::Sds { name } => {
                match self.state.sds_by_name(&name).map(|sds| PeerRole::Sds(sds.id)) {
                    Some(role) => self.sign(key, role, csr_pem, out),
                    None => {
                        let message = format!("Could not find SDS '{name}'");
                        let error = CommandError::new(
                            ErrorCode::SdsNotFound,
                            message,
                            format!("add it first: `scli sds add --name {name}`"),
                        );
                        self.answer(key, Err(error), out);
                    }
                }
                return;
            }
            JoinRole::Sdc { guid, name } => match self.state.sdc_by_guid(guid).map(|sdc| PeerRole::Sdc(sdc.id)) {
                Some(role) => {
                    self.sign(key, role, csr_pem, out);
                    return;
                }
                None => (Command::Admin(AdminCommand::AddSdc { guid, name }), JoinKind::Sdc),
            },
            // The record is found again by its log's identity.
            JoinRole::Mdm { name, tie_breaker, address, peer_address, store_id } => {
                let role = if tie_breaker { MdmRole::TieBreaker } else { MdmRole::Manager };
                let command = AdminCommand::AddMdm { name, role, address, peer_address, store_id };
                (Command::Admin(command), JoinKind::Mdm)
            }
        };
        self.propose(moment, 0, command, Purpose::Join { key, csr_pem, kind });
    }

    /// Orders a certificate for who joined.
    pub(crate) fn sign(&self, key: RequestKey, role: PeerRole, csr_pem: String, out: &mut Vec<Action>) {
        let Some(record) = self.state.system() else { return };
        if self.connections.get(key.connection).is_none() {
            return;
        }
        let (id, peers) = match role {
            PeerRole::Mdm(id) => (id.0, self.addresses(|mdm| mdm.peer_address.clone())),
            PeerRole::Sds(id) => (id.0, Vec::new()),
            PeerRole::Sdc(id) => (id.0, Vec::new()),
            PeerRole::Tool | PeerRole::Joiner => return,
        };
        out.push(Action::Sign(Box::new(SignOrder {
            key,
            authority_certificate_pem: record.authority_certificate_pem.clone(),
            authority_key_pem: record.authority_key_pem.clone(),
            csr_pem,
            role,
            joined: Joined {
                system: self.system,
                id,
                certificate_pem: String::new(),
                authority_pem: record.authority_certificate_pem.clone(),
                members: self.addresses(|mdm| mdm.address.clone()),
                peers,
            },
        })));
    }

    pub(crate) fn give_join_token(&self, key: RequestKey, secret: String, out: &mut Vec<Action>) {
        let Some(record) = self.state.system() else { return };
        if self.connections.get(key.connection).is_some() {
            out.push(Action::JoinToken {
                key,
                secret,
                authority_certificate_pem: record.authority_certificate_pem.clone(),
                members: self.addresses(|mdm| mdm.address.clone()),
            });
        }
    }

    fn addresses(&self, address: impl Fn(&mdm_api::model::Mdm) -> String) -> Vec<MdmAddress> {
        self.state.mdms().values().map(|mdm| MdmAddress { id: mdm.id, address: address(mdm) }).collect()
    }
}
