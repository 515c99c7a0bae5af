//! The bytes of the handshake: greeting, options, replies to options.
//!
//! ```text
//! server: MAGIC 8 | OPTION_MAGIC 8 | handshake flags 2
//! client: client flags 4
//! client: OPTION_MAGIC 8 | option 4 | length 4 | payload            (many)
//! server: OPTION_REPLY_MAGIC 8 | option 4 | reply 4 | length 4 | payload
//! ```

use super::{MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader};
use crate::export::{MINIMUM_BLOCK, PREFERRED_BLOCK};
use crate::limits::{MAX_NAME, MAX_PAYLOAD};

/// Handshake and client flags: fixed newstyle.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake and client flags: no 124 zero bytes after EXPORT_NAME.
pub const NO_ZEROES: u16 = 2;

/// Option numbers.
pub mod code {
    /// Old way to choose an export; cannot fail politely.
    pub const EXPORT_NAME: u32 = 1;
    /// Good-bye.
    pub const ABORT: u32 = 2;
    /// Names of the exports.
    pub const LIST: u32 = 3;
    /// Encrypt from here.
    pub const STARTTLS: u32 = 5;
    /// About one export.
    pub const INFO: u32 = 6;
    /// About one export, and start.
    pub const GO: u32 = 7;
    /// Replies in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which metadata there is.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Which metadata is wanted.
    pub const SET_META_CONTEXT: u32 = 10;
    /// 64-bit headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Reply numbers.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// One piece of information.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Option unknown.
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    /// Not here.
    pub const ERR_POLICY: u32 = 1 << 31 | 2;
    /// Makes no sense.
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    /// TLS must come first.
    pub const ERR_TLS_REQD: u32 = 1 << 31 | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    /// Option payload too big.
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
}

/// Kinds of information in a reply to INFO and GO.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The name itself.
    pub const NAME: u16 = 1;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// The only metadata context.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its id on the wire.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// The server's first words.
pub fn greeting() -> [u8; 18] {
    let mut out = [0; 18];
    out[0..8].copy_from_slice(&MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..18].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    out
}

/// Head of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHead {
    /// See [`code`].
    pub option: u32,
    /// Bytes that follow.
    pub length: u32,
}

impl OptionHead {
    /// Reads 16 bytes; `None` if they are no option.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        (reader.u64()? == OPTION_MAGIC).then_some(())?;
        Some(Self { option: reader.u32()?, length: reader.u32()? })
    }

    /// The 16 bytes.
    pub fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[0..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..16].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// Head of a reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHead {
    /// What it answers.
    pub option: u32,
    /// See [`reply`].
    pub reply: u32,
    /// Bytes that follow.
    pub length: u32,
}

impl ReplyHead {
    /// Reads 20 bytes; `None` if they are no reply.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        (reader.u64()? == OPTION_REPLY_MAGIC).then_some(())?;
        Some(Self { option: reader.u32()?, reply: reader.u32()?, length: reader.u32()? })
    }
}

/// Appends a whole reply to an option.
pub fn push_reply(out: &mut Vec<u8>, option: u32, kind: u32, payload: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    let length = u32::try_from(payload.len()).expect("replies are short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Payload of INFO and GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// Export.
    pub name: String,
    /// Kinds of information asked for, beside the size that always comes.
    pub kinds: Vec<u16>,
}

impl InfoRequest {
    /// Reads the payload; `None` if malformed.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let name = long_name(&mut reader)?;
        let count = reader.u16()?;
        (reader.rest().len() == 2 * usize::from(count)).then_some(())?;
        let kinds = (0..count).map(|_| reader.u16()).collect::<Option<_>>()?;
        Some(Self { name, kinds })
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(6 + self.name.len() + 2 * self.kinds.len());
        out.extend_from_slice(&u32::try_from(self.name.len()).expect("names are short").to_be_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(&u16::try_from(self.kinds.len()).expect("few kinds").to_be_bytes());
        for kind in &self.kinds {
            out.extend_from_slice(&kind.to_be_bytes());
        }
        out
    }
}

/// Payload of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaRequest {
    /// Export.
    pub name: String,
    /// Contexts, or for LIST prefixes ending in a colon.
    pub queries: Vec<String>,
}

impl MetaRequest {
    /// Reads the payload; `None` if malformed.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let name = long_name(&mut reader)?;
        let count = reader.u32()? as usize;
        // Each query takes four bytes at least, so this bounds the allocation by what was sent.
        (count <= reader.rest().len() / 4).then_some(())?;
        let queries = (0..count).map(|_| long_name(&mut reader)).collect::<Option<_>>()?;
        reader.rest().is_empty().then_some(Self { name, queries })
    }

    /// True if `base:allocation` is among what SET asks for.
    pub fn sets_allocation(&self) -> bool {
        self.queries.iter().any(|query| query == BASE_ALLOCATION)
    }

    /// True if LIST with these queries shows `base:allocation`: no query at all means everything.
    pub fn lists_allocation(&self) -> bool {
        self.queries.is_empty() || self.queries.iter().any(|query| query == "base:" || query == BASE_ALLOCATION)
    }
}

fn long_name(reader: &mut Reader<'_>) -> Option<String> {
    let length = reader.u32()? as usize;
    (length <= MAX_NAME).then_some(())?;
    name(reader.bytes(length)?)
}

/// A name as sent by EXPORT_NAME: the whole payload, UTF-8, at most [`MAX_NAME`] bytes.
pub fn name(bytes: &[u8]) -> Option<String> {
    (bytes.len() <= MAX_NAME).then_some(())?;
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// INFO_EXPORT: size and transmission flags.
pub fn info_export(size_bytes: u64, flags: u16) -> [u8; 12] {
    let mut out = [0; 12];
    out[0..2].copy_from_slice(&info::EXPORT.to_be_bytes());
    out[2..10].copy_from_slice(&size_bytes.to_be_bytes());
    out[10..12].copy_from_slice(&flags.to_be_bytes());
    out
}

/// INFO_BLOCK_SIZE: minimum, preferred, largest payload.
pub fn info_block_size() -> [u8; 14] {
    let mut out = [0; 14];
    out[0..2].copy_from_slice(&info::BLOCK_SIZE.to_be_bytes());
    out[2..6].copy_from_slice(&MINIMUM_BLOCK.to_be_bytes());
    out[6..10].copy_from_slice(&PREFERRED_BLOCK.to_be_bytes());
    out[10..14].copy_from_slice(&MAX_PAYLOAD.to_be_bytes());
    out
}
