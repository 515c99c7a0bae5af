//! Listening ports of a process, and bytes that nobody should send.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

/// How long a server may take to close a connection that speaks nonsense.
const PATIENCE: Duration = Duration::from_secs(10);
/// The kernel's number of the state LISTEN in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Where a process listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// TCP over IPv4.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// Inodes of the sockets that a process has open.
fn sockets(pid: u32) -> anyhow::Result<BTreeSet<u64>> {
    let folder = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let inodes = links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
    Ok(inodes.collect())
}

/// `0100007F:1A2B` as an address.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.swap_bytes());
    Some(SocketAddrV4::new(ip, u16::from_str_radix(port, 16).ok()?).into())
}

/// Every port on which a process listens.
pub fn ports(pid: u32) -> anyhow::Result<Vec<Port>> {
    let own = sockets(pid)?;
    let mut found = BTreeSet::new();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).context("cannot read the table of sockets")?;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, local, _, state, _, _, _, _, _, inode, ..] = fields.as_slice()
            && *state == LISTEN
            && inode.parse().is_ok_and(|inode| own.contains(&inode))
            && let Some(address) = address(local)
        {
            found.insert(Port::Tcp(address));
        }
    }
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).context("cannot read the table of sockets")?;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Flags 00010000: it accepts connections.
        if let [_, _, _, "00010000", _, _, inode, path, ..] = fields.as_slice()
            && inode.parse().is_ok_and(|inode| own.contains(&inode))
            // The table keeps the name under which a socket was made, which may have been a temporary one.
            && Path::new(path).exists()
        {
            found.insert(Port::Unix(PathBuf::from(path)));
        }
    }
    Ok(found.into_iter().collect())
}

/// What is sent.
pub fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |count: usize| -> Vec<u8> {
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..count).map(next).collect()
    };
    // A frame of ours that claims to be as long as can be said.
    let mut longest = b"ASHL".to_vec();
    longest.extend([1, 0, 1, 0]);
    longest.extend([0xff; 8]);
    longest.extend(random(8));
    // A record of TLS that claims 16 KiB and holds less, in shreds.
    let mut tls = vec![0x16, 3, 1, 0x40, 0];
    tls.extend(random(3000));
    // The client's flags of NBD, then an option that claims 4 GiB.
    let mut nbd = vec![0, 0, 0, 3];
    nbd.extend(b"IHAVEOPT");
    nbd.extend([0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]);
    nbd.extend(random(100));
    vec![
        ("nothing", Vec::new()),
        ("one byte", vec![0]),
        ("zeroes", vec![0; 5000]),
        ("random bytes", random(60_000)),
        ("an endless line", vec![b'a'; 200_000]),
        ("a frame of immense length", longest),
        ("a broken TLS record", tls),
        ("an NBD option of immense length", nbd),
        ("JSON", b"{\"request\":\"format\"}\n".to_vec()),
    ]
}

/// Sends bytes, says that no more will come, and waits for the other side to end the connection.
pub fn send(port: &Port, bytes: &[u8]) -> anyhow::Result<()> {
    match port {
        Port::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE).with_context(|| format!("{address}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            expect_end(&stream, &stream, bytes, || stream.shutdown(std::net::Shutdown::Write))
        }
        Port::Unix(path) => {
            let stream = UnixStream::connect(path).with_context(|| format!("{}", path.display()))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            expect_end(&stream, &stream, bytes, || stream.shutdown(std::net::Shutdown::Write))
        }
    }
}

fn expect_end(
    mut reader: impl Read,
    mut writer: impl Write,
    bytes: &[u8],
    shutdown: impl Fn() -> std::io::Result<()>,
) -> anyhow::Result<()> {
    // It may hang up in the middle of what is sent: that is an end as well.
    if writer.write_all(bytes).is_err() || shutdown().is_err() {
        return Ok(());
    }
    let mut answer = [0; 4096];
    let mut total = 0;
    loop {
        match reader.read(&mut answer) {
            Ok(0) => return Ok(()),
            Ok(count) => total += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("the connection stays open"),
            Err(_) => return Ok(()),
        }
        if total > 1 << 20 {
            bail!("nonsense is answered with more than 1 MiB");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_ports_of_this_process_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let ports = ports(std::process::id()).unwrap();
        assert!(ports.contains(&Port::Tcp(listener.local_addr().unwrap())), "{ports:?}");
        assert!(ports.contains(&Port::Unix(path)), "{ports:?}");
        drop(unix);
    }
}
