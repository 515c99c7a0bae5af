//! The bytes of NBD, as in the protocol's `proto.md`; all numbers big-endian.
//!
//! Pure: bytes in, values out and back. Lengths are checked before anything is believed; no input panics.
//! `option` holds the handshake, this module the transmission phase:
//!
//! ```text
//! request (28)   magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 4 | payload
//! extended (32)  magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 8 | payload
//! simple (16)    magic 4 | error 4 | cookie 8 | payload of a READ
//! chunk (20)     magic 4 | flags 2 | type 2 | cookie 8 | length 4 | payload
//! extended (32)  magic 4 | flags 2 | type 2 | cookie 8 | offset 8 | length 8 | payload
//! ```

pub mod option;
#[cfg(test)]
mod tests;

use crate::export::{ExportError, Extent};

/// First eight bytes of the server: "NBDMAGIC".
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": opens the greeting's second part and each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Opens each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Opens a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Opens a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Opens an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of a compact request.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of an extended request.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// Bytes of a simple reply's header.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// Transmission flags: what an export offers.
pub mod flags {
    /// The field means something.
    pub const HAS_FLAGS: u16 = 1;
    /// Changes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const FLUSH: u16 = 1 << 2;
    /// FUA works.
    pub const FUA: u16 = 1 << 3;
    /// TRIM works.
    pub const TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works.
    pub const WRITE_ZEROES: u16 = 1 << 6;
    /// READ takes DF (structured replies only).
    pub const DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const CACHE: u16 = 1 << 10;
    /// WRITE_ZEROES takes FAST_ZERO.
    pub const FAST_ZERO: u16 = 1 << 11;
}

/// Flags of one request.
pub mod command_flags {
    /// Durable before the reply.
    pub const FUA: u16 = 1;
    /// Zero without giving the space back.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One data chunk, or an error.
    pub const DF: u16 = 1 << 2;
    /// At most one extent per context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail if zeroing is slow.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// Extended headers: the length counts payload that follows.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Error numbers on the wire.
pub mod errno {
    /// Not permitted.
    pub const PERM: u32 = 1;
    /// I/O error.
    pub const IO: u32 = 5;
    /// Out of memory.
    pub const NOMEM: u32 = 12;
    /// Invalid.
    pub const INVAL: u32 = 22;
    /// No space.
    pub const NOSPC: u32 = 28;
    /// Too long.
    pub const OVERFLOW: u32 = 75;
    /// Not supported.
    pub const NOTSUP: u32 = 95;
    /// Shutting down.
    pub const SHUTDOWN: u32 = 108;
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Bytes, please.
    Read = 0,
    /// Here are bytes.
    Write = 1,
    /// The client leaves.
    Disconnect = 2,
    /// Everything answered is to be durable.
    Flush = 3,
    /// No longer needed.
    Trim = 4,
    /// Will be needed.
    Cache = 5,
    /// To be zero.
    WriteZeroes = 6,
    /// What is where?
    BlockStatus = 7,
}

impl Command {
    /// The command of that number, if it is one.
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }
}

/// How replies look, agreed in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Headers {
    /// Simple replies.
    Simple,
    /// Structured replies where they are needed.
    Structured,
    /// 64-bit requests and replies.
    Extended,
}

impl Headers {
    /// Bytes of a request header.
    pub fn request_bytes(self) -> usize {
        if self == Headers::Extended { EXTENDED_REQUEST_BYTES } else { REQUEST_BYTES }
    }
}

/// A request as sent. The type is a bare number: unknown ones are answered, not hung up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// See [`command_flags`].
    pub flags: u16,
    /// See [`Command`].
    pub kind: u16,
    /// Chosen by the client, returned in replies.
    pub cookie: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Bytes that are no request: the stream has lost its place and must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an NBD request (magic {0:#010x})")]
pub struct BadMagic(pub u32);

impl Request {
    /// Reads a header of `headers.request_bytes()` bytes (shorter input is refused).
    pub fn decode(bytes: &[u8], headers: Headers) -> Result<Self, BadMagic> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32().ok_or(BadMagic(0))?;
        let expected = if headers == Headers::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        if magic != expected {
            return Err(BadMagic(magic));
        }
        let mut fields = || {
            Some(Self {
                flags: reader.u16()?,
                kind: reader.u16()?,
                cookie: reader.u64()?,
                offset: reader.u64()?,
                length: if headers == Headers::Extended { reader.u64()? } else { u64::from(reader.u32()?) },
            })
        };
        fields().ok_or(BadMagic(magic))
    }

    /// The compact form. Lengths beyond 32 bits are the caller's mistake.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        let length = u32::try_from(self.length).expect("a compact request is at most 4 GiB");
        out[24..28].copy_from_slice(&length.to_be_bytes());
        out
    }
}

/// Kinds of reply chunks.
pub mod chunk {
    /// This is the last one.
    pub const FLAG_DONE: u16 = 1;
    /// Nothing to say.
    pub const NONE: u16 = 0;
    /// Offset and bytes.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and a number of zero bytes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents, 32 bits.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents, 64 bits (extended headers).
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// An error.
    pub const ERROR: u16 = 0x8001;
}

/// The header of a simple reply.
pub fn simple_reply(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// The header of one chunk with `length` bytes of payload to follow.
pub fn chunk_header(out: &mut Vec<u8>, headers: Headers, done: bool, kind: u16, request: &Request, length: u32) {
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    let magic = if headers == Headers::Extended { EXTENDED_REPLY_MAGIC } else { CHUNK_MAGIC };
    out.extend_from_slice(&magic.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&request.cookie.to_be_bytes());
    if headers == Headers::Extended {
        out.extend_from_slice(&request.offset.to_be_bytes());
        out.extend_from_slice(&u64::from(length).to_be_bytes());
    } else {
        out.extend_from_slice(&length.to_be_bytes());
    }
}

/// A whole error reply in the right form.
pub fn error_reply(out: &mut Vec<u8>, headers: Headers, request: &Request, error: u32) {
    if headers == Headers::Simple {
        return simple_reply(out, request.cookie, error);
    }
    chunk_header(out, headers, true, chunk::ERROR, request, 6);
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&0u16.to_be_bytes());
}

/// A whole success reply without payload. Structured replies allow the simple form for everything but READ.
pub fn success_reply(out: &mut Vec<u8>, headers: Headers, request: &Request) {
    match headers {
        Headers::Simple | Headers::Structured => simple_reply(out, request.cookie, 0),
        Headers::Extended => chunk_header(out, headers, true, chunk::NONE, request, 0),
    }
}

/// A whole BLOCK_STATUS reply for one context. Structured replies cut an extent at 4 GiB - 4 KiB; what comes behind a
/// cut is left out, the client asks again.
pub fn block_status_reply(out: &mut Vec<u8>, headers: Headers, request: &Request, context: u32, extents: &[Extent]) {
    const LONGEST: u64 = u32::MAX as u64 & !4095;
    if headers == Headers::Extended {
        let count = u32::try_from(extents.len()).expect("extents are bounded");
        chunk_header(out, headers, true, chunk::BLOCK_STATUS_EXT, request, 8 + 16 * count);
        out.extend_from_slice(&context.to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        for extent in extents {
            out.extend_from_slice(&extent.length.to_be_bytes());
            out.extend_from_slice(&u64::from(extent_flags(extent)).to_be_bytes());
        }
        return;
    }
    let whole = extents.iter().take_while(|extent| extent.length <= LONGEST).count();
    let sent = &extents[..extents.len().min(whole + 1)];
    let count = u32::try_from(sent.len()).expect("extents are bounded");
    chunk_header(out, headers, true, chunk::BLOCK_STATUS, request, 4 + 8 * count);
    out.extend_from_slice(&context.to_be_bytes());
    for extent in sent {
        let length = u32::try_from(extent.length.min(LONGEST)).expect("cut to 32 bits");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&extent_flags(extent).to_be_bytes());
    }
}

fn extent_flags(extent: &Extent) -> u32 {
    u32::from(extent.hole) | u32::from(extent.zero) << 1
}

/// The number of an error on the wire.
pub fn error_number(error: ExportError) -> u32 {
    match error {
        ExportError::NotPermitted => errno::PERM,
        ExportError::Io => errno::IO,
        ExportError::NoSpace => errno::NOSPC,
        ExportError::Invalid => errno::INVAL,
        ExportError::ShuttingDown => errno::SHUTDOWN,
        ExportError::NotSupported => errno::NOTSUP,
        ExportError::Overflow => errno::OVERFLOW,
    }
}

/// Takes big-endian numbers off a slice; `None` where it is too short.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(head)
    }
    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }
    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }
    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(8)?.try_into().ok()?))
    }
    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}
