//! What is on a volume, told from its first and its last bytes.
//!
//! Only what is blank at both ends, and not known to have been written to, is ever given a file system.

/// Bytes that are looked at, at each end: past the super blocks of all file systems, partition tables and RAID labels.
pub const PROBE_BYTES: usize = 1 << 20;

/// What is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Blank,
    /// ext2, 3 or 4.
    Ext4 {
        /// What it takes itself to have.
        size_bytes: u64,
    },
    /// XFS.
    Xfs {
        /// What it takes itself to have.
        size_bytes: u64,
    },
    /// Something.
    Other,
}

impl Content {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::Ext4 { .. } => "ext4",
            Self::Xfs { .. } => "xfs",
            Self::Other => "something that is no ext4 and no xfs",
        }
    }

    /// What the file system takes itself to have.
    pub const fn size_bytes(self) -> Option<u64> {
        match self {
            Self::Ext4 { size_bytes } | Self::Xfs { size_bytes } => Some(size_bytes),
            Self::Blank | Self::Other => None,
        }
    }
}

fn little(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at + width)?;
    Some(field.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn big(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at + width)?;
    Some(field.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// Tells from both ends of the device.
pub fn classify(first: &[u8], last: &[u8]) -> Content {
    if let Some(size_bytes) = ext4(first) {
        return Content::Ext4 { size_bytes };
    }
    if let Some(size_bytes) = xfs(first) {
        return Content::Xfs { size_bytes };
    }
    let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if !first.is_empty() && is_blank(first) && is_blank(last) { Content::Blank } else { Content::Other }
}

/// The super block of ext4 is at 1024: blocks at 4 and 0x150, the size of one as a power at 24, the magic number at 56.
fn ext4(first: &[u8]) -> Option<u64> {
    let block = first.get(1024..2048)?;
    if little(block, 56, 2)? != 0xef53 {
        return None;
    }
    let has_64_bits = little(block, 96, 4)? & 0x80 != 0;
    let high = if has_64_bits { little(block, 0x150, 4)? } else { 0 };
    let blocks = high << 32 | little(block, 4, 4)?;
    let shift = u32::try_from(little(block, 24, 4)?).ok().filter(|shift| *shift <= 6)?;
    blocks.checked_mul(1024 << shift)
}

/// The super block of XFS is at 0: magic number, size of a block, number of blocks.
fn xfs(first: &[u8]) -> Option<u64> {
    (first.get(..4)? == b"XFSB").then_some(())?;
    big(first, 4, 4)?.checked_mul(big(first, 8, 8)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_byte_at_either_end_makes_it_not_blank() {
        let zeros = vec![0; 4096];
        let mut one = zeros.clone();
        one[4095] = 1;
        assert_eq!(classify(&zeros, &zeros), Content::Blank);
        assert_eq!(classify(&one, &zeros), Content::Other);
        assert_eq!(classify(&zeros, &one), Content::Other);
        assert_eq!(classify(&[], &[]), Content::Other, "what was not seen is not blank");
    }

    #[test]
    fn file_systems_tell_their_size() {
        let mut first = vec![0; 4096];
        first[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        first[1024 + 4..1024 + 8].copy_from_slice(&65536_u32.to_le_bytes());
        first[1024 + 24] = 2;
        assert_eq!(classify(&first, &first), Content::Ext4 { size_bytes: 256 << 20 });
        let mut first = vec![0; 4096];
        first[..4].copy_from_slice(b"XFSB");
        first[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        first[8..16].copy_from_slice(&131_072_u64.to_be_bytes());
        assert_eq!(classify(&first, &first), Content::Xfs { size_bytes: 512 << 20 });
    }
}
