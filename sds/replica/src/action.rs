//! What a replica wants done.

use bytes::Bytes;
use mdm_api::config::PgChange;
use mdm_api::epoch::{Epoch, Seq, Term, Version};
use mdm_api::ids::{PgId, VtreeId};
use sds_api::block::{BlockRange, LayerKey};
use sds_api::client::{ClientAnswer, ClientError};
use sds_api::entry::Entry;
use sds_api::peer::{LayerCopy, PeerMessage};

use crate::event::{ClientRef, Token};

/// A request to the store of this replica's device.
///
/// Requests of one replica are taken in the order given; completions may come in any order. Records of the journal
/// (`Append`, `Promise`, `SaveState`, `Void`, `Install`, `RemoveLayers`, `ForgetPg`) reach the journal in the order given,
/// so a durable one implies that what it builds on is durable too or was never acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    /// Journal these, in order; done when durable. The first follows on the last appended, or on the last `SaveState`
    /// if that went further.
    Append {
        /// Dense.
        entries: Vec<Entry>,
    },
    /// Record the promise; done when durable (I7).
    Promise {
        /// The group.
        pg: PgId,
        /// Newer than all before.
        term: Term,
    },
    /// Record the replica's state as of `through`; done when durable. If `through` is beyond the last entry, the order
    /// jumps there: the next append is `through + 1`.
    SaveState {
        /// The group.
        pg: PgId,
        /// The last entry that the state includes; committed.
        through: Seq,
        /// For [`crate::Recovered::state`].
        state: Bytes,
    },
    /// Entries beyond `after` are void: recovery does not return them. None of them was committed to this store in the
    /// life of this process; content that an earlier process applied from them stays.
    Void {
        /// The group.
        pg: PgId,
        /// The last that counts.
        after: Seq,
    },
    /// Entries through here are committed: show them to readers, apply them (I10). No completion. An entry at or below the
    /// version of its layer is in the layer already, by an earlier process or by a copy, and changes nothing.
    Commit {
        /// The group.
        pg: PgId,
        /// The last committed.
        through: Seq,
    },
    /// Read committed content, with all that was committed before this request. Done with `Blocks` or `BadBlocks`.
    Read {
        /// Which layer.
        layer: LayerKey,
        /// Which blocks.
        blocks: BlockRange,
    },
    /// Which blocks hold data? Done with `Status`.
    Status {
        /// Which layer.
        layer: LayerKey,
        /// Which blocks.
        blocks: BlockRange,
    },
    /// All layers of the group with the versions of their committed content. Done with `Chunks`.
    ListChunks {
        /// The group.
        pg: PgId,
    },
    /// The whole committed content of a layer. Done with `Layer` or `BadBlocks`.
    Capture {
        /// Which layer.
        layer: LayerKey,
    },
    /// Replace a layer by this copy; done when content and version are durable, all or nothing (F29).
    Install {
        /// The group.
        pg: PgId,
        /// Which layer.
        layer: LayerKey,
        /// Its content, verified.
        copy: LayerCopy,
    },
    /// Remove layers; done when durable.
    RemoveLayers {
        /// The group.
        pg: PgId,
        /// Which.
        layers: Vec<LayerKey>,
    },
    /// Write a good copy of one block in place of a bad one, without a change of version; done when readable. It takes
    /// effect before whatever is requested after it.
    Repair {
        /// The group.
        pg: PgId,
        /// Which layer.
        layer: LayerKey,
        /// Which block.
        block: u16,
        /// CRC32C of `data`.
        checksum: u32,
        /// The block.
        data: Bytes,
    },
    /// Remove everything of the group: content, entries, promise, state. Done when durable.
    ForgetPg {
        /// The group.
        pg: PgId,
    },
}

/// What a replica wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send to the process `message.to_incarnation`, which holds the member `message.to`; dropped if the connection to it
    /// is gone. Nothing is sent to members that [`crate::Event::PeerConnected`] did not name.
    Send(PeerMessage),
    /// Ask the store.
    Store {
        /// Comes back with the completion.
        token: Token,
        /// What to do.
        request: StoreRequest,
    },
    /// Answer a client.
    Reply {
        /// Whom.
        client: ClientRef,
        /// What.
        result: Result<ClientAnswer, ClientError>,
    },
    /// Propose to the metadata manager. Comes again until a newer configuration is known: its outcome may be unknown, and
    /// it is a compare-and-set.
    Propose(PgChange),
    /// Somebody acts on a configuration of at least this epoch (0: of unknown epoch): ask for the map.
    WantMap {
        /// The group.
        pg: PgId,
        /// The epoch heard of.
        epoch: Epoch,
    },
    /// All writes of the fenced sessions are committed or refused, and none will be ordered any more, here.
    Fenced {
        /// From the event.
        fence: u64,
        /// The term under which this replica serves; none if it is not the primary, and so has nothing of them.
        term: Option<Term>,
    },
    /// The tree is gone on all in-sync copies.
    Dropped {
        /// The tree.
        vtree: VtreeId,
    },
    /// The configuration no longer names this device, and the store has forgotten the group: drop the replica.
    Gone,
    /// A block had no good copy here; for counters and alarms (P3, F15, F16).
    BadBlock {
        /// Which layer.
        layer: LayerKey,
        /// Which block.
        block: u16,
        /// True if a peer's copy took its place.
        repaired: bool,
    },
}

/// What the server and the metadata manager want to know of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its role.
    pub role: crate::role::Role,
    /// Its last entry: with it the metadata manager picks the longest tail (F5).
    pub last: Version,
    /// The last committed entry.
    pub committed: Seq,
    /// The newest promise.
    pub promised: Term,
    /// True if the store found signs of lost entries (I12).
    pub suspect: bool,
    /// True if its content is complete as of `last`.
    pub complete: bool,
    /// Client requests that wait or are under way.
    pub requests: usize,
    /// On a primary: one for each learner that is being fed.
    pub resync: Vec<ResyncProgress>,
}

/// How far a learner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResyncProgress {
    /// The learner.
    pub device: mdm_api::ids::DeviceId,
    /// Layers that were found to differ.
    pub layers_total: u64,
    /// Layers still to copy.
    pub layers_left: u64,
    /// Payload bytes copied.
    pub bytes_copied: u64,
    /// Layers that cannot be copied, since no good copy of some block is left (F16).
    pub layers_stuck: u64,
}
