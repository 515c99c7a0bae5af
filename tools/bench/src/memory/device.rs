//! A device that keeps super blocks, journal and metadata in a file and makes its data up: every block of it is the same.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::bail;
use bytes::Bytes;
use sds_api::block::CHUNK_BYTES;
use sds_api::buf::AlignedBuf;
use sds_store::io::{DiskDone, DiskError, DiskOp, DiskRequest};
use sds_store::open::{OpenParameters, Opened, Opener};

/// The device.
pub struct Device {
    file: File,
    size: u64,
    /// Where its data area is.
    data: std::ops::Range<u64>,
    /// What a chunk of it holds.
    pub zero: Bytes,
}

impl Device {
    /// Opens the file, or makes it.
    pub fn open(path: &Path, size: u64) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(size)?;
        Ok(Self { file, size, data: 0..0, zero: AlignedBuf::zeroed(CHUNK_BYTES).freeze() })
    }

    /// Carries an operation out.
    pub fn carry_out(&self, request: DiskRequest) -> DiskDone {
        let failed = |_| DiskError::Io;
        let result = match request.op {
            DiskOp::Read { offset, length } if self.data.contains(&offset) => Ok(self.zero.slice(..length as usize)),
            DiskOp::Read { offset, length } => {
                let mut buffer = AlignedBuf::zeroed(length as usize);
                self.file.read_exact_at(&mut buffer, offset).map(|()| buffer.freeze()).map_err(failed)
            }
            DiskOp::Write { offset, .. } if self.data.contains(&offset) => Ok(Bytes::new()),
            DiskOp::Write { offset, buffers, .. } => {
                let mut at = offset;
                let written = buffers.iter().try_for_each(|buffer| {
                    at += buffer.len() as u64;
                    self.file.write_all_at(buffer, at - buffer.len() as u64)
                });
                written.map(|()| Bytes::new()).map_err(failed)
            }
            DiskOp::Flush | DiskOp::Discard { .. } => Ok(Bytes::new()),
        };
        DiskDone { id: request.id, result }
    }
}

/// Carries out what is wanted until there is a result.
pub fn drive<T>(
    device: &Device,
    first: Vec<DiskRequest>,
    mut step: impl FnMut(DiskDone, &mut Vec<DiskRequest>) -> Option<T>,
) -> anyhow::Result<T> {
    let mut queue: VecDeque<DiskRequest> = first.into();
    let mut more = Vec::new();
    while let Some(request) = queue.pop_front() {
        if let Some(result) = step(device.carry_out(request), &mut more) {
            return Ok(result);
        }
        queue.extend(more.drain(..));
    }
    bail!("nothing is left to do, and it is not done")
}

/// Opens the store on the device.
pub fn open(device: &mut Device) -> anyhow::Result<Opened> {
    let mut opener = Opener::new(OpenParameters { size_bytes: device.size, ..OpenParameters::default() });
    let mut first = Vec::new();
    opener.start(&mut first)?;
    let opened = drive(device, first, |done, out| opener.step(done, out))??;
    let geometry = opened.store.super_block().geometry;
    device.data = geometry.data_offset..geometry.super_offsets[3];
    Ok(opened)
}
