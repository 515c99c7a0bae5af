//! Bounds of everything that a replica keeps, each with its reason.

use sds_api::block::{BLOCK_BYTES, CHUNK_BYTES};
use sds_api::entry::ENTRY_HEADER_BYTES_MAX;

/// Numbered requests of one session that may be open in one group. A client has at most a few hundred requests under way
/// in all; each costs 16 bytes in the table.
pub const SESSION_WINDOW: u64 = 256;
/// Mappings that a group's table holds: at full windows 1,024 x (56 + 256 x 16) = 4.1 MiB, which a `Reset` can carry.
pub const SESSIONS_MAX: usize = 1024;
/// Client requests that one group holds, waiting or under way.
pub const REQUESTS_MAX: usize = 1024;
/// Payload of those: sixteen whole chunks.
pub const REQUEST_BYTES_MAX: usize = 16 * CHUNK_BYTES;
/// Entries ordered and still uncommitted in one group.
pub const IN_FLIGHT_ENTRIES_MAX: u64 = 256;
/// Payload of those: eight whole chunks.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 * CHUNK_BYTES;
/// Payload sent to one member and still not durable there: twice what one message carries.
pub const WINDOW_BYTES: usize = 4 * CHUNK_BYTES;
/// Payload of one `Replicate`; one more entry may go over it.
pub const BATCH_BYTES: usize = CHUNK_BYTES;
/// Committed entries kept for replicas that come back soon.
pub const RETAINED_ENTRIES_MAX: usize = 1024;
/// Payload of those, if the process has room for it ([`crate::RetainedBudget`]).
pub const RETAINED_BYTES_MAX: usize = 4 * CHUNK_BYTES;
/// Entries kept for a learner that is being fed; one that falls further behind is compared anew.
pub const LEARNER_LAG_ENTRIES_MAX: usize = 4096;
/// Payload of those.
pub const LEARNER_LAG_BYTES_MAX: usize = 16 * CHUNK_BYTES;
/// Layers of a group whose written blocks are noted while it has a learner: about 5 MiB at 80 bytes each, and 64 GiB of
/// chunks; beyond that chunks are copied whole.
pub const DIRTY_LAYERS_MAX: usize = 65_536;
/// Copies and removals sent to one learner and still to be done there.
pub const COPY_WINDOW: u64 = 2;
/// Peers whose connections one replica remembers: members come and go a few at a time.
pub const PEERS_MAX: usize = 32;
/// Times a read is tried again after a repair.
pub const REPAIRS_PER_READ_MAX: u8 = 3;
/// Bad blocks found by a scrub that one replica keeps in mind until they are repaired: 4 MiB of data; a group that has more
/// finds the rest in the next pass.
pub const FOUND_MAX: usize = 1024;
/// Of those, repaired at once.
pub const MENDS_AT_ONCE: usize = 4;
/// Answers without a good copy after which a secondary gives up until the next pass.
pub const MEND_TRIES_MAX: u8 = 3;
/// How long a peer may take to hand over a good copy before the next one is asked.
pub const FETCH_TIMEOUT_MS: u64 = 1000;
/// How often a layer is tried again that could not be copied for want of a good block.
pub const STUCK_AGAIN_MS: u64 = 5000;
/// How often an unanswered `Activate` is repeated: a member may be waiting for its map.
pub const ACTIVATE_AGAIN_MS: u64 = 50;
/// How often a proposal of unknown outcome is repeated.
pub const PROPOSE_AGAIN_MS: u64 = 200;
/// How soon members hear of the last commit when there is nothing else to send.
pub const COMMIT_HEARTBEAT_MS: u64 = 50;
/// How soon a replica looks again at what waits for time: leases, silence, resync budget.
pub const RECHECK_MS: u64 = 20;
/// The same while nothing waits: a lapsed lease is noticed this late.
pub const RECHECK_IDLE_MS: u64 = 200;
/// A replica that was dropped comes back no sooner than this; doubled each time within a term, so that one that flaps
/// does not stall writes again and again.
pub const REJOIN_QUARANTINE_MS: u64 = 100;
/// Doublings of that at most: 6.4 s.
pub const REJOIN_DOUBLINGS_MAX: u32 = 6;

const _: () = assert!(ENTRY_HEADER_BYTES_MAX <= BLOCK_BYTES, "a header costs at most a block of journal");
const _: () =
    assert!(SESSIONS_MAX * (56 + 16 * SESSION_WINDOW as usize) + (1 << 20) < sds_api::peer::PEER_PAYLOAD_BYTES_MAX);
const _: () = assert!(BATCH_BYTES + CHUNK_BYTES <= sds_api::peer::PEER_PAYLOAD_BYTES_MAX);
