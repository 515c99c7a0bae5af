//! A small NBD client of our own, so that a test sees each completion itself. Fixed newstyle, `GO`, simple replies, one
//! request at a time, over a unix socket. Written from the protocol's text, apart from the code under test.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTIONS: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const NO_ZEROES: u16 = 2;
const FIXED_NEWSTYLE: u16 = 1;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

/// How long a request may take before a run counts as stuck: longer than any pause that is promised.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a volume is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The whole, for other people's clients.
    pub uri: String,
    /// The socket.
    pub socket: PathBuf,
    /// The export.
    pub export: String,
}

impl Address {
    /// From `nbd+unix:///export?socket=/path`.
    pub fn parse(uri: &str) -> anyhow::Result<Self> {
        let rest = uri.strip_prefix("nbd+unix:///").with_context(|| format!("'{uri}' is not on a unix socket"))?;
        let (export, socket) = rest.split_once("?socket=").with_context(|| format!("'{uri}' names no socket"))?;
        if uri.contains('%') {
            bail!("'{uri}' has escapes, which this client does not read");
        }
        Ok(Self { uri: uri.to_owned(), socket: PathBuf::from(socket), export: export.to_owned() })
    }
}

/// A connection in its transmission phase.
pub struct Client {
    stream: UnixStream,
    next_cookie: u64,
    size_bytes: u64,
}

impl Client {
    /// Connects and chooses the export.
    pub fn connect(address: &Address) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(&address.socket)
            .with_context(|| format!("cannot connect to {}", address.socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self { stream, next_cookie: 1, size_bytes: 0 };
        client.negotiate(&address.export).context("the NBD handshake failed")?;
        Ok(client)
    }

    fn bytes<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn negotiate(&mut self, export: &str) -> anyhow::Result<()> {
        let (magic, options) = (u64::from_be_bytes(self.bytes()?), u64::from_be_bytes(self.bytes()?));
        let flags = u16::from_be_bytes(self.bytes()?);
        if magic != MAGIC || options != OPTIONS || flags & FIXED_NEWSTYLE == 0 {
            bail!("not a fixed newstyle server");
        }
        let mut hello = u32::from(FIXED_NEWSTYLE | (flags & NO_ZEROES)).to_be_bytes().to_vec();
        hello.extend(OPTIONS.to_be_bytes());
        hello.extend(OPTION_GO.to_be_bytes());
        let length = u32::try_from(export.len()).context("a long name")?;
        hello.extend((length + 6).to_be_bytes());
        hello.extend(length.to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0u16.to_be_bytes());
        self.stream.write_all(&hello)?;
        loop {
            if u64::from_be_bytes(self.bytes()?) != OPTION_REPLY || u32::from_be_bytes(self.bytes()?) != OPTION_GO {
                bail!("an answer to another question");
            }
            let (kind, length) = (u32::from_be_bytes(self.bytes()?), u32::from_be_bytes(self.bytes()?));
            if length > 1 << 16 {
                bail!("an answer of {length} bytes");
            }
            let mut body = vec![0; usize::try_from(length)?];
            self.stream.read_exact(&mut body)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO if body.len() == 12 && body[..2] == INFO_EXPORT.to_be_bytes() => {
                    let size: [u8; 8] = body[2..10].try_into().context("eight bytes")?;
                    self.size_bytes = u64::from_be_bytes(size);
                }
                REPLY_INFO => {}
                _ => bail!("export '{export}': refused ({kind:#x}): {}", String::from_utf8_lossy(&body)),
            }
        }
    }

    /// Size of the export.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Asks for bytes and does not wait for them: what a client does that is slow to read. The answers come out of
    /// [`Self::stream`].
    pub fn ask(&mut self, offset: u64, length: usize) -> anyhow::Result<()> {
        self.send(READ, offset, length, &[]).map(drop)
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn send(&mut self, kind: u16, offset: u64, length: usize, data: &[u8]) -> anyhow::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut message = REQUEST.to_be_bytes().to_vec();
        message.extend(0u16.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(u32::try_from(length)?.to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)?;
        Ok(cookie)
    }

    fn request(&mut self, kind: u16, offset: u64, length: usize, data: &[u8]) -> anyhow::Result<()> {
        let cookie = self.send(kind, offset, length, data)?;
        if kind == DISCONNECT {
            return Ok(());
        }
        let magic = u32::from_be_bytes(self.bytes()?);
        let error = u32::from_be_bytes(self.bytes()?);
        let echoed = u64::from_be_bytes(self.bytes()?);
        if magic != REPLY || echoed != cookie {
            bail!("an answer to another request");
        }
        if error != 0 {
            bail!("request {kind} at {offset}: I/O error {error}");
        }
        Ok(())
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        self.request(READ, offset, buffer.len(), &[])?;
        Ok(self.stream.read_exact(buffer)?)
    }

    /// Writes; when this returns the data is durable.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        self.request(WRITE, offset, data.len(), data)
    }

    /// Flushes.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.request(FLUSH, 0, 0, &[])
    }

    /// Writes the whole export full, with anything but zeros, and says goodbye.
    pub fn fill(mut self) -> anyhow::Result<()> {
        let data = vec![0x5a; 1 << 20];
        for offset in (0..self.size_bytes).step_by(data.len()) {
            self.write(offset, &data)?;
        }
        self.close()
    }

    /// The whole export.
    pub fn read_all(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut all = vec![0; usize::try_from(self.size_bytes)?];
        let mut offset = 0;
        for piece in all.chunks_mut(1 << 20) {
            self.read(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(all)
    }

    /// Says goodbye.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.request(DISCONNECT, 0, 0, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart() {
        let address = Address::parse("nbd+unix:///demo?socket=/tmp/x/nbd.sock").unwrap();
        assert_eq!((address.export.as_str(), address.socket.to_str().unwrap()), ("demo", "/tmp/x/nbd.sock"));
        assert!(Address::parse("nbd://host/demo").is_err());
    }
}
