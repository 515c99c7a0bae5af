//! A small blocking NBD client over a unix socket.
//!
//! Two users: the kernel's nbd, which wants sockets with the handshake behind them, and the holder, whose threads each
//! do one request after the other. It speaks simple replies only, because the kernel does.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::wire::option::{FIXED_NEWSTYLE, InfoRequest, NO_ZEROES, OptionHead, ReplyHead, code, greeting, info, reply};
use crate::wire::{Command, Reader, Request, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC};

/// Longest reply to an option that is believed, bytes.
const MAX_REPLY: u32 = 64 << 10;
/// Replies to one option.
const MAX_REPLIES: usize = 64;

/// Why the client did not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed; the request may or may not have been carried out.
    #[error("the connection to the NBD server failed: {0}")]
    Io(#[from] io::Error),
    /// The server sent what the protocol does not allow.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(&'static str),
    /// The server does not give out the export.
    #[error("the NBD server refused export {export:?}: {reason}")]
    Refused {
        /// Which.
        export: String,
        /// The server's words.
        reason: String,
    },
    /// The request failed with this error number of the wire.
    #[error("the request failed with error {0}")]
    Request(u32),
}

/// What a server says about an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    info: ExportInfo,
    cookie: u64,
}

/// Asks about an export without opening it. Every step within `patience`.
pub fn query(socket: &Path, export: &str, patience: Duration) -> Result<ExportInfo, ClientError> {
    let mut stream = greet(socket, patience)?;
    let found = ask(&mut stream, code::INFO, export)?;
    stream.write_all(&OptionHead { option: code::ABORT, length: 0 }.encode())?;
    Ok(found)
}

impl Client {
    /// Connects and opens an export. Each step of the handshake within `patience`; requests wait without limit.
    pub fn connect(socket: &Path, export: &str, patience: Duration) -> Result<Self, ClientError> {
        let mut stream = greet(socket, patience)?;
        let info = match ask(&mut stream, code::GO, export) {
            Err(refused @ ClientError::Refused { .. }) => {
                // Good-bye, so that the server need not wonder what became of us.
                stream.write_all(&OptionHead { option: code::ABORT, length: 0 }.encode())?;
                return Err(refused);
            }
            asked => asked?,
        };
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(Self { stream, info, cookie: 0 })
    }

    /// What the server said.
    pub fn info(&self) -> ExportInfo {
        self.info
    }

    /// The socket, to be handed to the kernel. Nothing of it has been read ahead.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads `into.len()` bytes.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), ClientError> {
        self.send(Command::Read, 0, offset, into.len() as u64, &[])?;
        self.reply()?;
        Ok(self.stream.read_exact(into)?)
    }

    /// Writes `data`.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        self.send(Command::Write, 0, offset, data.len() as u64, data)?;
        self.reply()
    }

    /// A request without payload: flush, trim, zero.
    pub fn command(&mut self, command: Command, flags: u16, offset: u64, length: u32) -> Result<(), ClientError> {
        assert!(!matches!(command, Command::Read | Command::Write), "they carry payload");
        self.send(command, flags, offset, u64::from(length), &[])?;
        self.reply()
    }

    fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        self.cookie += 1;
        let head = Request { flags, kind: command as u16, cookie: self.cookie, offset, length }.encode();
        let mut slices = [IoSlice::new(&head), IoSlice::new(payload)];
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.stream.write_vectored(slices) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn reply(&mut self) -> Result<(), ClientError> {
        let mut head = [0; SIMPLE_REPLY_BYTES];
        self.stream.read_exact(&mut head)?;
        let mut reader = Reader::new(&head);
        let fields = (reader.u32(), reader.u32(), reader.u64());
        let (Some(SIMPLE_REPLY_MAGIC), Some(error), Some(cookie)) = fields else {
            return Err(ClientError::Protocol("no simple reply"));
        };
        if cookie != self.cookie {
            return Err(ClientError::Protocol("a reply to another request"));
        }
        if error == 0 { Ok(()) } else { Err(ClientError::Request(error)) }
    }
}

fn greet(socket: &Path, patience: Duration) -> Result<UnixStream, ClientError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut words = [0; 18];
    stream.read_exact(&mut words)?;
    if words[..16] != greeting()[..16] || words[17] & FIXED_NEWSTYLE as u8 == 0 {
        return Err(ClientError::Protocol("no fixed newstyle greeting"));
    }
    let accepted = u16::from_be_bytes([words[16], words[17]]) & (FIXED_NEWSTYLE | NO_ZEROES);
    stream.write_all(&u32::from(accepted).to_be_bytes())?;
    Ok(stream)
}

fn ask(stream: &mut UnixStream, option: u32, export: &str) -> Result<ExportInfo, ClientError> {
    let payload = InfoRequest { name: export.to_owned(), kinds: vec![info::BLOCK_SIZE] }.encode();
    let length = u32::try_from(payload.len()).map_err(|_| ClientError::Protocol("the name is too long"))?;
    stream.write_all(&OptionHead { option, length }.encode())?;
    stream.write_all(&payload)?;
    let mut found = None;
    for _ in 0..MAX_REPLIES {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let head = ReplyHead::decode(&head).ok_or(ClientError::Protocol("no reply to an option"))?;
        if head.length > MAX_REPLY {
            return Err(ClientError::Protocol("a reply of absurd length"));
        }
        let mut payload = vec![0; head.length as usize];
        stream.read_exact(&mut payload)?;
        let mut reader = Reader::new(&payload);
        match head.reply {
            reply::ACK => return found.ok_or(ClientError::Protocol("an export without a size")),
            reply::INFO if reader.u16() == Some(info::EXPORT) => {
                let (size_bytes, flags) = (reader.u64(), reader.u16());
                let short = ClientError::Protocol("short export information");
                let (Some(size_bytes), Some(flags)) = (size_bytes, flags) else { return Err(short) };
                found = Some(ExportInfo { size_bytes, flags });
            }
            reply::INFO => {}
            error => {
                let reason = format!("{} ({error:#010x})", String::from_utf8_lossy(&payload));
                return Err(ClientError::Refused { export: export.to_owned(), reason });
            }
        }
    }
    Err(ClientError::Protocol("no end of replies"))
}
