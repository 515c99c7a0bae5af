//! Aligned, shared buffers.
//!
//! Payload bytes are read from a socket or a disk once, into memory that direct I/O accepts, and then travel as
//! `bytes::Bytes`: shared, sliced, never copied. This module owns the only allocation with an alignment.
//!
//! Always true: the start and the capacity of an [`AlignedBuf`] are multiples of [`ALIGNMENT`]; its bytes are initialised.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

/// What O_DIRECT may ask for on any device of today: 4 KiB.
pub const ALIGNMENT: usize = 4096;

/// A zeroed, uniquely owned, aligned block of memory. `freeze` turns it into shared `Bytes` without a copy.
pub struct AlignedBuf {
    pointer: NonNull<u8>,
    length: usize,
    capacity: usize,
}

// SAFETY: the memory is uniquely owned and has no thread affinity.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access gives only `&[u8]`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `length` zero bytes. The capacity is rounded up to the alignment.
    ///
    /// # Panics
    /// If `length` is 0 or beyond `isize::MAX`; aborts when memory is exhausted, like any allocation.
    pub fn zeroed(length: usize) -> Self {
        assert!(length > 0, "an aligned buffer has at least one byte");
        let capacity = length.next_multiple_of(ALIGNMENT);
        let layout = Layout::from_size_align(capacity, ALIGNMENT).expect("a length within isize::MAX");
        // SAFETY: the layout has a size above zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { pointer, length, capacity }
    }

    /// A copy of `bytes` (at least one).
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Shares the memory from here on.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Bytes that are allocated, a multiple of [`ALIGNMENT`].
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Where the memory starts, for engines that hand it to the kernel.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.pointer.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `length` initialised bytes start at `pointer` for as long as self lives.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.capacity, ALIGNMENT).expect("the layout it was allocated with");
        // SAFETY: allocated in `zeroed` with this layout, freed once.
        unsafe { dealloc(self.pointer.as_ptr(), layout) }
    }
}

/// True if direct I/O can take these bytes as they are.
pub fn is_aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT)
}

/// The bytes in aligned memory: the same ones if they are aligned, else a copy. Empty stays empty.
pub fn aligned(bytes: Bytes) -> Bytes {
    if bytes.is_empty() || is_aligned(&bytes) { bytes } else { AlignedBuf::copy_of(&bytes).freeze() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_buffer_keeps_its_memory_and_alignment() {
        let mut buffer = AlignedBuf::zeroed(5000);
        assert_eq!(buffer.capacity(), 8192);
        buffer[4999] = 7;
        let address = buffer.as_ptr();
        let shared = buffer.freeze();
        assert_eq!(shared.as_ptr(), address);
        assert!(is_aligned(&shared));
        assert_eq!((shared.len(), shared[4999]), (5000, 7));
    }

    #[test]
    fn aligned_copies_only_what_is_not_aligned() {
        let whole = AlignedBuf::copy_of(&[9; 8192]).freeze();
        assert_eq!(aligned(whole.clone()).as_ptr(), whole.as_ptr());
        let odd = whole.slice(1..100);
        let copy = aligned(odd.clone());
        assert!(is_aligned(&copy));
        assert_eq!(copy, odd);
    }
}
