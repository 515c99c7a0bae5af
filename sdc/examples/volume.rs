//! A volume as a library: `volume DATA_DIRECTORY VOLUME`. What a program needs that wants blocks and no block device.
//!
//! DATA_DIRECTORY is that of a data client that has joined (`sdc join --config ..`) and to which the volume is mapped. It
//! must be a client of its own: opening a mapping fences whoever opened it before, a running daemon too.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use mdm_api::ids::VolumeId;
use sdc::identity::Membership;
use sdc::link::SystemLink;
use sdc_client::runtime::{Client, Cluster, Volume};
use sdc_client::session::Policy;

const BLOCK: u64 = 4096;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, name] = &arguments[..] else { bail!("usage: volume DATA_DIRECTORY VOLUME") };
    let membership = Membership::load(directory.as_ref())?;
    let link = Arc::new(SystemLink::connect(&membership)?);
    let id = find(&link, name).await?;
    // One client for all volumes of a process: it shares its connections among them.
    let client = Client::start(link, membership.system, membership.sdc);
    let volume = client.open(id, Policy::default()).await?;
    println!("{name} has {} bytes", volume.size_bytes());
    use_it(&volume).await?;
    println!("{:?}", volume.stats().await?);
    Ok(())
}

/// Waits until the map shows a volume of that name, mapped to this client.
async fn find(link: &SystemLink, name: &str) -> anyhow::Result<VolumeId> {
    let mut map = link.map();
    loop {
        let found = map.borrow_and_update().volumes().find(|volume| volume.name == name).map(|volume| volume.id);
        match found {
            Some(id) => return Ok(id),
            None => map.changed().await.context("the map is not followed any more")?,
        }
    }
}

async fn use_it(volume: &Volume) -> anyhow::Result<()> {
    // Any offset and length; durable on every in-sync copy when it returns.
    volume.write(BLOCK - 3, Bytes::from_static(b"across two blocks")).await?;
    let found: Vec<u8> = volume.read(BLOCK - 3, 17).await?.concat();
    ensure!(found == b"across two blocks", "read {found:?}");

    // I/Os run side by side; those that overlap take effect in the order of their calls. As many as there are: when the
    // volume has as much under way as it may, a call waits for its turn.
    let write = |index: u64| {
        let volume = volume.clone();
        async move { volume.write((10 + index) * BLOCK, Bytes::from(vec![index as u8; BLOCK as usize])).await }
    };
    let mut writes = tokio::task::JoinSet::new();
    (0..100).for_each(|index| drop(writes.spawn(write(index))));
    while let Some(done) = writes.join_next().await {
        done??;
    }

    // Zeroing gives space back, and says so.
    volume.zero(10 * BLOCK, 50 * BLOCK).await?;
    let holds_data = volume.status(10 * BLOCK, 100 * BLOCK).await?;
    println!("{} of 100 blocks hold data", holds_data.iter().filter(|holds| **holds).count());

    // A future that is dropped gives its room back at once; its change may still take effect, before later ones.
    let slow = volume.write(0, Bytes::from_static(b"given up"));
    drop(tokio::time::timeout(std::time::Duration::ZERO, slow).await);
    volume.write(0, Bytes::from_static(b"kept")).await?;
    volume.flush().await?;
    ensure!(volume.read(0, 4).await?.concat() == b"kept");

    // Size, access and the end of a session are announced.
    let state = volume.watch();
    println!("{:?}", *state.borrow());
    Ok(())
}
