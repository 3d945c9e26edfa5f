//! The host at the other side of a tap device: a network namespace of the test's thread, and a
//! packet socket on the device.
#![allow(unsafe_code, reason = "packet sockets have no safe wrapper")]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

use crate::driver::{PATIENCE, Packet, wait_readable};

/// Bytes of the header before each frame of the socket: all but `num_buffers`.
const HEADER: usize = 10;

/// Moves the calling thread into a network namespace of its own. False: that is not allowed here.
pub(crate) fn enter() -> bool {
    // SAFETY: changes which namespace this thread's further system calls see, no memory.
    unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 }
}

/// Runs `ip` in the thread's namespace.
#[track_caller]
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// Makes a tap device that is down. It is to be set up when its queues are attached: until then it
/// has no carrier, and what is sent in the moment after it gets one is lost.
#[track_caller]
pub(crate) fn make_tap(name: &str, options: &str) {
    ip(format!("tuntap add dev {name} mode tap {options}").trim_end());
}

/// Sets a device up, without any chatter of the kernel's own.
#[track_caller]
pub(crate) fn set_up(name: &str) {
    // Where it cannot be turned off, `receive` passes over it.
    let setting = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    let _ = std::fs::write(setting, "1");
    ip(&format!("link set {name} mtu 65521 up"));
}

/// A socket that sends out of a device, to its reader, and hears what its writer says.
pub(crate) struct Host {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Host {
    /// On the device of this name.
    pub(crate) fn new(name: &str) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: makes a descriptor, no memory is involved.
        let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let yes = 1;
        // SAFETY: the option is an int on this frame's stack, and its length is said.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const yes).cast(),
                size_of::<i32>() as u32,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: `sockaddr_ll` is numbers and arrays of numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: the name ends with a zero.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        // SAFETY: the address is a whole `sockaddr_ll` on this frame's stack, and its length is
        // said.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Host {
            socket,
            buffer: vec![0; 1 << 17],
        }
    }

    /// Sends a frame with its header (without `num_buffers`) to the device's reader.
    pub(crate) fn send(&self, packet: &Packet) {
        let bytes = [&packet.header[..HEADER], &packet.frame].concat();
        // SAFETY: the bytes live until the call returns, and their length is said.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        let error = io::Error::last_os_error();
        assert_eq!(sent, bytes.len() as isize, "{error}");
    }

    /// The next frame that the device's writer sent, if there is one now.
    pub(crate) fn try_receive(&mut self) -> Option<Packet> {
        loop {
            // SAFETY: zero is a value of `sockaddr_ll`.
            let mut from: libc::sockaddr_ll = unsafe { zeroed() };
            let mut from_len = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: the buffer and the address live until the call returns, and their lengths are
            // said.
            let len = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            };
            let Ok(len) = usize::try_from(len) else {
                return None;
            };
            // What this socket sent itself.
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            let (header, frame) = self.buffer[..len].split_at(HEADER);
            return Some(Packet {
                header: std::array::from_fn(|i| header.get(i).copied().unwrap_or(0)),
                frame: frame.to_vec(),
            });
        }
    }

    /// The next frame that the device's writer sent, waiting for it.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> Packet {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            assert!(wait_readable(&self.socket, deadline), "No frame came");
        }
    }
}

impl AsFd for Host {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
