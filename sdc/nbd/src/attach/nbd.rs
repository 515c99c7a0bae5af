//! Kernel nbd devices: connect, reconnect, resize, disconnect.
//!
//! Promise over a restart of the daemon, however it ends: the device stays, I/O waits; requests that were in flight are
//! sent again by the kernel when its block time-out fires (10 s), later ones as soon as there are new sockets. With the
//! daemon away for more than 24 hours the device fails.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::netlink::Nbd;
use super::state::{Mechanism, Record, Records};
use super::{AttachConfig, AttachError, VolumeSpec, failed};
use crate::client::{Client, ClientError, ExportInfo};
use crate::wire::flags;

/// Each step of a handshake with our own server.
const PATIENCE: Duration = Duration::from_secs(10);

fn open() -> Result<Nbd, AttachError> {
    Nbd::open().map_err(failed("the kernel's nbd is gone"))
}

fn sockets(
    config: &AttachConfig,
    volume: &VolumeSpec,
    count: usize,
) -> Result<(Vec<UnixStream>, ExportInfo), AttachError> {
    let first = Client::connect(&config.socket, &volume.export, PATIENCE)?;
    let info = first.info();
    let count = if info.flags & flags::CAN_MULTI_CONN == 0 { 1 } else { count.clamp(1, 16) };
    let mut sockets = vec![first.into_stream()];
    for _ in 1..count {
        sockets.push(Client::connect(&config.socket, &volume.export, PATIENCE)?.into_stream());
    }
    Ok((sockets, info))
}

pub(super) fn attach(config: &AttachConfig, records: &Records, volume: &VolumeSpec) -> Result<Record, AttachError> {
    let (sockets, info) = sockets(config, volume, config.nbd_connections)?;
    if info.size_bytes != volume.size_bytes {
        return Err(AttachError::InvalidSize(volume.size_bytes));
    }
    let mut server_flags = info.flags;
    if volume.read_only {
        server_flags |= flags::READ_ONLY;
    }
    let mut nbd = open()?;
    let identity = Record::identity(config.links.system, volume);
    let index = nbd
        .connect(&sockets, info.size_bytes, server_flags, &identity)
        .map_err(failed("the kernel does not take the nbd connection"))?;
    let record = Record {
        volume: volume.clone(),
        mechanism: Mechanism::Nbd,
        device: PathBuf::from(format!("/dev/nbd{index}")),
        index,
        pid: 0,
        started: 0,
        file: PathBuf::new(),
    };
    if let Err(error) = records.put(&record) {
        if let Err(error) = nbd.disconnect(index) {
            tracing::warn!(index, %error, "cannot clean up after a failed attach");
        }
        return Err(error);
    }
    Ok(record)
}

fn backend(index: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/block/nbd{index}/backend")).ok()?;
    Some(text.trim_end().to_owned())
}

/// True if the kernel's device is still the one of the record.
pub(super) fn alive(system: u64, record: &Record) -> bool {
    backend(record.index).is_some_and(|backend| backend == Record::identity(system, &record.volume))
}

/// Disconnects devices of this system that no record knows: their maker died between the two. What was done.
pub(super) fn sweep(system: u64, records: &Records) -> Result<Vec<String>, AttachError> {
    let prefix = Record::identity_prefix(system);
    let recorded: Vec<u32> = records
        .all()?
        .into_iter()
        .flatten()
        .filter(|record| record.mechanism == Mechanism::Nbd)
        .map(|record| record.index)
        .collect();
    let mut swept = Vec::new();
    let blocks = fs::read_dir("/sys/block").map_err(failed("cannot read /sys/block"))?;
    for name in blocks.flatten().map(|entry| entry.file_name()) {
        let index = name.to_str().and_then(|name| name.strip_prefix("nbd")).and_then(|index| index.parse().ok());
        let Some(index) = index.filter(|index| !recorded.contains(index)) else { continue };
        if backend(index).is_some_and(|backend| backend.starts_with(&prefix)) {
            let gone = open()?.disconnect(index);
            gone.map_err(failed(format!("cannot disconnect /dev/nbd{index}, which nobody has recorded")))?;
            swept.push(format!("/dev/nbd{index}"));
        }
    }
    Ok(swept)
}

/// Offers new sockets in the place of dead ones; those for which there is no dead one are closed again. A size that grew
/// meanwhile is told apart, by `resize`.
pub(super) fn reconnect(config: &AttachConfig, record: &Record) -> Result<(), AttachError> {
    let (sockets, info) = sockets(config, &record.volume, config.nbd_connections)?;
    if info.size_bytes < record.volume.size_bytes {
        return Err(AttachError::Server(ClientError::Protocol("the export shrank")));
    }
    let identity = Record::identity(config.links.system, &record.volume);
    open()?.reconfigure(record.index, &sockets, &identity).map_err(failed("the kernel refuses new sockets"))
}

pub(super) fn resize(system: u64, record: &Record, size_bytes: u64) -> Result<(), AttachError> {
    let identity = Record::identity(system, &record.volume);
    open()?.resize(record.index, size_bytes, &identity).map_err(failed("the kernel refuses the new size"))
}

/// Takes the device down. What nobody could claim fails for its users; the kernel keeps its number taken until they let go.
pub(super) fn detach(record: &Record, exclusive: Option<File>) -> Result<(), AttachError> {
    let gone = open()?.disconnect(record.index);
    drop(exclusive);
    gone.map_err(failed(format!("cannot disconnect {}", record.device.display())))
}
