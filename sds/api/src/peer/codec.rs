//! Peer frames as bytes: little-endian, fixed by [`PEER_VERSION`], every length checked before allocation.

use bytes::{BufMut, Bytes};
use mdm_api::epoch::{Epoch, Nanos, Seq, Term};
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation, SdsId};

use super::{
    BlocksData, CreditGrant, EncodedPeer, HISTORY_TERMS_MAX, LAYERS_PER_MESSAGE_MAX, LEASE_GROUPS_MAX, LayerCopy,
    LeaseMessage, PEER_PAYLOAD_BYTES_MAX, PEER_VERSION, PeerBody, PeerFrame, PeerMessage, REPLICATE_ENTRIES_MAX, Tail,
    TermStart,
};
use crate::block::{BLOCK_BYTES, CHUNK_BLOCKS, LayerKey};
use crate::entry::{
    Entry, EntryDecodeError, get_layer, get_pg, get_range, get_u8, get_u32, get_u64, get_version, put_layer, put_pg,
    put_range, put_version,
};

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerDecodeError {
    /// A version that this software does not know.
    #[error("peer message of version {0}; this software knows up to {PEER_VERSION}: upgrade it")]
    UnknownVersion(u8),
    /// A kind that this software does not know.
    #[error("peer message of unknown kind {0}")]
    UnknownKind(u8),
    /// A field is cut short or impossible.
    #[error(transparent)]
    Field(#[from] EntryDecodeError),
    /// A count beyond its limit.
    #[error("peer message names {0} things, more than its limit")]
    TooMany(u32),
    /// Bytes are left over after the header.
    #[error("peer message has bytes left over")]
    Trailing,
    /// The payload is longer or shorter than the header says.
    #[error("peer message and its payload do not fit")]
    PayloadMismatch,
}

mod kind {
    pub(super) const ACTIVATE: u8 = 1;
    pub(super) const TAIL: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const ASK_STREAM: u8 = 4;
    pub(super) const FOLLOW: u8 = 5;
    pub(super) const RESET: u8 = 6;
    pub(super) const REPLICATE: u8 = 7;
    pub(super) const COPY: u8 = 8;
    pub(super) const REMOVE_LAYERS: u8 = 9;
    pub(super) const COMPLETE: u8 = 10;
    pub(super) const DURABLE: u8 = 11;
    pub(super) const LIST_CHUNKS: u8 = 12;
    pub(super) const CHUNK_VERSIONS: u8 = 13;
    pub(super) const FETCH_BLOCKS: u8 = 14;
    pub(super) const BLOCKS: u8 = 15;
    pub(super) const RELEASE: u8 = 16;
    pub(super) const PATCH: u8 = 17;
    pub(super) const LEASE_ASK: u8 = 64;
    pub(super) const LEASE_GRANT: u8 = 65;
}

impl PeerBody {
    fn kind(&self) -> u8 {
        match self {
            Self::Activate { .. } => kind::ACTIVATE,
            Self::Tail { .. } => kind::TAIL,
            Self::Refused { .. } => kind::REFUSED,
            Self::AskStream { .. } => kind::ASK_STREAM,
            Self::Follow { .. } => kind::FOLLOW,
            Self::Reset { .. } => kind::RESET,
            Self::Replicate { .. } => kind::REPLICATE,
            Self::Copy { .. } => kind::COPY,
            Self::Patch { .. } => kind::PATCH,
            Self::RemoveLayers { .. } => kind::REMOVE_LAYERS,
            Self::Complete { .. } => kind::COMPLETE,
            Self::Durable { .. } => kind::DURABLE,
            Self::ListChunks { .. } => kind::LIST_CHUNKS,
            Self::ChunkVersions { .. } => kind::CHUNK_VERSIONS,
            Self::FetchBlocks { .. } => kind::FETCH_BLOCKS,
            Self::Blocks { .. } => kind::BLOCKS,
            Self::Release => kind::RELEASE,
        }
    }
}

impl PeerFrame {
    /// As bytes.
    ///
    /// # Panics
    /// If a list is beyond its limit or a write's data does not fit its blocks: whoever builds messages keeps the limits.
    pub fn encode(&self) -> EncodedPeer {
        let mut out = EncodedPeer::default();
        out.header.put_u8(PEER_VERSION);
        match self {
            Self::Replica(message) => encode_message(message, &mut out),
            Self::Lease(message) => encode_lease(message, &mut out.header),
        }
        out
    }

    /// From bytes. All lengths are checked before anything is allocated.
    pub fn decode(header: &[u8], payload: Bytes) -> Result<Self, PeerDecodeError> {
        let mut reader = Reader { input: header, payload };
        let version = reader.u8()?;
        if version != PEER_VERSION {
            return Err(PeerDecodeError::UnknownVersion(version));
        }
        let frame = match reader.u8()? {
            kind @ (kind::LEASE_ASK | kind::LEASE_GRANT) => Self::Lease(decode_lease(&mut reader, kind)?),
            kind => Self::Replica(decode_message(&mut reader, kind)?),
        };
        if !reader.input.is_empty() {
            return Err(PeerDecodeError::Trailing);
        }
        if !reader.payload.is_empty() {
            return Err(PeerDecodeError::PayloadMismatch);
        }
        Ok(frame)
    }
}

fn put_count(out: &mut Vec<u8>, count: usize, limit: usize) {
    assert!(count <= limit, "a message of {count} things, more than {limit}");
    out.put_u32_le(count as u32);
}

fn put_optional_layer(out: &mut Vec<u8>, layer: Option<LayerKey>) {
    out.put_u8(u8::from(layer.is_some()));
    if let Some(layer) = layer {
        put_layer(out, layer);
    }
}

fn put_grant(out: &mut Vec<u8>, grant: CreditGrant) {
    out.put_u64_le(grant.aus);
    out.put_u64_le(grant.journal_bytes);
}

fn put_groups(out: &mut Vec<u8>, groups: &[(PgId, Term)]) {
    put_count(out, groups.len(), LEASE_GROUPS_MAX);
    for (pg, term) in groups {
        put_pg(out, *pg);
        out.put_u64_le(term.0);
    }
}

fn encode_message(message: &PeerMessage, encoded: &mut EncodedPeer) {
    let out = &mut encoded.header;
    out.put_u8(message.body.kind());
    put_pg(out, message.pg);
    out.put_u64_le(message.term.0);
    out.put_u64_le(message.from.0);
    out.put_u64_le(message.to.0);
    out.put_u64_le(message.incarnation.0);
    out.put_u64_le(message.to_incarnation.0);
    match &message.body {
        PeerBody::Activate { ask, epoch } => {
            out.put_u64_le(*ask);
            out.put_u64_le(epoch.0);
        }
        PeerBody::Tail { ask, tail } => {
            out.put_u64_le(*ask);
            encode_tail(tail, out);
        }
        PeerBody::Refused { promised, epoch } => {
            out.put_u64_le(promised.0);
            out.put_u64_le(epoch.0);
        }
        PeerBody::AskStream { stream } => out.put_u64_le(*stream),
        PeerBody::Follow { stream, after, commit } => {
            out.put_u64_le(*stream);
            out.put_u64_le(after.0);
            out.put_u64_le(commit.0);
        }
        PeerBody::Reset { stream, through, state } => {
            out.put_u64_le(*stream);
            put_version(out, *through);
            put_count(out, state.len(), PEER_PAYLOAD_BYTES_MAX);
            encoded.payload.push(state.clone());
        }
        PeerBody::Replicate { stream, number, commit, entries } => {
            out.put_u64_le(*stream);
            out.put_u64_le(*number);
            out.put_u64_le(commit.0);
            put_count(out, entries.len(), REPLICATE_ENTRIES_MAX);
            for entry in entries {
                entry.encode_header(out);
                if !entry.payload().is_empty() {
                    encoded.payload.push(entry.payload().clone());
                }
            }
        }
        PeerBody::Copy { stream, number, layer, copy } => {
            out.put_u64_le(*stream);
            out.put_u64_le(*number);
            put_layer(out, *layer);
            encode_copy(copy, encoded);
        }
        PeerBody::Patch { stream, number, layer, base, blocks, copy } => {
            out.put_u64_le(*stream);
            out.put_u64_le(*number);
            put_layer(out, *layer);
            put_version(out, *base);
            blocks.iter().for_each(|word| out.put_u64_le(*word));
            encode_copy(copy, encoded);
        }
        PeerBody::RemoveLayers { stream, number, layers } => {
            out.put_u64_le(*stream);
            out.put_u64_le(*number);
            put_count(out, layers.len(), LAYERS_PER_MESSAGE_MAX);
            layers.iter().for_each(|layer| put_layer(out, *layer));
        }
        PeerBody::Complete { stream, number } => {
            out.put_u64_le(*stream);
            out.put_u64_le(*number);
        }
        PeerBody::Durable { stream, through, operations, grant } => {
            out.put_u64_le(*stream);
            out.put_u64_le(through.0);
            out.put_u64_le(*operations);
            put_grant(out, *grant);
        }
        PeerBody::ListChunks { stream, after } => {
            out.put_u64_le(*stream);
            put_optional_layer(out, *after);
        }
        PeerBody::ChunkVersions { stream, after, layers, last } => {
            out.put_u64_le(*stream);
            put_optional_layer(out, *after);
            out.put_u8(u8::from(*last));
            put_count(out, layers.len(), LAYERS_PER_MESSAGE_MAX);
            for (layer, version) in layers {
                put_layer(out, *layer);
                put_version(out, *version);
            }
        }
        PeerBody::FetchBlocks { request, layer, blocks, commit } => {
            out.put_u64_le(*request);
            put_layer(out, *layer);
            put_range(out, *blocks);
            out.put_u64_le(commit.0);
        }
        PeerBody::Blocks { request, content } => {
            out.put_u64_le(*request);
            out.put_u8(u8::from(content.is_some()));
            if let Some(content) = content {
                put_count(out, content.checksums.len(), usize::from(CHUNK_BLOCKS));
                encode_blocks(&content.checksums, &content.data, encoded);
            }
        }
        PeerBody::Release => {}
    }
}

fn encode_tail(tail: &Tail, out: &mut Vec<u8>) {
    out.put_u64_le(tail.last.0);
    out.put_u64_le(tail.committed.0);
    out.put_u8(u8::from(tail.complete));
    out.put_u8(u8::from(tail.suspect));
    put_grant(out, tail.grant);
    put_count(out, tail.history.len(), HISTORY_TERMS_MAX);
    for start in &tail.history {
        out.put_u64_le(start.term.0);
        out.put_u64_le(start.first.0);
    }
}

fn encode_copy(copy: &LayerCopy, encoded: &mut EncodedPeer) {
    let out = &mut encoded.header;
    put_version(out, copy.version);
    copy.presence.iter().for_each(|word| out.put_u64_le(*word));
    assert_eq!(copy.checksums.len(), copy.block_count(), "one checksum for each block of a copy");
    encode_blocks(&copy.checksums, &copy.data, encoded);
}

fn encode_blocks(checksums: &[u32], data: &[Bytes], encoded: &mut EncodedPeer) {
    let bytes: usize = data.iter().map(Bytes::len).sum();
    assert_eq!(bytes, checksums.len() * BLOCK_BYTES, "as many blocks as checksums");
    checksums.iter().for_each(|sum| encoded.header.put_u32_le(*sum));
    encoded.payload.extend(data.iter().filter(|piece| !piece.is_empty()).cloned());
}

fn encode_lease(message: &LeaseMessage, out: &mut Vec<u8>) {
    match message {
        LeaseMessage::Ask { from, incarnation, sent_at, confirmed } => {
            out.put_u8(kind::LEASE_ASK);
            out.put_u64_le(from.0);
            out.put_u64_le(incarnation.0);
            out.put_u64_le(sent_at.0);
            put_groups(out, confirmed);
        }
        LeaseMessage::Grant { from, incarnation, to_incarnation, sent_at, lease_ms, exclude } => {
            out.put_u8(kind::LEASE_GRANT);
            out.put_u64_le(from.0);
            out.put_u64_le(incarnation.0);
            out.put_u64_le(to_incarnation.0);
            out.put_u64_le(sent_at.0);
            out.put_u64_le(*lease_ms);
            put_groups(out, exclude);
        }
    }
}

/// What is left of a header and of its payload.
struct Reader<'a> {
    input: &'a [u8],
    payload: Bytes,
}

impl Reader<'_> {
    fn u8(&mut self) -> Result<u8, PeerDecodeError> {
        Ok(get_u8(&mut self.input)?)
    }

    fn u64(&mut self) -> Result<u64, PeerDecodeError> {
        Ok(get_u64(&mut self.input)?)
    }

    fn seq(&mut self) -> Result<Seq, PeerDecodeError> {
        Ok(Seq(self.u64()?))
    }

    fn flag(&mut self) -> Result<bool, PeerDecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(EntryDecodeError::BadFlag.into()),
        }
    }

    fn layer(&mut self) -> Result<LayerKey, PeerDecodeError> {
        Ok(get_layer(&mut self.input)?)
    }

    fn optional_layer(&mut self) -> Result<Option<LayerKey>, PeerDecodeError> {
        Ok(if self.flag()? { Some(self.layer()?) } else { None })
    }

    /// A count within its limit, of things of `each` bytes that are all there.
    fn count(&mut self, limit: usize, each: usize) -> Result<usize, PeerDecodeError> {
        let count = get_u32(&mut self.input)?;
        if count as usize > limit {
            return Err(PeerDecodeError::TooMany(count));
        }
        if self.input.len() < count as usize * each {
            return Err(EntryDecodeError::Short.into());
        }
        Ok(count as usize)
    }

    fn take_payload(&mut self, length: usize) -> Result<Bytes, PeerDecodeError> {
        if self.payload.len() < length {
            return Err(PeerDecodeError::PayloadMismatch);
        }
        Ok(self.payload.split_to(length))
    }

    /// One bit for each block of a layer.
    fn block_map(&mut self) -> Result<[u64; 4], PeerDecodeError> {
        let mut map = [0; 4];
        for word in &mut map {
            *word = self.u64()?;
        }
        Ok(map)
    }

    fn copy(&mut self) -> Result<LayerCopy, PeerDecodeError> {
        let (version, presence) = (get_version(&mut self.input)?, self.block_map()?);
        let mut copy = LayerCopy { version, presence, checksums: vec![], data: vec![] };
        let blocks = self.blocks(copy.block_count())?;
        (copy.checksums, copy.data) = (blocks.checksums, blocks.data);
        Ok(copy)
    }

    /// Checksums and data of `count` blocks.
    fn blocks(&mut self, count: usize) -> Result<BlocksData, PeerDecodeError> {
        if self.input.len() < 4 * count {
            return Err(EntryDecodeError::Short.into());
        }
        let mut checksums = Vec::with_capacity(count);
        for _ in 0..count {
            checksums.push(get_u32(&mut self.input)?);
        }
        let bytes = self.take_payload(count * BLOCK_BYTES)?;
        Ok(BlocksData { checksums, data: if bytes.is_empty() { vec![] } else { vec![bytes] } })
    }

    fn grant(&mut self) -> Result<CreditGrant, PeerDecodeError> {
        Ok(CreditGrant { aus: self.u64()?, journal_bytes: self.u64()? })
    }

    fn groups(&mut self) -> Result<Vec<(PgId, Term)>, PeerDecodeError> {
        let count = self.count(LEASE_GROUPS_MAX, 20)?;
        (0..count).map(|_| Ok((get_pg(&mut self.input)?, Term(self.u64()?)))).collect()
    }
}

fn decode_message(reader: &mut Reader<'_>, kind: u8) -> Result<PeerMessage, PeerDecodeError> {
    let pg = get_pg(&mut reader.input)?;
    let term = Term(reader.u64()?);
    let from = DeviceId(reader.u64()?);
    let to = DeviceId(reader.u64()?);
    let incarnation = ProcessIncarnation(reader.u64()?);
    let to_incarnation = ProcessIncarnation(reader.u64()?);
    let body = decode_body(reader, kind)?;
    Ok(PeerMessage { pg, term, from, to, incarnation, to_incarnation, body })
}

fn decode_body(reader: &mut Reader<'_>, kind: u8) -> Result<PeerBody, PeerDecodeError> {
    Ok(match kind {
        kind::ACTIVATE => PeerBody::Activate { ask: reader.u64()?, epoch: Epoch(reader.u64()?) },
        kind::TAIL => PeerBody::Tail { ask: reader.u64()?, tail: decode_tail(reader)? },
        kind::REFUSED => PeerBody::Refused { promised: Term(reader.u64()?), epoch: Epoch(reader.u64()?) },
        kind::ASK_STREAM => PeerBody::AskStream { stream: reader.u64()? },
        kind::FOLLOW => PeerBody::Follow { stream: reader.u64()?, after: reader.seq()?, commit: reader.seq()? },
        kind::RESET => {
            let stream = reader.u64()?;
            let through = get_version(&mut reader.input)?;
            let length = reader.count(PEER_PAYLOAD_BYTES_MAX, 0)?;
            PeerBody::Reset { stream, through, state: reader.take_payload(length)? }
        }
        kind::REPLICATE => {
            let (stream, number, commit) = (reader.u64()?, reader.u64()?, reader.seq()?);
            let count = reader.count(REPLICATE_ENTRIES_MAX, 1)?;
            let mut entries = Vec::with_capacity(count);
            for _ in 0..count {
                let mut entry = Entry::decode_header(&mut reader.input)?;
                let payload = reader.take_payload(entry.payload_bytes())?;
                entry.attach(payload);
                entries.push(entry);
            }
            PeerBody::Replicate { stream, number, commit, entries }
        }
        kind::COPY => {
            let (stream, number, layer) = (reader.u64()?, reader.u64()?, reader.layer()?);
            PeerBody::Copy { stream, number, layer, copy: reader.copy()? }
        }
        kind::PATCH => {
            let (stream, number, layer) = (reader.u64()?, reader.u64()?, reader.layer()?);
            let (base, blocks) = (get_version(&mut reader.input)?, reader.block_map()?);
            PeerBody::Patch { stream, number, layer, base, blocks, copy: reader.copy()? }
        }
        kind::REMOVE_LAYERS => {
            let (stream, number) = (reader.u64()?, reader.u64()?);
            let count = reader.count(LAYERS_PER_MESSAGE_MAX, 24)?;
            let layers = (0..count).map(|_| reader.layer()).collect::<Result<_, _>>()?;
            PeerBody::RemoveLayers { stream, number, layers }
        }
        kind::COMPLETE => PeerBody::Complete { stream: reader.u64()?, number: reader.u64()? },
        kind::DURABLE => PeerBody::Durable {
            stream: reader.u64()?,
            through: reader.seq()?,
            operations: reader.u64()?,
            grant: reader.grant()?,
        },
        kind::LIST_CHUNKS => PeerBody::ListChunks { stream: reader.u64()?, after: reader.optional_layer()? },
        kind::CHUNK_VERSIONS => {
            let (stream, after, last) = (reader.u64()?, reader.optional_layer()?, reader.flag()?);
            let count = reader.count(LAYERS_PER_MESSAGE_MAX, 40)?;
            let mut layers = Vec::with_capacity(count);
            for _ in 0..count {
                layers.push((reader.layer()?, get_version(&mut reader.input)?));
            }
            PeerBody::ChunkVersions { stream, after, layers, last }
        }
        kind::FETCH_BLOCKS => PeerBody::FetchBlocks {
            request: reader.u64()?,
            layer: reader.layer()?,
            blocks: get_range(&mut reader.input)?,
            commit: reader.seq()?,
        },
        kind::BLOCKS => {
            let request = reader.u64()?;
            let content = if reader.flag()? {
                let count = reader.count(usize::from(CHUNK_BLOCKS), 4)?;
                Some(reader.blocks(count)?)
            } else {
                None
            };
            PeerBody::Blocks { request, content }
        }
        kind::RELEASE => PeerBody::Release,
        other => return Err(PeerDecodeError::UnknownKind(other)),
    })
}

fn decode_tail(reader: &mut Reader<'_>) -> Result<Tail, PeerDecodeError> {
    let (last, committed) = (reader.seq()?, reader.seq()?);
    let (complete, suspect) = (reader.flag()?, reader.flag()?);
    let grant = reader.grant()?;
    let count = reader.count(HISTORY_TERMS_MAX, 16)?;
    let mut history = Vec::with_capacity(count);
    for _ in 0..count {
        history.push(TermStart { term: Term(reader.u64()?), first: reader.seq()? });
    }
    Ok(Tail { last, committed, history, complete, suspect, grant })
}

fn decode_lease(reader: &mut Reader<'_>, kind: u8) -> Result<LeaseMessage, PeerDecodeError> {
    let from = SdsId(reader.u64()?);
    let incarnation = ProcessIncarnation(reader.u64()?);
    Ok(if kind == kind::LEASE_ASK {
        LeaseMessage::Ask { from, incarnation, sent_at: Nanos(reader.u64()?), confirmed: reader.groups()? }
    } else {
        LeaseMessage::Grant {
            from,
            incarnation,
            to_incarnation: ProcessIncarnation(reader.u64()?),
            sent_at: Nanos(reader.u64()?),
            lease_ms: reader.u64()?,
            exclude: reader.groups()?,
        }
    })
}
