//! Requests: who may ask, where it is answered, and what is proposed for it.
//!
//! Logging in and the question about the group are answered by any member, from its own state. Everything else is the
//! leader's business, and only once it knows that its state is current; others name the leader.

use mdm_api::command::{AdminCommand, ObjectRef, Query, QueryAnswer};
use mdm_api::control::{PeerRole, Request, Response};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::UserId;
use mdm_api::model::UserRole;
use mdm_core::apply::role_needed;
use mdm_core::command::OwnCommand;
use mdm_core::{Command, LogEntry};
use mdm_raft::DropReason;

use crate::authorise::{demand, demand_own, invalid_session, not_yours, role_for_query};
use crate::commit::encode;
use crate::deferred::Until;
use crate::event::{Action, Moment, RequestKey};
use crate::followers::Connection;
use crate::node::{Node, Read, busy};
use crate::proposals::Purpose;
use crate::session;

/// Passwords that are checked at a time: each costs tens of milliseconds and megabytes in the shell.
const LOGINS_MAX: usize = 64;
/// Longest user name and password, in bytes: what is longer is nobody's.
const LOGIN_BYTES_MAX: usize = 1024;

impl Node {
    pub(crate) fn request(&mut self, moment: Moment, key: RequestKey, request: Request, out: &mut Vec<Action>) {
        let Some(connection) = self.connections.get(key.connection) else { return };
        let peer = connection.peer;
        match request {
            Request::Login { user, password } => self.login(key, peer, &user, password, out),
            Request::Resume { token } => self.resume(moment, key, peer, token, out),
            Request::Query(Query::Cluster) => match self.may_see_cluster(connection, moment.wall_s) {
                Ok(()) => {
                    let answer = QueryAnswer::Cluster(self.cluster_view(moment.now));
                    self.answer_ok(key, Response::Query(answer), out);
                }
                Err(error) => self.answer(key, Err(error), out),
            },
            // A caller that was not let in learns nothing, not even who leads.
            request => match self.may_ask(connection, moment.wall_s, &request) {
                Err(error) => self.answer(key, Err(error), out),
                Ok(()) if !self.leads_current() => self.redirect(key, out),
                Ok(()) => self.lead_request(moment, key, peer, request, out),
            },
        }
    }

    /// Whether the caller may ask this at all, as far as its role says.
    fn may_ask(&self, connection: &Connection, wall_s: u64, request: &Request) -> Result<(), CommandError> {
        let person = |needed| match connection.peer {
            PeerRole::Tool => demand(&self.state, connection, wall_s, needed),
            _ => Err(not_yours("a daemon does not manage the system")),
        };
        match request {
            Request::Admin { command, request_id } => {
                if *request_id == 0 {
                    let text = "The request has no id of its own";
                    return Err(CommandError::new(ErrorCode::InvalidArgument, text, "draw a random one"));
                }
                if matches!(connection.peer, PeerRole::Tool) && self.is_own_password(connection, command) {
                    return person(UserRole::Monitor);
                }
                person(role_needed(command))?;
                if self.touches_super_user(command) { person(UserRole::SuperUser) } else { Ok(()) }
            }
            Request::JoinToken => person(UserRole::Administrator),
            Request::Query(query) => person(role_for_query(query)),
            Request::Daemon { .. } => match connection.peer {
                PeerRole::Sds(_) | PeerRole::Sdc(_) => Ok(()),
                _ => Err(not_yours("only daemons ask this")),
            },
            Request::Credential { .. } | Request::Present => match connection.peer {
                PeerRole::Sdc(_) => Ok(()),
                _ => Err(not_yours("only a data client asks this")),
            },
            Request::Join { .. } => match connection.peer {
                PeerRole::Joiner => Ok(()),
                _ => Err(not_yours("whoever joins has no certificate yet")),
            },
            Request::Login { .. } | Request::Resume { .. } => Ok(()),
        }
    }

    fn may_see_cluster(&self, connection: &Connection, wall_s: u64) -> Result<(), CommandError> {
        match connection.peer {
            PeerRole::Tool => demand(&self.state, connection, wall_s, role_for_query(&Query::Cluster)),
            PeerRole::Joiner => Err(not_yours("whoever joins may only join")),
            PeerRole::Mdm(_) | PeerRole::Sds(_) | PeerRole::Sdc(_) => Ok(()),
        }
    }

    fn is_own_password(&self, connection: &Connection, command: &AdminCommand) -> bool {
        let AdminCommand::SetPassword { user, .. } = command else { return false };
        connection.session.as_ref().is_some_and(|session| self.account(user) == Some(session.user))
    }

    /// The account that is meant: by id first, then by name.
    fn account(&self, reference: &ObjectRef) -> Option<UserId> {
        let by_id = reference.0.parse::<UserId>().ok().filter(|user| self.state.role_of(*user).is_some());
        by_id.or_else(|| self.state.user(&reference.0).map(|record| record.user.id))
    }

    /// Only a super user makes, unmakes or takes over another one: else the role Security would be all roles.
    fn touches_super_user(&self, command: &AdminCommand) -> bool {
        match command {
            AdminCommand::AddUser { role, .. } => *role == UserRole::SuperUser,
            AdminCommand::RemoveUser { user } | AdminCommand::SetPassword { user, .. } => {
                self.account(user).and_then(|user| self.state.role_of(user)) == Some(UserRole::SuperUser)
            }
            _ => false,
        }
    }

    fn login(&mut self, key: RequestKey, peer: PeerRole, user: &str, password: String, out: &mut Vec<Action>) {
        if peer != PeerRole::Tool {
            self.answer(key, Err(not_yours("only people log in")), out);
        } else if self.state.system().is_none() {
            // A new member that has not received the state yet.
            self.redirect(key, out);
        } else if self.logins.len() >= LOGINS_MAX {
            self.answer(key, Err(busy("Too many people log in at once")), out);
        } else if user.len() > LOGIN_BYTES_MAX || password.len() > LOGIN_BYTES_MAX {
            self.answer(key, Err(wrong_password()), out);
        } else {
            self.logins.insert(key, ());
            let record = self.state.user(user);
            out.push(Action::CheckPassword {
                key,
                user: record.map(|record| record.user.id),
                hash: record.map(|record| record.password_hash.clone()),
                password,
            });
        }
    }

    pub(crate) fn password_checked(
        &mut self,
        moment: Moment,
        key: RequestKey,
        user: Option<UserId>,
        right: bool,
        out: &mut Vec<Action>,
    ) {
        if self.logins.remove(&key).is_none() {
            return;
        }
        let record = user.filter(|_| right).and_then(|user| session::record(&self.state, user));
        let minted = record.and_then(|record| {
            let (token, session) = session::mint(&self.state, record, moment.wall_s, &moment.seed)?;
            Some((token, session, record.user.role))
        });
        let Some((token, session, role)) = minted else {
            self.answer(key, Err(wrong_password()), out);
            return;
        };
        if let Some(connection) = self.connections.get_mut(key.connection) {
            connection.session = Some(session);
        }
        self.answer_ok(key, Response::LoggedIn { token, role, system: self.system }, out);
    }

    fn resume(&mut self, moment: Moment, key: RequestKey, peer: PeerRole, token: String, out: &mut Vec<Action>) {
        if peer == PeerRole::Tool && self.state.system().is_none() {
            self.redirect(key, out);
            return;
        }
        let session = session::check(&self.state, &token, moment.wall_s).filter(|_| peer == PeerRole::Tool);
        let role = session.and_then(|session| self.state.role_of(session.user));
        let (Some(session), Some(role)) = (session, role) else {
            self.answer(key, Err(invalid_session()), out);
            return;
        };
        if let Some(connection) = self.connections.get_mut(key.connection) {
            connection.session = Some(session);
        }
        self.answer_ok(key, Response::LoggedIn { token, role, system: self.system }, out);
    }

    /// A request to the leader by somebody who may ask it.
    fn lead_request(
        &mut self,
        moment: Moment,
        key: RequestKey,
        peer: PeerRole,
        request: Request,
        out: &mut Vec<Action>,
    ) {
        match request {
            Request::Admin { request_id, command } => {
                self.propose(moment, request_id, Command::Admin(command), Purpose::Request(key));
            }
            Request::Daemon { request_id, command } => match demand_own(&self.state, peer, &command) {
                Ok(()) => self.propose(moment, request_id, Command::Daemon(command), Purpose::Request(key)),
                Err(error) => self.answer(key, Err(error), out),
            },
            Request::Query(query) => self.read(moment, Read::Query(key, query)),
            Request::Credential { volume, opener } => match peer {
                PeerRole::Sdc(sdc) => self.read(moment, Read::Credential { key, volume, sdc, opener }),
                _ => self.answer(key, Err(not_yours("only a data client asks for credentials")), out),
            },
            Request::Present => {
                if let PeerRole::Sdc(sdc) = peer {
                    self.clients_seen.insert(sdc, moment.now);
                }
                self.answer_ok(key, Response::Noted, out);
            }
            Request::Join { role, secret, csr_pem } => self.join_request(moment, key, role, &secret, csr_pem, out),
            Request::JoinToken => {
                let secret = session::mint_join_secret(&moment.seed);
                let hash = session::join_secret_hash(&secret);
                let command = Command::Own(OwnCommand::SetJoinToken { hash });
                self.propose(moment, 0, command, Purpose::JoinToken { key, secret });
            }
            Request::Login { .. } | Request::Resume { .. } => {
                self.answer(key, Err(invalid_session()), out);
            }
        }
    }

    /// Proposes a command to the group.
    pub(crate) fn propose(&mut self, moment: Moment, request_id: u128, command: Command, purpose: Purpose) {
        // The secrets that a command may need do not follow from what else was derived from this event's seed.
        let random = blake3::derive_key("ashlar 2026 mdm entry random", &moment.seed);
        let entry = LogEntry { request_id, at_s: moment.wall_s, random, command };
        let token = self.proposals.asked(purpose);
        self.raft_event(moment, mdm_raft::Event::Propose { token, command: encode(&entry) });
    }

    /// Asks for a linearizable read.
    pub(crate) fn read(&mut self, moment: Moment, read: Read) {
        let token = self.proposals.token();
        self.reads.insert(token, read);
        self.raft_event(moment, mdm_raft::Event::ReadIndex { token });
    }

    pub(crate) fn read_ready(&mut self, moment: Moment, token: u64, out: &mut Vec<Action>) {
        match self.reads.remove(&token) {
            None => {}
            Some(Read::Current) => {
                if let Some(leadership) = &mut self.leadership {
                    leadership.is_current = true;
                }
            }
            Some(Read::Query(key, query)) => {
                let answer = match query {
                    Query::System => self.system_view(moment.now).map(|view| QueryAnswer::System(Box::new(view))),
                    Query::SystemSince(from) => self.system_since(moment.now, from),
                    Query::Cluster => Ok(QueryAnswer::Cluster(self.cluster_view(moment.now))),
                    Query::Users => {
                        Ok(QueryAnswer::Users(self.state.users().map(|record| record.user.clone()).collect()))
                    }
                };
                self.answer(key, answer.map(|answer| Box::new(Response::Query(answer))), out);
            }
            Some(Read::Credential { key, volume, sdc, opener }) => {
                let until = Until::Usable { volume, sdc, opener };
                match self.deferred.wait(key, until, None, moment.now) {
                    Ok(()) => self.has_applied = true, // decided at the end of this step, if it can be
                    Err(error) => self.answer(key, Err(error), out),
                }
            }
        }
    }

    pub(crate) fn read_dropped(&self, read: Read, reason: DropReason, out: &mut Vec<Action>) {
        match read {
            Read::Current => {}
            Read::Query(key, _) | Read::Credential { key, .. } => match reason {
                DropReason::Busy => self.refuse_dropped(key, reason, out),
                _ => self.redirect(key, out),
            },
        }
    }

    /// True if this member leads and knows that it has all that was committed before.
    pub(crate) fn leads_current(&self) -> bool {
        self.leadership.as_ref().is_some_and(|leadership| leadership.is_current)
    }

    /// Asks whether this leader's state is current.
    pub(crate) fn ask_current(&mut self, moment: Moment) {
        if !self.reads.values().any(|read| *read == Read::Current) {
            self.read(moment, Read::Current);
        }
    }
}

fn wrong_password() -> CommandError {
    CommandError::new(ErrorCode::WrongPassword, "Wrong username or password", "check both and log in again")
}
