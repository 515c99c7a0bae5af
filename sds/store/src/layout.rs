//! Where everything lies on a device.
//!
//! ```text
//! 0      64 KiB        +journal                                                    end
//! +------+-------------+------+--------------------------------------+------+------+------+
//! | SB 0 | journal     | SB 1 | root A|B, directory A|B, pages A|B   | SB 2 | data | SB 3 |
//! +------+-------------+------+--------------------------------------+------+------+------+
//! ```
//!
//! Always true: areas do not overlap, all offsets are multiples of 4 KiB, those of allocation units of 64 KiB. The offsets
//! are computed once, at format, and stand in the super block; nothing recomputes them at open.

use sds_api::block::{AU_BYTES, CHUNK_AUS};

use crate::limits::{JOURNAL_BYTES_DEFAULT_MIN, JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN, PAGE_BYTES};

/// Bytes set apart for a super block copy, of which the first 4 KiB are used.
pub const SUPER_AREA_BYTES: u64 = 64 << 10;
/// Copies of the super block.
pub const SUPER_COPIES: usize = 4;
/// Chunk records in a page.
pub const RECORDS_PER_PAGE: u64 = 3;
/// Pages that one directory block describes.
pub const PAGES_PER_DIRECTORY: u64 = 250;
/// Records for each chunk's worth of data area: snapshots and sparse chunks need more records than full ones.
pub const RECORDS_PER_CHUNK: u64 = 2;
/// The most allocation units that 32 bits name, less the value that stands for none.
pub const AUS_MAX: u64 = (u32::MAX - 1) as u64;
/// Bytes of a block of metadata.
pub const PAGE: u64 = PAGE_BYTES as u64;

const _: () = assert!(PAGES_PER_DIRECTORY * 16 + 64 <= PAGE);

/// Places and sizes, in bytes unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the device that are used.
    pub size_bytes: u64,
    /// Start of the ring.
    pub journal_offset: u64,
    /// Length of the ring.
    pub journal_bytes: u64,
    /// Start of the two homes of the directory's root.
    pub root_offset: u64,
    /// Length of one home of the root.
    pub root_bytes: u64,
    /// Start of the homes of directory blocks, A and B in turn.
    pub directory_offset: u64,
    /// Directory blocks.
    pub directory_count: u64,
    /// Start of the homes of pages, A and B in turn.
    pub page_offset: u64,
    /// Pages.
    pub page_count: u64,
    /// Start of the data area.
    pub data_offset: u64,
    /// Allocation units in it.
    pub au_count: u64,
    /// Where the copies of the super block lie.
    pub super_offsets: [u64; SUPER_COPIES],
}

/// The journal of a device of this size: size/32, between 64 MiB and 4 GiB.
pub fn default_journal_bytes(size_bytes: u64) -> u64 {
    (size_bytes / 32 / PAGE * PAGE).clamp(JOURNAL_BYTES_DEFAULT_MIN, JOURNAL_BYTES_MAX)
}

/// The super block copy whose place depends on nothing but the size.
pub const fn last_super_offset(size_bytes: u64) -> u64 {
    (size_bytes / SUPER_AREA_BYTES * SUPER_AREA_BYTES).saturating_sub(SUPER_AREA_BYTES)
}

impl Geometry {
    /// Lays a device out. `None` if not a single chunk of data fits.
    pub fn new(size_bytes: u64, journal_bytes: u64) -> Option<Self> {
        let size_bytes = size_bytes / SUPER_AREA_BYTES * SUPER_AREA_BYTES;
        let (mut fits, mut too_many) = (0, (size_bytes / AU_BYTES as u64).min(AUS_MAX) + 1);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            let end = Self::with_units(size_bytes, journal_bytes, middle).end();
            if end <= size_bytes { fits = middle } else { too_many = middle }
        }
        (fits >= CHUNK_AUS as u64).then(|| Self::with_units(size_bytes, journal_bytes, fits))
    }

    fn with_units(size_bytes: u64, journal_bytes: u64, au_count: u64) -> Self {
        let records = RECORDS_PER_CHUNK * au_count.div_ceil(CHUNK_AUS as u64);
        let page_count = records.div_ceil(RECORDS_PER_PAGE).max(16);
        let directory_count = page_count.div_ceil(PAGES_PER_DIRECTORY);
        let root_bytes = (64 + 16 * directory_count).next_multiple_of(PAGE);
        let journal_offset = SUPER_AREA_BYTES;
        let second = (journal_offset + journal_bytes).next_multiple_of(SUPER_AREA_BYTES);
        let root_offset = second + SUPER_AREA_BYTES;
        let directory_offset = root_offset + 2 * root_bytes;
        let page_offset = directory_offset + 2 * PAGE * directory_count;
        let third = (page_offset + 2 * PAGE * page_count).next_multiple_of(SUPER_AREA_BYTES);
        Self {
            size_bytes,
            journal_offset,
            journal_bytes,
            root_offset,
            root_bytes,
            directory_offset,
            directory_count,
            page_offset,
            page_count,
            data_offset: third + SUPER_AREA_BYTES,
            au_count,
            super_offsets: [0, second, third, last_super_offset(size_bytes)],
        }
    }

    fn end(&self) -> u64 {
        self.data_offset + self.au_count * AU_BYTES as u64 + SUPER_AREA_BYTES
    }

    /// True if no area overlaps another or leaves the device: what a super block claims is checked before use.
    pub fn is_sound(&self) -> bool {
        let au = AU_BYTES as u64;
        let Some(data_bytes) = self.au_count.checked_mul(au) else { return false };
        let pages = self.page_count.checked_mul(2 * PAGE);
        let directory = self.directory_count.checked_mul(2 * PAGE);
        let (Some(pages), Some(directory)) = (pages, directory) else { return false };
        let areas = [
            (self.super_offsets[0], PAGE),
            (self.journal_offset, self.journal_bytes),
            (self.super_offsets[1], PAGE),
            (self.root_offset, self.root_bytes.saturating_mul(2)),
            (self.directory_offset, directory),
            (self.page_offset, pages),
            (self.super_offsets[2], PAGE),
            (self.data_offset, data_bytes),
            (self.super_offsets[3], PAGE),
        ];
        let mut end = 0_u64;
        for (offset, length) in areas {
            if offset < end || !offset.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
                return false;
            }
            let Some(next) = offset.checked_add(length) else { return false };
            end = next;
        }
        end <= self.size_bytes
            && self.au_count <= AUS_MAX
            && self.page_count <= u64::from(u32::MAX) / RECORDS_PER_PAGE
            && (JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&self.journal_bytes)
            && self.directory_count == self.page_count.div_ceil(PAGES_PER_DIRECTORY)
            && self.root_bytes >= 64 + 16 * self.directory_count
    }

    /// Where a home (0 or 1) of the root lies.
    pub const fn root_home(&self, home: u8) -> u64 {
        self.root_offset + home as u64 * self.root_bytes
    }

    /// Where a home (0 or 1) of a directory block lies.
    pub const fn directory_home(&self, block: u64, home: u8) -> u64 {
        self.directory_offset + (2 * block + home as u64) * PAGE
    }

    /// Where a home (0 or 1) of a page lies.
    pub const fn page_home(&self, page: u64, home: u8) -> u64 {
        self.page_offset + (2 * page + home as u64) * PAGE
    }

    /// Where a block (0..16) of an allocation unit lies.
    pub const fn au_block(&self, au: u32, block: u16) -> u64 {
        self.data_offset + au as u64 * AU_BYTES as u64 + block as u64 * PAGE
    }

    /// Chunk records that there is room for.
    pub const fn record_count(&self) -> u64 {
        self.page_count * RECORDS_PER_PAGE
    }

    /// The pieces of the device that hold `length` bytes of the journal from position `lsn`: one, or two at the ring's end.
    pub fn ring_pieces(&self, lsn: u64, length: u64) -> [(u64, u64); 2] {
        let at = lsn % self.journal_bytes;
        let first = length.min(self.journal_bytes - at);
        [(self.journal_offset + at, first), (self.journal_offset, length - first)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_laid_out_soundly_and_wastes_little() {
        for size in [8 << 20, (8 << 20) + 12345, 100 << 20, 4 << 30, 1 << 40, 100 << 40_u64] {
            let journal = if size < 1 << 30 { 1 << 20 } else { default_journal_bytes(size) };
            let geometry = Geometry::new(size, journal).unwrap();
            assert!(geometry.is_sound(), "{geometry:?}");
            assert!(geometry.size_bytes - geometry.end() < 4 << 20, "{geometry:?}");
            assert_eq!(geometry.super_offsets[3], last_super_offset(size));
        }
        assert_eq!(Geometry::new(1 << 20, 256 << 10), None);
    }

    #[test]
    fn a_geometry_that_overlaps_is_unsound() {
        let good = Geometry::new(64 << 20, 1 << 20).unwrap();
        assert!(!Geometry { page_offset: good.directory_offset, ..good }.is_sound());
        assert!(!Geometry { au_count: u64::MAX, ..good }.is_sound());
        assert!(!Geometry { size_bytes: good.size_bytes / 2, ..good }.is_sound());
        assert!(!Geometry { journal_offset: 0, ..good }.is_sound());
    }

    #[test]
    fn the_ring_is_cut_at_its_end() {
        let geometry = Geometry::new(64 << 20, 1 << 20).unwrap();
        let start = geometry.journal_offset;
        assert_eq!(geometry.ring_pieces((5 << 20) - 4096, 12288), [(start + (1 << 20) - 4096, 4096), (start, 8192)]);
        assert_eq!(geometry.ring_pieces(4096, 4096), [(start + 4096, 4096), (start, 0)]);
    }
}
