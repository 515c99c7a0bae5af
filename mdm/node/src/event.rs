//! What happens to a member, and what it wants done: the whole conversation between [`crate::Node`] and its shell.

use bytes::Bytes;
use mdm_api::control::{Heartbeat, PeerRole, Request, RequestError, Response};
use mdm_api::epoch::{Nanos, Revision};
use mdm_api::error::CommandError;
use mdm_api::ids::{MdmId, UserId};
use mdm_api::map::{MapDelta, MapView};
use mdm_raft::{FileOp, PersistId};

/// When an event happens, and fresh randomness for what it may mint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The monotonic clock. Never goes back.
    pub now: Nanos,
    /// The wall clock: seconds since 1970. Only for what people see and for expiry; no decision of order rests on it.
    pub wall_s: u64,
    /// 32 random bytes, new for each event. Secrets are derived from it.
    pub seed: [u8; 32],
}

/// A control connection of this process. Numbered by the shell, never used twice in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A request: the connection that it came by, and the number that it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    /// The connection.
    pub connection: ConnectionId,
    /// The caller's number.
    pub id: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Time passed. At least every 50 ms.
    Tick,
    /// The operations of an [`Action::Persist`] are durable.
    Persisted(PersistId),
    /// Bytes from another member, as its certificate says.
    PeerMessage {
        /// The other member.
        from: MdmId,
        /// The bytes of its [`Action::SendPeer`].
        bytes: Bytes,
    },
    /// Another member cannot be reached, or the connection to it broke: messages may be lost.
    PeerLost(MdmId),
    /// A message marked as a snapshot was written, or not.
    SnapshotSent {
        /// The other member.
        to: MdmId,
        /// True if all of it was written.
        ok: bool,
    },
    /// A caller was greeted; its role has been checked against its certificate.
    Connected {
        /// The new connection.
        connection: ConnectionId,
        /// Who calls.
        peer: PeerRole,
    },
    /// A connection ended.
    Disconnected {
        /// The connection.
        connection: ConnectionId,
        /// It was not ended in good order: the process at the other end may be dead.
        was_reset: bool,
    },
    /// A request.
    Request {
        /// Where to answer.
        key: RequestKey,
        /// What is asked.
        request: Request,
    },
    /// A data server's report.
    Heartbeat {
        /// The connection.
        connection: ConnectionId,
        /// The report.
        heartbeat: Box<Heartbeat>,
    },
    /// A caller wants to follow the map.
    Follow {
        /// The connection.
        connection: ConnectionId,
        /// As whom.
        view: MapView,
        /// What it has.
        have: Revision,
    },
    /// The last [`Action::Push`] of a connection was written: the next may come.
    PushWritten(ConnectionId),
    /// The answer to [`Action::CheckPassword`].
    PasswordChecked {
        /// The login.
        key: RequestKey,
        /// The account that was tried, if there is one.
        user: Option<UserId>,
        /// True if the password is right.
        right: bool,
    },
}

/// A certificate to be signed, and what else the answer to a join holds.
#[derive(Clone, PartialEq, Eq)]
pub struct SignOrder {
    /// The request to answer, with [`mdm_api::control::Response::Joined`].
    pub key: RequestKey,
    /// The authority's certificate.
    pub authority_certificate_pem: String,
    /// The authority's key. A secret.
    pub authority_key_pem: String,
    /// The caller's certificate signing request.
    pub csr_pem: String,
    /// Whom the certificate names.
    pub role: PeerRole,
    /// The answer; the certificate is left empty for the signer.
    pub joined: mdm_api::control::Joined,
}

impl std::fmt::Debug for SignOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignOrder {{ key: {:?}, role: {:?}, .. }}", self.key, self.role)
    }
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq)]
pub enum Action {
    /// Make these durable, in order; then [`Event::Persisted`]. At most one is under way. An error ends the process.
    Persist {
        /// Its name.
        id: PersistId,
        /// What to do.
        ops: Vec<FileOp>,
    },
    /// Send bytes to another member. May be lost, doubled, delayed.
    SendPeer {
        /// The other member.
        to: MdmId,
        /// What it gets as [`Event::PeerMessage`].
        bytes: Bytes,
        /// It may be large: it must not hold up others, and [`Event::SnapshotSent`] should follow.
        is_snapshot: bool,
    },
    /// Where the other members are, the preferred address first. Replaces what was said before.
    Peers(Vec<(MdmId, Vec<String>)>),
    /// Answer a request.
    Respond {
        /// Which.
        key: RequestKey,
        /// The answer.
        result: Result<Box<Response>, RequestError>,
    },
    /// Acknowledge a heartbeat.
    HeartbeatAck {
        /// The connection.
        connection: ConnectionId,
        /// The revision of this member's map.
        revision: Revision,
        /// The leader, if known.
        leader: Option<MdmId>,
    },
    /// Send a step of the map; then [`Event::PushWritten`].
    Push {
        /// The connection.
        connection: ConnectionId,
        /// The step.
        delta: MapDelta,
    },
    /// End a connection with a reason.
    Close {
        /// The connection.
        connection: ConnectionId,
        /// For the caller.
        error: CommandError,
    },
    /// Check a password; then [`Event::PasswordChecked`]. Without a hash there is no such account: the same work is to be done,
    /// so that time does not tell which names exist.
    CheckPassword {
        /// The login.
        key: RequestKey,
        /// The account.
        user: Option<UserId>,
        /// Its password's hash in PHC form.
        hash: Option<String>,
        /// What was given. A secret.
        password: String,
    },
    /// Sign a certificate and answer.
    Sign(Box<SignOrder>),
    /// Make a join token of this secret and answer with it.
    JoinToken {
        /// The request.
        key: RequestKey,
        /// What it proves the invitation by. A secret.
        secret: String,
        /// The authority's certificate.
        authority_certificate_pem: String,
        /// Where the members are.
        members: Vec<mdm_api::control::MdmAddress>,
    },
    /// For the log and the figures.
    Notice(Notice),
    /// This member must not go on: end the process with these words.
    Halt {
        /// What happened and what to do.
        reason: String,
    },
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets are never in logs: only what cannot hold one is shown whole.
        match self {
            Self::Persist { id, ops } => write!(f, "Persist({}, {} ops)", id.0, ops.len()),
            Self::SendPeer { to, bytes, is_snapshot } => write!(f, "SendPeer({to}, {} B, {is_snapshot})", bytes.len()),
            Self::Peers(peers) => write!(f, "Peers({peers:?})"),
            Self::Respond { key, result: Ok(_) } => write!(f, "Respond({key:?}, ok)"),
            Self::Respond { key, result: Err(error) } => write!(f, "Respond({key:?}, {error:?})"),
            Self::HeartbeatAck { connection, revision, .. } => write!(f, "HeartbeatAck({connection:?}, {revision})"),
            Self::Push { connection, delta } => write!(f, "Push({connection:?}, {} to {})", delta.from, delta.to),
            Self::Close { connection, error } => write!(f, "Close({connection:?}, {error:?})"),
            Self::CheckPassword { key, .. } => write!(f, "CheckPassword({key:?})"),
            Self::Sign(order) => order.fmt(f),
            Self::JoinToken { key, .. } => write!(f, "JoinToken({key:?})"),
            Self::Notice(notice) => write!(f, "Notice({notice:?})"),
            Self::Halt { reason } => write!(f, "Halt({reason:?})"),
        }
    }
}

/// Something worth a line in the log or a count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody leads, or nobody.
    LeaderChanged {
        /// The leader, if known.
        leader: Option<MdmId>,
        /// The term.
        term: u64,
        /// Whether it is this member.
        is_self: bool,
    },
    /// A command took effect or was refused. `kind` is one of a fixed set of words.
    Applied {
        /// The kind of command.
        kind: &'static str,
        /// Why it was refused.
        refused: Option<CommandError>,
    },
    /// A line for people.
    Told(String),
    /// A line for people that deserves attention.
    Warned(String),
}
