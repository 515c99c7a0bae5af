//! The thread that makes the log durable, in the order that it was asked to.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use mdm_raft::{FileOp, PersistId};
use tokio::sync::mpsc;

use crate::directory::LogDirectory;

/// What the thread says.
pub(crate) enum DiskEvent {
    /// Done, and durable.
    Persisted { id: PersistId, took: Duration },
    /// Not done. The process ends: what is on the disk is known only by reading it back.
    Failed(io::Error),
}

/// The handle of the thread.
pub(crate) struct Disk {
    jobs: Option<SyncSender<(PersistId, Vec<FileOp>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    /// Starts the thread. The member has at most one batch under way, so both queues are short.
    pub(crate) fn start(mut log: LogDirectory) -> anyhow::Result<(Self, mpsc::Receiver<DiskEvent>)> {
        let (jobs, queue) = sync_channel::<(PersistId, Vec<FileOp>)>(2);
        let (events, receiver) = mpsc::channel(4);
        let run = move || {
            for (id, ops) in queue {
                let begun = Instant::now();
                let event = match log.execute(&ops) {
                    Ok(()) => DiskEvent::Persisted { id, took: begun.elapsed() },
                    Err(error) => DiskEvent::Failed(error),
                };
                let failed = matches!(event, DiskEvent::Failed(_));
                if events.blocking_send(event).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(run).context("cannot start a thread")?;
        Ok((Self { jobs: Some(jobs), thread: Some(thread) }, receiver))
    }

    /// Hands over a batch.
    pub(crate) fn persist(&self, id: PersistId, ops: Vec<FileOp>) -> anyhow::Result<()> {
        let jobs = self.jobs.as_ref().ok_or_else(|| anyhow!("stopped"))?;
        jobs.try_send((id, ops)).map_err(|_| anyhow!("it takes no more work"))
    }
}

impl Drop for Disk {
    /// Waits for what is under way: the directory is free for the next process only then.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's thread panicked");
        }
    }
}
