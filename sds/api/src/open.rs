//! The opening of a data connection: who is there, and which volumes it may use. Frames of kind `DataOpen`.
//!
//! ```text
//! client                                server            data server                           server
//!  | connects                             |                | connects                             |
//!  |<-------------- Challenge{nonce, ..}  |                |<-------------- Challenge{nonce, ..}  |
//!  | ClientHello{nonce, ..}               |                | PeerHello{nonce, link, proof, ..}    |
//!  | Open{request, ticket, proof} ----->  |                |    -------------------------------->  |
//!  |<---- Opened{request, handle, proof}  |                |<----------------- PeerWelcome{proof} |
//!  | ClientRequest{handle, ..} -------->  |                | peer messages                        |
//! ```
//!
//! The server speaks first, so that every proof covers a nonce that the verifier drew for this connection: a proof that was
//! overheard is worth nothing elsewhere. Both sides prove themselves: `Open` carries `ticket::client_proof`, `Opened`
//! `ticket::server_proof`, `PeerHello` and `PeerWelcome` `ticket::peer_proof` of their sender. A client opens any number of
//! volumes on one connection and closes them again. `Refused` ends the connection, `OpenRefused` only that opening.
//!
//! The layout of `Challenge` and `Refused` is the same in all versions: it is what two versions need to part politely.

use bytes::BufMut;
use mdm_api::frame::FrameBounds;
use mdm_api::ids::{KeyId, ProcessIncarnation, SdcId, SdsId, SystemId};
use mdm_api::ticket::{Nonce, TICKET_BYTES};

use crate::entry::{EntryDecodeError, get_u8, get_u16, get_u32, get_u64};

/// The newest version of the data protocol.
pub const OPEN_VERSION: u16 = 1;
/// The oldest that is still spoken.
pub const OPEN_VERSION_MIN: u16 = 1;
/// Longest reason in words: a line for a log.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Longest ticket that is looked at; today's are [`TICKET_BYTES`] long.
pub const OPEN_TICKET_BYTES_MAX: usize = 1024;
/// Longest message.
pub const OPEN_BYTES_MAX: usize = 2048;
/// What a reader accepts before the peer has said who it is.
pub const OPEN_BOUNDS: FrameBounds = FrameBounds { header_bytes_max: OPEN_BYTES_MAX, payload_bytes_max: 0 };

const _: () = assert!(TICKET_BYTES <= OPEN_TICKET_BYTES_MAX && OPEN_TICKET_BYTES_MAX + 64 <= OPEN_BYTES_MAX);

/// A message of the opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenMessage {
    /// The server's first word.
    Challenge {
        /// Oldest version it speaks.
        version_min: u16,
        /// Newest version it speaks.
        version_max: u16,
        /// Its system.
        system: SystemId,
        /// Its id.
        sds: SdsId,
        /// Its process.
        incarnation: ProcessIncarnation,
        /// Drawn for this connection.
        nonce: Nonce,
    },
    /// Another data server answers.
    PeerHello {
        /// The version that will be spoken.
        version: u16,
        /// Its system.
        system: SystemId,
        /// Its id.
        sds: SdsId,
        /// Its process.
        incarnation: ProcessIncarnation,
        /// What the connection is for.
        link: PeerLink,
        /// Drawn for this connection.
        nonce: Nonce,
        /// The key of the proof.
        key: KeyId,
        /// `ticket::peer_proof` with the sender as prover, over the challenge's nonce.
        proof: [u8; 32],
    },
    /// The server proves itself to the other one, under the same key.
    PeerWelcome {
        /// `ticket::peer_proof` with the server as prover, over the nonce of `PeerHello`.
        proof: [u8; 32],
    },
    /// The connection ends here.
    Refused {
        /// Why, for people.
        text: String,
    },
    /// A client answers. There is no reply unless it is refused.
    ClientHello {
        /// The version that will be spoken.
        version: u16,
        /// Its system.
        system: SystemId,
        /// Its id; tickets of others are refused.
        sdc: SdcId,
        /// Drawn for this connection.
        nonce: Nonce,
    },
    /// A client opens a volume.
    Open {
        /// Matches the answer.
        request: u32,
        /// The signed ticket.
        ticket: Vec<u8>,
        /// `ticket::client_proof`.
        proof: [u8; 32],
    },
    /// The volume is open.
    Opened {
        /// The opening that is answered.
        request: u32,
        /// Names the volume in requests on this connection; not used again on it.
        handle: u32,
        /// `ticket::server_proof`: only a server that holds the domain's key can give it.
        proof: [u8; 32],
    },
    /// The volume is not opened; the connection stays.
    OpenRefused {
        /// The opening that is answered.
        request: u32,
        /// What the client can do about it.
        code: OpenRefusal,
        /// Why, for people.
        text: String,
    },
    /// The client is done with a volume. Requests in flight on the handle may go unanswered. No reply.
    Close {
        /// The handle.
        handle: u32,
    },
}

/// What a connection between two data servers is for: leases must not queue behind data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerLink {
    /// Leases.
    Control,
    /// Replication and resync.
    Bulk,
}

/// What a client can do about a refused opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenRefusal {
    /// The mapping's generation is fenced: nothing, this session is over.
    Fenced,
    /// The server is not ready (its map or its keys are behind): try again shortly.
    Retry,
    /// The ticket is not accepted (expired, unknown key): get a new one, try again.
    Ticket,
    /// Anything else: try again later; the text says what is wrong.
    Other,
}

/// Why bytes are not a message of the opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenDecodeError {
    /// They end early.
    #[error("opening message ends early")]
    Short,
    /// There is more than the message.
    #[error("opening message has {0} bytes too many")]
    Long(usize),
    /// A kind that this software does not know.
    #[error("opening message of unknown kind {0}")]
    UnknownKind(u8),
    /// A code that this software does not know.
    #[error("opening refused with unknown code {0}")]
    UnknownCode(u8),
    /// A link that this software does not know.
    #[error("opening of an unknown link {0}")]
    UnknownLink(u8),
    /// A text or ticket beyond its limit.
    #[error("opening message has a field of {0} bytes, which is too long")]
    FieldTooLong(usize),
    /// A text that is not UTF-8.
    #[error("opening message has a text that is not UTF-8")]
    NotText,
}

impl From<EntryDecodeError> for OpenDecodeError {
    fn from(_: EntryDecodeError) -> Self {
        Self::Short // the readers of plain numbers have no other complaint
    }
}

mod kind {
    pub(super) const CHALLENGE: u8 = 1;
    pub(super) const PEER_HELLO: u8 = 2;
    pub(super) const PEER_WELCOME: u8 = 3;
    pub(super) const REFUSED: u8 = 4;
    pub(super) const CLIENT_HELLO: u8 = 5;
    pub(super) const OPEN: u8 = 6;
    pub(super) const OPENED: u8 = 7;
    pub(super) const OPEN_REFUSED: u8 = 8;
    pub(super) const CLOSE: u8 = 9;
}

/// The version that two sides speak, if there is one: the newest that both know.
pub fn common_version(peer_min: u16, peer_max: u16) -> Option<u16> {
    let newest = OPEN_VERSION.min(peer_max);
    (newest >= OPEN_VERSION_MIN && newest >= peer_min).then_some(newest)
}

impl OpenMessage {
    /// The message as the header of a frame. Longer texts are cut at [`TEXT_BYTES_MAX`].
    ///
    /// # Panics
    /// If a ticket is longer than [`OPEN_TICKET_BYTES_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        match self {
            Self::Challenge { version_min, version_max, system, sds, incarnation, nonce } => {
                out.put_u8(kind::CHALLENGE);
                out.put_u16_le(*version_min);
                out.put_u16_le(*version_max);
                [system.0, sds.0, incarnation.0].into_iter().for_each(|id| out.put_u64_le(id));
                out.put_slice(nonce);
            }
            Self::PeerHello { version, system, sds, incarnation, link, nonce, key, proof } => {
                out.put_u8(kind::PEER_HELLO);
                out.put_u16_le(*version);
                [system.0, sds.0, incarnation.0, key.0].into_iter().for_each(|id| out.put_u64_le(id));
                out.put_u8(link.number());
                out.put_slice(nonce);
                out.put_slice(proof);
            }
            Self::PeerWelcome { proof } => {
                out.put_u8(kind::PEER_WELCOME);
                out.put_slice(proof);
            }
            Self::Refused { text } => {
                out.put_u8(kind::REFUSED);
                put_text(&mut out, text);
            }
            Self::ClientHello { version, system, sdc, nonce } => {
                out.put_u8(kind::CLIENT_HELLO);
                out.put_u16_le(*version);
                [system.0, sdc.0].into_iter().for_each(|id| out.put_u64_le(id));
                out.put_slice(nonce);
            }
            Self::Open { request, ticket, proof } => {
                assert!(ticket.len() <= OPEN_TICKET_BYTES_MAX, "a ticket of {} bytes", ticket.len());
                out.put_u8(kind::OPEN);
                out.put_u32_le(*request);
                put_bytes(&mut out, ticket);
                out.put_slice(proof);
            }
            Self::Opened { request, handle, proof } => {
                out.put_u8(kind::OPENED);
                out.put_u32_le(*request);
                out.put_u32_le(*handle);
                out.put_slice(proof);
            }
            Self::OpenRefused { request, code, text } => {
                out.put_u8(kind::OPEN_REFUSED);
                out.put_u32_le(*request);
                out.put_u8(code.number());
                put_text(&mut out, text);
            }
            Self::Close { handle } => {
                out.put_u8(kind::CLOSE);
                out.put_u32_le(*handle);
            }
        }
        out
    }

    /// Reads a message; all of the bytes must belong to it.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, OpenDecodeError> {
        let input = &mut bytes;
        let message = match get_u8(input)? {
            kind::CHALLENGE => Self::Challenge {
                version_min: get_u16(input)?,
                version_max: get_u16(input)?,
                system: SystemId(get_u64(input)?),
                sds: SdsId(get_u64(input)?),
                incarnation: ProcessIncarnation(get_u64(input)?),
                nonce: get_32(input)?,
            },
            kind::PEER_HELLO => {
                let version = get_u16(input)?;
                let (system, sds) = (SystemId(get_u64(input)?), SdsId(get_u64(input)?));
                let (incarnation, key) = (ProcessIncarnation(get_u64(input)?), KeyId(get_u64(input)?));
                let link = PeerLink::from_number(get_u8(input)?)?;
                let (nonce, proof) = (get_32(input)?, get_32(input)?);
                Self::PeerHello { version, system, sds, incarnation, link, nonce, key, proof }
            }
            kind::PEER_WELCOME => Self::PeerWelcome { proof: get_32(input)? },
            kind::REFUSED => Self::Refused { text: get_text(input)? },
            kind::CLIENT_HELLO => Self::ClientHello {
                version: get_u16(input)?,
                system: SystemId(get_u64(input)?),
                sdc: SdcId(get_u64(input)?),
                nonce: get_32(input)?,
            },
            kind::OPEN => Self::Open {
                request: get_u32(input)?,
                ticket: get_bytes(input, OPEN_TICKET_BYTES_MAX)?.to_vec(),
                proof: get_32(input)?,
            },
            kind::OPENED => Self::Opened { request: get_u32(input)?, handle: get_u32(input)?, proof: get_32(input)? },
            kind::OPEN_REFUSED => Self::OpenRefused {
                request: get_u32(input)?,
                code: OpenRefusal::from_number(get_u8(input)?)?,
                text: get_text(input)?,
            },
            kind::CLOSE => Self::Close { handle: get_u32(input)? },
            other => return Err(OpenDecodeError::UnknownKind(other)),
        };
        if input.is_empty() { Ok(message) } else { Err(OpenDecodeError::Long(input.len())) }
    }
}

impl PeerLink {
    const fn number(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Bulk => 2,
        }
    }

    fn from_number(number: u8) -> Result<Self, OpenDecodeError> {
        match number {
            1 => Ok(Self::Control),
            2 => Ok(Self::Bulk),
            other => Err(OpenDecodeError::UnknownLink(other)),
        }
    }
}

impl OpenRefusal {
    const fn number(self) -> u8 {
        match self {
            Self::Fenced => 1,
            Self::Retry => 2,
            Self::Ticket => 3,
            Self::Other => 4,
        }
    }

    fn from_number(number: u8) -> Result<Self, OpenDecodeError> {
        Ok(match number {
            1 => Self::Fenced,
            2 => Self::Retry,
            3 => Self::Ticket,
            4 => Self::Other,
            other => return Err(OpenDecodeError::UnknownCode(other)),
        })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u16_le(u16::try_from(bytes.len()).expect("fields are bounded far below 64 KiB"));
    out.put_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]);
}

fn get_bytes<'a>(input: &mut &'a [u8], bytes_max: usize) -> Result<&'a [u8], OpenDecodeError> {
    let length = usize::from(get_u16(input)?);
    if length > bytes_max {
        return Err(OpenDecodeError::FieldTooLong(length));
    }
    input.split_off(..length).ok_or(OpenDecodeError::Short)
}

fn get_text(input: &mut &[u8]) -> Result<String, OpenDecodeError> {
    let bytes = get_bytes(input, TEXT_BYTES_MAX)?;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| OpenDecodeError::NotText)
}

fn get_32(input: &mut &[u8]) -> Result<[u8; 32], OpenDecodeError> {
    input.split_off(..32).and_then(|bytes| bytes.try_into().ok()).ok_or(OpenDecodeError::Short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<OpenMessage> {
        let (system, sds, incarnation) = (SystemId(1), SdsId(2), ProcessIncarnation(3));
        let (nonce, proof) = ([4; 32], [5; 32]);
        let refused = |code| OpenMessage::OpenRefused { request: 9, code, text: "no".to_owned() };
        vec![
            OpenMessage::Challenge { version_min: 1, version_max: 3, system, sds, incarnation, nonce },
            OpenMessage::PeerHello {
                version: 1,
                system,
                sds,
                incarnation,
                link: PeerLink::Bulk,
                nonce,
                key: KeyId(6),
                proof,
            },
            OpenMessage::PeerWelcome { proof },
            OpenMessage::Refused { text: "of another system: ümlaut".to_owned() },
            OpenMessage::ClientHello { version: 1, system, sdc: SdcId(7), nonce },
            OpenMessage::Open { request: 8, ticket: vec![9; TICKET_BYTES], proof },
            OpenMessage::Opened { request: 8, handle: 10, proof },
            refused(OpenRefusal::Fenced),
            refused(OpenRefusal::Retry),
            refused(OpenRefusal::Ticket),
            refused(OpenRefusal::Other),
            OpenMessage::Close { handle: 10 },
        ]
    }

    #[test]
    fn every_message_survives_its_encoding_and_no_other_length_decodes() {
        for message in samples() {
            let mut bytes = message.encode();
            assert!(bytes.len() <= OPEN_BYTES_MAX);
            assert_eq!(OpenMessage::decode(&bytes), Ok(message));
            for cut in 0..bytes.len() {
                assert_eq!(OpenMessage::decode(&bytes[..cut]), Err(OpenDecodeError::Short), "cut at {cut}");
            }
            bytes.push(0);
            assert_eq!(OpenMessage::decode(&bytes), Err(OpenDecodeError::Long(1)));
        }
    }

    #[test]
    fn a_field_beyond_its_limit_is_refused_before_it_is_copied() {
        let mut bytes = vec![kind::REFUSED];
        bytes.put_u16_le(TEXT_BYTES_MAX as u16 + 1);
        bytes.extend_from_slice(&[b'x'; TEXT_BYTES_MAX + 1]);
        assert_eq!(OpenMessage::decode(&bytes), Err(OpenDecodeError::FieldTooLong(TEXT_BYTES_MAX + 1)));
    }

    #[test]
    fn a_long_reason_is_cut_between_letters() {
        let bytes = OpenMessage::Refused { text: "ü".repeat(TEXT_BYTES_MAX) }.encode();
        let Ok(OpenMessage::Refused { text }) = OpenMessage::decode(&bytes) else { panic!("not decoded") };
        assert_eq!(text, "ü".repeat(TEXT_BYTES_MAX / 2));
    }

    #[test]
    fn two_sides_speak_the_newest_version_that_both_know_or_none() {
        assert_eq!(common_version(1, 9), Some(1));
        assert_eq!(common_version(2, 9), None);
        assert_eq!(common_version(0, 0), None);
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_or_mean_one_message(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..12) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(message) = OpenMessage::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
