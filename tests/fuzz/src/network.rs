//! What arrives over a network: frames of the data protocol, and whole sessions of an NBD client.
//!
//! A case of the data protocol is a frame, front and all, as it lies on the wire; what a mutation broke of its two checksums
//! is mended, for they guard against damage and not against people. A case of NBD is all that one client ever says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mdm_api::config::PgConfig;
use mdm_api::epoch::{Epoch, Nanos, RequestNumber, Seq, SnapSeq, Term, Version};
use mdm_api::frame::{FRONT_BYTES, FrameBounds, FrameKind, Front, encode_front};
use mdm_api::ids::{DeviceId, KeyId, PgId, ProcessIncarnation, SdcId, SdsId, StoragePoolId, SystemId, VtreeId};
use sdc_nbd::export::{Export, ExportError, Exports, Extent, Piece, Zeroing};
use sdc_nbd::limits::Limits;
use sdc_nbd::serve::{Ending, Server};
use sdc_nbd::wire::option::{InfoRequest, OptionHead, code};
use sdc_nbd::wire::{Command, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use sds_api::block::{BLOCK_BYTES, BlockRange, ChunkId, LayerKey};
use sds_api::checksum::{block_checksums, crc32c};
use sds_api::client::{ClientAnswer, ClientError, ClientOperation, ClientReply, ClientRequest, RequestIdentity};
use sds_api::client_codec::{CLIENT_BOUNDS, piece_checksums};
use sds_api::open::{OPEN_BOUNDS, OpenMessage, OpenRefusal, PeerLink};
use sds_api::peer::{
    BlocksData, CreditGrant, LayerCopy, LeaseMessage, PEER_HEADER_BYTES_MAX, PEER_PAYLOAD_BYTES_MAX, PeerBody,
    PeerFrame, PeerMessage, Tail, TermStart,
};

use crate::mutate::Random;
use crate::targets::all_entries;

/// What data servers read from each other.
const PEER_BOUNDS: FrameBounds =
    FrameBounds { header_bytes_max: PEER_HEADER_BYTES_MAX, payload_bytes_max: PEER_PAYLOAD_BYTES_MAX };

const PG: PgId = PgId { pool: StoragePoolId(1), index: 2 };

fn layer() -> LayerKey {
    LayerKey { chunk: ChunkId { vtree: VtreeId(3), index: 4 }, snap_seq: SnapSeq(5) }
}

fn frame(kind: FrameKind, header: &[u8], payload: &[u8]) -> Vec<u8> {
    [&encode_front(kind, header, payload.len())[..], header, payload].concat()
}

/// One frame of every kind that crosses a data connection.
pub fn frames() -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = openings().iter().map(|m| frame(FrameKind::DataOpen, &m.encode(), &[])).collect();
    for request in requests() {
        let mut header = Vec::new();
        request.encode_header(&mut header);
        frames.push(frame(FrameKind::ClientRequest, &header, request.payload()));
    }
    for reply in replies() {
        let mut header = Vec::new();
        reply.encode_header(&mut header);
        frames.push(frame(FrameKind::ClientReply, &header, &reply.payload().concat()));
    }
    for said in peers() {
        let encoded = said.encode();
        frames.push(frame(FrameKind::Peer, &encoded.header, &encoded.payload.concat()));
    }
    frames
}

fn openings() -> Vec<OpenMessage> {
    let (system, sds, incarnation) = (SystemId(1), SdsId(2), ProcessIncarnation(3));
    vec![
        OpenMessage::Challenge { version_min: 1, version_max: 1, system, sds, incarnation, nonce: [4; 32] },
        OpenMessage::PeerHello {
            version: 1,
            system,
            sds,
            incarnation,
            link: PeerLink::Bulk,
            nonce: [5; 32],
            key: KeyId(6),
            proof: [7; 32],
        },
        OpenMessage::PeerWelcome { proof: [8; 32] },
        OpenMessage::Refused { text: "another system".to_owned() },
        OpenMessage::ClientHello { version: 1, system, sdc: SdcId(9), nonce: [10; 32] },
        OpenMessage::Open { request: 11, ticket: vec![12; 150], proof: [13; 32] },
        OpenMessage::Opened { request: 11, handle: 14, proof: [15; 32] },
        OpenMessage::OpenRefused { request: 11, code: OpenRefusal::Ticket, text: "expired".to_owned() },
        OpenMessage::Close { handle: 14 },
    ]
}

fn requests() -> Vec<ClientRequest> {
    let identity = RequestIdentity { request: RequestNumber(20), oldest_unacked: RequestNumber(18) };
    let data = Bytes::from(vec![7; 3 * BLOCK_BYTES + 100]);
    let checksums = piece_checksums(4000, [&data]);
    let operations = [
        ClientOperation::Read { offset: 100, length: 9000 },
        ClientOperation::Write { identity, offset: 4000, checksums, data },
        ClientOperation::Zero { identity, offset: 0, length: 1 << 20 },
        ClientOperation::Status { offset: 4096, length: 65_536 },
    ];
    let request = |operation| ClientRequest {
        tag: 1 << 48 | 1,
        handle: 14,
        pg: PG,
        epoch: Epoch(7),
        chunk: layer().chunk,
        snap_seq: SnapSeq(5),
        operation,
    };
    operations.into_iter().map(request).collect()
}

fn replies() -> Vec<ClientReply> {
    let data = Bytes::from(vec![9; 2 * BLOCK_BYTES]);
    let config = PgConfig {
        pg: PG,
        epoch: Epoch(7),
        term: Term(8),
        primary: Some(DeviceId(1)),
        primary_incarnation: ProcessIncarnation(9),
        isr: vec![DeviceId(1), DeviceId(2)],
        learners: vec![DeviceId(3)],
        previous_certified_dead: false,
        heir: None,
    };
    let results = [
        Ok(ClientAnswer::Data { checksums: piece_checksums(0, [&data]), data: vec![data] }),
        Ok(ClientAnswer::Done),
        Ok(ClientAnswer::Status(vec![true, false, true])),
        Err(ClientError::WrongPrimary(Some(Box::new(config)))),
        Err(ClientError::WrongPrimary(None)),
        Err(ClientError::StaleSnap(SnapSeq(6))),
        Err(ClientError::Medium),
    ];
    results.into_iter().map(|result| ClientReply { tag: 1, result }).collect()
}

fn peers() -> Vec<PeerFrame> {
    let version = Version { term: Term(6), seq: Seq(7) };
    let grant = CreditGrant { aus: 8, journal_bytes: 9 };
    let history = vec![TermStart { term: Term(1), first: Seq(1) }, TermStart { term: Term(6), first: Seq(5) }];
    let tail = Tail { last: Seq(7), committed: Seq(6), history, complete: true, suspect: false, grant };
    let data = Bytes::from(vec![3; 2 * BLOCK_BYTES]);
    let content = BlocksData { checksums: block_checksums(&data), data: vec![data] };
    let copy = LayerCopy {
        version,
        presence: [1 << 3, 0, 0, 1 << 63],
        checksums: content.checksums.clone(),
        data: content.data.clone(),
    };
    let (stream, number) = (40, 41);
    let blocks = BlockRange::new(3, 2).expect("within a chunk");
    let bodies = [
        PeerBody::Activate { ask: 1, epoch: Epoch(2) },
        PeerBody::Tail { ask: 1, tail },
        PeerBody::Refused { promised: Term(3), epoch: Epoch(2) },
        PeerBody::AskStream { stream },
        PeerBody::Follow { stream, after: Seq(5), commit: Seq(4) },
        PeerBody::Reset { stream, through: version, state: Bytes::from_static(b"some state") },
        PeerBody::Replicate { stream, number, commit: Seq(4), entries: all_entries() },
        PeerBody::Copy { stream, number, layer: layer(), copy: copy.clone() },
        PeerBody::Patch { stream, number, layer: layer(), base: version, blocks: [u64::MAX; 4], copy },
        PeerBody::RemoveLayers { stream, number, layers: vec![layer(); 3] },
        PeerBody::Complete { stream, number },
        PeerBody::Durable { stream, through: Seq(7), operations: 2, grant },
        PeerBody::ListChunks { stream, after: Some(layer()) },
        PeerBody::ChunkVersions { stream, after: None, layers: vec![(layer(), version); 2], last: true },
        PeerBody::FetchBlocks { request: 1, layer: layer(), blocks, commit: Seq(7) },
        PeerBody::Blocks { request: 1, content: Some(content) },
        PeerBody::Release,
    ];
    let message = |body| PeerMessage {
        pg: PG,
        term: Term(6),
        from: DeviceId(1),
        to: DeviceId(2),
        incarnation: ProcessIncarnation(3),
        to_incarnation: ProcessIncarnation(4),
        body,
    };
    let (from, incarnation, to_incarnation, sent_at) =
        (SdsId(1), ProcessIncarnation(2), ProcessIncarnation(3), Nanos(4));
    let confirmed = vec![(PG, Term(5)); 2];
    let exclude = confirmed.clone();
    let leases = [
        LeaseMessage::Ask { from, incarnation, sent_at, confirmed },
        LeaseMessage::Grant { from, incarnation, to_incarnation, sent_at, lease_ms: 900, exclude },
    ];
    bodies.into_iter().map(|body| PeerFrame::Replica(message(body))).chain(leases.map(PeerFrame::Lease)).collect()
}

/// Makes the checksums of the front right again, and mostly its lengths.
pub fn mend_frame(bytes: &mut [u8], random: &mut Random) {
    if bytes.len() < FRONT_BYTES || random.chance(5) {
        return;
    }
    let rest = bytes.len() - FRONT_BYTES;
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let header = (word(bytes, 8) as usize).min(rest);
    if random.chance(90) {
        bytes[8..12].copy_from_slice(&(header as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&((rest - header) as u32).to_le_bytes());
    }
    let crc = crc32c(&bytes[FRONT_BYTES..FRONT_BYTES + header]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c(&bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// Takes the frame in as a reader of its kind does. What decodes, and is encoded again, decodes to the same.
pub fn check_frame(bytes: &[u8]) {
    let Some((front, rest)) = bytes.split_first_chunk::<FRONT_BYTES>() else { return };
    // The widest bounds first, for the kind; then those of that kind's readers.
    let Ok(front) = Front::decode(front, PEER_BOUNDS) else { return };
    let bounds = match front.kind {
        FrameKind::DataOpen => OPEN_BOUNDS,
        FrameKind::ClientRequest | FrameKind::ClientReply => CLIENT_BOUNDS,
        _ => PEER_BOUNDS,
    };
    if front.header_bytes > bounds.header_bytes_max || front.payload_bytes > bounds.payload_bytes_max {
        return;
    }
    let Some((header, rest)) = rest.split_at_checked(front.header_bytes) else { return };
    let Some(payload) = rest.get(..front.payload_bytes) else { return };
    if front.check_header(header).is_err() {
        return;
    }
    let payload = Bytes::copy_from_slice(payload);
    let mut again = Vec::new();
    match front.kind {
        FrameKind::DataOpen => {
            let Ok(message) = OpenMessage::decode(header) else { return };
            assert_eq!(OpenMessage::decode(&message.encode()), Ok(message));
        }
        FrameKind::ClientRequest => {
            let Ok(request) = ClientRequest::decode(header, payload.clone()) else { return };
            request.encode_header(&mut again);
            assert_eq!(request.payload(), &payload);
            assert_eq!(ClientRequest::decode(&again, payload), Ok(request));
        }
        FrameKind::ClientReply => {
            let Ok(reply) = ClientReply::decode(header, payload.clone()) else { return };
            reply.encode_header(&mut again);
            assert_eq!(reply.payload().concat(), payload);
            assert_eq!(ClientReply::decode(&again, payload), Ok(reply));
        }
        FrameKind::Peer => {
            let Ok(said) = PeerFrame::decode(header, payload.clone()) else { return };
            let encoded = said.encode();
            assert_eq!(encoded.payload.concat(), payload);
            assert_eq!(PeerFrame::decode(&encoded.header, payload), Ok(said));
        }
        FrameKind::Control | FrameKind::Raft | FrameKind::Local => {}
    }
}

/// Panics of tasks, which the runtime keeps to itself.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// A disk that forgets, and that nothing may reach beyond its end.
struct Nothing;

const DISK_BYTES: u64 = 1 << 20;

impl Nothing {
    fn within(offset: u64, length: u64) {
        assert!(length > 0, "an empty request");
        assert!(offset.checked_add(length).is_some_and(|end| end <= DISK_BYTES), "{length} bytes at {offset}");
    }
}

impl Export for Nothing {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn read_only(&self) -> bool {
        false
    }
    async fn read(&self, offset: u64, length: u32, pieces: &mut Vec<Piece>) -> Result<(), ExportError> {
        Self::within(offset, u64::from(length));
        pieces.push(Piece::Zero(length));
        Ok(())
    }
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        Self::within(offset, data.len() as u64);
        Ok(())
    }
    async fn write_zeroes(&self, offset: u64, length: u64, _: Zeroing) -> Result<(), ExportError> {
        Self::within(offset, length);
        Ok(())
    }
    async fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        Self::within(offset, length);
        Ok(())
    }
    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }
    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        Self::within(offset, length);
        Ok(())
    }
    async fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<(), ExportError> {
        Self::within(offset, length);
        let half = length.div_ceil(2);
        extents.extend([(half, true), (length - half, false)].map(|(length, hole)| Extent {
            length,
            hole,
            zero: hole,
        }));
        Ok(())
    }
}

/// One export, `disk`.
struct Shelf;

impl Exports for Shelf {
    type Export = Nothing;
    async fn list(&self) -> Vec<String> {
        vec!["disk".to_owned()]
    }
    async fn open(&self, name: &str) -> Option<Arc<Nothing>> {
        (name == "disk").then(|| Arc::new(Nothing))
    }
}

/// All that clients say: with simple, structured and extended headers, and by the oldest way of choosing an export.
pub fn sessions() -> Vec<Vec<u8>> {
    let option = |out: &mut Vec<u8>, option: u32, payload: &[u8]| {
        out.extend(OptionHead { option, length: payload.len() as u32 }.encode());
        out.extend_from_slice(payload);
    };
    let meta =
        [&4u32.to_be_bytes()[..], b"disk", &1u32.to_be_bytes(), &15u32.to_be_bytes(), b"base:allocation"].concat();
    let ask = InfoRequest { name: "disk".to_owned(), kinds: vec![0, 1, 3] }.encode();
    let session = |headers: Option<u32>| {
        let mut out = 3u32.to_be_bytes().to_vec();
        headers.iter().for_each(|headers| option(&mut out, *headers, &[]));
        option(&mut out, code::LIST, &[]);
        option(&mut out, code::LIST_META_CONTEXT, &meta);
        option(&mut out, code::SET_META_CONTEXT, &meta);
        option(&mut out, code::INFO, &ask);
        option(&mut out, code::GO, &ask);
        requests_of_all_kinds(&mut out, headers == Some(code::EXTENDED_HEADERS));
        out
    };
    let mut oldest = 1u32.to_be_bytes().to_vec();
    option(&mut oldest, code::EXPORT_NAME, b"disk");
    requests_of_all_kinds(&mut oldest, false);
    vec![session(None), session(Some(code::STRUCTURED_REPLY)), session(Some(code::EXTENDED_HEADERS)), oldest]
}

fn requests_of_all_kinds(out: &mut Vec<u8>, extended: bool) {
    let commands = [
        (Command::Read, 0, 0u64, 5000u64),
        (Command::Write, 1, 4000, 3000),
        (Command::WriteZeroes, 2, 0, 9000),
        (Command::Trim, 0, 8192, 8192),
        (Command::Cache, 0, 0, 4096),
        (Command::BlockStatus, 8, 0, 65_536),
        (Command::Read, 4, 4096, 100_000),
        (Command::Flush, 0, 0, 0),
        (Command::Disconnect, 0, 0, 0),
    ];
    for (cookie, (command, flags, offset, length)) in commands.into_iter().enumerate() {
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out.extend(magic.to_be_bytes());
        out.extend(u16::to_be_bytes(if extended && command == Command::Write { flags | 1 << 5 } else { flags }));
        out.extend((command as u16).to_be_bytes());
        out.extend((cookie as u64).to_be_bytes());
        out.extend(offset.to_be_bytes());
        if extended {
            out.extend(length.to_be_bytes());
        } else {
            out.extend((length as u32).to_be_bytes());
        }
        if command == Command::Write {
            out.extend(std::iter::repeat_n(7, length as usize));
        }
    }
}

/// Serves one client that says this and leaves. The session ends, nothing of it is left, and no task of it panicked.
pub fn check_session(bytes: &[u8]) {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(panic);
        }));
    });
    let before = PANICS.load(Ordering::SeqCst);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let said = bytes.to_vec();
    runtime.block_on(async {
        let server = Server::new(Shelf, Limits::default());
        let talk = async {
            // However it ends, it must end: the client has said all and left.
            let _ = server.serve(&said[..], tokio::io::sink()).await;
        };
        tokio::time::timeout(Duration::from_secs(20), talk).await.expect("a session without a client ends");
        assert_eq!(server.shutdown(Ending::Resume, Duration::from_secs(1)).await, 0, "a connection is left");
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), before, "a task panicked");
}
