//! The other end of a connection, by hand: bytes as `docs/segment-protocol.md` gives them, written
//! without the crate's own code so that a mistake is not made twice.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use super::{Net, PATIENCE, readable};

pub const HELLO: u16 = 1;
pub const REFUSE: u16 = 2;
pub const LINK: u16 = 4;
pub const ACCEPT: u16 = 5;
pub const DONE: u16 = 6;
pub const FRAME: u16 = 7;

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// Connects to a port, which is expected to have room in its queue.
pub fn connect(net: &Net, id: &str) -> OwnedFd {
    try_connect(net, id).expect("the port's queue is full")
}

/// Connects to a port unless its queue is full. Never waits: the port may be on this very thread.
pub fn try_connect(net: &Net, id: &str) -> Option<OwnedFd> {
    try_connect_in(net.path(), id)
}

/// The same, by the segment's directory.
pub fn try_connect_in(directory: &Path, id: &str) -> Option<OwnedFd> {
    let socket = socket();
    let address = SocketAddrUnix::new(directory.join(format!("{id}.sock"))).unwrap();
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Some(socket),
        Err(Errno::AGAIN) => None,
        Err(e) => panic!("{e}"),
    }
}

/// A listener that appears as the socket of a port, as a port's does.
pub fn listen(directory: &Path, id: &str) -> OwnedFd {
    let (hidden, path) = (
        directory.join(format!(".{id}.new")),
        directory.join(format!("{id}.sock")),
    );
    let socket = socket();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&hidden).unwrap()).unwrap();
    rustix::net::listen(&socket, 8).unwrap();
    std::fs::rename(hidden, path).unwrap();
    socket
}

pub fn header(kind: u16, size: usize) -> Vec<u8> {
    let mut bytes = b"VIsg".to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend((size as u16).to_le_bytes());
    bytes
}

/// A valid HELLO of a port with one queue pair and rings of at most 1 MiB.
pub fn hello(id: &str, last_byte: u8) -> Vec<u8> {
    hello_with(id, last_byte, &[])
}

/// The same with further fields.
pub fn hello_with(id: &str, last_byte: u8, fields: &[u8]) -> Vec<u8> {
    let mut bytes = header(HELLO, 48 + 4 + id.len() + fields.len());
    bytes.extend(2u16.to_le_bytes()); // lowest version
    bytes.extend(2u16.to_le_bytes()); // highest version
    bytes.extend(2u16.to_le_bytes()); // region format
    bytes.extend(1u16.to_le_bytes()); // queue pairs
    bytes.extend(0x1234u64.to_le_bytes()); // incarnation
    bytes.extend((1u32 << 20).to_le_bytes()); // largest ring
    bytes.extend(0u16.to_le_bytes()); // flags to be understood
    bytes.extend(0u16.to_le_bytes()); // flags that may be ignored
    bytes.extend(std::process::id().to_le_bytes());
    bytes.extend(1500u16.to_le_bytes()); // MTU
    bytes.extend([0x52, 0x54, 0xff, 0xff, 0xff, last_byte]);
    bytes.extend(48u16.to_le_bytes()); // where the fields begin
    bytes.extend(0u16.to_le_bytes()); // reserved
    bytes.extend(fields);
    bytes.extend(field(0x8001, id.as_bytes()));
    bytes
}

/// A field of HELLO.
pub fn field(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(value);
    bytes
}

/// For the arguments of a script.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The HELLO of version 1.
pub fn hello_of_version_1(id: &str, last_byte: u8) -> Vec<u8> {
    let mut bytes = header(HELLO, 128);
    bytes.extend([1, 0, 1, 0, 1, 0, 1, 0]); // versions, region format, queue pairs
    bytes.extend(0x1234u64.to_le_bytes());
    bytes.extend((1u32 << 20).to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(std::process::id().to_le_bytes());
    bytes.extend(1500u16.to_le_bytes());
    bytes.extend([0x52, 0x54, 0xff, 0xff, 0xff, last_byte]);
    bytes.extend(id.as_bytes());
    bytes.resize(128, 0);
    bytes
}

pub fn link(queue: u16, capacity: u32, number: u64) -> Vec<u8> {
    let mut bytes = header(LINK, 24);
    bytes.extend(queue.to_le_bytes());
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(capacity.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes
}

pub fn accept(number: u64) -> Vec<u8> {
    let mut bytes = header(ACCEPT, 16);
    bytes.extend(number.to_le_bytes());
    bytes
}

pub fn done(number: u64, status: u16) -> Vec<u8> {
    let mut bytes = header(DONE, 24);
    bytes.extend(number.to_le_bytes());
    bytes.extend(status.to_le_bytes());
    bytes.resize(24, 0);
    bytes
}

pub fn frame(record: &[u8]) -> Vec<u8> {
    let mut bytes = header(FRAME, 8 + record.len());
    bytes.extend(record);
    bytes
}

pub fn try_send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}

pub fn send(socket: &OwnedFd, bytes: &[u8]) {
    assert_eq!(try_send(socket, bytes, &[]).unwrap(), bytes.len());
}

/// The next packet, or `None` when the other side has closed. Descriptors are dropped.
pub fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    assert!(readable(socket.as_fd(), PATIENCE), "nothing came");
    try_receive(socket).unwrap()
}

/// As [`receive`], but `Err(())` when there is nothing now.
pub fn try_receive(socket: &OwnedFd) -> Result<Option<Vec<u8>>, ()> {
    let mut bytes = [0; 32 << 10];
    loop {
        match rustix::net::recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(None),
            Ok((len, _)) => return Ok(Some(bytes[..len].to_vec())),
            // Told once, ahead of what the other side had sent.
            Err(Errno::CONNRESET) => {}
            Err(Errno::AGAIN) => return Err(()),
            Err(e) => panic!("{e}"),
        }
    }
}

/// Runs the segment until the other side has closed this connection; its REFUSE, if it sent one.
pub fn until_closed(net: &mut Net, socket: &OwnedFd) -> Option<Refusal> {
    let mut refusal = None;
    net.until("a connection to be closed", |_| {
        loop {
            match try_receive(socket) {
                Ok(None) => return true,
                Ok(Some(packet)) if packet[4] == REFUSE as u8 => {
                    refusal = Some(Refusal::parse(&packet));
                }
                Ok(Some(_)) => {}
                Err(()) => return false,
            }
        }
    });
    refusal
}

#[derive(Debug)]
pub struct Refusal {
    pub versions: [u16; 2],
    pub seen: [u16; 2],
    pub reason: u16,
    pub text: String,
}

impl Refusal {
    pub fn parse(packet: &[u8]) -> Refusal {
        assert_eq!(
            (packet.len(), &packet[..8]),
            (192, header(REFUSE, 192).as_slice())
        );
        let word = |at: usize| u16::from_le_bytes([packet[at], packet[at + 1]]);
        let text = &packet[20..20 + usize::from(word(18))];
        Refusal {
            versions: [word(8), word(10)],
            seen: [word(12), word(14)],
            reason: word(16),
            text: String::from_utf8(text.to_vec()).unwrap(),
        }
    }
}
