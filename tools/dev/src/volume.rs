//! The volume that `up` makes: attached, given a file system, mounted; and all of it undone.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sdc_api::{LocalAnswer, LocalRequest, LocalVolume, client};

use crate::state::{Role, State};

/// How long an unmounting may take before the device is taken away under it.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(15);

/// `name:size`, as in `demo:1GiB`.
pub fn parse(text: &str) -> Result<(String, u64), String> {
    let (name, size) =
        text.split_once(':').ok_or_else(|| format!("'{text}': write a volume as name:size, like demo:1GiB"))?;
    let bytes = mdm_api::verbs::parse_size(size).map_err(|error| error.to_string())?;
    if name.is_empty() || bytes == 0 {
        return Err(format!("'{text}': write a volume as name:size, like demo:1GiB"));
    }
    Ok((name.to_owned(), bytes))
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), words.trim());
    }
    Ok(())
}

/// Asks a data client.
pub fn ask(socket: &Path, request: &LocalRequest) -> anyhow::Result<LocalAnswer> {
    match client::ask(socket, request, Duration::from_secs(60)) {
        Ok(LocalAnswer::Refused(error)) => bail!("{error}"),
        Ok(answer) => Ok(answer),
        Err(error) => Err(error).with_context(|| format!("cannot ask the data client at {}", socket.display())),
    }
}

/// Waits until a mapped volume is served, and attached if so wanted.
pub fn wait_served(socket: &Path, name: &str, attached: bool, patience: Duration) -> anyhow::Result<LocalVolume> {
    let deadline = Instant::now() + patience;
    loop {
        let status = client::ask(socket, &LocalRequest::Status, Duration::from_secs(5));
        let mut problem = String::from("the data client does not know it");
        match status {
            Ok(LocalAnswer::Status(status)) => {
                if let Some(volume) = status.volumes.into_iter().find(|v| v.name == name) {
                    match &volume.problem {
                        Some(text) => problem = text.clone(),
                        None if !attached || volume.device.is_some() => return Ok(volume),
                        None => problem = "it is not attached".to_owned(),
                    }
                }
            }
            Ok(other) => problem = format!("unexpected answer {other:?}"),
            Err(error) => problem = error.to_string(),
        }
        if Instant::now() > deadline {
            bail!("volume {name} is not ready after {} s: {problem}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// True if this machine can make block devices of volumes.
pub fn can_attach() -> bool {
    let root = rustix::process::geteuid().is_root();
    root && (Path::new("/sys/module/nbd").exists() || find("nbdfuse").is_some())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists())
}

/// Makes ext4 on the device and mounts it.
pub fn mount(state: &State, name: &str, device: &str) -> anyhow::Result<PathBuf> {
    let target = state.directory.join("mnt").join(name);
    std::fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    run("mkfs.ext4", &["-q", "-F", "-E", "nodiscard", device])?;
    let path = target.display().to_string();
    run("mount", &[device, &path])?;
    Ok(target)
}

/// Unmounts and detaches everything that this system's client has; complains, but goes on.
pub fn release_all(state: &State) {
    let stuck: Vec<Child> = state.saved.volumes.iter().filter_map(|volume| unmount(volume.mount.as_deref()?)).collect();
    for node in state.saved.nodes.iter().filter(|node| node.role == Role::Sdc) {
        detach_all(Path::new(&node.address));
    }
    for mut child in stuck {
        if wait(&mut child, UNMOUNT_PATIENCE).is_none() {
            eprintln!("dev: an unmounting still hangs; it ends when its device is gone");
        }
    }
}

fn detach_all(socket: &Path) {
    let Ok(LocalAnswer::Status(status)) = client::ask(socket, &LocalRequest::Status, Duration::from_secs(5)) else {
        return;
    };
    for volume in status.volumes.iter().filter(|v| v.device.is_some()) {
        let detach = LocalRequest::Detach { volume: volume.volume.to_string(), force: true };
        if let Err(error) = ask(socket, &detach) {
            eprintln!("dev: {}: {error:#}", volume.name);
        }
    }
}

/// Unmounts. A file system whose system cannot take its data any more waits for ever: such a child is given back, and ends
/// when its device is taken away by force.
fn unmount(mount: &Path) -> Option<Child> {
    if !is_mounted(mount) {
        return None;
    }
    let mut child = match Command::new("umount").arg(mount).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("dev: cannot run umount: {error}");
            return None;
        }
    };
    match wait(&mut child, UNMOUNT_PATIENCE) {
        Some(true) => None,
        Some(false) => {
            eprintln!("dev: {} is in use; it is detached from under its users", mount.display());
            if let Err(error) = run("umount", &["--lazy", &mount.display().to_string()]) {
                eprintln!("dev: {error:#}");
            }
            None
        }
        None => {
            eprintln!(
                "dev: what was written to {} cannot be stored: its device is taken away by force",
                mount.display()
            );
            Some(child)
        }
    }
}

/// Waits for a program for so long. True if it succeeded; nothing if it still runs.
fn wait(child: &mut Child, patience: Duration) -> Option<bool> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => return None,
            Err(error) => {
                eprintln!("dev: {error}");
                return Some(false);
            }
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_name_and_a_size() {
        assert_eq!(parse("demo:1GiB"), Ok(("demo".to_owned(), 1 << 30)));
        assert!(parse("demo").is_err());
        assert!(parse(":1GiB").is_err());
        assert!(parse("demo:0GiB").is_err());
        assert!(parse("demo:much").is_err());
    }
}
