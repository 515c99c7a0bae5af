//! A volume as the NBD server sees it.

use bytes::Bytes;
use mdm_api::model::{AccessMode, Limits};
use sdc_client::io::IoError;
use sdc_client::limits::{IO_BYTES_MAX, STATUS_BYTES_MAX};
use sdc_client::runtime::Volume;
use sdc_nbd::export::{Export, ExportError, Extent, Piece, Zeroing};

use crate::limiter::Limiter;
use crate::metrics::IoMetrics;

const BLOCK: u64 = 4096;
/// Zeros that are written where a client insists that the space stays taken.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// An open volume behind an export.
pub struct VolumeExport {
    volume: Volume,
    limiter: Limiter,
    metrics: IoMetrics,
}

impl VolumeExport {
    /// Serves a volume under its mapping's limits.
    pub fn new(volume: Volume, limits: Limits, metrics: IoMetrics) -> Self {
        Self { volume, limiter: Limiter::new(limits), metrics }
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Changes the limits.
    pub fn set_limits(&self, limits: Limits) {
        self.limiter.set(limits);
    }

    /// Whole blocks within a range: what may be thrown away without touching what is beside it.
    fn whole_blocks(offset: u64, length: u64) -> Option<(u64, u64)> {
        let first = offset.next_multiple_of(BLOCK);
        let end = (offset + length) / BLOCK * BLOCK;
        (first < end).then(|| (first, end - first))
    }
}

fn nbd_error(error: IoError) -> ExportError {
    match error {
        IoError::OutOfRange { .. } => ExportError::Invalid,
        IoError::TooLong(_) => ExportError::Overflow,
        IoError::ReadOnly => ExportError::NotPermitted,
        IoError::NoSpace => ExportError::NoSpace,
        // The daemon ends; whoever can wait asks its successor.
        IoError::Closed => ExportError::ShuttingDown,
        // Definitive: P8 for a mapping that was taken away, P3 for blocks without a good copy.
        IoError::Busy
        | IoError::Revoked
        | IoError::VolumeGone
        | IoError::Medium
        | IoError::Damaged
        | IoError::TimedOut
        | IoError::Protocol(_)
        | IoError::UnknownPlacement(_) => ExportError::Io,
    }
}

impl Export for VolumeExport {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.volume.watch().borrow().access == AccessMode::ReadOnly
    }

    async fn read(&self, offset: u64, length: u32, pieces: &mut Vec<Piece>) -> Result<(), ExportError> {
        self.limiter.admit(u64::from(length)).await;
        let timer = self.metrics.read(u64::from(length));
        let data = self.volume.read(offset, u64::from(length)).await.map_err(nbd_error)?;
        pieces.extend(data.into_iter().map(Piece::Data));
        timer.done();
        Ok(())
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.limiter.admit(data.len() as u64).await;
        let timer = self.metrics.write(data.len() as u64);
        self.volume.write(offset, data).await.map_err(nbd_error)?;
        timer.done();
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), ExportError> {
        self.limiter.admit(0).await;
        if !how.keep_allocated {
            return self.volume.zero(offset, length).await.map_err(nbd_error);
        }
        if how.fast_only {
            // Taking space means writing, which is no faster than the client could do itself.
            return Err(ExportError::NotSupported);
        }
        let mut done = 0;
        while done < length {
            let step = (length - done).min(ZEROS.len() as u64);
            self.write(offset + done, Bytes::from_static(&ZEROS[..step as usize])).await?;
            done += step;
        }
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.limiter.admit(0).await;
        match Self::whole_blocks(offset, length) {
            Some((offset, length)) => self.volume.zero(offset, length).await.map_err(nbd_error),
            None => Ok(()),
        }
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.volume.flush().await.map_err(nbd_error)
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        // A hint to have the range at hand: reading it brings it into the servers' caches, as far as they have some.
        let length = length.min(IO_BYTES_MAX as u64);
        self.volume.read(offset, length).await.map(drop).map_err(nbd_error)
    }

    async fn block_status(&self, offset: u64, length: u64, extents: &mut Vec<Extent>) -> Result<(), ExportError> {
        let length = length.min(STATUS_BYTES_MAX - BLOCK);
        let blocks = self.volume.status(offset, length).await.map_err(nbd_error)?;
        append_extents(offset, length, &blocks, extents);
        Ok(())
    }
}

/// Blocks that hold data or not, as extents of the range that was asked for.
fn append_extents(offset: u64, length: u64, blocks: &[bool], extents: &mut Vec<Extent>) {
    let end = offset + length;
    let mut at = offset;
    for holds_data in blocks {
        let next = ((at / BLOCK + 1) * BLOCK).min(end);
        match extents.last_mut() {
            Some(last) if last.hole != *holds_data && at > offset => last.length += next - at,
            _ => extents.push(Extent { length: next - at, hole: !holds_data, zero: !holds_data }),
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_cover_the_range_that_was_asked_for_and_no_more() {
        let mut extents = Vec::new();
        append_extents(100, 3 * 4096, &[true, true, false, false], &mut extents);
        let expected = [
            Extent { length: 2 * 4096 - 100, hole: false, zero: false },
            Extent { length: 4096 + 100, hole: true, zero: true },
        ];
        assert_eq!(extents, expected);
    }

    #[test]
    fn a_trim_never_touches_what_is_beside_it() {
        assert_eq!(VolumeExport::whole_blocks(1, 4095), None);
        assert_eq!(VolumeExport::whole_blocks(1, 3 * 4096), Some((4096, 2 * 4096)));
        assert_eq!(VolumeExport::whole_blocks(0, 4096), Some((0, 4096)));
    }
}
