//! A model world for one session: servers that share one truth, connections that fail, a map that comes late.
//!
//! The servers are as strict as real ones: they order a change once, refuse what is not theirs, and assert what the
//! session promises about its numbers. Everything comes from one seed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mdm_api::config::PgConfig;
use mdm_api::epoch::{AttachGeneration, Epoch, Nanos, Revision, SnapSeq, Term};
use mdm_api::ids::{
    DeviceId, DeviceIncarnation, PgId, ProcessIncarnation, ProtectionDomainId, SdcId, SdsId, StoragePoolId, VolumeId,
    VtreeId,
};
use mdm_api::map::{ClusterMap, MapDelta, MapObject};
use mdm_api::model::{AccessMode, Device, DeviceState, Limits, Mapping, StoragePool, Volume};
use sds_api::client::{ClientAnswer, ClientError, ClientOperation, ClientReply, ClientRequest};
use sds_api::client_codec::piece_checksums;
use sds_api::open::OpenRefusal;

use crate::io::{IoError, IoId, IoOutput, IoRequest};
use crate::limits::{REQUEST_WINDOW, SILENCE_MS};
use crate::session::{Action, Event, Identity, Policy, Session};

pub(super) const CELL: u64 = 512;
pub(super) const CHUNK: u64 = 1 << 20;
pub(super) const SIZE: u64 = 4 * CHUNK;
pub(super) const PG_COUNT: u32 = 2;
const SERVERS: u64 = 3;
const POOL: StoragePoolId = StoragePoolId(5);
const MS: u64 = 1_000_000;

/// A small generator of pseudo-random numbers (SplitMix64).
pub(super) struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Chances in percent, for each message.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    pub drop_connection: u64,
    pub mute_connection: u64,
    pub duplicate: u64,
    pub fail_over: u64,
    pub retry: u64,
    pub damage: u64,
    pub forget_handle: u64,
    pub no_space: u64,
    pub snapshot: u64,
    pub refuse_open: u64,
    /// A server takes a request, forgets it, and goes on answering others.
    pub lose_request: u64,
}

impl Faults {
    pub const ALL: Self = Self {
        drop_connection: 2,
        mute_connection: 1,
        duplicate: 5,
        fail_over: 1,
        retry: 5,
        damage: 3,
        forget_handle: 1,
        no_space: 1,
        snapshot: 1,
        refuse_open: 20,
        lose_request: 1,
    };
}

enum Happening {
    ToServer { sds: SdsId, connection: u64, request: ClientRequest },
    ToClient { sds: SdsId, connection: u64, reply: ClientReply },
    Opened { sds: SdsId, connection: u64 },
    Refused { sds: SdsId },
    Down { sds: SdsId },
    Map(Box<MapObject>),
}

#[derive(Default)]
struct Connection {
    number: u64,
    up: bool,
    mute: bool,
    handle: u32,
    last_heard: u64,
}

#[derive(Default)]
struct PgTruth {
    primary: u64,
    epoch: u64,
    done: BTreeSet<u64>,
    watermark: u64,
    /// What each number means: it must be the same in every copy.
    meaning: BTreeMap<u64, (u64, u32, u32, u64)>,
}

/// One change of a cell, for the check of reads.
#[derive(Clone, Copy)]
struct CellChange {
    io: IoId,
    value: u64,
    answered: bool,
}

struct ReadCheck {
    offset: u64,
    /// For each cell: changes before this index were overwritten before the read began.
    since: Vec<usize>,
}

pub(super) struct World {
    pub session: Session,
    pub map: ClusterMap,
    pub now: u64,
    pub rng: Rng,
    pub faults: Faults,
    pub results: BTreeMap<IoId, Result<IoOutput, IoError>>,
    pub released: BTreeSet<IoId>,
    pub content: Vec<u64>,
    pub snap_seq: SnapSeq,
    pub fenced: bool,
    /// Requests that reached a server and took effect.
    pub applied: u64,
    pub renewals: u64,
    happenings: BTreeMap<(u64, u64), Happening>,
    happening_count: u64,
    connections: BTreeMap<SdsId, Connection>,
    pgs: Vec<PgTruth>,
    requests: BTreeMap<IoId, IoRequest>,
    cells: Vec<Vec<CellChange>>,
    reads: BTreeMap<IoId, ReadCheck>,
    /// Changes sent and not answered, by group and number: the newest copy's tag, and its sequence.
    under_way: BTreeMap<(u32, u64), (u64, SnapSeq)>,
    next_id: u64,
}

fn config(pg: u32, primary: u64, epoch: u64) -> PgConfig {
    PgConfig {
        pg: PgId { pool: POOL, index: pg },
        epoch: Epoch(epoch),
        term: Term(epoch),
        primary: Some(DeviceId(primary)),
        primary_incarnation: ProcessIncarnation(1),
        isr: (1..=SERVERS).map(DeviceId).collect(),
        learners: Vec::new(),
        previous_certified_dead: false,
        heir: None,
    }
}

pub(super) fn volume(size_bytes: u64, snap_seq: SnapSeq) -> MapObject {
    MapObject::Volume(Volume {
        id: VolumeId(7),
        name: "v".to_owned(),
        pool: POOL,
        vtree: VtreeId(8),
        size_bytes,
        snap_seq,
        created_s: 0,
        removing: false,
        labels: Default::default(),
    })
}

pub(super) fn mapping(generation: u64, revoked: bool, access: AccessMode) -> MapObject {
    MapObject::Mapping(Mapping {
        volume: VolumeId(7),
        sdc: SdcId(9),
        access,
        limits: Limits::default(),
        mapped: AttachGeneration(1),
        generation: AttachGeneration(generation),
        opened_by: 1,
        fence_revision: Revision(1),
        fenced: true,
        revoked,
    })
}

fn first_map() -> ClusterMap {
    let mut changed = vec![
        volume(SIZE, SnapSeq(0)),
        mapping(3, false, AccessMode::ReadWrite),
        MapObject::StoragePool(StoragePool {
            id: POOL,
            name: "p".to_owned(),
            protection_domain: ProtectionDomainId(1),
            copies: 2,
            min_isr: 1,
            pg_count: PG_COUNT,
            placement_version: 1,
        }),
    ];
    changed.extend((0..PG_COUNT).map(|pg| MapObject::Pg(config(pg, 1, 1))));
    for server in 1..=SERVERS {
        changed.push(MapObject::Device(Device {
            id: DeviceId(server),
            name: "d".to_owned(),
            sds: SdsId(server),
            pool: POOL,
            path: "/d".to_owned(),
            incarnation: DeviceIncarnation(1),
            open_count: 1,
            opened_by: None,
            size_bytes: 1 << 30,
            state: DeviceState::Normal,
            suspect: false,
            error: None,
        }));
    }
    let mut map = ClusterMap::default();
    map.apply(&MapDelta { from: Revision(0), to: Revision(1), changed, removed: Vec::new() }).unwrap();
    map
}

impl World {
    pub fn new(seed: u64, faults: Faults, policy: Policy) -> Self {
        let map = first_map();
        let identity =
            Identity { volume: VolumeId(7), sdc: SdcId(9), generation: AttachGeneration(3), lane: 4, first_tag: 0 };
        Self {
            session: Session::new(identity, policy, &map).unwrap(),
            map,
            now: 0,
            rng: Rng(seed),
            faults,
            results: BTreeMap::new(),
            released: BTreeSet::new(),
            content: vec![0; (SIZE / CELL) as usize],
            snap_seq: SnapSeq(0),
            fenced: false,
            applied: 0,
            renewals: 0,
            happenings: BTreeMap::new(),
            happening_count: 0,
            connections: (1..=SERVERS).map(|sds| (SdsId(sds), Connection::default())).collect(),
            pgs: (0..PG_COUNT).map(|_| PgTruth { primary: 1, epoch: 1, ..Default::default() }).collect(),
            requests: BTreeMap::new(),
            cells: vec![Vec::new(); (SIZE / CELL) as usize],
            reads: BTreeMap::new(),
            under_way: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// The content that a write with this id leaves in each of its cells.
    pub fn stamp(id: IoId, length: u64) -> Bytes {
        Bytes::from(id.0.to_le_bytes().repeat((length / 8) as usize))
    }

    pub fn write(&mut self, offset: u64, length: u64) -> IoId {
        let id = IoId(self.next_id + 1);
        self.submit(IoRequest::Write { offset, data: Self::stamp(id, length) })
    }

    pub fn submit(&mut self, request: IoRequest) -> IoId {
        self.next_id += 1;
        let id = IoId(self.next_id);
        let (offset, length) = request.range();
        if offset + length <= SIZE {
            let cells = (offset / CELL) as usize..((offset + length) / CELL) as usize;
            if request.changes() {
                let value = if matches!(request, IoRequest::Write { .. }) { id.0 } else { 0 };
                for cell in &mut self.cells[cells] {
                    cell.push(CellChange { io: id, value, answered: false });
                }
            } else if matches!(request, IoRequest::Read { .. }) {
                let since = |cell: &Vec<CellChange>| cell.iter().rposition(|c| c.answered).unwrap_or(usize::MAX);
                let since = self.cells[cells].iter().map(since).collect();
                self.reads.insert(id, ReadCheck { offset, since });
            }
        }
        self.requests.insert(id, request.clone());
        self.event(Event::Submit(id, request));
        id
    }

    pub fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        self.session.step(Nanos(self.now), &self.map, event, &mut out);
        out.into_iter().for_each(|action| self.carry_out(action));
    }

    fn at(&mut self, delay_ms: u64, happening: Happening) {
        self.happening_count += 1;
        self.happenings
            .insert((self.now + delay_ms * MS + self.happening_count % 1000, self.happening_count), happening);
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Open(sds) => {
                let delay = self.rng.below(10);
                if self.rng.chance(self.faults.refuse_open) {
                    let down = self.rng.chance(50);
                    self.at(delay, if down { Happening::Down { sds } } else { Happening::Refused { sds } });
                    return;
                }
                let connection = self.connections.get_mut(&sds).unwrap();
                if !connection.up {
                    (connection.number, connection.up, connection.mute) = (connection.number + 1, true, false);
                    connection.last_heard = self.now;
                }
                let number = connection.number;
                self.at(delay, Happening::Opened { sds, connection: number });
            }
            Action::Send(sds, request) => self.send(sds, request),
            Action::Complete(id, result) => self.complete(id, result),
            Action::Released(id) => assert!(self.released.insert(id), "released twice"),
            Action::Suspect(sds) => {
                let connection = &self.connections[&sds];
                if connection.up && self.now - connection.last_heard >= SILENCE_MS * MS {
                    self.drop_connection(sds);
                }
            }
            Action::RenewCredential => self.renewals += 1,
        }
    }

    fn send(&mut self, sds: SdsId, request: ClientRequest) {
        if let ClientOperation::Write { identity, .. } | ClientOperation::Zero { identity, .. } = request.operation {
            self.under_way.insert((request.pg.index, identity.request.0), (request.tag, request.snap_seq));
            let mixed = self.under_way.values().any(|(_, seq)| *seq != request.snap_seq);
            assert!(!mixed, "I18: changes of two snapshot sequences are under way together");
        }
        let connection = &self.connections[&sds];
        if !connection.up {
            return; // lost with the connection, of which the session is yet to hear
        }
        let number = connection.number;
        if self.rng.chance(self.faults.mute_connection) {
            self.connections.get_mut(&sds).unwrap().mute = true;
        }
        if self.rng.chance(self.faults.lose_request) {
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(self.faults.duplicate));
        for _ in 0..copies {
            let delay = self.rng.below(5);
            self.at(delay, Happening::ToServer { sds, connection: number, request: request.clone() });
        }
        if self.rng.chance(self.faults.drop_connection) {
            self.drop_connection(sds);
        }
    }

    pub fn drop_connection(&mut self, sds: SdsId) {
        let connection = self.connections.get_mut(&sds).unwrap();
        connection.up = false;
        connection.number += 1;
        self.at(0, Happening::Down { sds });
    }

    /// Lets the next thing happen. False if nothing ever will.
    pub fn run_one(&mut self) -> bool {
        let due = self.session.next_deadline();
        let next = self.happenings.first_key_value().map(|((at, _), _)| *at);
        if due < Nanos::NEVER && next.is_none_or(|next| due.0 <= next) {
            self.now = self.now.max(due.0);
            self.event(Event::Tick);
            return true;
        }
        let Some(((at, _), happening)) = self.happenings.pop_first() else { return false };
        self.now = self.now.max(at);
        match happening {
            Happening::ToServer { sds, connection, request } => self.serve(sds, connection, request),
            Happening::ToClient { sds, connection, reply } => {
                let link = self.connections.get_mut(&sds).unwrap();
                if link.up && !link.mute && link.number == connection {
                    link.last_heard = self.now;
                    // An answer that the client has taken means that the change is not under way any more.
                    let settles = !matches!(
                        reply.result,
                        Err(ClientError::Retry | ClientError::WrongPrimary(_) | ClientError::UnknownHandle)
                            | Err(ClientError::Damaged | ClientError::NoSpace)
                    );
                    if settles {
                        self.under_way.retain(|_, (tag, _)| *tag != reply.tag);
                    }
                    self.event(Event::Reply(sds, reply));
                }
            }
            Happening::Opened { sds, connection } => {
                let link = self.connections.get_mut(&sds).unwrap();
                if link.up && link.number == connection {
                    link.handle += 1;
                    let handle = link.handle;
                    self.event(Event::Opened(sds, handle));
                } else {
                    self.event(Event::Down(sds));
                }
            }
            Happening::Refused { sds } => {
                let codes = [OpenRefusal::Retry, OpenRefusal::Other, OpenRefusal::Ticket];
                let code = codes[self.rng.below(3) as usize];
                self.event(Event::OpenRefused(sds, code));
            }
            Happening::Down { sds } => self.event(Event::Down(sds)),
            Happening::Map(object) => self.change_map(vec![*object]),
        }
        true
    }

    /// Runs until nothing is left to do.
    ///
    /// # Panics
    /// If that takes more virtual time or steps than any pause explains: the session hangs.
    pub fn run_all(&mut self) {
        let limit = self.now + 600_000 * MS;
        for _ in 0..5_000_000_u64 {
            if self.session.operation_count() == 0 || !self.run_one() {
                break;
            }
            assert!(self.now < limit, "the session hangs: {:#?}", self.session);
        }
        assert_eq!(self.session.operation_count(), 0, "the session hangs: {:#?}", self.session);
    }

    pub fn change_map(&mut self, changed: Vec<MapObject>) {
        let from = self.map.revision();
        self.map.apply(&MapDelta { from, to: from.next(), changed, removed: Vec::new() }).unwrap();
        self.event(Event::Map);
    }

    /// Another server leads the group; the client's map learns it later.
    pub fn fail_over(&mut self, pg: u32, map_delay_ms: u64) {
        let truth = &mut self.pgs[pg as usize];
        truth.primary = truth.primary % SERVERS + 1;
        truth.epoch += 1;
        let object = MapObject::Pg(config(pg, truth.primary, truth.epoch));
        self.at(map_delay_ms, Happening::Map(Box::new(object)));
    }

    /// The volume has a new snapshot sequence; primaries know at once, the client's map later.
    pub fn snapshot(&mut self, map_delay_ms: u64) {
        self.snap_seq = self.snap_seq.next();
        let object = volume(SIZE, self.snap_seq);
        self.at(map_delay_ms, Happening::Map(Box::new(object)));
    }

    fn serve(&mut self, sds: SdsId, connection: u64, request: ClientRequest) {
        let link = &self.connections[&sds];
        let alive = link.up && link.number == connection;
        // F24: a packet of a dead connection may still arrive; a stopped server's do not.
        if link.mute || (!alive && self.rng.chance(50)) {
            return;
        }
        if self.rng.chance(self.faults.fail_over) {
            let (pg, delay) = (request.pg.index, self.rng.below(400));
            self.fail_over(pg, delay);
        }
        if self.rng.chance(self.faults.snapshot) {
            let delay = self.rng.below(50);
            self.snapshot(delay);
        }
        let handle = self.connections[&sds].handle;
        let result = if alive && request.handle != handle {
            Err(ClientError::UnknownHandle)
        } else if self.rng.chance(self.faults.forget_handle) {
            self.connections.get_mut(&sds).unwrap().handle += 1;
            Err(ClientError::UnknownHandle)
        } else {
            self.decide(sds, &request)
        };
        let delay = self.rng.below(8);
        self.at(delay, Happening::ToClient { sds, connection, reply: ClientReply { tag: request.tag, result } });
    }

    fn decide(&mut self, sds: SdsId, request: &ClientRequest) -> Result<ClientAnswer, ClientError> {
        let truth = &self.pgs[request.pg.index as usize];
        if self.fenced {
            return Err(ClientError::Fenced);
        }
        if truth.primary != sds.0 {
            let told = (truth.epoch > request.epoch.0 && self.rng.chance(70))
                .then(|| Box::new(config(request.pg.index, truth.primary, truth.epoch)));
            return Err(ClientError::WrongPrimary(told));
        }
        if self.rng.chance(self.faults.retry) {
            return Err(ClientError::Retry);
        }
        let (offset, length) = request.operation.range();
        let start = request.chunk.index * CHUNK + u64::from(offset);
        let cells = (start / CELL) as usize..((start + u64::from(length)) / CELL) as usize;
        match &request.operation {
            ClientOperation::Read { .. } => {
                let bytes: Vec<u8> = self.content[cells].iter().flat_map(|v| v.to_le_bytes().repeat(64)).collect();
                let mut data = Bytes::from(bytes);
                let checksums = piece_checksums(offset, [&data]);
                if self.rng.chance(self.faults.damage) {
                    let mut bad = data.to_vec();
                    let at = self.rng.below(bad.len() as u64) as usize;
                    bad[at] ^= 1;
                    data = Bytes::from(bad);
                }
                let cut = self.rng.below(data.len() as u64) as usize;
                let rest = data.split_off(cut);
                Ok(ClientAnswer::Data { checksums, data: vec![data, rest] })
            }
            ClientOperation::Status { .. } => {
                let blocks = sds_api::block::BlockRange::touching(offset, length).unwrap();
                Ok(ClientAnswer::Status(vec![true; usize::from(blocks.count())]))
            }
            ClientOperation::Zero { identity, .. } => self.order(request, *identity, cells, 0),
            ClientOperation::Write { identity, data, checksums, .. } => {
                assert_eq!(piece_checksums(offset, [data]), *checksums);
                if self.rng.chance(self.faults.damage) {
                    return Err(ClientError::Damaged);
                }
                let value = u64::from_le_bytes(data[..8].try_into().unwrap());
                self.order(request, *identity, cells, value)
            }
        }
    }

    fn order(
        &mut self,
        request: &ClientRequest,
        identity: sds_api::client::RequestIdentity,
        cells: std::ops::Range<usize>,
        value: u64,
    ) -> Result<ClientAnswer, ClientError> {
        let (number, watermark) = (identity.request.0, identity.oldest_unacked.0);
        assert!(number >= watermark && number - watermark < REQUEST_WINDOW, "I16: outside of the window");
        if request.snap_seq < self.snap_seq {
            return Err(ClientError::StaleSnap(self.snap_seq));
        }
        assert_eq!(request.snap_seq, self.snap_seq, "the client cannot know more");
        let no_space = self.rng.chance(self.faults.no_space);
        let truth = &mut self.pgs[request.pg.index as usize];
        let meaning = (request.chunk.index, cells.start as u32, cells.len() as u32, value);
        assert_eq!(*truth.meaning.entry(number).or_insert(meaning), meaning, "I16: a number was used twice");
        truth.watermark = truth.watermark.max(watermark);
        if number < truth.watermark {
            return Err(ClientError::Forgotten);
        }
        if truth.done.contains(&number) {
            return Ok(ClientAnswer::Done);
        }
        if no_space {
            return Err(ClientError::NoSpace);
        }
        truth.done.insert(number);
        self.content[cells].fill(value);
        self.applied += 1;
        Ok(ClientAnswer::Done)
    }

    fn complete(&mut self, id: IoId, result: Result<IoOutput, IoError>) {
        if let (Ok(IoOutput::Data(data)), Some(check)) = (&result, self.reads.remove(&id)) {
            let bytes = data.concat();
            for (index, since) in check.since.iter().enumerate() {
                let cell = (check.offset / CELL) as usize + index;
                let got = &bytes[index * CELL as usize..(index + 1) * CELL as usize];
                let value = u64::from_le_bytes(got[..8].try_into().unwrap());
                assert!(got.chunks(8).all(|part| part == &got[..8]), "a torn cell");
                let history = &self.cells[cell];
                let legal = match *since {
                    usize::MAX => value == 0 || history.iter().any(|change| change.value == value),
                    since => history[since..].iter().any(|change| change.value == value),
                };
                assert!(legal, "P2: read {id:?} of cell {cell} gave {value:x}, which was overwritten before it began");
            }
        }
        if result.is_ok() && self.requests[&id].changes() {
            let (offset, length) = self.requests[&id].range();
            for cell in &mut self.cells[(offset / CELL) as usize..((offset + length) / CELL) as usize] {
                cell.iter_mut().filter(|change| change.io == id).for_each(|change| change.answered = true);
            }
        }
        assert!(self.results.insert(id, result).is_none(), "completed twice");
    }

    /// After everything was answered well: the content is that of the changes in the order of their submission.
    pub fn check_content(&self) {
        for (cell, history) in self.cells.iter().enumerate() {
            let expected = history.last().map_or(0, |change| change.value);
            assert_eq!(self.content[cell], expected, "cell {cell}: writes of one client were reordered or lost");
        }
    }
}
