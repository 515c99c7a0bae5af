//! Frames over a TCP stream, for one task that both reads and writes: no locks, no tasks of their own, few system calls.
//!
//! Reading goes through one buffer, which takes many small frames in one call; the rest of a large payload is read straight
//! into the aligned memory that it stays in, with what follows it in the same call. Writing gathers whatever is queued.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use mdm_api::frame::{FRONT_BYTES, FrameBounds, FrameKind, Front, encode_front};
use sds_api::buf::AlignedBuf;
use tokio::net::TcpStream;

/// Bytes of the read buffer: a dozen small answers with their data.
const BUFFER_BYTES: usize = 64 << 10;
/// Memory for heads, hundreds of them.
const HEADS_BYTES: usize = 32 << 10;
/// Parts that one write call takes.
const GATHER_MAX: usize = 64;

struct Payload {
    kind: FrameKind,
    bytes: AlignedBuf,
    filled: usize,
}

/// Cuts a stream into frames.
pub struct FrameReader {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    header: Vec<u8>,
    payload: Option<Payload>,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0, header: Vec::new(), payload: None }
    }
}

impl FrameReader {
    /// The next frame's kind and payload; its header is in [`Self::header`] until the next call. `None` when the peer has
    /// closed the stream between two frames. Any error ends the stream.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        stream: &TcpStream,
        bounds: FrameBounds,
    ) -> Poll<io::Result<Option<(FrameKind, Bytes)>>> {
        assert!(FRONT_BYTES + bounds.header_bytes_max <= BUFFER_BYTES, "a front and a header fit the buffer");
        loop {
            if let Some(frame) = self.take_frame(bounds)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            ready!(stream.poll_read_ready(cx))?;
            match self.read_some(stream) {
                Ok(0) if self.payload.is_none() && self.start == self.end => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// The header of the frame that came last.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// A frame from what was read already, if it is complete.
    fn take_frame(&mut self, bounds: FrameBounds) -> io::Result<Option<(FrameKind, Bytes)>> {
        if self.payload.is_none() {
            let Some(front) = self.buffer[self.start..self.end].first_chunk::<FRONT_BYTES>() else { return Ok(None) };
            let front = Front::decode(front, bounds).map_err(io::Error::other)?;
            let body = self.start + FRONT_BYTES;
            let Some(header) = self.buffer[..self.end].get(body..body + front.header_bytes) else { return Ok(None) };
            front.check_header(header).map_err(io::Error::other)?;
            self.header.clear();
            self.header.extend_from_slice(header);
            self.start = body + front.header_bytes;
            if front.payload_bytes == 0 {
                return Ok(Some((front.kind, Bytes::new())));
            }
            self.payload =
                Some(Payload { kind: front.kind, bytes: AlignedBuf::zeroed(front.payload_bytes), filled: 0 });
        }
        let Some(payload) = &mut self.payload else { return Ok(None) };
        let count = (payload.bytes.len() - payload.filled).min(self.end - self.start);
        payload.bytes[payload.filled..payload.filled + count]
            .copy_from_slice(&self.buffer[self.start..self.start + count]);
        payload.filled += count;
        self.start += count;
        if payload.filled < payload.bytes.len() {
            return Ok(None);
        }
        Ok(self.payload.take().map(|payload| (payload.kind, payload.bytes.freeze())))
    }

    fn read_some(&mut self, stream: &TcpStream) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let Some(payload) = &mut self.payload else {
            let count = stream.try_read(&mut self.buffer[self.end..])?;
            self.end += count;
            return Ok(count);
        };
        // The buffer is empty: what it had went into the payload.
        let filled = payload.filled;
        let (rest, room) = (&mut payload.bytes[filled..], &mut self.buffer[self.end..]);
        let missing = rest.len();
        let count = stream.try_read_vectored(&mut [IoSliceMut::new(rest), IoSliceMut::new(room)])?;
        payload.filled += count.min(missing);
        self.end += count - count.min(missing);
        Ok(count)
    }
}

/// Queues frames and writes them, many in one call.
#[derive(Default)]
pub struct FrameWriter {
    parts: VecDeque<Bytes>,
    frames: usize,
    /// Memory for the next heads.
    heads: BytesMut,
}

impl FrameWriter {
    /// Appends a frame. Payload parts are not copied.
    pub fn push<'a>(&mut self, kind: FrameKind, header: &[u8], payload: impl IntoIterator<Item = &'a Bytes> + Clone) {
        let payload_bytes = payload.clone().into_iter().map(Bytes::len).sum();
        let head_bytes = FRONT_BYTES + header.len();
        if self.heads.capacity() < head_bytes {
            // The memory is used again once all heads in it are written.
            self.heads.reserve(HEADS_BYTES.max(head_bytes));
        }
        self.heads.extend_from_slice(&encode_front(kind, header, payload_bytes));
        self.heads.extend_from_slice(header);
        self.parts.push_back(self.heads.split().freeze());
        self.parts.extend(payload.into_iter().filter(|part| !part.is_empty()).cloned());
        self.frames += 1;
    }

    /// Frames appended since the queue was last empty.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// True if nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Writes until the queue is empty or the socket is full. Any error ends the stream.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>, stream: &TcpStream) -> Poll<io::Result<()>> {
        while !self.parts.is_empty() {
            ready!(stream.poll_write_ready(cx))?;
            match self.write_some(stream) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.frames = 0;
        Poll::Ready(Ok(()))
    }

    fn write_some(&mut self, stream: &TcpStream) -> io::Result<()> {
        let mut gathered = [IoSlice::new(&[]); GATHER_MAX];
        let count = self.parts.len().min(GATHER_MAX);
        for (slice, part) in gathered.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(part);
        }
        let mut written = stream.try_write_vectored(&gathered[..count])?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(part) = self.parts.front_mut() {
            if written < part.len() {
                part.advance(written);
                break;
            }
            written -= part.len();
            self.parts.pop_front();
        }
        Ok(())
    }
}
