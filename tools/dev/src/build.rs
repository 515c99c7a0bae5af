//! Building the daemons, when this tool runs from a checkout.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

/// The programs that a system consists of.
const PROGRAMS: [&str; 6] = ["mdm", "sds", "sdc", "drv_cfg", "scli", "inspect"];

/// Builds them if cargo runs this tool; installed programs are taken as they are.
pub fn build() -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let Some(manifest) = std::env::var_os("CARGO_MANIFEST_DIR") else { return Ok(()) };
    eprintln!("Building the daemons (the first time takes some minutes) ..");
    let mut command = Command::new(cargo);
    // From the workspace's own folder and by the names of programs, as the alias `cargo dev` does: libraries are then built
    // with the same features for all of them, once.
    command.arg("build").arg("--quiet").arg("--release").current_dir(Path::new(&manifest).join("../.."));
    for program in PROGRAMS {
        command.args(["--bin", program]);
    }
    // What cargo tells the program that it runs about its package is not for the next cargo: a build script that asks for
    // it (ring's does) would find it changed, and everything above that would be built again.
    let package = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(package)) {
        command.env_remove(name);
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the daemons do not build: see above");
    }
    Ok(())
}
