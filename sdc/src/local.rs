//! The control socket: JSON lines from tools of this host, answered one by one.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use sdc_api::{LINE_BYTES_MAX, LocalAnswer, LocalError, LocalErrorCode, LocalRequest};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::manager::Manager;

/// Tools connected at the same time.
const CONNECTIONS_MAX: usize = 64;
/// Longest request line; answers may be longer.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const _: () = assert!((REQUEST_BYTES_MAX as usize) < LINE_BYTES_MAX);

/// Opens the socket; only this user may speak to it. A file that an ended daemon left is replaced, a living one's is not.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            anyhow::bail!("another data client serves {}: stop it, or set control_socket", path.display());
        }
        std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}

/// Serves tools for ever.
pub async fn serve(listener: UnixListener, manager: Arc<Manager>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let manager = manager.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &manager).await {
                        tracing::debug!(%error, "a tool's connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a tool's connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, manager: &Arc<Manager>) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        (&mut reader).take(REQUEST_BYTES_MAX).read_line(&mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        let complete = line.ends_with('\n');
        let answer = match serde_json::from_str::<LocalRequest>(&line) {
            Ok(request) => manager.clone().answer(request).await,
            Err(error) => LocalAnswer::Refused(LocalError {
                code: LocalErrorCode::BadRequest,
                message: format!("not a request: {error}"),
                remedy: "send one JSON object on a line, such as {\"request\":\"status\"}".to_owned(),
            }),
        };
        let mut text = serde_json::to_string(&answer)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
        if !complete {
            return Ok(());
        }
    }
}
