//! Clients' requests at the primary: admission, reads, answers. Writes go on in `write`.
//!
//! ```text
//!   on_client ─▶ held until the primary serves
//!      read   ─▶ waits for overlapping uncommitted writes ─▶ store ─▶ lease still held? ─▶ answer
//!                                                              ▲            │ no: again when it is held (I13)
//!                                                              └────────────┘
//!      write  ─▶ seen before? ─▶ blocks free? ─▶ edges read and merged ─▶ credits? ─▶ ordered ─▶ committed ─▶ answer
//! ```

use bytes::Bytes;
use mdm_api::epoch::Seq;
use mdm_api::mutants::{self, Mutant};
use sds_api::block::{BLOCK_BYTES, BlockRange, LayerKey};
use sds_api::checksum::crc32c;
use sds_api::client::{Checksums, ClientAnswer, ClientError, ClientOperation};
use sds_api::entry::WriteIdentity;
use sds_api::peer::BlocksData;

use crate::action::{Action, StoreRequest};
use crate::dedup::Seen;
use crate::event::{ClientRef, StoreDone};
use crate::leader::{Moving, RequestKey};
use crate::limits::{REPAIRS_PER_READ_MAX, REQUEST_BYTES_MAX, REQUESTS_MAX};
use crate::replica::{Cx, Purpose, Replica};
use crate::role::Role;
use crate::write::Change;

/// What a request wants.
#[derive(Debug)]
pub(crate) enum Work {
    Read,
    Status,
    Change(Change),
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Not started: the replica does not serve yet.
    Held,
    /// A read that waits for this write to commit.
    Uncommitted(Seq),
    /// The store reads.
    Store,
    /// A read whose lease was not held when the bytes came.
    Lease,
    /// A write that waits for its blocks.
    Blocks,
    /// A write that waits for its turn to be ordered.
    Ready,
    /// A bad block is being repaired.
    Repair,
}

/// A request that is not ordered or answered yet.
#[derive(Debug)]
pub(crate) struct Request {
    /// Whom to answer: more than one if it was sent again meanwhile.
    pub(crate) clients: Vec<ClientRef>,
    pub(crate) layer: LayerKey,
    pub(crate) blocks: BlockRange,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) work: Work,
    pub(crate) at: At,
    repairs: u8,
}

impl Request {
    pub(crate) fn bytes(&self) -> usize {
        match &self.work {
            Work::Change(change) => change.data.len(),
            Work::Read | Work::Status => 0,
        }
    }
}

pub(crate) fn request_key(identity: &WriteIdentity) -> RequestKey {
    (identity.volume, identity.sdc, identity.session, identity.request)
}

impl Replica {
    pub(crate) fn on_client(
        &mut self,
        cx: &mut Cx<'_>,
        client: ClientRef,
        operation: ClientOperation,
        identity: Option<WriteIdentity>,
        layer: LayerKey,
    ) {
        match self.admit(client, operation, identity, layer) {
            Ok(()) => {}
            Err(error) => cx.out.push(Action::Reply { client, result: Err(error) }),
        }
    }

    /// Takes a request in; it starts at the end of the step, if the replica serves.
    fn admit(
        &mut self,
        client: ClientRef,
        operation: ClientOperation,
        identity: Option<WriteIdentity>,
        layer: LayerKey,
    ) -> Result<(), ClientError> {
        let Some(leader) = self.leader.as_mut() else {
            return Err(ClientError::WrongPrimary(self.config.clone().map(Box::new)));
        };
        if leader.moving != Moving::No {
            return Err(ClientError::Retry); // The next primary will take it.
        }
        let (offset, length, work) = match operation {
            ClientOperation::Read { offset, length } => (offset, length, Work::Read),
            ClientOperation::Status { offset, length } => (offset, length, Work::Status),
            ClientOperation::Write { offset, checksums, data, .. } => {
                let identity = identity.ok_or(ClientError::Damaged)?;
                let length = u32::try_from(data.len()).map_err(|_| ClientError::OutOfRange)?;
                (offset, length, Work::Change(Change::write(identity, offset, checksums, data)?))
            }
            ClientOperation::Zero { offset, length, .. } => {
                let identity = identity.ok_or(ClientError::Damaged)?;
                (offset, length, Work::Change(Change::zero(identity, offset, length)?))
            }
        };
        let blocks = BlockRange::touching(offset, length).ok_or(ClientError::OutOfRange)?;
        let key = match &work {
            Work::Change(change) => Some(request_key(&change.identity)),
            Work::Read | Work::Status => None,
        };
        // I16: the same request again, over another connection perhaps, joins the one that waits.
        let waiting = key.and_then(|key| leader.by_identity.get(&key)).copied();
        if let Some(request) = waiting.and_then(|waiting| leader.requests.get_mut(&waiting)) {
            request.clients.push(client);
            return Ok(());
        }
        let request = Request { clients: vec![client], layer, blocks, offset, length, work, at: At::Held, repairs: 0 };
        let bytes = leader.request_bytes + request.bytes();
        if leader.requests.len() >= REQUESTS_MAX || bytes > REQUEST_BYTES_MAX {
            return Err(ClientError::Retry);
        }
        leader.request_bytes = bytes;
        let id = self.number();
        let leader = self.lead();
        if let Some(key) = key {
            leader.by_identity.insert(key, id);
        }
        leader.requests.insert(id, request);
        leader.waiting.insert(id);
        Ok(())
    }

    fn start_request(&mut self, cx: &mut Cx<'_>, id: u64) {
        let Some(leader) = self.leader.as_mut() else { return };
        let Some(request) = leader.requests.get_mut(&id) else { return };
        if matches!(request.work, Work::Change(_)) {
            self.start_change(cx, id);
            return;
        }
        if let Some(seq) = leader.overlaps.newest_write(request.layer.chunk, request.blocks) {
            request.at = At::Uncommitted(seq);
            leader.waiting.insert(id);
            return;
        }
        self.read_store(cx, id);
    }

    fn read_store(&mut self, cx: &mut Cx<'_>, id: u64) {
        self.lead().waiting.remove(&id);
        let Some(request) = self.lead().requests.get_mut(&id) else { return };
        request.at = At::Store;
        let (layer, blocks) = (request.layer, request.blocks);
        let ask = match request.work {
            Work::Status => StoreRequest::Status { layer, blocks },
            Work::Read | Work::Change(_) => StoreRequest::Read { layer, blocks },
        };
        self.store(cx, Purpose::Request(id), ask);
    }

    /// Goes on with requests that were held, and with reads whose writes are committed or whose lease is back.
    pub(crate) fn resume_waiting(&mut self, cx: &mut Cx<'_>) {
        if self.role != Role::Primary || self.lead().waiting.is_empty() {
            return;
        }
        let (committed, lease, writable) = (self.log.committed(), self.holds_lease(cx), self.has_min_isr());
        let leader = self.lead();
        let ready = |request: &Request| match request.at {
            At::Held => writable || !matches!(request.work, Work::Change(_)),
            At::Uncommitted(seq) => seq <= committed,
            At::Lease => lease,
            At::Store | At::Blocks | At::Ready | At::Repair => false,
        };
        let resumed: Vec<u64> =
            leader.waiting.iter().copied().filter(|id| leader.requests.get(id).is_some_and(ready)).collect();
        for id in resumed {
            match self.lead().requests.get(&id).map(|request| request.at) {
                Some(At::Held) => self.start_request(cx, id),
                Some(_) => self.read_store(cx, id),
                None => {}
            }
        }
    }

    /// The store has read for a client.
    pub(crate) fn request_read(&mut self, cx: &mut Cx<'_>, id: u64, done: StoreDone) {
        // I13: checked now, with the bytes in hand. Without a lease somebody else may have written since; the bytes are
        // dropped and read again once a lease is held.
        let lease = self.holds_lease(cx) || mutants::is_on(Mutant::ReadWithoutLease);
        let Some(request) = self.lead().requests.get_mut(&id) else { return };
        if let StoreDone::BadBlocks(blocks) = done {
            let (layer, range) = (request.layer, request.blocks);
            self.begin_request_repair(cx, id, layer, blocks, Some(range));
            return;
        }
        if !lease {
            request.at = At::Lease;
            self.lead().waiting.insert(id);
            return;
        }
        let answer = match done {
            StoreDone::Blocks(content) => {
                let skip = request.offset as usize - usize::from(request.blocks.first()) * BLOCK_BYTES;
                cut(&content, skip, request.length as usize)
            }
            StoreDone::Status(flags) => ClientAnswer::Status(flags),
            _ => return,
        };
        self.finish_request(cx, id, &Ok(answer));
    }

    /// Counts a repair for the request and starts it; too many, and the block counts as lost (F16).
    pub(crate) fn begin_request_repair(
        &mut self,
        cx: &mut Cx<'_>,
        id: u64,
        layer: LayerKey,
        blocks: Vec<u16>,
        lock: Option<BlockRange>,
    ) {
        let Some(request) = self.lead().requests.get_mut(&id) else { return };
        request.repairs += 1;
        request.at = At::Repair;
        if request.repairs > REPAIRS_PER_READ_MAX {
            self.finish_request(cx, id, &Err(ClientError::Medium));
            return;
        }
        self.start_repair(cx, crate::repair::For::Request(id), layer, blocks, lock);
    }

    /// A repair for the request has ended.
    pub(crate) fn request_repaired(&mut self, cx: &mut Cx<'_>, id: u64, good: bool) {
        if !good {
            self.finish_request(cx, id, &Err(ClientError::Medium));
            return;
        }
        let Some(request) = self.lead().requests.get(&id) else { return };
        match request.work {
            Work::Change(_) => self.read_edges(cx, id),
            Work::Read | Work::Status => self.start_request(cx, id),
        }
    }

    /// Answers a request that is not ordered, and lets go of its blocks.
    pub(crate) fn finish_request(&mut self, cx: &mut Cx<'_>, id: u64, result: &Result<ClientAnswer, ClientError>) {
        let Some(request) = self.take_request(id) else { return };
        self.cancel_request_repairs(id);
        let granted = self.lead().overlaps.release(request.layer.chunk, id);
        for client in request.clients {
            cx.out.push(Action::Reply { client, result: result.clone() });
        }
        self.entered(cx, granted);
    }

    /// Takes a request out of the books.
    pub(crate) fn take_request(&mut self, id: u64) -> Option<Request> {
        let leader = self.lead();
        let request = leader.requests.remove(&id)?;
        leader.request_bytes -= request.bytes();
        leader.ready.retain(|ready| *ready != id);
        leader.waiting.remove(&id);
        if let Work::Change(change) = &request.work {
            leader.by_identity.remove(&request_key(&change.identity));
        }
        Some(request)
    }

    /// What is known of a request's identity: answers it if it was ordered before. True if it is new.
    pub(crate) fn is_new(&mut self, cx: &mut Cx<'_>, id: u64, identity: &WriteIdentity) -> bool {
        let error = match self.sessions.check(identity) {
            Seen::New => return true,
            Seen::Ordered(seq) if seq <= self.log.committed() && self.has_min_isr() => {
                self.finish_request(cx, id, &Ok(ClientAnswer::Done)); // F23
                return false;
            }
            Seen::Ordered(seq) => {
                // In flight, perhaps from the tail of an earlier term: answered when it commits, and the policy holds.
                let clients = self.lead().requests.get_mut(&id).map(|request| std::mem::take(&mut request.clients));
                self.lead().replies.entry(seq).or_default().extend(clients.unwrap_or_default());
                self.finish_request(cx, id, &Ok(ClientAnswer::Done));
                return false;
            }
            Seen::Forgotten => ClientError::Forgotten, // F24
            Seen::Fenced => ClientError::Fenced,
            Seen::Full => ClientError::Retry,
        };
        self.finish_request(cx, id, &Err(error));
        false
    }
}

/// The bytes `skip..skip + length` of some blocks, with one checksum for each block-sized piece.
fn cut(content: &BlocksData, skip: usize, length: usize) -> ClientAnswer {
    let mut data: Vec<Bytes> = Vec::new();
    let mut checksums = Checksums::new();
    let (mut position, end) = (0, skip + length);
    for piece in &content.data {
        let (from, to) = (skip.max(position), end.min(position + piece.len()));
        if from < to {
            data.push(piece.slice(from - position..to - position));
            let first = from / BLOCK_BYTES;
            let last = (to - 1) / BLOCK_BYTES;
            for block in first..=last {
                let (start, stop) = (from.max(block * BLOCK_BYTES), to.min((block + 1) * BLOCK_BYTES));
                let whole = stop - start == BLOCK_BYTES;
                let known = content.checksums.get(block).copied().filter(|_| whole);
                checksums.push(known.unwrap_or_else(|| crc32c(&piece[start - position..stop - position])));
            }
        }
        position += piece.len();
    }
    ClientAnswer::Data { checksums, data }
}
