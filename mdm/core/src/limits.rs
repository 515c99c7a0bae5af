//! Bounds of the replicated state, each with its reason. All are checked when a command is applied, so no sequence of
//! commands makes the state, or a snapshot of it, grow without end.

/// Members of the metadata manager's group, the ones that are being replaced included: five and as many coming.
pub const MDMS_MAX: usize = 10;
/// Protection domains: ScaleIO's limit.
pub const PROTECTION_DOMAINS_MAX: usize = 256;
/// Fault sets of the system.
pub const FAULT_SETS_MAX: usize = 1024;
/// Pools of the system: ScaleIO's limit. With 16 Ki groups each the table would be large; the groups are bounded too.
pub const STORAGE_POOLS_MAX: usize = 1024;
/// Placement groups of the system: about 64 MiB of table.
pub const PGS_MAX: u64 = 262_144;
/// Data servers: ScaleIO's limit.
pub const SDS_MAX: usize = 512;
/// Devices of one data server: ScaleIO's limit.
pub const DEVICES_PER_SDS_MAX: usize = 64;
/// Data clients: ScaleIO's limit.
pub const SDCS_MAX: usize = 2048;
/// Volumes: ScaleIO's limit.
pub const VOLUMES_MAX: usize = 131_072;
/// Clients of one volume: ScaleIO's limit.
pub const MAPPINGS_PER_VOLUME_MAX: usize = 1024;
/// Accounts.
pub const USERS_MAX: usize = 256;
/// Addresses of one server.
pub const ADDRESSES_MAX: usize = 16;
/// Longest address, path or reason, in bytes: a path's limit on Linux.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Thin provisioning: all volumes of a pool together may be this many times what the pool can hold.
pub const OVERCOMMIT_MAX: u64 = 10;
/// Smallest device: below it the store has no room for its journal and tables.
pub const DEVICE_BYTES_MIN: u64 = 64 << 20;

/// Answers of people's commands that are remembered for a repeated request: far more than are asked within the longest
/// retry of a client (minutes).
pub const RECENT_ADMIN_MAX: usize = 1024;
/// Answers of daemons' commands. A failed server makes up to two for each of its groups.
pub const RECENT_DAEMON_MAX: usize = 8192;
/// Removed objects that are remembered, so that a follower can be told by a delta. One that was away longer gets it all.
pub const TOMBSTONES_MAX: usize = 4096;
/// Earlier nonces of a server's processes: a late registration of an earlier process is refused.
pub const NONCES_MAX: usize = 8;

/// Group updates in one command of the leader: a large step, and still a short log entry (some 16 KiB).
pub const PG_UPDATES_MAX: usize = 256;
/// Groups of a pool that move for balance at a time: enough to keep several devices busy, few enough that a failure meets
/// few groups in an odd state.
pub const BALANCE_MOVES_MAX: usize = 16;
/// Primary roles that are moved in one step...
pub const ROLE_MOVES_MAX: usize = 8;
/// ...and how long until the next step, in milliseconds: each move is a short pause for its group, so they are spread.
pub const ROLE_PERIOD_MS: u64 = 1000;
/// A server must have been steadily alive this long before roles are moved to it, in milliseconds: a flapping one attracts
/// none (role storms).
pub const ROLE_STEADY_MS: u64 = 5000;
/// How long the leases that a silent server still exchanges may postpone its end, in milliseconds (F6).
pub const CORROBORATION_MS_MAX: u64 = 10_000;
