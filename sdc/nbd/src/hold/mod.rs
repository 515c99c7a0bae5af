//! The holder: a small process between a FUSE file and the NBD server, made to outlive the daemon.
//!
//! Where the kernel has no nbd, a loop device sits on a FUSE file, and somebody must answer for that file for as long
//! as the device exists. The daemon cannot: it is restarted and upgraded. So each device has its holder, which does
//! nothing but carry requests from `/dev/fuse` to the server's socket, and when the server is away connects again and
//! **sends the request again**, for as long as it takes. Users of the device see a pause, never an error.
//!
//! ```text
//!   loop ─▶ FUSE file ─▶ /dev/fuse ─▶ N threads, each: take a request, ask the server, answer ─▶ unix socket
//! ```
//!
//! Sending twice is harmless: nothing was acknowledged to the file, the kernel never has two overlapping writes of one
//! page in flight, and the server orders overlapping writes by arrival ([`crate::export`]).
//!
//! Always true: a request is answered with an error only if the server answered it with an error, other than
//! "shutting down"; the process ends when the file is unmounted and no sooner; it is in a session of its own, ignores
//! polite signals, keeps its memory locked, and allocates nothing for a request, so that writing back dirty pages
//! through it cannot wait for itself; whatever the daemon itself does with the file to make or resize a device is answered
//! without the server. Else a daemon that is killed in such a call could not end before the next one serves, while no
//! service manager starts the next one before it has ended.

mod fuse;

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::client::{Client, ClientError, query};
use crate::wire::{Command, command_flags, errno};
use fuse::{Ask, IN_HEADER, IO_ARGUMENTS, MAX_IO};

/// Set for the second of the two processes of a start.
const STAGE: &str = "ASHLAR_HOLD_STAGE";
/// Each step of a handshake with the server.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to reach the server.
const RETRY: Duration = Duration::from_millis(50);
/// Longest range in one zeroing request, bytes.
const MAX_ZEROES: u64 = 1 << 30;
/// Threads, each with a connection, so requests in flight.
const MAX_THREADS: usize = 64;

/// `prctl` number that the libc crate does not know yet.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

#[derive(Debug)]
struct Target {
    socket: PathBuf,
    export: String,
    /// The last size that the server told, or the daemon at the start.
    size_bytes: AtomicU64,
    changes: Changes,
}

/// What there is to be made durable. A file that nobody has changed is synced without asking anybody: it is when a loop
/// device is made, by a thread of the very daemon that would have to answer.
#[derive(Debug, Default)]
struct Changes {
    /// Changes that the server has carried out.
    made: AtomicU64,
    /// Of these, how many the server has made durable.
    durable: AtomicU64,
}

impl Changes {
    /// To be called before the change is answered.
    fn note(&self) {
        self.made.fetch_add(1, Ordering::SeqCst);
    }

    /// Makes durable by `flush` what was noted before.
    fn sync<E>(&self, flush: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let made = self.made.load(Ordering::SeqCst);
        if self.durable.load(Ordering::SeqCst) < made {
            flush()?;
            self.durable.fetch_max(made, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Runs the holder: `arguments` are SOCKET EXPORT SIZE THREADS, the size in bytes, standard input is an open `/dev/fuse` that is mounted.
///
/// The program that calls this for `main` is started once by the daemon; it starts itself again in a new session,
/// prints the new process's id and ends, so that nobody is left to wait for. The second one serves.
pub fn main(arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let arguments: Vec<OsString> = arguments.collect();
    let [socket, export, size_bytes, threads] = arguments.as_slice() else {
        return Err(io::Error::other(
            "usage: sdc-hold SOCKET EXPORT SIZE THREADS, with a mounted /dev/fuse as standard input",
        ));
    };
    let bad = |what: &str| io::Error::other(format!("sdc-hold: {what}"));
    let export = export.to_str().ok_or_else(|| bad("the export's name is not UTF-8"))?.to_owned();
    let size_bytes = size_bytes.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| bad("SIZE is in bytes"))?;
    let threads = threads.to_str().and_then(|text| text.parse().ok());
    let threads: usize =
        threads.filter(|count| (1..=MAX_THREADS).contains(count)).ok_or_else(|| bad("THREADS is 1 to 64"))?;
    if std::env::var_os(STAGE).is_none() {
        return start();
    }
    let target = Target {
        socket: PathBuf::from(socket),
        export,
        size_bytes: AtomicU64::new(size_bytes),
        changes: Changes::default(),
    };
    shield();
    run(target, threads)
}

fn start() -> io::Result<()> {
    rustix::process::setsid()?;
    let child = Process::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(STAGE, "run")
        .current_dir("/")
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .spawn()?;
    println!("{}", child.id());
    Ok(())
}

/// Makes the process hard to lose. What the system does not grant is reported and done without.
#[allow(unsafe_code)]
fn shield() {
    let complain = |what: &str, failed: bool| {
        if failed {
            eprintln!("sdc-hold: {what}: {}", io::Error::last_os_error());
        }
    };
    // SAFETY: closes descriptors that nobody here has opened: whatever the daemon's parent left open.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    complain("cannot close inherited files", closed != 0);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal runs no code of ours.
        let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
        complain("cannot ignore a signal", before == libc::SIG_ERR);
    }
    // SAFETY: takes flags and no pointers.
    let locked = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    complain("cannot lock memory", locked != 0);
    // SAFETY: takes numbers and no pointers. Memory reclaim on our behalf must not wait for I/O that we carry.
    let flusher = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    complain("cannot mark as I/O flusher", flusher != 0);
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        eprintln!("sdc-hold: cannot be exempted from the out-of-memory killer: {error}");
    }
}

fn run(target: Target, threads: usize) -> io::Result<()> {
    let target = Arc::new(target);
    let (ended, endings) = mpsc::sync_channel(threads);
    for _ in 0..threads {
        let (target, ended) = (Arc::clone(&target), ended.clone());
        thread::Builder::new().stack_size(256 << 10).spawn(move || ended.send(work(&target)))?;
    }
    drop(ended);
    // The first worker to end saw the unmount. The others may still be trying to reach a server on behalf of requests
    // that the kernel has given up; they end with the process.
    endings.recv().map_err(|_| io::Error::other("sdc-hold: the workers panicked"))?
}

/// Serves requests until the file is unmounted.
fn work(target: &Target) -> io::Result<()> {
    let stdin = io::stdin();
    let device = stdin.as_fd();
    let mut input = vec![0; IN_HEADER + IO_ARGUMENTS + MAX_IO as usize + 4096];
    let mut output = vec![0; MAX_IO as usize];
    let mut link = Link { target, client: None };
    loop {
        let length = match rustix::io::read(device, &mut input[..]) {
            Ok(length) => length,
            Err(Errno::NODEV) => return Ok(()),
            // NOENT: the request was taken back before we got it.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
            Err(error) => return Err(error.into()),
        };
        let Some((unique, ask)) = fuse::decode(&input[..length]) else {
            eprintln!("sdc-hold: a request of {length} bytes makes no sense");
            continue;
        };
        answer(device, unique, ask, &mut link, &mut output)?;
    }
}

fn answer(device: BorrowedFd<'_>, unique: u64, ask: Ask<'_>, link: &mut Link<'_>, output: &mut [u8]) -> io::Result<()> {
    let reply = |outcome: Result<&[u8], i32>| send(device, unique, outcome);
    match ask {
        Ask::NoReply => Ok(()),
        Ask::Nothing => reply(Ok(&[])),
        Ask::Unknown => reply(Err(libc::ENOSYS)),
        Ask::Init { minor, flags } => reply(Ok(&fuse::init(minor, flags))),
        Ask::Open => reply(Ok(&fuse::open())),
        Ask::GetAttributes => reply(Ok(&fuse::attributes(link.size_bytes()))),
        Ask::StatFs => reply(Ok(&fuse::statfs(link.size_bytes()))),
        Ask::Read { offset, size } => {
            let Some(into) = output.get_mut(..size as usize) else { return reply(Err(libc::EINVAL)) };
            let done = link.persist(|client| client.read(offset, into));
            reply(done.map(|()| &*into))
        }
        Ask::Write { offset, data } => {
            let done = link.persist(|client| client.write(offset, data));
            link.target.changes.note();
            let size = u32::try_from(data.len()).expect("at most the buffer");
            let written = fuse::written(size);
            reply(done.map(|()| &written[..]))
        }
        Ask::Sync => {
            let target = link.target;
            let flush = || link.persist(|client| client.command(Command::Flush, 0, 0, 0));
            reply(target.changes.sync(flush).map(|()| &[][..]))
        }
        Ask::Punch { offset, length, keep_allocated } => {
            let done = link.zero(offset, length, keep_allocated);
            link.target.changes.note();
            reply(done.map(|()| &[][..]))
        }
    }
}

fn send(device: BorrowedFd<'_>, unique: u64, outcome: Result<&[u8], i32>) -> io::Result<()> {
    let (error, payload) = match outcome {
        Ok(payload) => (0, payload),
        Err(error) => (error, &[][..]),
    };
    let head = fuse::reply_header(unique, error, payload.len());
    match rustix::io::writev(device, &[IoSlice::new(&head), IoSlice::new(payload)]) {
        Ok(_) => Ok(()),
        // The asker has gone, or the file is being unmounted: the next read says which.
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(error) => {
            // The kernel did not like the answer; its request must not hang for that.
            eprintln!("sdc-hold: the kernel refused an answer: {error}");
            rustix::io::write(device, &fuse::reply_header(unique, libc::EIO, 0)).map(|_| ()).or_else(
                |error| match error {
                    Errno::NOENT | Errno::NODEV => Ok(()),
                    error => Err(error.into()),
                },
            )
        }
    }
}

/// A connection that comes back.
struct Link<'a> {
    target: &'a Target,
    client: Option<Client>,
}

impl Link<'_> {
    /// Carries out `request` for as long as it takes; the errno if the server says no.
    fn persist(&mut self, mut request: impl FnMut(&mut Client) -> Result<(), ClientError>) -> Result<(), i32> {
        loop {
            let client = self.connected();
            match request(client) {
                Ok(()) => return Ok(()),
                Err(ClientError::Request(errno::SHUTDOWN)) => {
                    self.client = None;
                    thread::sleep(RETRY);
                }
                Err(ClientError::Request(error)) => {
                    return Err(i32::try_from(error)
                        .ok()
                        .filter(|error| (1..4096).contains(error))
                        .unwrap_or(libc::EIO));
                }
                Err(_) => self.client = None,
            }
        }
    }

    fn connected(&mut self) -> &mut Client {
        let target = self.target;
        self.client.get_or_insert_with(|| {
            loop {
                match Client::connect(&target.socket, &target.export, PATIENCE) {
                    Ok(client) => {
                        target.size_bytes.store(client.info().size_bytes, Ordering::Relaxed);
                        return client;
                    }
                    // Not there yet, or not there again: the reason makes no difference to what we do.
                    Err(_) => thread::sleep(RETRY),
                }
            }
        })
    }

    /// The size as the server says now, else as it said last.
    fn size_bytes(&mut self) -> u64 {
        match query(&self.target.socket, &self.target.export, PATIENCE) {
            Ok(info) => {
                self.target.size_bytes.store(info.size_bytes, Ordering::Relaxed);
                info.size_bytes
            }
            Err(_) => self.target.size_bytes.load(Ordering::Relaxed),
        }
    }

    fn zero(&mut self, mut offset: u64, mut length: u64, keep_allocated: bool) -> Result<(), i32> {
        let flags = if keep_allocated { command_flags::NO_HOLE } else { 0 };
        while length > 0 {
            let part = length.min(MAX_ZEROES);
            let wire = u32::try_from(part).expect("at most 1 GiB");
            self.persist(|client| client.command(Command::WriteZeroes, flags, offset, wire))?;
            (offset, length) = (offset + part, length - part);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_changed_since_is_flushed_and_a_failed_flush_is_none() {
        let changes = Changes::default();
        let mut flushes = 0;
        let mut sync = |outcome: Result<(), i32>, during: u64| {
            let before = flushes;
            let said = changes.sync(|| {
                flushes += 1;
                (0..during).for_each(|_| changes.note());
                outcome
            });
            (said, flushes - before)
        };
        assert_eq!(sync(Ok(()), 0), (Ok(()), 0), "nobody has changed anything");
        changes.note();
        assert_eq!(sync(Err(5), 0), (Err(5), 1));
        assert_eq!(sync(Ok(()), 1), (Ok(()), 1), "still to be done");
        assert_eq!(sync(Ok(()), 0), (Ok(()), 1), "what came while it was flushed may have come too late");
        assert_eq!(sync(Ok(()), 0), (Ok(()), 0));
    }
}
