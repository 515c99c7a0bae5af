//! A data server for tests: the real opening and the real wire, over a volume in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mdm_api::frame::FrameKind;
use mdm_api::ids::{KeyId, ProcessIncarnation, ProtectionDomainId, SdcId, SdsId, SystemId, VolumeId};
use mdm_api::model::DomainKey;
use mdm_api::ticket::{Ticket, client_proof, server_proof};
use sds_api::client::{ClientAnswer, ClientError, ClientOperation, ClientReply, ClientRequest};
use sds_api::client_codec::{CLIENT_BOUNDS, piece_checksums};
use sds_api::open::{OPEN_BOUNDS, OPEN_VERSION, OPEN_VERSION_MIN, OpenMessage, OpenRefusal};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::runtime::framed::{FrameReader, FrameWriter};

pub(super) const SYSTEM: SystemId = SystemId(11);
pub(super) const SDC: SdcId = SdcId(9);

pub(super) fn key() -> DomainKey {
    DomainKey { id: KeyId(4), protection_domain: ProtectionDomainId(1), secret: [5; 32] }
}

/// What outlives a server's process.
#[derive(Default)]
pub(super) struct Disk {
    pub content: Vec<u8>,
    pub done: BTreeSet<(u32, u64)>,
    pub applied: u64,
    pub fenced: bool,
    /// Refuse this many openings for their ticket.
    pub refuse_tickets: u32,
    /// Take requests, answer none.
    pub deaf: bool,
    /// Derive proofs from another key.
    pub impostor: bool,
    pub closed_handles: u32,
}

/// A running server.
pub(super) struct Server {
    pub address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Server {
    /// Serves on a free port, or on the one that an earlier server had.
    pub async fn start(disk: Arc<Mutex<Disk>>, address: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind(address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let disk = Arc::clone(&disk);
                connections.spawn(async move {
                    // A connection ends when its client is gone.
                    let _ = Peer { stream, disk, handles: BTreeMap::new(), nonce: [0; 32] }.serve().await;
                });
            }
        });
        Self { address, tasks }
    }

    /// Kills it: its port is free when this returns.
    pub async fn kill(mut self) -> SocketAddr {
        self.tasks.shutdown().await;
        self.address
    }
}

struct Peer {
    stream: TcpStream,
    disk: Arc<Mutex<Disk>>,
    handles: BTreeMap<u32, VolumeId>,
    nonce: [u8; 32],
}

impl Peer {
    async fn serve(mut self) -> std::io::Result<()> {
        let (mut reader, mut writer) = (FrameReader::default(), FrameWriter::default());
        let challenge = OpenMessage::Challenge {
            version_min: OPEN_VERSION_MIN,
            version_max: OPEN_VERSION,
            system: SYSTEM,
            sds: SdsId(1),
            incarnation: ProcessIncarnation(1),
            nonce: [7; 32],
        };
        writer.push(FrameKind::DataOpen, &challenge.encode(), []);
        poll_fn(|cx| writer.poll_flush(cx, &self.stream)).await?;
        let mut bounds = OPEN_BOUNDS;
        while let Some((kind, payload)) = poll_fn(|cx| reader.poll_frame(cx, &self.stream, bounds)).await? {
            match kind {
                FrameKind::DataOpen => {
                    bounds = CLIENT_BOUNDS;
                    let message = OpenMessage::decode(reader.header()).unwrap();
                    if let Some(answer) = self.open(message) {
                        writer.push(FrameKind::DataOpen, &answer.encode(), []);
                    }
                }
                FrameKind::ClientRequest => {
                    let request = ClientRequest::decode(reader.header(), payload).unwrap();
                    if self.disk.lock().unwrap().deaf {
                        continue;
                    }
                    let reply = ClientReply { tag: request.tag, result: self.carry_out(&request) };
                    let mut header = Vec::new();
                    reply.encode_header(&mut header);
                    writer.push(FrameKind::ClientReply, &header, reply.payload());
                }
                other => panic!("a client sent {other:?}"),
            }
            poll_fn(|cx| writer.poll_flush(cx, &self.stream)).await?;
        }
        Ok(())
    }

    fn open(&mut self, message: OpenMessage) -> Option<OpenMessage> {
        match message {
            OpenMessage::ClientHello { system, sdc, nonce, .. } => {
                assert_eq!((system, sdc), (SYSTEM, SDC));
                self.nonce = nonce;
                None
            }
            OpenMessage::Open { request, ticket, proof } => {
                let mut disk = self.disk.lock().unwrap();
                let (parsed, secret) = Ticket::check(&ticket, SYSTEM, 1500, 0, |_| Some(key())).unwrap();
                assert_eq!(proof, client_proof(&secret, &ticket, SdsId(1), &[7; 32], &self.nonce));
                let refused = |code| OpenMessage::OpenRefused { request, code, text: "no".to_owned() };
                if disk.refuse_tickets > 0 {
                    disk.refuse_tickets -= 1;
                    return Some(refused(OpenRefusal::Ticket));
                }
                if disk.fenced {
                    return Some(refused(OpenRefusal::Fenced));
                }
                let handle = self.handles.len() as u32 + 1;
                self.handles.insert(handle, parsed.volume);
                let secret = if disk.impostor { [0; 32] } else { secret };
                let proof = server_proof(&secret, &ticket, SdsId(1), &[7; 32], &self.nonce);
                Some(OpenMessage::Opened { request, handle, proof })
            }
            OpenMessage::Close { handle } => {
                assert!(self.handles.remove(&handle).is_some());
                self.disk.lock().unwrap().closed_handles += 1;
                None
            }
            other => panic!("a client sent {other:?}"),
        }
    }

    fn carry_out(&self, request: &ClientRequest) -> Result<ClientAnswer, ClientError> {
        let mut disk = self.disk.lock().unwrap();
        if disk.fenced {
            return Err(ClientError::Fenced);
        }
        if !self.handles.contains_key(&request.handle) {
            return Err(ClientError::UnknownHandle);
        }
        let (offset, length) = request.operation.range();
        let start = (request.chunk.index << 20) as usize + offset as usize;
        let range = start..start + length as usize;
        match &request.operation {
            ClientOperation::Read { .. } => {
                let data = Bytes::copy_from_slice(&disk.content[range]);
                Ok(ClientAnswer::Data { checksums: piece_checksums(offset, [&data]), data: vec![data] })
            }
            ClientOperation::Status { .. } => {
                let whole = range.start / 4096 * 4096..range.end.next_multiple_of(4096);
                let blocks = disk.content[whole].chunks(4096);
                Ok(ClientAnswer::Status(blocks.map(|block| block.iter().any(|byte| *byte != 0)).collect()))
            }
            ClientOperation::Write { identity, checksums, data, .. } => {
                assert_eq!(piece_checksums(offset, [data]), *checksums);
                if disk.done.insert((request.pg.index, identity.request.0)) {
                    disk.content[range].copy_from_slice(data);
                    disk.applied += 1;
                }
                Ok(ClientAnswer::Done)
            }
            ClientOperation::Zero { identity, .. } => {
                if disk.done.insert((request.pg.index, identity.request.0)) {
                    disk.content[range].fill(0);
                    disk.applied += 1;
                }
                Ok(ClientAnswer::Done)
            }
        }
    }
}
