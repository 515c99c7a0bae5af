//! Are the copies of everything alike? Asked in two ways.
//!
//! Through the system ([`identical`]): a volume is read once for each data server, with that server down: then each
//! placement group is read from a copy that is not there. With two copies of everything, every copy is read at least once,
//! and all readings must be the same. The volume must be at rest meanwhile: what is not written is not copied when a
//! server returns.
//!
//! Past the system ([`alike_on_devices`]): `inspect` reads the devices of a system that is down.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::nbd::Client;
use crate::system::System;
use crate::{programs, shell};

/// How long a server may take to return with all its copies.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads them all and compares.
pub fn identical(system: &System, volume: &str) -> anyhow::Result<()> {
    let address = system.nbd(volume)?;
    let mut client = Client::connect(&address)?;
    let whole = client.read_all().context("with all servers up")?;
    for server in system.nodes("sds")? {
        system.kill(&server)?;
        let without = client.read_all().with_context(|| format!("without {server}"))?;
        system.start(&server)?;
        system.wait_healthy(PATIENCE)?;
        if without != whole {
            let at = without.iter().zip(&whole).position(|(a, b)| a != b).unwrap_or_default();
            bail!("copies of volume {volume} differ at byte {at}: read with all servers up and without {server}");
        }
    }
    client.close()
}

/// Takes the system down, compares all its devices, and brings it up again.
pub fn alike_on_devices(system: &System) -> anyhow::Result<String> {
    let mut devices: Vec<PathBuf> = Vec::new();
    for server in system.nodes("sds")? {
        let folder = system.directory().join(&server);
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let is_device = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.strip_prefix("device").is_some_and(|number| number.parse::<u32>().is_ok())
        };
        devices.extend(entries.flatten().map(|entry| entry.path()).filter(is_device));
    }
    devices.sort();
    system.kill("all")?;
    let inspect = programs::path("inspect")?;
    // The kernel holds on to a dead process's files until its last disk operation has ended.
    shell::wait_until("the devices are let go", PATIENCE, || {
        for device in &devices {
            shell::run(Command::new(&inspect).arg("superblock").arg(device))?;
        }
        Ok(true)
    })?;
    let compared = shell::run(Command::new(&inspect).arg("compare").args(&devices));
    system.start("all")?;
    system.wait_healthy(PATIENCE)?;
    compared.context("the copies on the devices differ")
}
