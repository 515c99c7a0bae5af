//! Speaking to the system as its administrator.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mdm_api::client::{Connector, MdmClient, Members, pki};
use mdm_api::command::{AdminCommand, CommandAnswer, Query, QueryAnswer, SystemView};
use mdm_api::control::{PeerRole, Request, Response};

use crate::node::program;
use crate::state::State;

/// A logged-in administrator, usable from code that is not async.
pub struct Admin {
    runtime: tokio::runtime::Runtime,
    client: MdmClient,
}

impl Admin {
    /// Logs in at the MDMs given; waits for a leader for at most `patience`.
    pub fn login(state: &State, patience: Duration) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let path = state.authority_file();
        let authority = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let password = std::fs::read_to_string(state.password_file()).context("cannot read the password")?;
        let members = Members::new(state.mdm_addresses());
        let connector = Connector::new(pki::client_config(&authority, None)?, PeerRole::Tool, None);
        let _inside = runtime.enter();
        let first = MdmClient::start(connector.clone(), members.clone(), None);
        let request = Request::Login { user: "admin".to_owned(), password: password.trim_end().to_owned() };
        let Response::LoggedIn { token, .. } = runtime.block_on(first.request(request, patience))? else {
            bail!("unexpected answer to a login");
        };
        let client = MdmClient::start(connector, members, Some(token));
        drop(_inside);
        Ok(Self { runtime, client })
    }

    fn ask(&self, request: Request, patience: Duration) -> anyhow::Result<Response> {
        Ok(self.runtime.block_on(self.client.request(request, patience))?)
    }

    /// Makes a change.
    pub fn change(&self, command: AdminCommand) -> anyhow::Result<CommandAnswer> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        let request = Request::Admin { request_id: u128::from_le_bytes(id), command };
        match self.ask(request, Duration::from_secs(60))? {
            Response::Command(answer) => Ok(answer),
            other => bail!("unexpected answer: {other:?}"),
        }
    }

    /// Everything there is to see.
    pub fn view(&self, patience: Duration) -> anyhow::Result<SystemView> {
        match self.ask(Request::Query(Query::System), patience)? {
            Response::Query(QueryAnswer::System(view)) => Ok(*view),
            other => bail!("unexpected answer: {other:?}"),
        }
    }

    /// Looks again and again until something holds.
    pub fn wait_until(
        &self,
        what: &str,
        patience: Duration,
        holds: impl Fn(&SystemView) -> bool,
    ) -> anyhow::Result<SystemView> {
        let deadline = Instant::now() + patience;
        loop {
            match self.view(Duration::from_secs(5)) {
                Ok(view) if holds(&view) => return Ok(view),
                Ok(_) if Instant::now() < deadline => {}
                Ok(_) => bail!("after {} s still not so: {what}", patience.as_secs()),
                Err(error) if Instant::now() >= deadline => return Err(error).with_context(|| what.to_owned()),
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// `dev env`.
pub fn print_environment(state: &State) -> anyhow::Result<()> {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let show = |path: &std::path::Path| quote(&path.display().to_string());
    println!("export ASHLAR_DEV_DIR={}", show(&state.directory));
    println!("export ASHLAR_MDM={}", quote(&state.mdm_addresses().join(",")));
    println!("export ASHLAR_CA={}", show(&state.authority_file()));
    println!("export ASHLAR_SESSION={}", show(&state.session_file()));
    println!("export ASHLAR_SDC_SOCKET={}", show(&state.saved.sockets.join("sdc1.sock")));
    if let Some(folder) = program("scli")?.parent() {
        println!("export PATH={}:\"$PATH\"", show(folder));
    }
    Ok(())
}
