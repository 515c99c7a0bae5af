//! Buffered reading of headers that leaves payloads alone.
//!
//! Headers are small and come in bunches, so they are read through a buffer; payloads go from the socket straight to
//! where they belong. Always true: [`Source::peek`] loses nothing when its future is dropped.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Holds a bunch of request headers, and little enough of a payload that copying it costs nothing.
const BUFFER: usize = 512;

pub(crate) struct Source<R> {
    inner: R,
    buffer: [u8; BUFFER],
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> Source<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, buffer: [0; BUFFER], start: 0, end: 0 }
    }

    /// The next `count` bytes (at most the buffer), left in place. `None` at a clean end of the stream.
    pub(crate) async fn peek(&mut self, count: usize) -> io::Result<Option<&[u8]>> {
        assert!(count <= BUFFER, "a header fits the buffer");
        while self.end - self.start < count {
            if self.start + count > BUFFER || self.start == self.end {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let got = self.inner.read(&mut self.buffer[self.end..]).await?;
            if got == 0 {
                return if self.start == self.end { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            self.end += got;
        }
        Ok(Some(&self.buffer[self.start..self.start + count]))
    }

    /// Drops `count` bytes that were peeked.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "only what was peeked is consumed");
        self.start += count;
    }

    /// Fills `into`: what is buffered first, the rest straight from the stream.
    pub(crate) async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        let buffered = into.len().min(self.end - self.start);
        into[..buffered].copy_from_slice(&self.buffer[self.start..self.start + buffered]);
        self.start += buffered;
        if buffered < into.len() {
            self.inner.read_exact(&mut into[buffered..]).await?;
        }
        Ok(())
    }

    /// The stream alone; `None` if something of it was read ahead.
    pub(crate) fn into_inner(self) -> Option<R> {
        (self.start == self.end).then_some(self.inner)
    }

    /// Reads away `count` bytes.
    pub(crate) async fn discard(&mut self, mut count: u64) -> io::Result<()> {
        let mut sink = [0; 4096];
        while count > 0 {
            let part = usize::try_from(count).unwrap_or(usize::MAX).min(sink.len());
            self.read_exact(&mut sink[..part]).await?;
            count -= part as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn headers_and_payloads_come_apart_in_order() {
        let bytes: Vec<u8> = (0..3000u32).map(|value| value as u8).collect();
        let mut source = Source::new(&bytes[..]);
        let mut position = 0;
        for payload in [0usize, 1, 700, 30, 1500] {
            assert_eq!(source.peek(28).await.expect("read"), Some(&bytes[position..position + 28]));
            source.consume(28);
            position += 28;
            let mut into = vec![0; payload];
            source.read_exact(&mut into).await.expect("read");
            assert_eq!(into, bytes[position..position + payload]);
            position += payload;
        }
        source.discard((bytes.len() - position) as u64).await.expect("discard");
        assert_eq!(source.peek(1).await.expect("end"), None);
    }

    #[tokio::test]
    async fn a_stream_cut_inside_a_header_is_an_error() {
        let mut source = Source::new(&[1u8, 2, 3][..]);
        assert_eq!(source.peek(4).await.expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
    }
}
