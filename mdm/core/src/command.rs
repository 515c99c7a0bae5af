//! What stands in the log: the commands of people and of daemons, and those of the leader itself.

use mdm_api::command::{AdminCommand, CommandResult, DaemonCommand};
use mdm_api::epoch::{Epoch, Revision};
use mdm_api::ids::{DeviceId, MdmId, PgId, ProcessIncarnation, SdcId, SdsId, SystemId, VolumeId};
use serde::{Deserialize, Serialize};

/// One entry of the replicated log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Drawn by who asks; the same for a repeated request. 0: not remembered (the leader's own, which are compare-and-set).
    pub request_id: u128,
    /// The proposer's wall clock, seconds since 1970: for people only, nothing is decided by it.
    pub at_s: u64,
    /// Fresh random bytes of the proposer, for the one command that needs a secret (the key of a new protection domain).
    pub random: [u8; 32],
    /// What to do.
    pub command: Command,
}

impl std::fmt::Debug for LogEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets are never in logs.
        f.debug_struct("LogEntry")
            .field("request_id", &self.request_id)
            .field("at_s", &self.at_s)
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first of all.
    CreateSystem(Box<CreateSystem>),
    /// Of a person; the proposer has checked the role ([`crate::apply::role_needed`]).
    Admin(AdminCommand),
    /// Of a daemon; the proposer has checked that the certificate is that of the server or client it names.
    Daemon(DaemonCommand),
    /// Of the leader.
    Own(OwnCommand),
}

/// How a system begins.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSystem {
    /// Its id, drawn at random by the creator.
    pub system: SystemId,
    /// Its name.
    pub name: String,
    /// The certificate of its authority.
    pub authority_certificate_pem: String,
    /// The authority's private key: every manager can sign.
    pub authority_key_pem: String,
    /// Name of the first member; its id is [`crate::state::first_mdm_id`].
    pub mdm_name: String,
    /// Where it takes control connections.
    pub mdm_address: String,
    /// Where the other members reach it.
    pub mdm_peer_address: String,
    /// Identity of its log.
    pub mdm_store_id: u64,
    /// The password of `admin`, as an argon2 PHC string.
    pub admin_password_hash: String,
    /// Digest of the join token.
    pub join_token_hash: [u8; 32],
}

impl std::fmt::Debug for CreateSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateSystem").field("system", &self.system).field("name", &self.name).finish_non_exhaustive()
    }
}

/// A command of the leader. Every one names what it acted on, and changes nothing if that has changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnCommand {
    /// The process is taken to be dead: all its groups get a new primary at once, or go dark (F1, F2).
    SdsDown {
        /// The server.
        sds: SdsId,
        /// The process.
        incarnation: ProcessIncarnation,
    },
    /// A process that was taken to be dead is heard again.
    SdsUp {
        /// The server.
        sds: SdsId,
        /// The process.
        incarnation: ProcessIncarnation,
    },
    /// Changes of groups, each on its own: one that is out of date is skipped, the others hold.
    UpdatePgs(Vec<PgUpdate>),
    /// Groups whose primary has reported that it is active: nobody before it can serve any more, and its in-sync members
    /// have been brought to its log.
    SettlePgs(Vec<(PgId, Epoch)>),
    /// The fences hold everywhere: older generations are gone for good, revoked mappings are removed (I17).
    FencesDone(Vec<FenceDone>),
    /// Removed volumes of which nothing is left.
    VolumesDropped(Vec<VolumeId>),
    /// Devices that were being emptied and that no group names any more.
    DevicesDrained(Vec<DeviceId>),
    /// A member has begun to vote, or does no longer.
    SetMdmVoter {
        /// The member.
        mdm: MdmId,
        /// Whether it votes.
        voter: bool,
    },
    /// A member has new addresses.
    SetMdmAddresses {
        /// The member.
        mdm: MdmId,
        /// Its control port.
        address: String,
        /// Its port for the others.
        peer_address: String,
    },
    /// A new join token; the old one is void.
    SetJoinToken {
        /// Digest of the token.
        hash: [u8; 32],
    },
}

/// A fence that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceDone {
    /// The volume.
    pub volume: VolumeId,
    /// The client.
    pub sdc: SdcId,
    /// The fence that was confirmed; a later one is another.
    pub fence_revision: Revision,
}

/// A change of a group by the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgUpdate {
    /// The group.
    pub pg: PgId,
    /// The configuration that was acted on.
    pub epoch: Epoch,
    /// What to change.
    pub kind: PgUpdateKind,
}

/// What the leader may change. None of these ever takes the last good copy away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PgUpdateKind {
    /// Makes an in-sync member primary of a dark group, in this process.
    AppointPrimary {
        /// The member.
        device: DeviceId,
        /// Its server's process, as it reported.
        incarnation: ProcessIncarnation,
    },
    /// A planned move of the role: asks the primary to hand over to another in-sync member.
    MovePrimary {
        /// The member.
        device: DeviceId,
    },
    /// Lets a device catch up.
    AddLearner {
        /// The device.
        device: DeviceId,
        /// The member that it is meant to replace once it is in sync.
        replaces: Option<DeviceId>,
    },
    /// Gives up on a learner.
    DropLearner {
        /// The learner.
        device: DeviceId,
    },
    /// Takes an in-sync member out that is not needed any more. Never the primary.
    RemoveSurplus {
        /// The member.
        device: DeviceId,
    },
}

/// What came of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The answer for who asked. A refusal has changed nothing.
    pub result: CommandResult,
    /// Hints: everything they lead to can be derived from the state as well, so a lost one is harmless.
    pub effects: Vec<Effect>,
}

/// A hint of what to look at now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Followers want a delta.
    MapChanged(Revision),
    /// The members of the group changed: compare them with Raft's.
    MembersChanged,
    /// A device could not be formatted, and is as if it had never been added: tell who waits for it.
    DeviceRefused {
        /// The device.
        device: DeviceId,
        /// Why, for people.
        reason: String,
    },
    /// An account was removed or its password changed: end its sessions.
    AccountChanged(mdm_api::ids::UserId),
}
