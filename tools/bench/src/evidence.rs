//! What was measured, as a document: commit, command, machine, figures.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

/// A document being written.
pub struct Evidence {
    text: String,
}

impl Evidence {
    /// Begins with a title and with what makes the figures repeatable.
    pub fn begin(title: &str) -> anyhow::Result<Self> {
        let commit = git(&["rev-parse", "HEAD"])?;
        // What is written by this very run does not count.
        let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"])?;
        let commit = if changed.is_empty() { format!("`{commit}`") } else { format!("`{commit}`, with changes") };
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("which kernel")?;
        let kernel = kernel.trim().split('.').take(2).collect::<Vec<_>>().join(".");
        let cores = std::thread::available_parallelism().context("how many cores")?;
        let mut text = format!("# {title}\n\n| | |\n|---|---|\n| commit | {commit} |\n");
        writeln!(text, "| command | `cargo run --release --bin bench -- {}` |", arguments.join(" "))?;
        writeln!(text, "| machine | {cores} virtual cores, Linux {kernel} |\n")?;
        Ok(Self { text })
    }

    /// A paragraph.
    pub fn text(&mut self, paragraph: &str) {
        self.text.push_str(paragraph);
        self.text.push_str("\n\n");
    }

    /// A table.
    pub fn table(&mut self, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
        let mut line = |cells: &[String]| self.text.push_str(&format!("| {} |\n", cells.join(" | ")));
        line(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
        line(&vec!["---".to_owned(); head.len()]);
        rows.for_each(|row| line(&row));
        self.text.push('\n');
    }

    /// Puts it into its place.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, format!("{}\n", self.text.trim_end())).with_context(|| path.display().to_string())
    }
}

fn git(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").args(arguments).output().context("running git")?;
    if !output.status.success() {
        bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
