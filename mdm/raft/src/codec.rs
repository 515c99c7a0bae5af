//! Reading and writing of little-endian fields, with every length checked before it is used.
//!
//! All bytes that reach this crate from peers and disks go through [`Reader`]. It never allocates more than the input
//! holds and never panics.

use bytes::Bytes;

/// Why bytes could not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("cut short")]
    Truncated,
    /// There are bytes after the value.
    #[error("followed by bytes that do not belong to it")]
    Trailing,
    /// A length, count or number is beyond its limit.
    #[error("{0} is beyond its limit")]
    Limit(&'static str),
    /// A field has a value that does not exist.
    #[error("{0} has an unknown value")]
    Unknown(&'static str),
    /// The checksum does not match.
    #[error("wrong checksum")]
    Checksum,
    /// Not this kind of thing at all.
    #[error("wrong magic number")]
    Magic,
    /// Written by a newer release.
    #[error("version {0} is newer than this release understands")]
    Version(u8),
}

/// Takes fields off the front of some bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A term, index or position: eight bytes below [`crate::limits::MAX_NUMBER`].
    pub fn number(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let number = self.u64()?;
        if number < crate::limits::MAX_NUMBER { Ok(number) } else { Err(DecodeError::Limit(what)) }
    }

    /// A yes or no.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Unknown(what)),
        }
    }

    /// A four-byte length, at most `limit`, and that many bytes.
    pub fn bytes(&mut self, what: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        if length > limit {
            return Err(DecodeError::Limit(what));
        }
        self.take(length)
    }

    /// A four-byte count, at most `limit`, of things that take at least `least` bytes each.
    pub fn count(&mut self, what: &'static str, limit: usize, least: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        if count > limit {
            return Err(DecodeError::Limit(what));
        }
        if count.saturating_mul(least) > self.left() {
            return Err(DecodeError::Truncated);
        }
        Ok(count)
    }

    /// All must have been read.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

/// Appends fields to a buffer.
pub trait Put {
    /// One byte.
    fn put_u8(&mut self, value: u8);
    /// Four bytes.
    fn put_u32(&mut self, value: u32);
    /// Eight bytes.
    fn put_u64(&mut self, value: u64);
    /// A four-byte length and the bytes. Producers bound lengths by [`crate::limits`], all below 4 GiB.
    fn put_bytes(&mut self, bytes: &[u8]);
    /// A four-byte count.
    fn put_count(&mut self, count: usize);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_count(bytes.len());
        self.extend_from_slice(bytes);
    }
    fn put_count(&mut self, count: usize) {
        self.put_u32(u32::try_from(count).expect("limits.rs keeps every length below 4 GiB"));
    }
}

/// Appends the checksum of everything before it: the last step of every encoder here.
pub fn seal(mut bytes: Vec<u8>) -> Bytes {
    let sum = crc32c::crc32c(&bytes);
    bytes.put_u32(sum);
    Bytes::from(bytes)
}

/// Undoes [`seal`]: the bytes before the checksum, if it matches.
pub fn unseal(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or(DecodeError::Truncated)?;
    if crc32c::crc32c(body) == u32::from_le_bytes(*sum) { Ok(body) } else { Err(DecodeError::Checksum) }
}
