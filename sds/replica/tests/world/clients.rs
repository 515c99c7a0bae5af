//! Clients: writes and reads of half blocks, retried with the same identity until they are answered.

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_api::epoch::{AttachGeneration, RequestNumber, SnapSeq};
use mdm_api::ids::{SdcId, VolumeId, VtreeId};
use sds_api::block::{BLOCK_BYTES, ChunkId, LayerKey};
use sds_api::checksum::crc32c;
use sds_api::client::{ClientAnswer, ClientError, ClientOperation, RequestIdentity};
use sds_api::entry::WriteIdentity;
use sds_replica::{ClientRef, Event};

use super::{Happening, MS, World, node_of};

pub const HALF: usize = BLOCK_BYTES / 2;
pub const CHUNKS: u64 = 3;
/// Half blocks of each chunk that are used.
pub const HALVES: u64 = 8;

#[derive(Clone)]
pub struct Op {
    pub chunk: u64,
    pub first: u64,
    pub count: u64,
    /// The value to write; none: a read.
    pub value: Option<u64>,
    pub request: u64,
    pub oldest_unacked: u64,
    pub began: u64,
    pub attempt: u32,
    pub result: Option<Result<Vec<u64>, ClientError>>,
}

#[derive(Default)]
pub struct Client {
    pub ops: BTreeMap<u64, Op>,
    next_op: u64,
    next_request: u64,
    /// Set by tests: the client believes that this node is the primary.
    pub believes: Option<usize>,
}

pub fn layer(chunk: u64) -> LayerKey {
    LayerKey { chunk: ChunkId { vtree: VtreeId(1), index: chunk }, snap_seq: SnapSeq(0) }
}

pub fn halves(value: u64, count: u64) -> Bytes {
    Bytes::from(value.to_le_bytes().repeat(HALF / 8 * count as usize))
}

/// One checksum for each piece, cut at the chunk's block boundaries.
fn checksums(offset: usize, data: &[u8]) -> Vec<u32> {
    let first = (BLOCK_BYTES - offset % BLOCK_BYTES).min(data.len());
    let (head, rest) = data.split_at(first);
    std::iter::once(head).chain(rest.chunks(BLOCK_BYTES)).map(crc32c).collect()
}

impl World {
    pub fn client_start(&mut self, client: usize) {
        if self.now >= self.faults_until {
            return;
        }
        let delay = self.rng.between(1, 40) * MS;
        self.at(delay, Happening::ClientStart { client });
        if self.clients[client].ops.values().filter(|op| op.result.is_none()).count() >= 6 {
            return;
        }
        let chunk = self.rng.below(CHUNKS);
        let first = self.rng.below(HALVES);
        let count = self.rng.between(1, (HALVES - first).min(4));
        let write = self.rng.chance(60);
        // A client has no two operations on the same bytes under way, as a block layer sees to it.
        let busy = self.clients[client].ops.values().any(|op| {
            op.result.is_none() && op.chunk == chunk && op.first < first + count && first < op.first + op.count
        });
        if !busy {
            self.begin(client, chunk, first, count, write);
        }
    }

    /// Starts an operation; returns its number.
    pub fn begin(&mut self, client: usize, chunk: u64, first: u64, count: u64, write: bool) -> u64 {
        self.now += 1; // No two moments of the history are the same.
        let began = self.now;
        self.next_value += 1;
        let value = write.then_some(self.next_value);
        let entry = &mut self.clients[client];
        entry.next_op += 1;
        let op = entry.next_op;
        let request = if write {
            entry.next_request += 1;
            entry.next_request
        } else {
            0
        };
        let open = entry.ops.values().filter(|op| op.result.is_none() && op.value.is_some());
        let oldest_unacked = open.map(|op| op.request).min().unwrap_or(request);
        let new = Op { chunk, first, count, value, request, oldest_unacked, began, attempt: 0, result: None };
        entry.ops.insert(op, new);
        if let Some(value) = value {
            for half in first..first + count {
                self.registers.entry((chunk, half)).or_default().write_begins(value, began);
            }
        }
        self.send_op(client, op);
        op
    }

    fn send_op(&mut self, client: usize, op: u64) {
        let believed = self.clients[client].believes;
        let known = believed.or_else(|| self.manager.config.primary.map(node_of));
        let guess = self.rng.below(self.options.nodes as u64) as usize;
        let wild = self.options.faults && self.rng.chance(5);
        let node = if wild { guess } else { known.unwrap_or(guess) };
        let delay = self.rng.between(MS / 20, MS);
        self.at(delay, Happening::ClientArrives { client, op, node });
        if self.options.late_duplicates && self.rng.chance(5) {
            let late = self.rng.below(2000 * MS);
            self.at(delay + late, Happening::ClientArrives { client, op, node });
        }
        let attempt = self.clients[client].ops[&op].attempt;
        self.at(250 * MS, Happening::ClientAgain { client, op, attempt });
    }

    pub fn client_arrives(&mut self, client: usize, op: u64, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        let Some(sent) = self.clients[client].ops.get(&op).cloned() else { return };
        let Op { chunk, first, count, value, request, oldest_unacked, .. } = sent;
        let offset = first as usize * HALF;
        let identity = value.map(|_| WriteIdentity {
            volume: VolumeId(1),
            sdc: SdcId(client as u64 + 1),
            session: AttachGeneration(1),
            request: RequestNumber(request),
            oldest_unacked: RequestNumber(oldest_unacked),
        });
        let operation = match value {
            Some(value) => {
                let data = halves(value, count);
                ClientOperation::Write {
                    identity: RequestIdentity {
                        request: RequestNumber(request),
                        oldest_unacked: RequestNumber(oldest_unacked),
                    },
                    offset: offset as u32,
                    checksums: checksums(offset, &data).into(),
                    data,
                }
            }
            None => ClientOperation::Read { offset: offset as u32, length: (count as usize * HALF) as u32 },
        };
        let client = ClientRef { connection: client as u64, tag: op };
        self.step(node, Event::Client { client, operation, identity, layer: layer(chunk) });
    }

    pub fn client_again(&mut self, client: usize, op: u64, attempt: u32) {
        let Some(entry) = self.clients[client].ops.get_mut(&op) else { return };
        if entry.result.is_none() && entry.attempt == attempt {
            entry.attempt += 1;
            self.send_op(client, op);
        }
    }

    pub fn client_reply(&mut self, client: usize, op: u64, result: Result<ClientAnswer, ClientError>) {
        let Some(entry) = self.clients[client].ops.get(&op).cloned() else { return };
        if entry.result.is_some() {
            return;
        }
        let finished = match result {
            Ok(ClientAnswer::Done) => {
                let value = entry.value.expect("only writes are done");
                for half in entry.first..entry.first + entry.count {
                    self.registers.get_mut(&(entry.chunk, half)).unwrap().write_ends(value, self.now);
                }
                Ok(vec![])
            }
            Ok(ClientAnswer::Data { checksums: sums, data }) => Ok(self.take_data(&entry, &sums, &data.concat())),
            Ok(ClientAnswer::Status(_)) => Ok(vec![]),
            Err(ClientError::Retry | ClientError::WrongPrimary(_)) => {
                let delay = self.rng.between(2, 40) * MS;
                self.at(delay, Happening::ClientAgain { client, op, attempt: entry.attempt });
                return;
            }
            Err(ClientError::Medium) if self.allow_medium => Err(ClientError::Medium),
            Err(error) => panic!("an operation in progress gets {error:?}"),
        };
        self.clients[client].ops.get_mut(&op).unwrap().result = Some(finished);
    }

    fn take_data(&mut self, op: &Op, sums: &[u32], data: &[u8]) -> Vec<u64> {
        assert_eq!(data.len(), op.count as usize * HALF, "a read returns what was asked for");
        assert_eq!(checksums(op.first as usize * HALF, data), sums, "checksums travel with the data");
        let mut values = Vec::new();
        for (index, half) in data.chunks(HALF).enumerate() {
            let mut words = half.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            let value = words.next().unwrap();
            assert!(words.all(|word| word == value), "a torn half block");
            let key = (op.chunk, op.first + index as u64);
            self.registers.entry(key).or_default().read(value, op.began, self.now);
            values.push(value);
        }
        values
    }

    pub fn result(&self, client: usize, op: u64) -> Option<&Result<Vec<u64>, ClientError>> {
        self.clients[client].ops[&op].result.as_ref()
    }

    pub fn all_answered(&self) -> bool {
        self.clients.iter().all(|client| client.ops.values().all(|op| op.result.is_some()))
    }

    /// Runs until the operation is answered.
    pub fn wait(&mut self, client: usize, op: u64) -> Result<Vec<u64>, ClientError> {
        let answered = self.run(10_000, |world| world.result(client, op).is_some());
        assert!(answered, "an operation is never answered");
        self.result(client, op).unwrap().clone()
    }

    pub fn check_registers(&self) {
        for (key, register) in &self.registers {
            if let Err(error) = register.check() {
                panic!("half block {key:?}: {error}");
            }
        }
    }
}
