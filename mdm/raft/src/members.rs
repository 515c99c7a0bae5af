//! The members of the group: who they are, what they may do, and how that changes.
//!
//! The table is replicated: it changes only by a committed entry, travels in snapshots, and is equal on every member that
//! has applied the same entries. It registers each member's store id, so that a member whose log was wiped is recognised
//! and never counted under its old id. Ids are never reused; removed ones are remembered.

use std::collections::BTreeMap;

use mdm_api::ids::MdmId;
use mdm_api::model::MdmRole;

use crate::codec::{DecodeError, Put, Reader};
use crate::identity::StoreId;
use crate::limits::{MAX_ADDRESS_BYTES, MAX_ADDRESSES, MAX_MEMBERS, MAX_REMOVED};

/// Whether a member's word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Receives the log, does not vote.
    Learner,
    /// Votes, and its acknowledgement counts for commitment.
    Voter,
}

/// What the group knows about one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The random id of its log, made when the log was made.
    pub store: StoreId,
    /// Whether it takes commands.
    pub role: MdmRole,
    /// Whether it votes.
    pub standing: Standing,
    /// Where its peers reach it, `host:port`, the preferred one first.
    pub addresses: Vec<String>,
}

/// A change of the table, one at a time, so that no majority of the old group and of the new one are disjoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembersChange {
    /// A new member, as a learner whatever its record says.
    Add {
        /// A fresh id.
        id: MdmId,
        /// Its record.
        member: Member,
    },
    /// A learner that has caught up becomes a voter.
    Promote {
        /// The learner.
        id: MdmId,
    },
    /// A member leaves, for good: its id is never used again.
    Remove {
        /// The member.
        id: MdmId,
    },
    /// A member moves.
    SetAddresses {
        /// The member.
        id: MdmId,
        /// Its new addresses.
        addresses: Vec<String>,
    },
}

/// Why a change of members is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The table is empty.
    #[error("this member has not heard from the group yet")]
    NoGroup,
    /// The id belongs to a member.
    #[error("this id belongs to a member already")]
    AlreadyMember,
    /// The id was used before.
    #[error("this id belonged to a member that was removed; ids are never used again: add it under a new id")]
    UsedBefore,
    /// No such member.
    #[error("there is no member with this id")]
    NoSuchMember,
    /// It votes already.
    #[error("this member is a voter already")]
    AlreadyVoter,
    /// It would be behind by more than what a flush takes.
    #[error("this learner has not caught up yet; try again in a moment")]
    NotCaughtUp,
    /// The group would have no voter that takes commands.
    #[error("the last voting manager cannot be removed")]
    LastManager,
    /// The leader does not remove itself.
    #[error("this member leads; transfer the leadership first")]
    IsLeader,
    /// Too many members, addresses, or bytes in an address; or an id of zero.
    #[error("beyond a limit of the members table")]
    Limit,
    /// An earlier change is not applied yet.
    #[error("an earlier change of members is still under way")]
    ChangePending,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    members: BTreeMap<MdmId, Member>,
    removed: Vec<MdmId>,
}

impl Members {
    /// A group of one: the member that creates the system.
    pub fn bootstrap(id: MdmId, member: Member) -> Self {
        let member = Member { standing: Standing::Voter, ..member };
        Self { members: BTreeMap::from([(id, member)]), removed: Vec::new() }
    }

    /// The record of a member.
    pub fn get(&self, id: MdmId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// All members in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (MdmId, &Member)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    /// The ids of all voters.
    pub fn voters(&self) -> Vec<u64> {
        self.with_standing(Standing::Voter)
    }

    /// The ids of all learners.
    pub fn learners(&self) -> Vec<u64> {
        self.with_standing(Standing::Learner)
    }

    fn with_standing(&self, standing: Standing) -> Vec<u64> {
        self.members.iter().filter(|(_, m)| m.standing == standing).map(|(id, _)| id.0).collect()
    }

    /// Whether nobody is in it: a new member that has heard from no leader yet.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether this id was a member once.
    pub fn was_removed(&self, id: MdmId) -> bool {
        self.removed.contains(&id)
    }

    /// Whether `change` may be made to this table. The leader asks before it proposes, and every member asks again when
    /// it applies: all get the same answer, since all have the same table.
    pub fn check(&self, change: &MembersChange) -> Result<(), ChangeError> {
        match change {
            MembersChange::Add { id, member } => {
                check_addresses(&member.addresses)?;
                if self.members.is_empty() {
                    return Err(ChangeError::NoGroup);
                }
                if self.members.contains_key(id) {
                    return Err(ChangeError::AlreadyMember);
                }
                if self.was_removed(*id) {
                    return Err(ChangeError::UsedBefore);
                }
                if self.members.len() >= MAX_MEMBERS || id.0 == 0 {
                    return Err(ChangeError::Limit);
                }
                Ok(())
            }
            MembersChange::Promote { id } => match self.get(*id) {
                None => Err(ChangeError::NoSuchMember),
                Some(member) if member.standing == Standing::Voter => Err(ChangeError::AlreadyVoter),
                Some(_) => Ok(()),
            },
            MembersChange::Remove { id } => {
                self.get(*id).ok_or(ChangeError::NoSuchMember)?;
                let manager_remains = self.members.iter().any(|(other, member)| {
                    other != id && member.standing == Standing::Voter && member.role == MdmRole::Manager
                });
                if manager_remains { Ok(()) } else { Err(ChangeError::LastManager) }
            }
            MembersChange::SetAddresses { id, addresses } => {
                check_addresses(addresses)?;
                self.get(*id).map(|_| ()).ok_or(ChangeError::NoSuchMember)
            }
        }
    }

    /// Makes a change that [`Members::check`] allows.
    pub fn apply(&mut self, change: &MembersChange) -> Result<(), ChangeError> {
        self.check(change)?;
        match change {
            MembersChange::Add { id, member } => {
                self.members.insert(*id, Member { standing: Standing::Learner, ..member.clone() });
            }
            MembersChange::Promote { id } => {
                if let Some(member) = self.members.get_mut(id) {
                    member.standing = Standing::Voter;
                }
            }
            MembersChange::Remove { id } => {
                self.members.remove(id);
                if self.removed.len() >= MAX_REMOVED {
                    self.removed.remove(0);
                }
                self.removed.push(*id);
            }
            MembersChange::SetAddresses { id, addresses } => {
                if let Some(member) = self.members.get_mut(id) {
                    member.addresses.clone_from(addresses);
                }
            }
        }
        Ok(())
    }

    /// Appends the table to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_count(self.members.len());
        for (id, member) in &self.members {
            out.put_u64(id.0);
            encode_member(member, out);
        }
        out.put_count(self.removed.len());
        for id in &self.removed {
            out.put_u64(id.0);
        }
    }

    /// Reads what [`Members::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut members = BTreeMap::new();
        for _ in 0..reader.count("members", MAX_MEMBERS, 22)? {
            let id = decode_id(reader)?;
            if members.insert(id, decode_member(reader)?).is_some() {
                return Err(DecodeError::Unknown("member twice"));
            }
        }
        let mut removed = Vec::new();
        for _ in 0..reader.count("removed members", MAX_REMOVED, 8)? {
            removed.push(decode_id(reader)?);
        }
        Ok(Self { members, removed })
    }
}

impl MembersChange {
    /// The member that it is about.
    pub fn id(&self) -> MdmId {
        match self {
            Self::Add { id, .. } | Self::Promote { id } | Self::Remove { id } | Self::SetAddresses { id, .. } => *id,
        }
    }

    /// Whether it changes who votes or who receives the log.
    pub fn is_about_votes(&self) -> bool {
        !matches!(self, Self::SetAddresses { .. })
    }

    /// As bytes, for an entry of the log.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u8(match self {
            Self::Add { .. } => 1,
            Self::Promote { .. } => 2,
            Self::Remove { .. } => 3,
            Self::SetAddresses { .. } => 4,
        });
        out.put_u64(self.id().0);
        match self {
            Self::Add { member, .. } => encode_member(member, &mut out),
            Self::SetAddresses { addresses, .. } => encode_addresses(addresses, &mut out),
            Self::Promote { .. } | Self::Remove { .. } => {}
        }
        out
    }

    /// Reads what [`MembersChange::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8()?;
        let id = decode_id(&mut reader)?;
        let change = match kind {
            1 => Self::Add { id, member: decode_member(&mut reader)? },
            2 => Self::Promote { id },
            3 => Self::Remove { id },
            4 => Self::SetAddresses { id, addresses: decode_addresses(&mut reader)? },
            _ => return Err(DecodeError::Unknown("kind of members change")),
        };
        reader.end()?;
        Ok(change)
    }
}

fn check_addresses(addresses: &[String]) -> Result<(), ChangeError> {
    let fits = addresses.len() <= MAX_ADDRESSES && addresses.iter().all(|a| a.len() <= MAX_ADDRESS_BYTES);
    if fits { Ok(()) } else { Err(ChangeError::Limit) }
}

fn decode_id(reader: &mut Reader<'_>) -> Result<MdmId, DecodeError> {
    match reader.u64()? {
        0 => Err(DecodeError::Unknown("member id")),
        id => Ok(MdmId(id)),
    }
}

fn encode_member(member: &Member, out: &mut Vec<u8>) {
    out.put_u64(member.store.0);
    out.put_u8(match member.role {
        MdmRole::Manager => 1,
        MdmRole::TieBreaker => 2,
    });
    out.put_u8(match member.standing {
        Standing::Learner => 1,
        Standing::Voter => 2,
    });
    encode_addresses(&member.addresses, out);
}

fn decode_member(reader: &mut Reader<'_>) -> Result<Member, DecodeError> {
    let store = StoreId(reader.u64()?);
    let role = match reader.u8()? {
        1 => MdmRole::Manager,
        2 => MdmRole::TieBreaker,
        _ => return Err(DecodeError::Unknown("member role")),
    };
    let standing = match reader.u8()? {
        1 => Standing::Learner,
        2 => Standing::Voter,
        _ => return Err(DecodeError::Unknown("member standing")),
    };
    Ok(Member { store, role, standing, addresses: decode_addresses(reader)? })
}

fn encode_addresses(addresses: &[String], out: &mut Vec<u8>) {
    out.put_count(addresses.len());
    for address in addresses {
        out.put_bytes(address.as_bytes());
    }
}

fn decode_addresses(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let mut addresses = Vec::new();
    for _ in 0..reader.count("addresses", MAX_ADDRESSES, 4)? {
        let bytes = reader.bytes("address", MAX_ADDRESS_BYTES)?;
        let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Unknown("address"))?;
        addresses.push(text.to_owned());
    }
    Ok(addresses)
}
