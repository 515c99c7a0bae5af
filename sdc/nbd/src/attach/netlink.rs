//! The kernel's nbd over generic netlink.
//!
//! ```text
//! message:   length 4 | type 2 | flags 2 | sequence 4 | port 4 | command 1 | version 1 | 0 2 | attributes
//! attribute: length 2 | type 2 | value, padded to 4                                    (all in host order)
//! ```
//!
//! A request asks for an acknowledgement and reads until it comes, so the socket is never left with a stray answer.
//! CAP_SYS_ADMIN is needed for everything but finding the family.

#![allow(clippy::host_endian_bytes)] // Netlink is defined in host order and never leaves the machine.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use tokio::io::unix::AsyncFd;

const NETLINK_GENERIC: u32 = 16;
const NLMSG_ERROR: u16 = 2;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const HEADER: usize = 20;
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
/// Answers are a page; the control family's is the longest.
const BUFFER: usize = 16 << 10;
/// Block size of our devices, bytes.
const BLOCK_BYTES: u64 = 4096;
/// A request on a dead or silent socket is sent again after this long, seconds. 0 would mean 30.
const TIMEOUT_S: u64 = 5;
/// A device without sockets waits this long for new ones before it fails, seconds.
const DEAD_CONNECTION_TIMEOUT_S: u64 = 24 * 60 * 60;

mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const LINK_DEAD: u8 = 4;
    pub(super) const STATUS: u8 = 5;
}

mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONNECTION_TIMEOUT: u16 = 8;
    pub(super) const DEVICE_LIST: u16 = 9;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
    /// One item of SOCKETS or DEVICE_LIST, and the first field in it.
    pub(super) const ITEM: u16 = 1;
    pub(super) const DEVICE_CONNECTED: u16 = 2;
    pub(super) const NESTED: u16 = 0x8000;
}

/// A message being written.
#[derive(Debug)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn new(family: u16, command: u8, version: u8, sequence: u32) -> Self {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&family.to_ne_bytes());
        out.extend_from_slice(&(FLAG_REQUEST | FLAG_ACK).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&[command, version, 0, 0]);
        Self(out)
    }

    fn value(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("attributes are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn u32(self, kind: u16, value: u32) -> Self {
        self.value(kind, &value.to_ne_bytes())
    }

    fn u64(self, kind: u16, value: u64) -> Self {
        self.value(kind, &value.to_ne_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.value(kind, &bytes)
    }

    fn nest(mut self, kind: u16, build: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&(kind | attribute::NESTED).to_ne_bytes());
        let mut built = build(self);
        let length = u16::try_from(built.0.len() - start).expect("attributes are short");
        built.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        built
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("messages are short");
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Attributes of a slice, ending at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !attribute::NESTED;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn find_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(find(bytes, kind)?.try_into().ok()?))
}

/// Messages of one datagram: type, sequence, and what follows the netlink header.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, sequence, body))
    })
}

/// The kernel's nbd.
#[derive(Debug)]
pub struct Nbd {
    socket: OwnedFd,
    family: u16,
    /// Multicast group of events.
    group: u32,
    sequence: u32,
}

/// One nbd device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceStatus {
    /// N of `/dev/nbdN`.
    pub index: u32,
    /// It has a configuration.
    pub connected: bool,
}

impl Nbd {
    /// Finds the family; an error of kind `NotFound` means that the kernel has no nbd, or not loaded.
    pub fn open() -> io::Result<Self> {
        let protocol = Protocol::from_raw(NonZeroU32::new(NETLINK_GENERIC).expect("not zero"));
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        let mut nbd = Self { socket, family: CONTROL, group: 0, sequence: 0 };
        let request = Message::new(CONTROL, GET_FAMILY, 1, 0).text(2, "nbd");
        let answer = nbd.ask(request)?.ok_or(io::ErrorKind::NotFound)?;
        (nbd.family, nbd.group) = parse_family(&answer).ok_or(io::ErrorKind::InvalidData)?;
        Ok(nbd)
    }

    fn request(&self, command: u8) -> Message {
        Message::new(self.family, command, 1, 0)
    }

    /// Sends a request; its answer's attributes, if it has any beside the acknowledgement.
    fn ask(&mut self, request: Message) -> io::Result<Option<Vec<u8>>> {
        self.sequence += 1;
        let mut bytes = request.finish();
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = None;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            for (kind, sequence, body) in messages(&buffer[..length]) {
                if sequence != self.sequence {
                    continue;
                }
                if kind != NLMSG_ERROR {
                    answer = body.get(4..).map(<[u8]>::to_vec);
                    continue;
                }
                let code = body.get(0..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
                return match code {
                    Some(0) => Ok(answer),
                    Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    None => Err(io::ErrorKind::InvalidData.into()),
                };
            }
        }
    }

    /// Makes a device of sockets that have their handshake behind them. Returns N of `/dev/nbdN`.
    pub fn connect(
        &mut self,
        sockets: &[UnixStream],
        size_bytes: u64,
        server_flags: u16,
        identity: &str,
    ) -> io::Result<u32> {
        let answer = self.ask(connect(self.family, &descriptors(sockets), size_bytes, server_flags, identity))?;
        answer.and_then(|answer| find_u32(&answer, attribute::INDEX)).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Gives a device new sockets for dead ones. Those for which there is no dead one are closed by the kernel,
    /// without a word. Refused unless `identity` is the device's.
    pub fn reconfigure(&mut self, index: u32, sockets: &[UnixStream], identity: &str) -> io::Result<()> {
        let request = self.request(command::RECONFIGURE).u32(attribute::INDEX, index);
        let request = request.text(attribute::BACKEND_IDENTIFIER, identity);
        let request = times(socket_list(request, &descriptors(sockets)));
        self.ask(request).map(drop)
    }

    /// Changes the size. Apart from new sockets: newer kernels freeze the queue for it, which must be able to move.
    pub fn resize(&mut self, index: u32, size_bytes: u64, identity: &str) -> io::Result<()> {
        let request = self.request(command::RECONFIGURE).u32(attribute::INDEX, index);
        let request = request.text(attribute::BACKEND_IDENTIFIER, identity).u64(attribute::SIZE_BYTES, size_bytes);
        self.ask(request).map(drop)
    }

    /// Takes the device down; whatever is in flight fails.
    pub fn disconnect(&mut self, index: u32) -> io::Result<()> {
        self.ask(self.request(command::DISCONNECT).u32(attribute::INDEX, index)).map(drop)
    }

    /// Devices that the kernel knows.
    pub fn status(&mut self) -> io::Result<Vec<DeviceStatus>> {
        let answer = self.ask(self.request(command::STATUS))?.unwrap_or_default();
        Ok(parse_status(&answer))
    }
}

fn descriptors(sockets: &[UnixStream]) -> Vec<u32> {
    let number = |socket: &UnixStream| u32::try_from(socket.as_raw_fd()).expect("an open descriptor is not negative");
    sockets.iter().map(number).collect()
}

fn socket_list(message: Message, descriptors: &[u32]) -> Message {
    message.nest(attribute::SOCKETS, |list| {
        descriptors
            .iter()
            .fold(list, |list, descriptor| list.nest(attribute::ITEM, |item| item.u32(attribute::ITEM, *descriptor)))
    })
}

fn times(message: Message) -> Message {
    message.u64(attribute::TIMEOUT, TIMEOUT_S).u64(attribute::DEAD_CONNECTION_TIMEOUT, DEAD_CONNECTION_TIMEOUT_S)
}

fn connect(family: u16, descriptors: &[u32], size_bytes: u64, server_flags: u16, identity: &str) -> Message {
    let message = Message::new(family, command::CONNECT, 1, 0)
        .u64(attribute::SIZE_BYTES, size_bytes)
        .u64(attribute::BLOCK_SIZE_BYTES, BLOCK_BYTES)
        .u64(attribute::SERVER_FLAGS, u64::from(server_flags));
    socket_list(times(message), descriptors).text(attribute::BACKEND_IDENTIFIER, identity)
}

/// Id and event group of the nbd family.
fn parse_family(answer: &[u8]) -> Option<(u16, u32)> {
    let family = u16::from_ne_bytes(find(answer, 1)?.try_into().ok()?);
    let groups = find(answer, 7)?;
    let events = attributes(groups).find(|(_, group)| find(group, 1) == Some(b"nbd_mc_group\0"))?;
    Some((family, find_u32(events.1, 2)?))
}

fn parse_status(answer: &[u8]) -> Vec<DeviceStatus> {
    let list = find(answer, attribute::DEVICE_LIST).unwrap_or_default();
    let device = |(_, item): (u16, &[u8])| {
        let connected = find(item, attribute::DEVICE_CONNECTED).is_some_and(|value| value.first() == Some(&1));
        Some(DeviceStatus { index: find_u32(item, attribute::ITEM)?, connected })
    };
    attributes(list).filter_map(device).collect()
}

/// The device of a "link dead" event.
fn parse_link_dead(family: u16, kind: u16, body: &[u8]) -> Option<u32> {
    (kind == family && body.first() == Some(&command::LINK_DEAD)).then_some(())?;
    find_u32(body.get(HEADER - 16..)?, attribute::INDEX)
}

/// What is heard of sockets that died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLink {
    /// One of this device, N of `/dev/nbdN`.
    Of(u32),
    /// Events were lost: it may have been any.
    Unknown,
}

/// Hears of sockets that died.
#[derive(Debug)]
pub struct DeadLinks {
    socket: AsyncFd<OwnedFd>,
    family: u16,
}

impl DeadLinks {
    /// Subscribes. Must run inside a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let Nbd { socket, family, group, .. } = Nbd::open()?;
        let size = libc::socklen_t::try_from(size_of::<u32>()).expect("four");
        // SAFETY: the option's value is a number that lives through the call.
        let joined = unsafe {
            let value = (&raw const group).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, value, size)
        };
        if joined != 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        // SAFETY: an owned socket, which nobody else closes and which lives as long as its registration.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket, family })
    }

    /// The next socket that died. Cancel-safe.
    pub async fn next(&self) -> io::Result<DeadLink> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|socket| Ok(recv(socket, &mut buffer[..], RecvFlags::empty())?.0));
            let length = match received {
                Err(_would_block) => continue,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(DeadLink::Unknown),
                Ok(length) => length?,
            };
            let dead = messages(&buffer[..length]).find_map(|(kind, _, body)| parse_link_dead(self.family, kind, body));
            if let Some(index) = dead {
                return Ok(DeadLink::Of(index));
            }
        }
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn connect_has_the_bytes_that_the_kernel_reads() {
        let bytes = connect(0x1d, &[5, 6], 1 << 30, 0x0d6d, "ashlar-1").finish();
        #[rustfmt::skip]
        let expected: &[u8] = &[
            140, 0, 0, 0,  0x1d, 0,  5, 0,  0, 0, 0, 0,  0, 0, 0, 0,  1, 1, 0, 0,
            12, 0, 2, 0,  0, 0, 0, 0x40, 0, 0, 0, 0,
            12, 0, 3, 0,  0, 0x10, 0, 0, 0, 0, 0, 0,
            12, 0, 5, 0,  0x6d, 0x0d, 0, 0, 0, 0, 0, 0,
            12, 0, 4, 0,  5, 0, 0, 0, 0, 0, 0, 0,
            12, 0, 8, 0,  0x80, 0x51, 1, 0, 0, 0, 0, 0,
            28, 0, 7, 0x80,
                12, 0, 1, 0x80,  8, 0, 1, 0,  5, 0, 0, 0,
                12, 0, 1, 0x80,  8, 0, 1, 0,  6, 0, 0, 0,
            13, 0, 10, 0,  b'a', b's', b'h', b'l', b'a', b'r', b'-', b'1', 0, 0, 0, 0,
        ];
        let mut expected = expected.to_vec();
        expected[0] = u8::try_from(expected.len()).expect("short");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_answers_of_the_kernel_are_understood() {
        let family = Message::new(CONTROL, 1, 2, 0)
            .text(2, "nbd")
            .value(1, &0x1du16.to_ne_bytes())
            .nest(7, |groups| groups.nest(1, |group| group.u32(2, 9).text(1, "nbd_mc_group")));
        assert_eq!(parse_family(&family.finish()[HEADER..]), Some((0x1d, 9)));
        let status = Message::new(0x1d, 5, 1, 0).nest(attribute::DEVICE_LIST, |list| {
            list.nest(1, |item| item.u32(1, 0).value(2, &[1])).nest(1, |item| item.u32(1, 1).value(2, &[0]))
        });
        let device = |index, connected| DeviceStatus { index, connected };
        assert_eq!(parse_status(&status.finish()[HEADER..]), [device(0, true), device(1, false)]);
        let dead = Message::new(0x1d, command::LINK_DEAD, 1, 0).u32(attribute::INDEX, 3).finish();
        let (kind, _, body) = messages(&dead).next().expect("one message");
        assert_eq!(parse_link_dead(0x1d, kind, body), Some(3));
        assert_eq!(parse_link_dead(0x1e, kind, body), None);
    }

    #[test]
    fn the_real_kernel_answers_whether_it_has_nbd() {
        match Nbd::open() {
            Ok(mut nbd) => drop(nbd.status().expect("status needs no rights")),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (kind, _, body) in messages(&bytes) {
                let _ = parse_link_dead(kind, kind, body);
            }
            let _ = parse_family(&bytes);
            let _ = parse_status(&bytes);
        }
    }
}
