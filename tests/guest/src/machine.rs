//! QEMU, and commands typed into the guest.
//!
//! The guest's process 1 connects to this program and gives it shells; a command is sent as one line and ends with a mark
//! and its status. Always true: the machine ends with this value, however the test ends.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::initrd;

/// From the start of QEMU to the first shell.
const BOOT_PATIENCE: Duration = Duration::from_secs(90);
/// Memory of the guest, MiB; its file system is in it too.
const MEMORY_MIB: u32 = 1024;

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Done {
    /// Both outputs.
    pub text: String,
    /// Exit status.
    pub status: i32,
}

/// A running guest.
pub struct Machine {
    qemu: Child,
    listener: TcpListener,
    shell: Option<BufReader<TcpStream>>,
    console: PathBuf,
    marks: u64,
}

impl Machine {
    /// Boots. `address` is one of this machine, which the guest reaches through QEMU's user network.
    pub fn boot(kernel: &Path, initrd: &Path, folder: &Path, address: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((address, 0)).with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let shells: SocketAddr = listener.local_addr()?;
        let console = folder.join("console.log");
        // Emulation is the same wherever the test runs; ASHLAR_GUEST_ACCEL=kvm is for a hurry.
        let accelerator = std::env::var("ASHLAR_GUEST_ACCEL").unwrap_or_else(|_| "tcg,thread=multi".to_owned());
        // no_timer_check: on a busy machine the emulated timer comes too late for the kernel's own test of it.
        let line = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable random.trust_cpu=on \
             shells={shells}"
        );
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", &accelerator, "-cpu", "max", "-smp", "2", "-m", &MEMORY_MIB.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-kernel").arg(initrd::kernel_image(kernel)?).arg("-initrd").arg(initrd).arg("-append").arg(line);
        command.args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]);
        let log = std::fs::File::create(folder.join("qemu.log")).context("cannot make a log")?;
        let qemu = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let qemu = qemu.context("cannot run qemu-system-x86_64: see tests/guest/needs")?;
        let mut machine = Self { qemu, listener, shell: None, console, marks: 0 };
        machine.accept(BOOT_PATIENCE)?;
        Ok(machine)
    }

    /// Takes the next shell that the guest offers.
    fn accept(&mut self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    self.shell = Some(BufReader::new(stream));
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot accept a shell of the guest"),
            }
            if let Some(status) = self.qemu.try_wait()? {
                bail!("QEMU ended ({status}); the guest's last words:\n{}", self.console());
            }
            if Instant::now() > deadline {
                bail!("no shell after {} s; the guest's last words:\n{}", patience.as_secs(), self.console());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the kernel and process 1 wrote.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Runs a line and gives what came of it. A line that takes longer than `patience` loses its shell, not the machine.
    pub fn try_run(&mut self, line: &str, patience: Duration) -> anyhow::Result<Done> {
        self.marks += 1;
        let mark = format!("guest-mark-{}-", self.marks);
        if self.shell.is_none() {
            self.accept(Duration::from_secs(10))?;
        }
        let shell = self.shell.as_mut().context("a shell")?;
        // In a shell of its own: what it changes, and how it ends, is its own affair.
        let quoted = line.replace('\'', r"'\''");
        let typed = format!("sh -c '{quoted}' </dev/null 2>&1; status=$?; echo; echo {mark}$status\n");
        shell.get_mut().write_all(typed.as_bytes()).context("the guest's shell is gone")?;
        let deadline = Instant::now() + patience;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            shell.get_mut().set_read_timeout(Some(left))?;
            let before = text.len();
            let read = shell.read_line(&mut text);
            match read {
                Ok(0) => {
                    self.shell = None;
                    bail!("the guest's shell ended in: {line}\n{text}");
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.shell = None;
                    bail!("after {} s the guest has not finished: {line}\n{text}", patience.as_secs());
                }
                Err(error) => return Err(error).context("the guest's shell is gone"),
            }
            if let Some(status) = text[before..].strip_prefix(&mark) {
                let status = status.trim().parse().context("no exit status")?;
                text.truncate(before);
                return Ok(Done { text: text.trim_end().to_owned(), status });
            }
        }
    }

    /// Runs a line, demands success and gives what it printed.
    pub fn run(&mut self, line: &str, patience: Duration) -> anyhow::Result<String> {
        let done = self.try_run(line, patience)?;
        if done.status != 0 {
            bail!("in the guest, status {}: {line}\n{}", done.status, done.text);
        }
        Ok(done.text)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.qemu.kill().and_then(|()| self.qemu.wait()) {
            eprintln!("guest: cannot end QEMU: {error}");
        }
    }
}
