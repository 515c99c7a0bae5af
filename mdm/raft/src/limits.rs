//! Every bound of this crate, each with its reason.

/// Largest command, in bytes. Commands are records of configuration, a few hundred bytes; a batch for the death of a
/// whole server stays under 1 MiB with 100,000 placement groups, since it names the server and not the groups.
pub const MAX_COMMAND_BYTES: usize = 4 << 20;

/// Largest state that a snapshot may carry, in bytes: it travels as one message and is kept in memory once.
pub const MAX_STATE_BYTES: usize = 256 << 20;

/// Largest encoded members table in a snapshot: members, removed ids and their addresses with room to spare.
pub const MAX_MEMBERS_BYTES: usize = 1 << 20;

/// Largest message between members: a snapshot with its members table and headers.
pub const MAX_MESSAGE_BYTES: usize = MAX_STATE_BYTES + MAX_MEMBERS_BYTES + 4096;

/// Most members at once, learners included. Five vote; the rest is room for a replacement of each.
pub const MAX_MEMBERS: usize = 16;

/// Removed ids that are remembered, the oldest forgotten first. A removed member that asks is told so; one that was
/// forgotten is merely unknown.
pub const MAX_REMOVED: usize = 1024;

/// Addresses of one member, and bytes in one.
pub const MAX_ADDRESSES: usize = 16;
/// Bytes in one address.
pub const MAX_ADDRESS_BYTES: usize = 256;

/// Entries in one append message. The leader stops at `MAX_APPEND_BYTES` long before.
pub const MAX_ENTRIES_PER_MESSAGE: usize = 65_536;

/// Bytes of entries that the leader puts into one append message, unless a single entry is larger.
pub const MAX_APPEND_BYTES: u64 = 1 << 20;

/// Append messages under way to one follower.
pub const MAX_INFLIGHT_APPENDS: usize = 64;

/// Bytes of entries that were proposed and are not committed yet. Beyond it, proposals are dropped as busy.
pub const MAX_UNCOMMITTED_BYTES: u64 = 32 << 20;

/// Linearizable reads that wait for their quorum. Beyond it, reads are dropped as busy.
pub const MAX_PENDING_READS: usize = 4096;

/// Messages that wait for a flush. Raft repeats whatever is lost, so beyond it messages are dropped.
pub const MAX_HELD_MESSAGES: usize = 4096;

/// Context bytes of a message: a campaign's mark or the number of a read.
pub const MAX_CONTEXT_BYTES: usize = 64;

/// Terms, indexes and positions stay below this, so that arithmetic on them cannot overflow, whoever sent them.
pub const MAX_NUMBER: u64 = 1 << 62;
