//! Real processes on loopback addresses of their own: each test process has its own address, each test its own ports.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use mdm_api::client::{ClientError, Connector, MdmClient, Members, pki};
use mdm_api::command::{AdminCommand, ClusterView, CommandAnswer, Query, QueryAnswer, SystemView};
use mdm_api::control::{PeerRole, Request, Response};
use mdm_api::ids::SystemId;
use tempfile::TempDir;

pub const PASSWORD: &str = "a good password";
pub const PATIENCE: Duration = Duration::from_secs(20);

static PORTS: AtomicU16 = AtomicU16::new(20_000);

/// An address that no other test uses: all of 127/8 is this host.
pub fn address() -> String {
    let pid = std::process::id();
    let port = PORTS.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{}:{port}", 64 + (pid >> 16 & 0x3f), pid >> 8 & 0xff, (pid & 0xff).clamp(1, 254))
}

pub fn mdm(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_mdm")).args(arguments).stdin(Stdio::null()).output();
    output.expect("mdm runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One line on the standard error, and a failure.
#[track_caller]
pub fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    let line = text(&output.stderr);
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    line
}

/// A member's files and, while it runs, its process.
pub struct Member {
    pub directory: TempDir,
    pub address: String,
    pub peer_address: String,
    pub metrics_address: String,
    process: Option<Child>,
}

impl Member {
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (address, peer_address, metrics_address) = (address(), address(), address());
        let config = format!(
            "name = \"{name}\"\ndata_directory = {:?}\nlisten = \"{address}\"\npeer_listen = \"{peer_address}\"\n\
             metrics_listen = \"{metrics_address}\"\n",
            directory.path().join("data")
        );
        std::fs::write(directory.path().join("mdm.toml"), config).unwrap();
        std::fs::write(directory.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        Self { directory, address, peer_address, metrics_address, process: None }
    }

    pub fn config(&self) -> String {
        self.directory.path().join("mdm.toml").to_str().unwrap().to_owned()
    }

    pub fn password_file(&self) -> String {
        self.directory.path().join("password").to_str().unwrap().to_owned()
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub fn create_arguments(&self) -> [String; 8] {
        let words = ["create-system", "--config", "", "--name", "s", "--output=json", "--admin-password-file", ""];
        let mut words = words.map(str::to_owned);
        (words[2], words[7]) = (self.config(), self.password_file());
        words
    }

    /// Creates a system here.
    pub fn create(&self) -> serde_json::Value {
        let arguments = self.create_arguments();
        let output = mdm(&arguments.each_ref().map(String::as_str));
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn start(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mdm"))
            .args(["run", "--config", &self.config()])
            .env("ASHLAR_LOG", "info,mdm=debug")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        self.process = Some(child.unwrap());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM; true if it ended in good order.
    pub fn stop(&mut self) -> bool {
        let mut process = self.process.take().expect("it runs");
        let pid = rustix::process::Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        process.wait().unwrap().success()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("---- log of {}\n{}", self.address, std::fs::read_to_string(self.log()).unwrap_or_default());
        }
    }
}

pub fn authority(data: &Path) -> String {
    std::fs::read_to_string(data.join("authority.pem")).unwrap()
}

pub fn tool(authority_pem: &str, addresses: Vec<String>, token: Option<String>) -> MdmClient {
    let connector = Connector::new(pki::client_config(authority_pem, None).unwrap(), PeerRole::Tool, None);
    MdmClient::start(connector, Members::new(addresses), token)
}

pub async fn login(authority_pem: &str, addresses: &[String], password: &str) -> Result<String, ClientError> {
    let client = tool(authority_pem, addresses.to_vec(), None);
    let request = Request::Login { user: "admin".to_owned(), password: password.to_owned() };
    match client.request(request, PATIENCE).await? {
        Response::LoggedIn { token, .. } => Ok(token),
        other => panic!("{other:?}"),
    }
}

/// A client of `admin`.
pub async fn admin(authority_pem: &str, addresses: &[String]) -> MdmClient {
    let token = login(authority_pem, addresses, PASSWORD).await.unwrap();
    tool(authority_pem, addresses.to_vec(), Some(token))
}

pub async fn command(client: &MdmClient, id: u128, command: AdminCommand) -> Result<CommandAnswer, ClientError> {
    match client.request(Request::Admin { request_id: id, command }, PATIENCE).await? {
        Response::Command(answer) => Ok(answer),
        other => panic!("{other:?}"),
    }
}

pub async fn cluster(client: &MdmClient) -> ClusterView {
    match client.request(Request::Query(Query::Cluster), PATIENCE).await.unwrap() {
        Response::Query(QueryAnswer::Cluster(view)) => view,
        other => panic!("{other:?}"),
    }
}

pub async fn system(client: &MdmClient) -> SystemView {
    match client.request(Request::Query(Query::System), PATIENCE).await.unwrap() {
        Response::Query(QueryAnswer::System(view)) => *view,
        other => panic!("{other:?}"),
    }
}

/// Waits until it holds; fails after 20 s.
pub async fn until<F: AsyncFnMut() -> bool>(what: &str, mut holds: F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn system_id(created: &serde_json::Value) -> SystemId {
    created["system_id"].as_str().unwrap().parse().unwrap()
}
