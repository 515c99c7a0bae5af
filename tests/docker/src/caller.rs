//! Asks a plugin as Docker does, but when and as often as a test likes; needs nothing of its host but the socket's path.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

/// Longer than the plugin lets anybody wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    socket: PathBuf,
}

impl Caller {
    /// Of the plugin at a socket.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends bytes to the plugin's socket and gives what comes back.
    fn raw(&self, bytes: &[u8]) -> anyhow::Result<String> {
        let mut stream = UnixStream::connect(&self.socket).context("the plugin does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(bytes).context("the plugin does not read")?;
        let mut answer = Vec::new();
        stream.take(256 << 20).read_to_end(&mut answer).context("the plugin does not answer")?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// A request as Docker makes it: status of HTTP and object; an error if the plugin hangs up.
    pub fn request(&self, path: &str, body: &str) -> anyhow::Result<(u16, Value)> {
        let head = format!("POST {path} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\n");
        let accept = "Accept: application/vnd.docker.plugins.v1.2+json\r\n";
        let answer = self.raw(format!("{head}{accept}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
        let (head, object) = answer.split_once("\r\n\r\n").context("closed without an answer")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        Ok((status, serde_json::from_str(object).with_context(|| format!("no JSON: {object}"))?))
    }

    /// The object that an endpoint of drivers answers with.
    pub fn call(&self, endpoint: &str, body: &Value) -> anyhow::Result<Value> {
        Ok(self.request(&format!("/VolumeDriver.{endpoint}"), &body.to_string())?.1)
    }
}
