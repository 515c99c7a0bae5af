//! Asking what a verb asks, and putting the answer in words.

use anyhow::{Context, bail};
use argon2::password_hash::{PasswordHasher, SaltString};
use mdm_api::command::{AdminCommand, CommandAnswer, ObjectRef, Query, QueryAnswer, SystemView};
use mdm_api::control::{Request, Response};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::verbs::{AccountChange, Call, Values, Verb};

use crate::rows::{self, Row};
use crate::session::{PATIENCE, QUESTION_PATIENCE, Session, read_password};

/// What came of it.
pub enum Asked {
    /// Objects to show; `single`: the one that was asked for.
    Rows {
        /// The objects.
        rows: Vec<Row>,
        /// Show one object, not a list.
        single: bool,
    },
    /// A change was made.
    Said {
        /// In words.
        text: String,
        /// For programs.
        fields: Vec<(&'static str, String)>,
    },
}

/// Carries a verb out.
pub async fn perform(session: &Session, verb: &Verb, values: &Values) -> anyhow::Result<Asked> {
    match (verb.make)(values)? {
        Call::Change(command) => change(session, verb, command).await,
        Call::Account(account) => change(session, verb, with_password(account)?).await,
        Call::List if verb.noun == "user" => {
            let QueryAnswer::Users(users) = query(session, Query::Users).await? else { bail!("unexpected answer") };
            Ok(Asked::Rows { rows: rows::users(&users), single: false })
        }
        Call::List => {
            let view = system_view(session).await?;
            Ok(Asked::Rows { rows: rows::rows(&view, verb.noun), single: verb.noun == "system" })
        }
        Call::Show(object) => {
            let view = system_view(session).await?;
            let row = find(rows::rows(&view, verb.noun), verb, &object)?;
            Ok(Asked::Rows { rows: vec![row], single: true })
        }
        Call::JoinToken => match session.client.request(Request::JoinToken, PATIENCE).await? {
            Response::JoinToken { token } => Ok(Asked::Said { text: token.clone(), fields: vec![("token", token)] }),
            other => bail!("unexpected answer: {other:?}"),
        },
    }
}

/// Everything there is to see.
pub async fn system_view(session: &Session) -> anyhow::Result<SystemView> {
    match query(session, Query::System).await? {
        QueryAnswer::System(view) => Ok(*view),
        _ => bail!("unexpected answer"),
    }
}

/// Asks a question.
pub async fn query(session: &Session, query: Query) -> anyhow::Result<QueryAnswer> {
    match session.client.request(Request::Query(query), QUESTION_PATIENCE).await? {
        Response::Query(answer) => Ok(answer),
        other => bail!("unexpected answer: {other:?}"),
    }
}

/// Makes a change. Some take a while, so it is asked first whether anybody is there: who mistyped an address hears so soon.
pub async fn command(session: &Session, command: AdminCommand) -> anyhow::Result<CommandAnswer> {
    query(session, Query::Cluster).await?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).context("no random numbers from the kernel")?;
    let request = Request::Admin { request_id: u128::from_le_bytes(id), command };
    match session.client.request(request, PATIENCE).await? {
        Response::Command(answer) => Ok(answer),
        other => bail!("unexpected answer: {other:?}"),
    }
}

async fn change(session: &Session, verb: &Verb, change: AdminCommand) -> anyhow::Result<Asked> {
    let done = format!("{} {}: done.", verb.noun, verb.verb);
    Ok(match command(session, change).await? {
        CommandAnswer::Done => Asked::Said { text: done, fields: vec![] },
        CommandAnswer::Object { id } => {
            let id = format!("{id:016x}");
            Asked::Said { text: format!("{} {}: done, id {id}.", verb.noun, verb.verb), fields: vec![("id", id)] }
        }
        CommandAnswer::Volume { id, size_bytes } => Asked::Said {
            text: format!("volume {}: done, id {id}, {}.", verb.verb, rows::size(size_bytes)),
            fields: vec![("id", id.to_string()), ("size_bytes", size_bytes.to_string())],
        },
        CommandAnswer::DeviceRecorded { id, .. } => {
            Asked::Said { text: format!("device {}: done, id {id}.", verb.verb), fields: vec![("id", id.to_string())] }
        }
        CommandAnswer::Mapping { volume, sdc, .. } => Asked::Said {
            text: format!("volume {volume} is mapped to client {sdc}."),
            fields: vec![("volume", volume.to_string()), ("sdc", sdc.to_string())],
        },
        CommandAnswer::Unmapping { volume, sdcs, .. } => {
            let sdcs: Vec<String> = sdcs.iter().map(ToString::to_string).collect();
            Asked::Said {
                text: format!(
                    "volume {volume} is unmapped from {}: nothing of theirs is written any more.",
                    sdcs.join(", ")
                ),
                fields: vec![("volume", volume.to_string()), ("sdcs", sdcs.join(","))],
            }
        }
        other => bail!("unexpected answer: {other:?}"),
    })
}

/// The row that an id or a name means.
fn find(rows: Vec<Row>, verb: &Verb, object: &ObjectRef) -> anyhow::Result<Row> {
    let matches = |row: &Row, key: &str| row.text(key).is_some_and(|text| text.eq_ignore_ascii_case(&object.0));
    for key in ["id", "name", "guid"] {
        if let Some(row) = rows.iter().find(|row| matches(row, key)) {
            return Ok(row.clone());
        }
    }
    let code = verb.errors.first().copied().unwrap_or(ErrorCode::NotFound);
    let remedy = format!("'scli {} list' shows what there is", verb.noun);
    Err(CommandError::new(code, format!("there is no {} '{}'", verb.noun, object.0), remedy).into())
}

fn with_password(account: AccountChange) -> anyhow::Result<AdminCommand> {
    let password = match std::env::var("ASHLAR_NEW_PASSWORD") {
        Ok(password) => password,
        Err(_) => read_password("New password: ")?,
    };
    if password.len() < 8 {
        bail!("the password is too short: take at least 8 characters");
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).context("no random numbers from the kernel")?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| anyhow::anyhow!("salt: {error}"))?;
    let hash = argon2::Argon2::default()
        .hash_password(password.as_bytes(), &salt)
        .map_err(|error| anyhow::anyhow!("hashing the password: {error}"))?;
    let password_hash = hash.to_string();
    Ok(match account {
        AccountChange::Add { name, role } => AdminCommand::AddUser { name, role, password_hash },
        AccountChange::SetPassword { user } => AdminCommand::SetPassword { user, password_hash },
    })
}
