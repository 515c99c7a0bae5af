//! Reading every copy of every block.
//!
//! A volume is read once for each data server, with that server down: then each placement group is read from a copy that
//! is not there. With two copies of everything, every copy is read at least once, and all readings must be the same. The
//! volume must be at rest meanwhile: what is not written is not copied when a server returns.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::nbd::Client;
use crate::system::System;

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
