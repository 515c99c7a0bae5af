//! A blocking client, for tools that ask one thing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::{LINE_BYTES_MAX, LocalAnswer, LocalRequest};

/// Asks the data client behind a socket and waits for the answer for at most `patience`.
pub fn ask(socket: &Path, request: &LocalRequest, patience: Duration) -> io::Result<LocalAnswer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    (&stream).write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX as u64)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the data client closed the connection"));
    }
    Ok(serde_json::from_str(&answer)?)
}
