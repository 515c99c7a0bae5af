//! The lock on a daemon's data directory: one process works in it.
//!
//! A process that was killed holds its locks until the kernel has let go of all that it had open, which takes as long as
//! its last disk operation. Whoever starts the daemon again at once is not to be told that it runs already; so the lock is
//! waited for, for a while.

use std::fs::{File, TryLockError};
use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// How long a starting daemon waits for its killed predecessor to vanish. Longer than a disk's slow operation, shorter
/// than a person's patience with a command that says nothing.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Locks the file for this process alone, waiting at most `patience`. `None`: somebody else still holds it.
///
/// # Errors
/// What the kernel says about the file.
pub fn lock_patiently(file: File, patience: Duration) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => return Ok(Some(file)),
        Err(TryLockError::WouldBlock) if patience.is_zero() => return Ok(None),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    tracing::info!(patience_ms = patience.as_millis(), "the data directory is locked; waiting for its owner to vanish");
    let (send, receive) = channel();
    // The kernel has no lock with a time limit. Where patience ends first, the thread keeps waiting, and gives the lock
    // back the moment that it gets it: nobody receives it any more.
    thread::Builder::new().name("lock".to_owned()).spawn(move || send.send(file.lock().map(|()| file)))?;
    match receive.recv_timeout(patience) {
        Ok(locked) => locked.map(Some),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the thread that waits for the lock ended")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_handles() -> (File, File) {
        let path =
            std::env::temp_dir().join(format!("ashlar-lock-{}-{:?}", std::process::id(), thread::current().id()));
        let handles = (File::create(&path).unwrap(), File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        handles
    }

    #[test]
    fn a_lock_that_is_let_go_in_time_is_had() {
        let (first, second) = two_handles();
        first.lock().unwrap();
        let waiting = thread::spawn(move || lock_patiently(second, Duration::from_secs(60)));
        drop(first);
        assert!(waiting.join().unwrap().unwrap().is_some());
    }

    #[test]
    fn a_lock_that_is_held_is_given_up_after_a_while() {
        let (first, second) = two_handles();
        first.lock().unwrap();
        assert!(lock_patiently(second, Duration::from_millis(10)).unwrap().is_none());
    }
}
