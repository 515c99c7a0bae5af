//! What this process has used so far, as the kernel counts it.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

/// CPU time of all threads that are alive, in nanoseconds. Threads must outlive what is measured.
pub fn cpu_ns() -> u64 {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 0 };
    let of_task = |task: fs::DirEntry| -> Option<u64> {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.flatten().filter_map(of_task).sum()
}

/// Resident memory in bytes.
pub fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Counts the system calls of this process by `strace`, from when it is attached until it is asked.
pub struct CallCounter {
    strace: Child,
}

impl CallCounter {
    /// Attaches. `None` where strace is missing or may not trace.
    pub fn attach() -> Option<Self> {
        let id = std::process::id().to_string();
        let mut strace = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-p", &id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        // It says so on its first line when every thread is attached.
        let mut first = [0; 1];
        let attached = strace.stderr.as_mut()?.read_exact(&mut first);
        attached.ok().map(|()| Self { strace })
    }

    /// Detaches; how many calls there were.
    pub fn count(mut self) -> Option<u64> {
        let told = Command::new("kill").args(["-INT", &self.strace.id().to_string()]).status().ok()?;
        let mut text = String::new();
        self.strace.stderr.take()?.read_to_string(&mut text).ok()?;
        let ended = self.strace.wait().ok()?;
        let total = text.lines().rev().find(|line| line.trim_end().ends_with("total"))?;
        let count = total.split_whitespace().next()?.parse().ok();
        count.filter(|_| told.success() || ended.success())
    }
}
