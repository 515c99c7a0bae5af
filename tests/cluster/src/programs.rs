//! The programs under test: those of this build, brought up to date once for each test program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, bail};

/// The programs that a system consists of.
const PROGRAMS: [&str; 8] = ["mdm", "sds", "sdc", "drv_cfg", "scli", "dev", "inspect", "ashlar-docker"];

/// The folder that holds them: `ASHLAR_PROGRAMS` where it is set, else `release` of the target directory that this
/// program was built into, after cargo has brought it up to date.
pub fn folder() -> anyhow::Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOLDER.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    found.clone().map_err(|error| anyhow::anyhow!(error))
}

/// One of them.
pub fn path(name: &str) -> anyhow::Result<PathBuf> {
    let path = folder()?.join(name);
    if !path.exists() {
        bail!("{} is missing: build it with 'cargo build --release'", path.display());
    }
    Ok(path)
}

fn find() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("ASHLAR_PROGRAMS") {
        return Ok(PathBuf::from(folder));
    }
    let own = std::env::current_exe().context("cannot find this program")?;
    let is_profile = |folder: &&Path| folder.ends_with("release") || folder.ends_with("debug");
    let profile = own.ancestors().find(is_profile).context("this program is in no target directory")?;
    let target = profile.parent().context("a profile's folder has a parent")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).arg("build").arg("--quiet").arg("--release").arg("--target-dir").arg(target);
    for program in PROGRAMS {
        command.arg("--bin").arg(program);
    }
    // A build script that asks for these (ring's does) would find them changed and build itself and all above it again.
    let of_package = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        command.env_remove(name);
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the programs under test do not build");
    }
    Ok(target.join("release"))
}

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("..")
}
