//! Session tokens and join secrets: what people and hosts show to prove that they were let in.
//!
//! A session token is self-contained: account, expiry and a signature under a secret that every member derives from the
//! replicated state, so it is valid on any member and survives a change of leader. The signature also covers the account's
//! password: a new password ends all sessions. What the account may do is looked up at every request.

use mdm_api::ids::UserId;
use mdm_api::ticket::equal;
use mdm_core::State;
use mdm_core::state::UserRecord;

/// How long a login lasts.
pub const SESSION_S: u64 = 8 * 3600;

const VERSION: u8 = 1;
const BODY_BYTES: usize = 1 + 8 + 8 + 16;
const TOKEN_BYTES: usize = BODY_BYTES + 32;

/// A login, as a connection holds it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Who.
    pub user: UserId,
    /// Until when: seconds since 1970.
    pub expires_s: u64,
    /// Fingerprint of the password that it began with.
    stamp: [u8; 32],
}

/// Makes a token for an account.
pub fn mint(state: &State, user: &UserRecord, wall_s: u64, seed: &[u8; 32]) -> Option<(String, Session)> {
    let session = Session { user: user.user.id, expires_s: wall_s.saturating_add(SESSION_S), stamp: stamp(user) };
    let mut body = Vec::with_capacity(TOKEN_BYTES);
    body.push(VERSION);
    body.extend_from_slice(&session.user.0.to_le_bytes());
    body.extend_from_slice(&session.expires_s.to_le_bytes());
    body.extend_from_slice(&seed[..16]);
    let signature = sign(state, &body, &session.stamp)?;
    body.extend_from_slice(&signature);
    Some((to_hex(&body), session))
}

/// The session that a token stands for, if it is valid now.
pub fn check(state: &State, token: &str, wall_s: u64) -> Option<Session> {
    let bytes = from_hex(token)?;
    if bytes.len() != TOKEN_BYTES || bytes[0] != VERSION {
        return None;
    }
    let (body, signature) = bytes.split_at(BODY_BYTES);
    let user = UserId(u64::from_le_bytes(body[1..9].try_into().ok()?));
    let expires_s = u64::from_le_bytes(body[9..17].try_into().ok()?);
    let stamp = stamp(record(state, user)?);
    (equal(&sign(state, body, &stamp)?, signature) && wall_s < expires_s).then_some(Session { user, expires_s, stamp })
}

impl Session {
    /// True while the account exists with the same password and the time is not up.
    pub fn holds(&self, state: &State, wall_s: u64) -> bool {
        wall_s < self.expires_s && record(state, self.user).is_some_and(|user| equal(&stamp(user), &self.stamp))
    }
}

/// The account of that id.
pub fn record(state: &State, user: UserId) -> Option<&UserRecord> {
    state.users().find(|record| record.user.id == user)
}

/// A fresh secret for a join token.
pub fn mint_join_secret(seed: &[u8; 32]) -> String {
    to_hex(&blake3::derive_key("ashlar 2026 mdm join secret", seed))
}

/// What the state keeps of a join secret.
pub fn join_secret_hash(secret: &str) -> [u8; 32] {
    blake3::derive_key("ashlar 2026 mdm join secret digest", secret.as_bytes())
}

fn stamp(user: &UserRecord) -> [u8; 32] {
    blake3::derive_key("ashlar 2026 mdm session password stamp", user.password_hash.as_bytes())
}

/// Signs under a key that follows from the one secret that every member holds: the authority's key.
fn sign(state: &State, body: &[u8], stamp: &[u8; 32]) -> Option<[u8; 32]> {
    let secret = &state.system()?.authority_key_pem;
    let key = blake3::derive_key("ashlar 2026 mdm session signature", secret.as_bytes());
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(body);
    hasher.update(stamp);
    Some(*hasher.finalize().as_bytes())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || text.len() != 2 * TOKEN_BYTES {
        return None;
    }
    (0..text.len() / 2).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()).collect()
}
