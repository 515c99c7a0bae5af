//! One connection: frames in, frames out, with few system calls.
//!
//! What is to be sent is queued, and written at the end of the shard's turn with one vectored write for all of it; only
//! when the kernel's buffer is full does the connection's own task wait for room. What comes in is read into one buffer as
//! far as it is small; the rest of a long payload goes straight into aligned memory.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use mdm_api::frame::{FRONT_BYTES, FrameBounds, FrameError, FrameKind, Front, encode_front};
use sds_api::buf::AlignedBuf;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

/// Pieces of one vectored write.
const PIECES: usize = 64;
/// Bytes that are read at once: a handful of small requests with their data.
const READ_BYTES: usize = 64 << 10;

/// The sending side, and what both sides share.
pub(crate) struct Socket {
    writer: OwnedWriteHalf,
    out: RefCell<VecDeque<Bytes>>,
    out_bytes: Cell<usize>,
    /// The kernel takes nothing more at the moment: the writing task waits.
    blocked: Cell<bool>,
    closed: Cell<bool>,
    room: Notify,
    wake_writer: Notify,
    wake_reader: Notify,
}

/// The receiving side.
pub(crate) struct FrameReader {
    reader: OwnedReadHalf,
    buffer: BytesMut,
    socket: Rc<Socket>,
}

/// One frame.
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) header: Bytes,
    pub(crate) payload: Bytes,
}

/// Why nothing more comes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl ReadError {
    /// True if the other process is gone, false if it only fell silent.
    pub(crate) fn is_reset(&self) -> bool {
        !matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::TimedOut)
    }

    /// True if the peer speaks frames at all, so that it can be told what is wrong.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Frame(error) if *error != FrameError::BadMagic)
    }
}

/// Takes a connection over. Its writing task runs until it is closed.
pub(crate) fn open(stream: TcpStream) -> io::Result<(Rc<Socket>, FrameReader)> {
    mdm_api::client::tune(&stream)?;
    let (reader, writer) = stream.into_split();
    let socket = Rc::new(Socket {
        writer,
        out: RefCell::default(),
        out_bytes: Cell::new(0),
        blocked: Cell::new(false),
        closed: Cell::new(false),
        room: Notify::new(),
        wake_writer: Notify::new(),
        wake_reader: Notify::new(),
    });
    tokio::task::spawn_local(write(socket.clone()));
    let reader = FrameReader { reader, buffer: BytesMut::with_capacity(READ_BYTES), socket: socket.clone() };
    Ok((socket, reader))
}

impl Socket {
    /// Queues a frame.
    pub(crate) fn queue(&self, kind: FrameKind, header: &[u8], payload: &[Bytes]) {
        if self.closed.get() {
            return;
        }
        let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
        let mut first = Vec::with_capacity(FRONT_BYTES + header.len());
        first.extend_from_slice(&encode_front(kind, header, payload_bytes));
        first.extend_from_slice(header);
        self.out_bytes.set(self.out_bytes.get() + first.len() + payload_bytes);
        let mut out = self.out.borrow_mut();
        out.push_back(Bytes::from(first));
        out.extend(payload.iter().filter(|piece| !piece.is_empty()).cloned());
    }

    /// Bytes that wait to be written.
    pub(crate) fn out_bytes(&self) -> usize {
        self.out_bytes.get()
    }

    /// Writes as much as the kernel takes.
    pub(crate) fn flush(&self) {
        if self.blocked.get() || self.closed.get() {
            return;
        }
        if let Err(error) = self.write_some() {
            if error.kind() == io::ErrorKind::WouldBlock {
                self.blocked.set(true);
                self.wake_writer.notify_one();
            } else {
                self.close(); // the reader hears why
            }
        }
    }

    fn write_some(&self) -> io::Result<()> {
        let mut out = self.out.borrow_mut();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = out.len().min(PIECES);
            for (slice, piece) in slices.iter_mut().zip(out.iter()) {
                *slice = IoSlice::new(piece);
            }
            let mut written = self.writer.try_write_vectored(&slices[..count])?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.out_bytes.set(self.out_bytes.get().saturating_sub(written));
            while written > 0
                && let Some(first) = out.front_mut()
            {
                let taken = written.min(first.len());
                first.advance(taken);
                written -= taken;
                if first.is_empty() {
                    out.pop_front();
                }
            }
        }
        self.room.notify_waiters();
        Ok(())
    }

    /// Ends the connection. What is queued and does not fit into the kernel's buffer is lost.
    pub(crate) fn close(&self) {
        if !self.closed.replace(true) {
            self.wake_reader.notify_one();
            self.wake_writer.notify_one();
            self.room.notify_waiters();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Something that a reader waits for has changed.
    pub(crate) fn made_room(&self) {
        self.room.notify_waiters();
    }

    /// Waits until something was written or [`Socket::made_room`] was called.
    pub(crate) async fn room(&self) {
        self.room.notified().await;
    }
}

/// Waits for the kernel to take more, whenever it did not.
async fn write(socket: Rc<Socket>) {
    loop {
        socket.wake_writer.notified().await;
        while socket.blocked.get() && !socket.closed.get() {
            if socket.writer.writable().await.is_err() {
                socket.close();
                break;
            }
            match socket.write_some() {
                Ok(()) => socket.blocked.set(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => socket.close(),
            }
        }
        if socket.closed.get() {
            return;
        }
    }
}

impl FrameReader {
    /// The next frame; `None` at the end of the stream, wherever that is, or once the connection was closed here.
    pub(crate) async fn next(&mut self, bounds: FrameBounds) -> Result<Option<Frame>, ReadError> {
        let socket = self.socket.clone();
        tokio::select! {
            biased;
            () = closed(&socket) => Ok(None),
            frame = self.read(bounds) => frame,
        }
    }

    async fn read(&mut self, bounds: FrameBounds) -> Result<Option<Frame>, ReadError> {
        if !self.fill(FRONT_BYTES).await? {
            return Ok(None);
        }
        let mut front = [0; FRONT_BYTES];
        front.copy_from_slice(&self.buffer[..FRONT_BYTES]);
        let front = Front::decode(&front, bounds)?;
        if !self.fill(FRONT_BYTES + front.header_bytes).await? {
            return Ok(None);
        }
        self.buffer.advance(FRONT_BYTES);
        let header = self.buffer.split_to(front.header_bytes).freeze();
        front.check_header(&header)?;
        if front.payload_bytes == 0 {
            return Ok(Some(Frame { kind: front.kind, header, payload: Bytes::new() }));
        }
        let mut payload = AlignedBuf::zeroed(front.payload_bytes);
        let here = self.buffer.len().min(payload.len());
        payload[..here].copy_from_slice(&self.buffer[..here]);
        self.buffer.advance(here);
        let mut filled = here;
        while filled < payload.len() {
            match self.reader.read(&mut payload[filled..]).await? {
                0 => return Ok(None),
                count => filled += count,
            }
        }
        Ok(Some(Frame { kind: front.kind, header, payload: payload.freeze() }))
    }

    /// Reads until the buffer holds that much. `false`: the stream ends before.
    async fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        while self.buffer.len() < bytes {
            self.buffer.reserve(READ_BYTES.max(bytes - self.buffer.len()));
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

async fn closed(socket: &Socket) {
    while !socket.is_closed() {
        socket.wake_reader.notified().await;
    }
}
