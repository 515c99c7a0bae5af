//! The metadata managers: asked as an account that may make and map volumes.
//!
//! Logs in when it has to and again when its session has run out. Keeps the last view of the system for questions that
//! nobody answers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use mdm_api::client::{ClientError, Connector, MdmClient, Members, pki};
use mdm_api::command::{AdminCommand, CommandAnswer, Query, QueryAnswer, SystemView};
use mdm_api::control::{PeerRole, Request, Response};
use mdm_api::epoch::Revision;
use mdm_api::error::ErrorCode;
use tokio::sync::Mutex;

use crate::core::seen::Seen;

/// How long one attempt to log in may take.
const LOGIN_PATIENCE: Duration = Duration::from_secs(10);

/// The metadata managers of one system.
pub struct System {
    connector: Connector,
    members: Members,
    user: String,
    password_file: PathBuf,
    session: Mutex<Option<MdmClient>>,
    seen: StdMutex<Seen>,
}

impl System {
    /// `ca_pem`: the system's authority.
    pub fn new(ca_pem: &str, mdm: Vec<String>, user: String, password_file: PathBuf) -> anyhow::Result<Self> {
        let tls = pki::client_config(ca_pem, None).context("the file of `ca` is no certificate")?;
        let connector = Connector::new(tls, PeerRole::Tool, None);
        let (session, seen) = (Mutex::new(None), StdMutex::new(Seen::default()));
        Ok(Self { connector, members: Members::new(mdm), user, password_file, session, seen })
    }

    /// Addresses that somebody knows, where none were configured.
    pub fn learn_members(&self, mdm: &[String]) {
        if self.members.addresses().is_empty() {
            self.members.replace_addresses(mdm.to_vec());
        }
    }

    async fn login(&self, patience: Duration) -> Result<MdmClient, ClientError> {
        let unavailable = |error: std::io::Error| {
            ClientError::Unavailable(format!("cannot read {}: {error}", self.password_file.display()))
        };
        let password = tokio::fs::read_to_string(&self.password_file).await.map_err(unavailable)?;
        let request = Request::Login { user: self.user.clone(), password: password.trim_end().to_owned() };
        let first = MdmClient::start(self.connector.clone(), self.members.clone(), None);
        match first.request(request, patience.min(LOGIN_PATIENCE)).await? {
            Response::LoggedIn { token, .. } => {
                Ok(MdmClient::start(self.connector.clone(), self.members.clone(), Some(token)))
            }
            other => Err(ClientError::Unavailable(format!("unexpected answer to a login: {other:?}"))),
        }
    }

    /// A client with a session. One login at a time.
    async fn client(&self, patience: Duration) -> Result<MdmClient, ClientError> {
        let mut session = self.session.lock().await;
        if let Some(client) = &*session {
            return Ok(client.clone());
        }
        let client = self.login(patience).await?;
        *session = Some(client.clone());
        Ok(client)
    }

    async fn forget_session(&self) {
        *self.session.lock().await = None;
    }

    async fn ask(&self, request: Request, patience: Duration) -> Result<Response, ClientError> {
        let first = self.client(patience).await?.request(request.clone(), patience).await;
        let is_over = |error: &ClientError| matches!(error, ClientError::Refused(refused) if refused.code == ErrorCode::InvalidSession);
        match first {
            Err(error) if is_over(&error) => {
                self.forget_session().await;
                self.client(patience).await?.request(request, patience).await
            }
            result => result,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything there is to see, fresh.
    pub async fn view(&self, patience: Duration) -> Result<Arc<SystemView>, ClientError> {
        match tokio::time::timeout(patience, self.look(patience)).await {
            Err(_) => Err(ClientError::Unavailable("no answer in time".to_owned())),
            Ok(result) => result,
        }
    }

    async fn look(&self, patience: Duration) -> Result<Arc<SystemView>, ClientError> {
        let known = self.seen().revision();
        // All of it, where what is told does not fit to what was seen.
        for from in [known, Revision(0)] {
            match self.ask(Request::Query(Query::SystemSince(from)), patience).await? {
                Response::Query(QueryAnswer::SystemSince { view, from, removed }) => {
                    if let Some(view) = self.seen().merge(*view, from, &removed) {
                        return Ok(view);
                    }
                }
                other => return Err(ClientError::Unavailable(format!("unexpected answer: {other:?}"))),
            }
        }
        Err(ClientError::Unavailable("the system was told in part".to_owned()))
    }

    /// What was seen last.
    pub fn last_view(&self) -> Option<Arc<SystemView>> {
        self.seen().last()
    }

    /// Makes a change. Asked of several managers if need be, it takes effect once.
    pub async fn change(&self, command: AdminCommand, patience: Duration) -> Result<CommandAnswer, ClientError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| ClientError::Unavailable(format!("no random numbers from the kernel: {error}")))?;
        // Zero is no id.
        let request = Request::Admin { request_id: u128::from_le_bytes(id) | 1, command };
        match self.ask(request, patience).await? {
            Response::Command(answer) => Ok(answer),
            other => Err(ClientError::Unavailable(format!("unexpected answer: {other:?}"))),
        }
    }
}
