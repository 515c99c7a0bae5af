//! Loop devices, made and removed with losetup.

use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct LoopDevice {
    pub path: PathBuf,
}

impl LoopDevice {
    /// Attaches `file`; the reason why not, if that is not permitted here.
    pub fn attach(file: &Path, sector: u32, read_only: bool) -> Result<Self, String> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--sector-size", &sector.to_string()]);
        if read_only {
            command.arg("--read-only");
        }
        let output = command.arg(file).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(Self { path: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking(), "losetup --detach");
    }
}
