//! Tickets: the right to open a volume on a data connection.
//!
//! The metadata manager gives a client a ticket for each mapping, signed under a key that all data servers of the
//! protection domain hold, and, over the same TLS connection, a session secret that a server can derive from the ticket. On
//! a data connection the client shows the ticket and proves that it knows the secret for this connection's nonce: a ticket
//! that was only seen is worth nothing. A ticket is checked once, when the volume is opened; the connection carries a
//! handle from then on. What is revoked later is fenced by generation (I17), not by expiry.
//!
//! Keyed BLAKE3 for signatures and proofs, its key derivation for secrets; each use has a context of its own.

use bytes::{Buf, BufMut};

use crate::epoch::{AttachGeneration, Revision};
use crate::ids::{KeyId, ProcessIncarnation, SdcId, SdsId, StoragePoolId, SystemId, VolumeId};
use crate::model::{AccessMode, DomainKey};

/// Version of the encoding.
pub const TICKET_VERSION: u8 = 1;
/// Bytes of an encoded ticket, signature included.
pub const TICKET_BYTES: usize = 1 + 8 * 8 + 1 + 8 + 32;
/// A nonce of one side of one connection.
pub type Nonce = [u8; 32];

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The key it is signed under.
    pub key: KeyId,
    /// The system.
    pub system: SystemId,
    /// The volume.
    pub volume: VolumeId,
    /// The pool that keeps it.
    pub pool: StoragePoolId,
    /// Who may use it.
    pub sdc: SdcId,
    /// How.
    pub access: AccessMode,
    /// Under which generation.
    pub generation: AttachGeneration,
    /// Servers whose map is older than this wait for it before they judge the generation.
    pub revision: Revision,
    /// No new opening after this moment: seconds since 1970.
    pub expires_s: u64,
    /// Nothing opens before this moment: seconds since 1970.
    pub not_before_s: u64,
}

/// Why a ticket is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not the length or version of a ticket.
    #[error("not a ticket that this software knows")]
    Malformed,
    /// Signed under a key that is not held here.
    #[error("the ticket is signed under key {0}, which this server does not hold")]
    UnknownKey(KeyId),
    /// The signature does not fit.
    #[error("the ticket's signature is wrong")]
    BadSignature,
    /// The proof does not fit: the secret is not known, or another connection's proof was replayed.
    #[error("the ticket was shown without its secret")]
    BadProof,
    /// Of another system.
    #[error("the ticket is of system {0}")]
    OtherSystem(SystemId),
    /// Too late or too early.
    #[error("the ticket is not valid at this time")]
    Expired,
}

/// What a client holds for a mapping.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Credential {
    /// The signed ticket.
    pub ticket: Vec<u8>,
    /// Its secret.
    pub secret: [u8; 32],
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential { .. }") // secrets are never in logs
    }
}

impl Ticket {
    /// Signs the ticket and derives its secret.
    pub fn issue(&self, key: &DomainKey) -> Credential {
        let mut ticket = Vec::with_capacity(TICKET_BYTES);
        self.encode(&mut ticket);
        let signature = keyed(&key.secret, b"ticket", &[&ticket]);
        ticket.extend_from_slice(&signature);
        let secret = keyed(&key.secret, b"ticket secret", &[&ticket]);
        Credential { ticket, secret }
    }

    /// Checks signature, system and time. `key` finds a key by id; `now_s` is the wall clock, `skew_s` how far two hosts'
    /// may be apart. Gives the ticket and its secret.
    pub fn check(
        bytes: &[u8],
        system: SystemId,
        now_s: u64,
        skew_s: u64,
        key: impl Fn(KeyId) -> Option<DomainKey>,
    ) -> Result<(Self, [u8; 32]), TicketError> {
        if bytes.len() != TICKET_BYTES || bytes[0] != TICKET_VERSION {
            return Err(TicketError::Malformed);
        }
        let (body, signature) = bytes.split_at(TICKET_BYTES - 32);
        let ticket = Self::decode(body)?;
        let key = key(ticket.key).ok_or(TicketError::UnknownKey(ticket.key))?;
        if !equal(&keyed(&key.secret, b"ticket", &[body]), signature) {
            return Err(TicketError::BadSignature);
        }
        if ticket.system != system {
            return Err(TicketError::OtherSystem(ticket.system));
        }
        if now_s.saturating_add(skew_s) < ticket.not_before_s || now_s > ticket.expires_s.saturating_add(skew_s) {
            return Err(TicketError::Expired);
        }
        Ok((ticket, keyed(&key.secret, b"ticket secret", &[bytes])))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(TICKET_VERSION);
        out.put_u64_le(self.key.0);
        out.put_u64_le(self.system.0);
        out.put_u64_le(self.volume.0);
        out.put_u64_le(self.pool.0);
        out.put_u64_le(self.sdc.0);
        out.put_u8(match self.access {
            AccessMode::ReadWrite => 1,
            AccessMode::ReadOnly => 2,
        });
        out.put_u64_le(self.generation.0);
        out.put_u64_le(self.revision.0);
        out.put_u64_le(self.expires_s);
        out.put_u64_le(self.not_before_s);
    }

    fn decode(mut body: &[u8]) -> Result<Self, TicketError> {
        body.advance(1);
        Ok(Self {
            key: KeyId(body.get_u64_le()),
            system: SystemId(body.get_u64_le()),
            volume: VolumeId(body.get_u64_le()),
            pool: StoragePoolId(body.get_u64_le()),
            sdc: SdcId(body.get_u64_le()),
            access: match body.get_u8() {
                1 => AccessMode::ReadWrite,
                2 => AccessMode::ReadOnly,
                _ => return Err(TicketError::Malformed),
            },
            generation: AttachGeneration(body.get_u64_le()),
            revision: Revision(body.get_u64_le()),
            expires_s: body.get_u64_le(),
            not_before_s: body.get_u64_le(),
        })
    }
}

/// A client's proof that it knows the ticket's secret, for one connection: both sides' nonces and the server are bound in.
pub fn client_proof(
    secret: &[u8; 32],
    ticket: &[u8],
    server: SdsId,
    server_nonce: &Nonce,
    client_nonce: &Nonce,
) -> [u8; 32] {
    keyed(secret, b"open", &[&server.0.to_le_bytes(), server_nonce, client_nonce, ticket])
}

/// A data server's proof to a client that it holds the domain's key, and so could derive the ticket's secret: only then
/// does the client believe its acknowledgements. Bound to the connection like the client's, and never equal to it.
pub fn server_proof(
    secret: &[u8; 32],
    ticket: &[u8],
    server: SdsId,
    server_nonce: &Nonce,
    client_nonce: &Nonce,
) -> [u8; 32] {
    keyed(secret, b"opened", &[&server.0.to_le_bytes(), server_nonce, client_nonce, ticket])
}

/// A data server's proof to another that it holds the domain's key, for one connection. `prover` and `verifier` differ in
/// the two directions, so a proof cannot be reflected.
pub fn peer_proof(
    key: &DomainKey,
    prover: (SdsId, ProcessIncarnation),
    verifier: SdsId,
    verifier_nonce: &Nonce,
    prover_nonce: &Nonce,
) -> [u8; 32] {
    let ids = [prover.0.0, prover.1.0, verifier.0].map(u64::to_le_bytes).concat();
    keyed(&key.secret, b"peer", &[&ids, verifier_nonce, prover_nonce])
}

/// Compares in constant time.
pub fn equal(left: &[u8], right: &[u8]) -> bool {
    use subtle::ConstantTimeEq;
    left.ct_eq(right).into()
}

fn keyed(key: &[u8; 32], context: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in std::iter::once(&context).chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProtectionDomainId;

    fn key() -> DomainKey {
        DomainKey { id: KeyId(9), protection_domain: ProtectionDomainId(1), secret: [7; 32] }
    }

    fn ticket() -> Ticket {
        Ticket {
            key: KeyId(9),
            system: SystemId(1),
            volume: VolumeId(2),
            pool: StoragePoolId(3),
            sdc: SdcId(4),
            access: AccessMode::ReadWrite,
            generation: AttachGeneration(5),
            revision: Revision(6),
            expires_s: 2000,
            not_before_s: 1000,
        }
    }

    fn check(bytes: &[u8], now_s: u64) -> Result<Ticket, TicketError> {
        Ticket::check(bytes, SystemId(1), now_s, 10, |id| (id == KeyId(9)).then(key)).map(|(ticket, _)| ticket)
    }

    #[test]
    fn every_flipped_bit_of_a_ticket_is_refused() {
        let credential = ticket().issue(&key());
        assert_eq!(credential.ticket.len(), TICKET_BYTES);
        assert_eq!(check(&credential.ticket, 1500), Ok(ticket()));
        for bit in 0..TICKET_BYTES * 8 {
            let mut bad = credential.ticket.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bad, 1500).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_ticket_opens_only_within_its_time_and_the_allowed_skew() {
        let bytes = ticket().issue(&key()).ticket;
        assert!(check(&bytes, 990).is_ok());
        assert_eq!(check(&bytes, 989), Err(TicketError::Expired));
        assert!(check(&bytes, 2010).is_ok());
        assert_eq!(check(&bytes, 2011), Err(TicketError::Expired));
    }

    #[test]
    fn a_ticket_of_another_system_or_key_is_refused() {
        let other = Ticket { system: SystemId(8), ..ticket() }.issue(&key());
        assert_eq!(check(&other.ticket, 1500), Err(TicketError::OtherSystem(SystemId(8))));
        let other = Ticket { key: KeyId(10), ..ticket() }.issue(&key());
        assert_eq!(check(&other.ticket, 1500), Err(TicketError::UnknownKey(KeyId(10))));
    }

    #[test]
    fn a_proof_is_good_for_one_connection_and_server() {
        let credential = ticket().issue(&key());
        let (_, secret) = Ticket::check(&credential.ticket, SystemId(1), 1500, 0, |_| Some(key())).unwrap();
        assert_eq!(secret, credential.secret);
        let proof = |server, nonce| client_proof(&secret, &credential.ticket, SdsId(server), &[nonce; 32], &[2; 32]);
        assert_ne!(proof(1, 1), proof(2, 1));
        assert_ne!(proof(1, 1), proof(1, 2));
        let answer = server_proof(&secret, &credential.ticket, SdsId(1), &[1; 32], &[2; 32]);
        assert_ne!(proof(1, 1), answer, "a client's proof must not serve as a server's");
    }
}
