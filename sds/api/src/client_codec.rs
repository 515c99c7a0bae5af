//! How client messages lie on the wire: frames of kind `ClientRequest` and `ClientReply`.
//!
//! The header is encoded apart from the payload, so that data is never copied to be framed: a write's bytes and a read's
//! bytes are the frame's payload, everything else has none. Little-endian, fixed by [`CLIENT_VERSION`]. Decoding checks all
//! that can be checked without state (lengths, ranges, counts), so whoever gets a message may index by its numbers; whether
//! the bytes match their checksums is for the receiver to verify before use (I21).

use bytes::{BufMut, Bytes};
use mdm_api::config::PgConfig;
use mdm_api::epoch::{Epoch, RequestNumber, SnapSeq, Term};
use mdm_api::frame::FrameBounds;
use mdm_api::ids::{DeviceId, ProcessIncarnation, VtreeId};

use crate::block::{BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, CHUNK_BYTES, ChunkId};
use crate::checksum::crc32c_append;
use crate::client::{
    Checksums, ClientAnswer, ClientError, ClientOperation, ClientReply, ClientRequest, RequestIdentity,
};
use crate::entry::{EntryDecodeError, get_pg, get_u8, get_u16, get_u32, get_u64, put_pg};

/// Version of the encoding.
pub const CLIENT_VERSION: u8 = 2;
/// The longest header: that of a whole chunk, which has one checksum for each block.
pub const CLIENT_HEADER_BYTES_MAX: usize = 128 + 4 * CHUNK_BLOCKS as usize;
/// What readers of client frames accept.
pub const CLIENT_BOUNDS: FrameBounds =
    FrameBounds { header_bytes_max: CLIENT_HEADER_BYTES_MAX, payload_bytes_max: CHUNK_BYTES };
/// The most members of a configuration in an answer; there are two or three, and a few learners.
const MEMBERS_MAX: usize = 32;

const _: () = assert!(70 + 2 * 8 * MEMBERS_MAX <= CLIENT_HEADER_BYTES_MAX);

/// Why bytes are not a client message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientDecodeError {
    /// They end early.
    #[error("client message ends early")]
    Short,
    /// There is more than the message.
    #[error("client message has {0} bytes too many")]
    Long(usize),
    /// A version that this software does not know.
    #[error("client message of version {0}; this software knows up to {CLIENT_VERSION}: upgrade it")]
    UnknownVersion(u8),
    /// A kind that this software does not know.
    #[error("client message of unknown kind {0}")]
    UnknownKind(u8),
    /// Bytes past a chunk, or none.
    #[error("client message names impossible bytes of a chunk")]
    BadRange,
    /// A field that must be 0 or 1 is neither.
    #[error("client message has a flag that is neither set nor clear")]
    BadFlag,
    /// Not one checksum for each piece of the payload, or no configuration that could be.
    #[error("client message has a list of impossible length")]
    BadCount,
    /// The payload is not as long as the header says.
    #[error("client message has a payload that does not belong to it")]
    BadPayload,
}

impl From<EntryDecodeError> for ClientDecodeError {
    fn from(_: EntryDecodeError) -> Self {
        Self::Short // the readers of plain numbers have no other complaint
    }
}

mod operation {
    pub(super) const READ: u8 = 1;
    pub(super) const WRITE: u8 = 2;
    pub(super) const ZERO: u8 = 3;
    pub(super) const STATUS: u8 = 4;
}

mod answer {
    pub(super) const DATA: u8 = 1;
    pub(super) const DONE: u8 = 2;
    pub(super) const STATUS: u8 = 3;
    pub(super) const WRONG_PRIMARY: u8 = 16;
    pub(super) const RETRY: u8 = 17;
    pub(super) const STALE_SNAP: u8 = 18;
    pub(super) const FENCED: u8 = 19;
    pub(super) const READ_ONLY: u8 = 20;
    pub(super) const UNKNOWN_HANDLE: u8 = 21;
    pub(super) const OUT_OF_RANGE: u8 = 22;
    pub(super) const DAMAGED: u8 = 23;
    pub(super) const NO_SPACE: u8 = 24;
    pub(super) const MEDIUM: u8 = 25;
    pub(super) const FORGOTTEN: u8 = 26;
}

impl ClientOperation {
    /// First byte and number of bytes within the chunk.
    pub fn range(&self) -> (u32, u32) {
        match self {
            Self::Read { offset, length } | Self::Zero { offset, length, .. } | Self::Status { offset, length } => {
                (*offset, *length)
            }
            Self::Write { offset, data, .. } => (*offset, data.len() as u32),
        }
    }
}

impl ClientRequest {
    /// The payload that goes with the header; empty for all but writes.
    pub fn payload(&self) -> &Bytes {
        static NOTHING: Bytes = Bytes::new();
        match &self.operation {
            ClientOperation::Write { data, .. } => data,
            _ => &NOTHING,
        }
    }

    /// Appends the header.
    ///
    /// # Panics
    /// If a write does not have one checksum for each block-sized piece of 1 byte to 1 chunk.
    pub fn encode_header(&self, out: &mut Vec<u8>) {
        out.put_u8(CLIENT_VERSION);
        out.put_u8(match self.operation {
            ClientOperation::Read { .. } => operation::READ,
            ClientOperation::Write { .. } => operation::WRITE,
            ClientOperation::Zero { .. } => operation::ZERO,
            ClientOperation::Status { .. } => operation::STATUS,
        });
        out.put_u64_le(self.tag);
        out.put_u32_le(self.handle);
        put_pg(out, self.pg);
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.chunk.vtree.0);
        out.put_u64_le(self.chunk.index);
        out.put_u64_le(self.snap_seq.0);
        let (offset, length) = self.operation.range();
        out.put_u32_le(offset);
        out.put_u32_le(length);
        match &self.operation {
            ClientOperation::Read { .. } | ClientOperation::Status { .. } => {}
            ClientOperation::Zero { identity, .. } => put_identity(out, *identity),
            ClientOperation::Write { identity, checksums, .. } => {
                let blocks = BlockRange::touching(offset, length).expect("a write lies within its chunk");
                assert_eq!(checksums.len(), usize::from(blocks.count()), "one checksum for each piece");
                put_identity(out, *identity);
                checksums.iter().for_each(|sum| out.put_u32_le(*sum));
            }
        }
    }

    /// Reads a request from a frame's header and payload.
    pub fn decode(mut header: &[u8], payload: Bytes) -> Result<Self, ClientDecodeError> {
        let input = &mut header;
        check_version(input)?;
        let kind = get_u8(input)?;
        let tag = get_u64(input)?;
        let handle = get_u32(input)?;
        let pg = get_pg(input)?;
        let epoch = Epoch(get_u64(input)?);
        let chunk = ChunkId { vtree: VtreeId(get_u64(input)?), index: get_u64(input)? };
        let snap_seq = SnapSeq(get_u64(input)?);
        let (offset, length) = (get_u32(input)?, get_u32(input)?);
        let blocks = BlockRange::touching(offset, length).ok_or(ClientDecodeError::BadRange)?;
        let expected = if kind == operation::WRITE { length as usize } else { 0 };
        if payload.len() != expected {
            return Err(ClientDecodeError::BadPayload);
        }
        let operation = match kind {
            operation::READ => ClientOperation::Read { offset, length },
            operation::STATUS => ClientOperation::Status { offset, length },
            operation::ZERO => ClientOperation::Zero { identity: get_identity(input)?, offset, length },
            operation::WRITE => ClientOperation::Write {
                identity: get_identity(input)?,
                offset,
                checksums: get_checksums(input, usize::from(blocks.count()))?,
                data: payload,
            },
            other => return Err(ClientDecodeError::UnknownKind(other)),
        };
        check_end(input)?;
        Ok(Self { tag, handle, pg, epoch, chunk, snap_seq, operation })
    }
}

impl ClientReply {
    /// The pieces of the payload that go with the header, in order; none for all but data.
    pub fn payload(&self) -> &[Bytes] {
        match &self.result {
            Ok(ClientAnswer::Data { data, .. }) => data,
            _ => &[],
        }
    }

    /// Appends the header.
    ///
    /// # Panics
    /// If an answer is longer than a chunk, or a configuration has more members than there can be.
    pub fn encode_header(&self, out: &mut Vec<u8>) {
        out.put_u8(CLIENT_VERSION);
        out.put_u8(answer_number(&self.result));
        out.put_u64_le(self.tag);
        match &self.result {
            Ok(ClientAnswer::Data { checksums, data }) => {
                let length: usize = data.iter().map(Bytes::len).sum();
                assert!(length <= CHUNK_BYTES && checksums.len() <= usize::from(CHUNK_BLOCKS), "within a chunk");
                out.put_u32_le(length as u32);
                out.put_u16_le(checksums.len() as u16);
                checksums.iter().for_each(|sum| out.put_u32_le(*sum));
            }
            Ok(ClientAnswer::Status(blocks)) => {
                assert!(blocks.len() <= usize::from(CHUNK_BLOCKS), "within a chunk");
                out.put_u16_le(blocks.len() as u16);
                blocks.iter().for_each(|holds| out.put_u8(u8::from(*holds)));
            }
            Err(ClientError::WrongPrimary(config)) => {
                out.put_u8(u8::from(config.is_some()));
                if let Some(config) = config {
                    put_config(out, config);
                }
            }
            Err(ClientError::StaleSnap(seq)) => out.put_u64_le(seq.0),
            _ => {}
        }
    }

    /// Reads a reply from a frame's header and payload.
    pub fn decode(mut header: &[u8], payload: Bytes) -> Result<Self, ClientDecodeError> {
        let input = &mut header;
        check_version(input)?;
        let kind = get_u8(input)?;
        let tag = get_u64(input)?;
        if kind != answer::DATA && !payload.is_empty() {
            return Err(ClientDecodeError::BadPayload);
        }
        let result = match kind {
            answer::DATA => Ok(get_data(input, payload)?),
            answer::DONE => Ok(ClientAnswer::Done),
            answer::STATUS => Ok(ClientAnswer::Status(get_status(input)?)),
            answer::WRONG_PRIMARY => {
                let config = if get_flag(input)? { Some(Box::new(get_config(input)?)) } else { None };
                Err(ClientError::WrongPrimary(config))
            }
            answer::RETRY => Err(ClientError::Retry),
            answer::STALE_SNAP => Err(ClientError::StaleSnap(SnapSeq(get_u64(input)?))),
            answer::FENCED => Err(ClientError::Fenced),
            answer::READ_ONLY => Err(ClientError::ReadOnly),
            answer::UNKNOWN_HANDLE => Err(ClientError::UnknownHandle),
            answer::OUT_OF_RANGE => Err(ClientError::OutOfRange),
            answer::DAMAGED => Err(ClientError::Damaged),
            answer::NO_SPACE => Err(ClientError::NoSpace),
            answer::MEDIUM => Err(ClientError::Medium),
            answer::FORGOTTEN => Err(ClientError::Forgotten),
            other => return Err(ClientDecodeError::UnknownKind(other)),
        };
        check_end(input)?;
        Ok(Self { tag, result })
    }
}

/// One CRC32C for each block-sized piece of some bytes that start at `offset` of a chunk, cut at the chunk's block
/// boundaries. The bytes may come in several parts; cuts of parts and of blocks need not agree.
pub fn piece_checksums<'a>(offset: u32, parts: impl IntoIterator<Item = &'a Bytes>) -> Checksums {
    let mut sums = Checksums::new();
    let mut room = BLOCK_BYTES - offset as usize % BLOCK_BYTES;
    let mut open: Option<u32> = None;
    for part in parts {
        let mut rest = part.as_ref();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(room.min(rest.len()));
            open = Some(crc32c_append(open.unwrap_or(0), now));
            room -= now.len();
            rest = later;
            if room == 0 {
                sums.extend(open.take());
                room = BLOCK_BYTES;
            }
        }
    }
    sums.extend(open);
    sums
}

fn answer_number(result: &Result<ClientAnswer, ClientError>) -> u8 {
    match result {
        Ok(ClientAnswer::Data { .. }) => answer::DATA,
        Ok(ClientAnswer::Done) => answer::DONE,
        Ok(ClientAnswer::Status(_)) => answer::STATUS,
        Err(ClientError::WrongPrimary(_)) => answer::WRONG_PRIMARY,
        Err(ClientError::Retry) => answer::RETRY,
        Err(ClientError::StaleSnap(_)) => answer::STALE_SNAP,
        Err(ClientError::Fenced) => answer::FENCED,
        Err(ClientError::ReadOnly) => answer::READ_ONLY,
        Err(ClientError::UnknownHandle) => answer::UNKNOWN_HANDLE,
        Err(ClientError::OutOfRange) => answer::OUT_OF_RANGE,
        Err(ClientError::Damaged) => answer::DAMAGED,
        Err(ClientError::NoSpace) => answer::NO_SPACE,
        Err(ClientError::Medium) => answer::MEDIUM,
        Err(ClientError::Forgotten) => answer::FORGOTTEN,
    }
}

fn put_identity(out: &mut Vec<u8>, identity: RequestIdentity) {
    out.put_u64_le(identity.request.0);
    out.put_u64_le(identity.oldest_unacked.0);
}

fn put_config(out: &mut Vec<u8>, config: &PgConfig) {
    assert!(config.isr.len() <= MEMBERS_MAX && config.learners.len() <= MEMBERS_MAX, "more members than there can be");
    put_pg(out, config.pg);
    out.put_u64_le(config.epoch.0);
    out.put_u64_le(config.term.0);
    put_device(out, config.primary);
    out.put_u64_le(config.primary_incarnation.0);
    for list in [&config.isr, &config.learners] {
        out.put_u8(list.len() as u8);
        list.iter().for_each(|device| out.put_u64_le(device.0));
    }
    out.put_u8(u8::from(config.previous_certified_dead));
    put_device(out, config.heir);
}

fn put_device(out: &mut Vec<u8>, device: Option<DeviceId>) {
    out.put_u8(u8::from(device.is_some()));
    out.put_u64_le(device.unwrap_or_default().0);
}

fn check_version(input: &mut &[u8]) -> Result<(), ClientDecodeError> {
    match get_u8(input)? {
        CLIENT_VERSION => Ok(()),
        other => Err(ClientDecodeError::UnknownVersion(other)),
    }
}

fn check_end(input: &[u8]) -> Result<(), ClientDecodeError> {
    if input.is_empty() { Ok(()) } else { Err(ClientDecodeError::Long(input.len())) }
}

fn get_flag(input: &mut &[u8]) -> Result<bool, ClientDecodeError> {
    match get_u8(input)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(ClientDecodeError::BadFlag),
    }
}

fn get_identity(input: &mut &[u8]) -> Result<RequestIdentity, ClientDecodeError> {
    Ok(RequestIdentity { request: RequestNumber(get_u64(input)?), oldest_unacked: RequestNumber(get_u64(input)?) })
}

fn get_checksums(input: &mut &[u8], count: usize) -> Result<Checksums, ClientDecodeError> {
    if input.len() < 4 * count {
        return Err(ClientDecodeError::Short);
    }
    (0..count).map(|_| Ok(get_u32(input)?)).collect()
}

fn get_data(input: &mut &[u8], payload: Bytes) -> Result<ClientAnswer, ClientDecodeError> {
    let length = get_u32(input)? as usize;
    let count = usize::from(get_u16(input)?);
    if length == 0 || length > CHUNK_BYTES {
        return Err(ClientDecodeError::BadRange);
    }
    // Bytes that start within a block touch one block more than their length alone says, at most.
    let fewest = length.div_ceil(BLOCK_BYTES);
    let most = ((length - 1).div_ceil(BLOCK_BYTES) + 1).min(usize::from(CHUNK_BLOCKS));
    if count < fewest || count > most {
        return Err(ClientDecodeError::BadCount);
    }
    if payload.len() != length {
        return Err(ClientDecodeError::BadPayload);
    }
    Ok(ClientAnswer::Data { checksums: get_checksums(input, count)?, data: vec![payload] })
}

fn get_status(input: &mut &[u8]) -> Result<Vec<bool>, ClientDecodeError> {
    let count = get_u16(input)?;
    if count == 0 || count > CHUNK_BLOCKS {
        return Err(ClientDecodeError::BadCount);
    }
    (0..count).map(|_| get_flag(input)).collect()
}

fn get_device(input: &mut &[u8]) -> Result<Option<DeviceId>, ClientDecodeError> {
    let (is_there, device) = (get_flag(input)?, DeviceId(get_u64(input)?));
    Ok(is_there.then_some(device))
}

fn get_config(input: &mut &[u8]) -> Result<PgConfig, ClientDecodeError> {
    let pg = get_pg(input)?;
    let (epoch, term) = (Epoch(get_u64(input)?), Term(get_u64(input)?));
    let primary = get_device(input)?;
    let primary_incarnation = ProcessIncarnation(get_u64(input)?);
    let mut devices = || -> Result<Vec<DeviceId>, ClientDecodeError> {
        let count = usize::from(get_u8(input)?);
        if count > MEMBERS_MAX {
            return Err(ClientDecodeError::BadCount);
        }
        (0..count).map(|_| Ok(DeviceId(get_u64(input)?))).collect()
    };
    let (isr, learners) = (devices()?, devices()?);
    let config = PgConfig {
        pg,
        epoch,
        term,
        primary,
        primary_incarnation,
        isr,
        learners,
        previous_certified_dead: get_flag(input)?,
        heir: get_device(input)?,
    };
    // A configuration that no metadata manager makes is not one.
    config.check().map_err(|_| ClientDecodeError::BadCount)?;
    Ok(config)
}

#[cfg(test)]
mod tests;
