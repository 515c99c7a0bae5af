//! The session: which system, and as whom. Kept in a file that only its owner can read.

use std::io::{BufRead, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ArgMatches;
use mdm_api::client::{Connector, MdmClient, Members, pki};
use mdm_api::control::{PeerRole, Request, Response};
use mdm_api::ids::SystemId;
use mdm_api::model::UserRole;
use serde::{Deserialize, Serialize};

/// How long a person waits for an answer. Longer than any deferred answer of the MDM.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a question may take, which waits for nothing but a leader: several elections.
pub const QUESTION_PATIENCE: Duration = Duration::from_secs(5);
/// How long a login may take.
const LOGIN_PATIENCE: Duration = Duration::from_secs(10);

/// What is kept between commands.
#[derive(Clone, Serialize, Deserialize)]
struct Saved {
    mdms: Vec<String>,
    ca_pem: String,
    system: SystemId,
    user: String,
    token: String,
}

/// An open session.
pub struct Session {
    /// Asks the leader.
    pub client: MdmClient,
}

/// Where to look for what.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// MDM addresses given on the command line or in the environment.
    pub mdms: Vec<String>,
    /// The authority's file.
    pub ca: Option<String>,
    /// The session file.
    pub file: Option<String>,
}

impl Place {
    fn of(matches: &ArgMatches) -> Self {
        Self {
            mdms: matches.get_many::<String>("mdm").map(|values| values.cloned().collect()).unwrap_or_default(),
            ca: matches.get_one::<String>("ca").cloned(),
            file: matches.get_one::<String>("session").cloned(),
        }
    }

    /// From the environment alone, for the classic spellings.
    pub fn of_environment(mdms: Vec<String>) -> Self {
        let variable = |name| std::env::var(name).ok();
        let mdms = if mdms.is_empty() {
            variable("ASHLAR_MDM").map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default()
        } else {
            mdms
        };
        Self { mdms, ca: variable("ASHLAR_CA"), file: variable("ASHLAR_SESSION") }
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(PathBuf::from(file));
        }
        let home = std::env::var("HOME").context("HOME is not set: name a file with --session")?;
        Ok(PathBuf::from(home).join(".ashlar").join("session.json"))
    }

    fn load(&self) -> anyhow::Result<Option<Saved>> {
        let path = self.path()?;
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is not a session file: remove it and log in again", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn save(&self, saved: &Saved) -> anyhow::Result<()> {
        let path = self.path()?;
        let context = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(context)?;
        }
        let beside = path.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.create(true).truncate(true).write(true).mode(0o600).open(&beside).with_context(context)?;
        file.write_all(&serde_json::to_vec_pretty(saved)?).with_context(context)?;
        std::fs::rename(&beside, &path).with_context(context)
    }

    /// Logs in and keeps the session.
    pub async fn login(&self, user: &str, password: &str) -> anyhow::Result<(UserRole, SystemId)> {
        let earlier = self.load().unwrap_or_default();
        let ca_pem = match (&self.ca, &earlier) {
            (Some(path), _) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?,
            (None, Some(saved)) => saved.ca_pem.clone(),
            (None, None) => bail!(
                "the system's certificate is not known: copy authority.pem from an MDM's data directory and name it with --ca"
            ),
        };
        let mdms = match (&self.mdms, &earlier) {
            (given, Some(saved)) if given.is_empty() => saved.mdms.clone(),
            (given, _) => given.clone(),
        };
        if mdms.is_empty() {
            bail!("no metadata manager is known: name one with --mdm host:port");
        }
        let tls = pki::client_config(&ca_pem, None).context("the file of --ca is no certificate")?;
        let client = MdmClient::start(Connector::new(tls, PeerRole::Tool, None), Members::new(mdms.clone()), None);
        let request = Request::Login { user: user.to_owned(), password: password.to_owned() };
        match client.request(request, LOGIN_PATIENCE).await? {
            Response::LoggedIn { token, role, system } => {
                self.save(&Saved { mdms, ca_pem, system, user: user.to_owned(), token })?;
                Ok((role, system))
            }
            other => bail!("unexpected answer to a login: {other:?}"),
        }
    }

    /// Opens the session that was kept.
    pub fn open(&self) -> anyhow::Result<Session> {
        let Some(saved) = self.load()? else {
            bail!("not logged in: run 'scli login --mdm host:port --ca authority.pem'");
        };
        let mdms = if self.mdms.is_empty() { saved.mdms } else { self.mdms.clone() };
        let tls =
            pki::client_config(&saved.ca_pem, None).context("the session's certificate is damaged: log in again")?;
        let connector = Connector::new(tls, PeerRole::Tool, Some(saved.system));
        Ok(Session { client: MdmClient::start(connector, Members::new(mdms), Some(saved.token)) })
    }

    /// Forgets it. `false`: there was none.
    pub fn forget(&self) -> anyhow::Result<bool> {
        let path = self.path()?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
    }
}

impl Session {
    /// Opens the session that the command line means.
    pub fn open(matches: &ArgMatches) -> anyhow::Result<Self> {
        Place::of(matches).open()
    }
}

/// Logs in where the command line says.
pub async fn login(matches: &ArgMatches, user: &str, password: &str) -> anyhow::Result<UserRole> {
    Ok(Place::of(matches).login(user, password).await?.0)
}

/// Forgets the session that the command line means.
pub fn forget(matches: &ArgMatches) -> anyhow::Result<()> {
    Place::of(matches).forget()?;
    Ok(())
}

/// Reads a password from the terminal without showing it, or a line from a pipe.
pub fn read_password(prompt: &str) -> anyhow::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let input = std::io::stdin();
    let shown = tcgetattr(&input).ok();
    if let Some(attributes) = &shown {
        eprint!("{prompt}");
        let mut hidden = attributes.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&input, OptionalActions::Flush, &hidden)?;
    }
    let mut line = String::new();
    let read = input.lock().read_line(&mut line);
    if let Some(attributes) = &shown {
        tcsetattr(&input, OptionalActions::Flush, attributes)?;
        eprintln!();
    }
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
