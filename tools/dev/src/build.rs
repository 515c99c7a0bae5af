//! Building the daemons, when this tool runs from a checkout.

use std::process::Command;

use anyhow::{Context, bail};

/// The programs that a system consists of.
const PROGRAMS: [&str; 5] = ["mdm", "sds", "sdc", "scli", "inspect"];

/// Builds them if cargo runs this tool; installed programs are taken as they are.
pub fn build() -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let Some(manifest) = std::env::var_os("CARGO_MANIFEST_DIR") else { return Ok(()) };
    eprintln!("Building the daemons (the first time takes some minutes) ..");
    let mut command = Command::new(cargo);
    command.arg("build").arg("--quiet").arg("--release").current_dir(manifest);
    for program in PROGRAMS {
        command.args(["--package", program]);
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the daemons do not build: see above");
    }
    Ok(())
}
