//! A reply on its way: headers, shared payload and zeroes, written with as few system calls as the socket allows.
//!
//! Owned by one worker and used again for each of its requests, so that a reply allocates nothing once warm.

use std::io::{self, IoSlice};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::export::Piece;
use crate::wire::{Headers, Request, chunk, chunk_header, command_flags, simple_reply};

/// Zeroes to send from; holes are as long as they like, sent piecewise.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// Slices in one system call.
const SLICES: usize = 64;

#[derive(Debug)]
enum Segment {
    /// A range of the headers.
    Head(usize, usize),
    Data(Bytes),
    Zeroes(usize),
}

impl Segment {
    fn length(&self) -> usize {
        match self {
            Segment::Head(start, end) => end - start,
            Segment::Data(bytes) => bytes.len(),
            Segment::Zeroes(length) => *length,
        }
    }
}

/// Bytes to send, in order.
#[derive(Debug, Default)]
pub(super) struct Reply {
    head: Vec<u8>,
    segments: Vec<Segment>,
}

impl Reply {
    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.segments.clear();
    }

    /// Lets `build` append header bytes.
    pub(super) fn head(&mut self, build: impl FnOnce(&mut Vec<u8>)) {
        let start = self.head.len();
        build(&mut self.head);
        self.segments.push(Segment::Head(start, self.head.len()));
    }

    fn piece(&mut self, piece: Piece) {
        self.segments.push(match piece {
            Piece::Data(bytes) => Segment::Data(bytes),
            Piece::Zero(length) => Segment::Zeroes(length as usize),
        });
    }

    /// The answer to a READ. Holes travel as holes, unless the client wants one chunk or knows no chunks.
    pub(super) fn read(&mut self, headers: Headers, request: &Request, pieces: &mut Vec<Piece>) {
        let holes = pieces.iter().any(|piece| matches!(piece, Piece::Zero(_)));
        if headers == Headers::Simple {
            self.head(|out| simple_reply(out, request.cookie, 0));
            pieces.drain(..).for_each(|piece| self.piece(piece));
        } else if !holes || request.flags & command_flags::DF != 0 {
            let length = u32::try_from(request.length).expect("a read fits its payload limit");
            self.head(|out| {
                chunk_header(out, headers, true, chunk::OFFSET_DATA, request, 8 + length);
                out.extend_from_slice(&request.offset.to_be_bytes());
            });
            pieces.drain(..).for_each(|piece| self.piece(piece));
        } else {
            self.chunks(headers, request, pieces);
        }
    }

    fn chunks(&mut self, headers: Headers, request: &Request, pieces: &mut Vec<Piece>) {
        let mut offset = request.offset;
        let end = request.offset + request.length;
        for piece in pieces.drain(..) {
            let length = piece.length();
            if length == 0 {
                continue;
            }
            let here = offset;
            offset += length as u64;
            let done = offset == end;
            let wire_length = u32::try_from(length).expect("a piece is shorter than the payload limit");
            match piece {
                Piece::Zero(_) => self.head(|out| {
                    chunk_header(out, headers, done, chunk::OFFSET_HOLE, request, 12);
                    out.extend_from_slice(&here.to_be_bytes());
                    out.extend_from_slice(&wire_length.to_be_bytes());
                }),
                Piece::Data(_) => {
                    self.head(|out| {
                        chunk_header(out, headers, done, chunk::OFFSET_DATA, request, 8 + wire_length);
                        out.extend_from_slice(&here.to_be_bytes());
                    });
                    self.piece(piece);
                }
            }
        }
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length() as u64).sum()
    }

    /// Sends everything.
    pub(super) async fn write_to<W: AsyncWrite + Unpin>(&self, writer: &mut W) -> io::Result<()> {
        let (mut index, mut skip) = (0, 0);
        loop {
            while self.segments.get(index).is_some_and(|segment| segment.length() == skip) {
                (index, skip) = (index + 1, 0);
            }
            if index == self.segments.len() {
                return writer.flush().await;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.fill(&mut slices, index, skip);
            let mut written = writer.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while written > 0 {
                let step = written.min(self.segments[index].length() - skip);
                (written, skip) = (written - step, skip + step);
                if skip == self.segments[index].length() {
                    (index, skip) = (index + 1, 0);
                }
            }
        }
    }

    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES], index: usize, mut skip: usize) -> usize {
        let mut count = 0;
        for segment in &self.segments[index..] {
            let mut rest = segment.length() - skip;
            let mut from = std::mem::take(&mut skip);
            while rest > 0 {
                if count == SLICES {
                    return count;
                }
                let part = match segment {
                    Segment::Head(start, end) => &self.head[start + from..*end],
                    Segment::Data(bytes) => &bytes[from..],
                    Segment::Zeroes(_) => &ZEROES[..rest.min(ZEROES.len())],
                };
                slices[count] = IoSlice::new(part);
                (count, rest, from) = (count + 1, rest - part.len(), from + part.len());
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::*;

    /// Takes at most a few bytes at a time.
    struct Dribble(Vec<u8>);

    impl AsyncWrite for Dribble {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let part = bytes.len().min(1021);
            self.0.extend_from_slice(&bytes[..part]);
            Poll::Ready(Ok(part))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn partial_writes_lose_and_repeat_nothing() {
        let request = Request { flags: 0, kind: 0, cookie: 5, offset: 0, length: 200_007 };
        let mut pieces = vec![
            Piece::Data(Bytes::from(vec![1; 3])),
            Piece::Zero(200_000),
            Piece::Data(Bytes::new()),
            Piece::Data(Bytes::from(vec![2; 4])),
        ];
        let mut reply = Reply::default();
        reply.read(Headers::Simple, &request, &mut pieces);
        let mut sink = Dribble(Vec::new());
        reply.write_to(&mut sink).await.expect("write");
        let payload = &sink.0[16..];
        assert_eq!(payload.len(), 200_007);
        assert_eq!(payload[..3], [1; 3]);
        assert!(payload[3..200_003].iter().all(|byte| *byte == 0));
        assert_eq!(payload[200_003..], [2; 4]);
    }

    #[tokio::test]
    async fn holes_travel_as_holes_and_the_last_chunk_says_so() {
        let request = Request { flags: 0, kind: 0, cookie: 5, offset: 4096, length: 8192 };
        let mut reply = Reply::default();
        let mut pieces = vec![Piece::Data(Bytes::from(vec![1; 4096])), Piece::Zero(4096)];
        reply.read(Headers::Structured, &request, &mut pieces);
        let mut sink = Dribble(Vec::new());
        reply.write_to(&mut sink).await.expect("write");
        assert_eq!(sink.0.len(), 28 + 4096 + 32);
        assert_eq!(sink.0[4..6], [0, 0], "more to come");
        let hole = &sink.0[28 + 4096..];
        assert_eq!(hole[4..8], [0, 1, 0, 2], "done, a hole");
        assert_eq!(hole[20..28], 8192u64.to_be_bytes());
    }
}
