//! Makes a device: refuses what is not blank, wipes what could be mistaken for a super block, zeroes the journal, and writes
//! the super blocks last, so that a format that was cut short is no device.

use bytes::Bytes;
use mdm_api::ids::{DeviceId, DeviceIncarnation, SystemId};
use sds_api::buf::AlignedBuf;

use crate::error::FormatError;
use crate::io::{DiskDone, DiskOp, DiskRequest, IoClass, OpId};
use crate::layout::{Geometry, PAGE, SUPER_AREA_BYTES, SUPER_COPIES, default_journal_bytes, last_super_offset};
use crate::limits::{JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN};
use crate::superblock::{CheckpointRoot, Copy, SuperBlock};

/// Bytes at the start that must be zeros.
const LOOKED_AT: u64 = 1 << 20;
/// Bytes of a write of zeros.
const ZEROS: u64 = 1 << 20;
/// Writes of zeros in flight.
const WRITES_IN_FLIGHT: usize = 4;

/// What a new device is to be.
#[derive(Clone, Copy, Debug)]
pub struct FormatParameters {
    /// Whose.
    pub system: SystemId,
    /// Which.
    pub device: DeviceId,
    /// Which life.
    pub incarnation: DeviceIncarnation,
    /// Bytes of the device.
    pub size_bytes: u64,
    /// A random number.
    pub salt: u64,
    /// Bytes of the journal; none: by size.
    pub journal_bytes: Option<u64>,
    /// Format even if the device is not blank. Everything on it is lost.
    pub force: bool,
}

enum Phase {
    Look,
    Wipe,
    Journal,
    SuperFirst,
    SuperSecond,
    Ended,
}

/// Formats a device; a pure state machine.
pub struct Formatter {
    parameters: FormatParameters,
    geometry: Geometry,
    phase: Phase,
    next_op: u64,
    left: usize,
    zeroed: u64,
    zeros: Bytes,
}

impl Formatter {
    /// Lays the device out.
    pub fn new(parameters: FormatParameters) -> Result<Self, FormatError> {
        let journal = parameters.journal_bytes.unwrap_or_else(|| default_journal_bytes(parameters.size_bytes));
        let fits = (JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&journal) && journal.is_multiple_of(PAGE);
        if !fits {
            let (least, most) = (JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX);
            return Err(FormatError::BadJournalSize { asked: journal, least, most });
        }
        if parameters.size_bytes > 200 << 40 {
            return Err(FormatError::TooLarge { limit: 200 << 40 });
        }
        let Some(geometry) = Geometry::new(parameters.size_bytes, journal) else {
            return Err(FormatError::TooSmall { found: parameters.size_bytes, needed: journal + (4 << 20) });
        };
        let zeros = AlignedBuf::zeroed(ZEROS as usize).freeze();
        Ok(Self { parameters, geometry, phase: Phase::Look, next_op: 0, left: 0, zeroed: 0, zeros })
    }

    /// The first operations.
    pub fn start(&mut self, out: &mut Vec<DiskRequest>) {
        let size = self.parameters.size_bytes;
        let first = LOOKED_AT.min(size / PAGE * PAGE);
        self.submit(DiskOp::Read { offset: 0, length: first as u32 }, out);
        let offset = last_super_offset(size);
        self.submit(DiskOp::Read { offset, length: SUPER_AREA_BYTES as u32 }, out);
    }

    fn submit(&mut self, op: DiskOp, out: &mut Vec<DiskRequest>) {
        out.push(DiskRequest { id: OpId(self.next_op), class: IoClass::Background, op });
        self.next_op += 1;
        self.left += 1;
    }

    /// Takes a result; at the end returns the layout of the device that was made.
    pub fn step(&mut self, done: DiskDone, out: &mut Vec<DiskRequest>) -> Option<Result<Geometry, FormatError>> {
        let bytes = match done.result {
            Ok(bytes) => bytes,
            Err(error) => return self.ended(Err(FormatError::Disk(error))),
        };
        self.left -= 1;
        match self.phase {
            Phase::Look => {
                if let Err(error) = look(&bytes, self.parameters.force) {
                    return self.ended(Err(error));
                }
                if self.left == 0 {
                    self.phase = Phase::Wipe;
                    let zeros = self.zeros.slice(..SUPER_AREA_BYTES as usize);
                    for offset in self.geometry.super_offsets {
                        let op = DiskOp::Write { offset, buffers: vec![zeros.clone()], durable: true };
                        self.submit(op, out);
                    }
                }
            }
            Phase::Wipe if self.left == 0 => {
                self.phase = Phase::Journal;
                self.zero_journal(out);
            }
            Phase::Journal => {
                self.zero_journal(out);
                if self.left == 0 {
                    self.phase = Phase::SuperFirst;
                    self.write_supers(0, out);
                }
            }
            Phase::SuperFirst if self.left == 0 => {
                self.phase = Phase::SuperSecond;
                self.write_supers(2, out);
            }
            Phase::SuperSecond if self.left == 0 => return self.ended(Ok(self.geometry)),
            Phase::Wipe | Phase::SuperFirst | Phase::SuperSecond | Phase::Ended => {}
        }
        None
    }

    fn ended(&mut self, result: Result<Geometry, FormatError>) -> Option<Result<Geometry, FormatError>> {
        self.phase = Phase::Ended;
        Some(result)
    }

    /// The ring must be zeros: what a used device left there could chain to what is written over it.
    fn zero_journal(&mut self, out: &mut Vec<DiskRequest>) {
        while self.left < WRITES_IN_FLIGHT && self.zeroed < self.geometry.journal_bytes {
            let length = ZEROS.min(self.geometry.journal_bytes - self.zeroed);
            let offset = self.geometry.journal_offset + self.zeroed;
            let buffers = vec![self.zeros.slice(..length as usize)];
            self.zeroed += length;
            self.submit(DiskOp::Write { offset, buffers, durable: true }, out);
        }
    }

    fn write_supers(&mut self, first: usize, out: &mut Vec<DiskRequest>) {
        debug_assert!(first + 2 <= SUPER_COPIES);
        let block = SuperBlock {
            geometry: self.geometry,
            system: self.parameters.system,
            device: self.parameters.device,
            incarnation: self.parameters.incarnation,
            salt: self.parameters.salt,
            sequence: 1,
            open_count: 0,
            tail_uncertain: false,
            suspect: false,
            scrub_page: 0,
            resumed_at: 0,
            checkpoint: CheckpointRoot::default(),
        };
        let bytes = block.encode().freeze();
        for offset in self.geometry.super_offsets.into_iter().skip(first).take(2) {
            self.submit(DiskOp::Write { offset, buffers: vec![bytes.clone()], durable: true }, out);
        }
    }
}

/// Refuses what is not blank, by its name if it is known.
fn look(bytes: &[u8], force: bool) -> Result<(), FormatError> {
    if force || bytes.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    if let Some(Copy::Good(block)) = bytes.get(..PAGE as usize).map(SuperBlock::decode) {
        return Err(FormatError::AshlarDevice { system: block.system, device: block.device });
    }
    let has = |at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
    let signatures: [(usize, &[u8], &'static str); 10] = [
        (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
        (0, b"XFSB", "an XFS file system"),
        (65_600, b"_BHRfS_M", "a btrfs file system"),
        (512, b"LABELONE", "an LVM physical volume"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a RAID array"),
        (4086, b"SWAPSPACE2", "swap space"),
        (512, b"EFI PART", "a GPT partition table"),
        (0, b"ASHLARSB", "a damaged or newer Ashlar device"),
        (510, &[0x55, 0xaa], "a partition table or boot sector"),
    ];
    let known = signatures.iter().find(|(at, magic, _)| has(*at, magic));
    Err(FormatError::NotBlank { what: known.map_or("data of an unknown kind", |(_, _, what)| what) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_a_device_is_called_by_its_name() {
        let mut bytes = vec![0; 1 << 20];
        assert_eq!(look(&bytes, false), Ok(()));
        bytes[1 << 19] = 1;
        assert_eq!(look(&bytes, false), Err(FormatError::NotBlank { what: "data of an unknown kind" }));
        bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(look(&bytes, false), Err(FormatError::NotBlank { what: "an ext2, ext3 or ext4 file system" }));
        assert_eq!(look(&bytes, true), Ok(()));
    }
}
