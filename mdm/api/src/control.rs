//! The control conversation: what daemons and tools say to the metadata manager, inside TLS.
//!
//! ```text
//! peer                              MDM
//!  | Hello{versions, system, role}   |
//!  |-------------------------------->|   refused: one Refused{why}, then the connection ends
//!  |<--------------------------------| Welcome{version, system, mdm, leader}
//!  | Request{id, ..} ------------->  |   any number, answered in any order
//!  | <-------------- Response{id, ..}|
//!  | Follow{view, have} ----------->  |   once; then deltas are pushed as the map changes
//!  | <---------------- Push(MapDelta)|
//!  | Heartbeat -------------------->  |   data servers, on a connection of its own, to every MDM
//!  | <---------------- HeartbeatAck  |
//! ```
//!
//! Messages are MessagePack maps with named fields: an older reader skips what it does not know. Roles other than `Tool` and
//! `Joiner` need a certificate that names the same role and id; a tool logs in with a password or shows a session token.

use serde::{Deserialize, Serialize};

use crate::command::{AdminCommand, CommandAnswer, DaemonCommand, Query, QueryAnswer};
use crate::epoch::{Revision, Version};
use crate::error::CommandError;
use crate::ids::{DeviceId, MdmId, PgId, ProcessIncarnation, SdcId, SdsId, SystemId, VolumeId};
use crate::map::{MapDelta, MapView};
use crate::model::UserRole;
use crate::ticket::Credential;

/// The newest version of this conversation.
pub const CONTROL_VERSION: u16 = 1;
/// The oldest that is still spoken.
pub const CONTROL_VERSION_MIN: u16 = 1;

/// Who a peer says it is; its certificate must say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRole {
    /// A member of the metadata manager's group.
    Mdm(MdmId),
    /// A data server.
    Sds(SdsId),
    /// A data client, by the id it was given when it joined.
    Sdc(SdcId),
    /// A person's tool or the plugin; logs in.
    Tool,
    /// A daemon that has no certificate yet; may only join.
    Joiner,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the conversation above names them
pub enum ControlMessage {
    /// `system` may be unknown to a tool that was only given an address.
    Hello {
        version_min: u16,
        version_max: u16,
        system: Option<SystemId>,
        role: PeerRole,
    },
    Welcome {
        version: u16,
        system: SystemId,
        mdm: MdmId,
        leader: Option<MdmAddress>,
    },
    Refused {
        error: CommandError,
    },
    Request {
        id: u64,
        request: Box<Request>,
    },
    Response {
        id: u64,
        result: Result<Box<Response>, RequestError>,
    },
    Follow {
        view: MapView,
        have: Revision,
    },
    Push(MapDelta),
    Heartbeat(Box<Heartbeat>),
    HeartbeatAck {
        revision: Revision,
        leader: Option<MdmId>,
    },
}

/// Where to find a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdmAddress {
    /// Which member.
    pub id: MdmId,
    /// `host:port` of its control port.
    pub address: String,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RequestError {
    /// This member does not lead: ask the leader.
    #[error("this metadata manager does not lead")]
    NotLeader(Option<MdmAddress>),
    /// Refused.
    #[error(transparent)]
    Refused(#[from] CommandError),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Request {
    /// Gives a session token.
    Login {
        user: String,
        password: String,
    },
    /// Shows a token of an earlier login; the connection acts as that user from here on.
    Resume {
        token: String,
    },
    Admin {
        request_id: u128,
        command: AdminCommand,
    },
    Daemon {
        request_id: u128,
        command: DaemonCommand,
    },
    Query(Query),
    /// A data client is there. Asked of the leader all the time, so that it knows of whom it has not heard.
    Present,
    /// What a client needs to open a mapping that it has opened by `OpenMapping`: answered once the fence holds.
    Credential {
        volume: VolumeId,
        opener: u64,
    },
    /// A daemon asks for its certificate. `csr_pem` is a certificate signing request; `secret` is the join token's.
    Join {
        role: JoinRole,
        secret: String,
        csr_pem: String,
    },
    /// A new join token for a daemon; needs the role Administrator.
    JoinToken,
}

/// As what a daemon joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum JoinRole {
    /// A new member; recorded as one by the join itself.
    Mdm { name: String, tie_breaker: bool, address: String, peer_address: String, store_id: u64 },
    /// A data server that was added under this name.
    Sds { name: String },
    /// A client host.
    Sdc { guid: crate::ids::Guid, name: Option<String> },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Response {
    LoggedIn {
        token: String,
        role: UserRole,
        system: SystemId,
    },
    Command(CommandAnswer),
    Query(QueryAnswer),
    Credential(Credential),
    /// To `Present`.
    Noted,
    Joined(Joined),
    JoinToken {
        token: String,
    },
}

/// What a daemon gets when it joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The system.
    pub system: SystemId,
    /// Its id in its role.
    pub id: u64,
    /// Its certificate.
    pub certificate_pem: String,
    /// The authority's certificate.
    pub authority_pem: String,
    /// Where the members are.
    pub members: Vec<MdmAddress>,
    /// The members' ports for each other; only for a new member.
    pub peers: Vec<MdmAddress>,
}

/// What a data server reports, every heartbeat, to every MDM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub sds: SdsId,
    /// Which process; none until it has registered.
    pub incarnation: Option<ProcessIncarnation>,
    /// The map it follows. All below is as of this revision.
    pub map_revision: Revision,
    /// All fences up to this revision hold in every group that it leads. I17.
    pub fenced_through: Revision,
    /// Removed volumes whose chunks are gone in every group that it leads.
    pub dropped: Vec<VolumeId>,
    /// Figures of its devices.
    pub devices: Vec<DeviceReport>,
    /// Ends of the logs of groups that have no primary and that it could lead.
    pub tails: Vec<TailReport>,
    /// Progress of the groups that it leads and that are catching somebody up.
    pub resync: Vec<ResyncReport>,
    /// Servers that it could not reach, or that reset its connection, lately.
    pub unreachable: Vec<SdsId>,
    /// Servers with which it has exchanged leases within the last lease span. F6.
    pub leases_with: Vec<SdsId>,
}

/// Figures of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Which.
    pub device: DeviceId,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes still free for data.
    pub free_bytes: u64,
}

/// The end of a replica's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailReport {
    /// The group.
    pub pg: PgId,
    /// The replica.
    pub device: DeviceId,
    /// Its last entry.
    pub tail: Version,
}

/// How far a group's catching up is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncReport {
    /// The group.
    pub pg: PgId,
    /// Chunks to copy, as far as known.
    pub chunks_total: u64,
    /// Chunks copied.
    pub chunks_done: u64,
    /// Bytes copied.
    pub bytes_done: u64,
}

/// Encodes a message for a frame of kind `Control`.
pub fn encode(message: &ControlMessage) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("control messages have no unserialisable parts")
}

/// Decodes one. The error says what is wrong, for the log.
pub fn decode(bytes: &[u8]) -> Result<ControlMessage, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_message_survives_its_encoding() {
        let message = ControlMessage::Request {
            id: 7,
            request: Box::new(Request::Admin {
                request_id: u128::MAX - 5,
                command: AdminCommand::AddVolume {
                    name: "v".to_owned(),
                    storage_pool: None,
                    size_bytes: 1 << 30,
                    labels: BTreeMap::new(),
                },
            }),
        };
        assert_eq!(decode(&encode(&message)).unwrap(), message);
    }

    #[test]
    fn every_shortened_message_is_refused() {
        let message = ControlMessage::Hello {
            version_min: 1,
            version_max: 1,
            system: Some(SystemId(3)),
            role: PeerRole::Sds(SdsId(4)),
        };
        let bytes = encode(&message);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err());
        }
    }
}
