//! Frames: how messages lie on every connection of the product.
//!
//! ```text
//! 0        4    5    6       8            12            16           20           24
//! | "ASHL" | v  | 0  | kind  | header len | payload len | header crc | front crc  | header ... | payload ...
//! ```
//!
//! Little-endian. The first 20 bytes are covered by the front CRC32C, the header by its own; the payload is covered by the
//! block checksums in the header, so it is never summed twice. A reader checks the front before it believes a length, and
//! the lengths against its bounds before it allocates. Whatever is wrong ends that connection and nothing else.

use bytes::BufMut;

/// Bytes before the header.
pub const FRONT_BYTES: usize = 24;
/// Version of this layout.
pub const FRAME_VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"ASHL";

/// What a frame carries; the numbers are fixed for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// A control message (`mdm_api::control`), MessagePack with named fields.
    Control = 1,
    /// Between members of the metadata manager.
    Raft = 2,
    /// The opening of a data connection (`sds_api::open`).
    DataOpen = 3,
    /// A client's request.
    ClientRequest = 4,
    /// The answer to one.
    ClientReply = 5,
    /// Between data servers (`sds_api::peer`).
    Peer = 6,
    /// To this host's data client (`sdc_api`).
    Local = 7,
}

impl FrameKind {
    fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Control,
            2 => Self::Raft,
            3 => Self::DataOpen,
            4 => Self::ClientRequest,
            5 => Self::ClientReply,
            6 => Self::Peer,
            7 => Self::Local,
            _ => return None,
        })
    }
}

/// The front of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    /// What it carries.
    pub kind: FrameKind,
    /// Bytes of header.
    pub header_bytes: usize,
    /// Bytes of payload.
    pub payload_bytes: usize,
    header_crc: u32,
}

/// What one reader accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameBounds {
    /// Longest header.
    pub header_bytes_max: usize,
    /// Longest payload.
    pub payload_bytes_max: usize,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Somebody speaks another protocol.
    #[error("not an Ashlar frame: the peer speaks another protocol")]
    BadMagic,
    /// Somebody speaks a newer one.
    #[error("frame version {0}; this software knows {FRAME_VERSION}: upgrade the older side")]
    UnknownVersion(u8),
    /// Unknown kind.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u16),
    /// Damaged on the way.
    #[error("frame damaged in flight")]
    Damaged,
    /// Longer than the reader accepts.
    #[error("frame of {0} bytes is longer than is allowed here")]
    TooLong(usize),
}

/// The front for a header and a payload length.
///
/// # Panics
/// If a length does not fit 32 bits.
pub fn encode_front(kind: FrameKind, header: &[u8], payload_bytes: usize) -> [u8; FRONT_BYTES] {
    let mut front = [0; FRONT_BYTES];
    let mut out = front.as_mut_slice();
    out.put_slice(&MAGIC);
    out.put_u8(FRAME_VERSION);
    out.put_u8(0);
    out.put_u16_le(kind as u16);
    out.put_u32_le(u32::try_from(header.len()).expect("headers are bounded far below 4 GiB"));
    out.put_u32_le(u32::try_from(payload_bytes).expect("payloads are bounded far below 4 GiB"));
    out.put_u32_le(crc32c::crc32c(header));
    let crc = crc32c::crc32c(&front[..20]);
    front[20..].copy_from_slice(&crc.to_le_bytes());
    front
}

/// A whole frame without payload.
pub fn encode(kind: FrameKind, header: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRONT_BYTES + header.len());
    frame.extend_from_slice(&encode_front(kind, header, 0));
    frame.extend_from_slice(header);
    frame
}

impl Front {
    /// Checks and reads a front.
    pub fn decode(bytes: &[u8; FRONT_BYTES], bounds: FrameBounds) -> Result<Self, FrameError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..4] != MAGIC {
            return Err(FrameError::BadMagic);
        }
        if word(20) != crc32c::crc32c(&bytes[..20]) {
            return Err(FrameError::Damaged);
        }
        if bytes[4] != FRAME_VERSION {
            return Err(FrameError::UnknownVersion(bytes[4]));
        }
        let number = u16::from_le_bytes([bytes[6], bytes[7]]);
        let kind = FrameKind::from_number(number).ok_or(FrameError::UnknownKind(number))?;
        let (header_bytes, payload_bytes) = (word(8) as usize, word(12) as usize);
        if header_bytes > bounds.header_bytes_max {
            return Err(FrameError::TooLong(header_bytes));
        }
        if payload_bytes > bounds.payload_bytes_max {
            return Err(FrameError::TooLong(payload_bytes));
        }
        Ok(Self { kind, header_bytes, payload_bytes, header_crc: word(16) })
    }

    /// Checks the header that followed.
    pub fn check_header(&self, header: &[u8]) -> Result<(), FrameError> {
        if header.len() == self.header_bytes && crc32c::crc32c(header) == self.header_crc {
            Ok(())
        } else {
            Err(FrameError::Damaged)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: FrameBounds = FrameBounds { header_bytes_max: 100, payload_bytes_max: 1000 };

    #[test]
    fn every_flipped_bit_of_a_front_is_noticed() {
        let front = encode_front(FrameKind::Peer, b"header", 512);
        let decoded = Front::decode(&front, BOUNDS).unwrap();
        assert_eq!((decoded.kind, decoded.header_bytes, decoded.payload_bytes), (FrameKind::Peer, 6, 512));
        assert_eq!(decoded.check_header(b"header"), Ok(()));
        assert_eq!(decoded.check_header(b"headex"), Err(FrameError::Damaged));
        for bit in 0..FRONT_BYTES * 8 {
            let mut bad = front;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Front::decode(&bad, BOUNDS).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_beyond_the_bounds_are_refused_before_anything_is_read() {
        let long = encode_front(FrameKind::Control, &[0; 101], 0);
        assert_eq!(Front::decode(&long, BOUNDS), Err(FrameError::TooLong(101)));
        let long = encode_front(FrameKind::Control, &[], 1001);
        assert_eq!(Front::decode(&long, BOUNDS), Err(FrameError::TooLong(1001)));
    }

    #[test]
    fn another_protocol_is_told_apart_from_damage() {
        let bytes = *b"GET / HTTP/1.1\r\nHost: x\r";
        assert_eq!(Front::decode(&bytes, BOUNDS), Err(FrameError::BadMagic));
    }
}
