//! The unix socket where the server is found.
//!
//! Always true: the socket file of a living server is never taken away from it; one that nobody answers is replaced;
//! nobody but the owner (and the group, if so configured) can connect, not even for an instant.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;

use crate::export::Exports;
use crate::serve::{ConnectionError, Server};

/// Who may connect.
#[derive(Debug, Clone)]
pub struct Access {
    /// Permission bits of the socket file.
    pub mode: u32,
    /// Its group, if not the process's own.
    pub gid: Option<u32>,
}

impl Default for Access {
    fn default() -> Self {
        Self { mode: 0o600, gid: None }
    }
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process serves there.
    #[error("{0} is served by another process; stop it or choose another path")]
    InUse(PathBuf),
    /// Something that is not a socket has that name.
    #[error("{0} exists and is not a socket; move it away or choose another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {error}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A listening socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: another's of the same name is not removed.
    identity: (u64, u64),
}

impl Listener {
    /// Binds `path`. Must run inside a tokio runtime.
    pub fn bind(path: &Path, access: &Access) -> Result<Self, ListenError> {
        let failed = |error| ListenError::Io { path: path.to_owned(), error };
        remove_stale(path)?;
        // Bound under a private name and renamed when its permissions are right: there is no instant at which the
        // public name is open to all.
        let private = path.with_extension(format!("new.{}", std::process::id()));
        match fs::remove_file(&private) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&private).map_err(failed)?;
        let publish = || {
            fs::set_permissions(&private, fs::Permissions::from_mode(access.mode))?;
            if access.gid.is_some() {
                chown(&private, None, access.gid)?;
            }
            let metadata = fs::metadata(&private)?;
            fs::rename(&private, path)?;
            Ok((metadata.dev(), metadata.ino()))
        };
        let identity = publish().map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts and serves until the future is dropped; connections go on.
    pub async fn run<X: Exports>(&self, server: &Server<X>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let server = server.clone();
                    tokio::spawn(async move {
                        let (reader, writer) = stream.into_split();
                        match server.serve(reader, writer).await {
                            Ok(()) => {}
                            Err(error @ ConnectionError::Io(_)) => tracing::debug!(%error, "nbd connection"),
                            Err(error) => tracing::info!(%error, "nbd connection"),
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly. Accepting again at once would only spin.
                    tracing::warn!(%error, "cannot accept an nbd connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the nbd socket");
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |error| ListenError::Io { path: path.to_owned(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match BlockingStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog means that somebody is there.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ListenError::InUse(path.to_owned())),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_living_socket_is_kept_a_stale_one_replaced_and_ours_removed() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("nbd.sock");
        let first = Listener::bind(&path, &Access::default()).expect("fresh");
        assert_eq!(fs::metadata(&path).expect("socket").permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&path, &Access::default()), Err(ListenError::InUse(_))));
        drop(first);
        assert!(!path.exists(), "removed at exit");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists(), "left behind by a crash");
        let second = Listener::bind(&path, &Access { mode: 0o660, gid: None }).expect("stale is replaced");
        fs::remove_file(&path).expect("remove");
        fs::write(&path, "mine").expect("write");
        drop(second);
        assert!(path.exists(), "what is not ours stays");
        assert!(matches!(Listener::bind(&path, &Access::default()), Err(ListenError::NotASocket(_))));
    }
}
