//! The kernel's own segmentation and checksums: a frame is sent out of a tap device whose reader
//! takes only what it says that it takes, so the kernel does the rest in software. In a network
//! namespace of the calling thread.
#![allow(unsafe_code, reason = "network devices are set up by ioctl")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use crate::driver::{PATIENCE, Packet, wait_readable};

/// Bytes of `struct virtio_net_hdr`, which a tap has unless told otherwise: all but `num_buffers`.
const HEADER: usize = 10;
/// The largest that a tap can have.
const MTU: i32 = 65_521;
const NAME: &[u8] = b"tap0";

/// A tap device, its reader, and a socket that sends out of it.
pub(crate) struct Tap {
    reader: File,
    sender: OwnedFd,
    buffer: Vec<u8>,
}

impl Tap {
    /// Makes one. The calling thread is in a network namespace of its own from then on.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: changes which namespace this thread's further system calls see, no memory.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        let reader = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        ioctl(
            &reader,
            libc::TUNSETIFF,
            &mut request(|r| r.ifru_flags = flags as i16),
        )?;
        // No chatter of the kernel's own. Where it cannot be turned off, `receive` passes it over.
        let _ = fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1");

        // SAFETY: makes a descriptor, no memory is involved.
        let sender = check(unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)
        })?;
        // SAFETY: the descriptor was just made and is nobody else's.
        let sender = unsafe { OwnedFd::from_raw_fd(sender) };
        ioctl(
            &sender,
            libc::SIOCSIFMTU,
            &mut request(|r| r.ifru_mtu = MTU),
        )?;
        let up = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        ioctl(
            &sender,
            libc::SIOCSIFFLAGS,
            &mut request(|r| r.ifru_flags = up),
        )?;
        let mut index = request(|_| {});
        ioctl(&sender, libc::SIOCGIFINDEX, &mut index)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            // SAFETY: the kernel has just filled in this field of the union.
            sll_ifindex: unsafe { index.ifr_ifru.ifru_ifindex },
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is a whole `sockaddr_ll` on this frame's stack, and its length is
        // said.
        check(unsafe {
            libc::bind(
                sender.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        })?;
        let yes = 1;
        // SAFETY: the option is an int on this frame's stack, and its length is said.
        check(unsafe {
            libc::setsockopt(
                sender.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const yes).cast(),
                size_of::<i32>() as u32,
            )
        })?;
        Ok(Tap {
            reader,
            sender,
            buffer: vec![0; 1 << 17],
        })
    }

    /// Says what the reader takes: `TUN_F_…`.
    pub(crate) fn take(&self, offloads: u32) -> io::Result<()> {
        // SAFETY: this request's argument is a number, not a pointer.
        check(unsafe {
            libc::ioctl(
                self.reader.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            )
        })
        .map(drop)
    }

    /// Sends a frame with its header (without `num_buffers`).
    pub(crate) fn send(&self, packet: &Packet) -> io::Result<()> {
        let bytes = [&packet.header[..HEADER], &packet.frame].concat();
        // SAFETY: the bytes live until the call returns, and their length is said.
        let sent = unsafe {
            libc::send(
                self.sender.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        if sent == bytes.len() as isize {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Reads the next frame, with its header. None: there is none now.
    pub(crate) fn read(&mut self) -> Option<&[u8]> {
        match self.reader.read(&mut self.buffer) {
            Ok(len) => Some(&self.buffer[..len]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(e) => panic!("Cannot read from the tap: {e}"),
        }
    }

    /// The next frame that is as `wanted` says, if there is one now.
    pub(crate) fn try_receive(&mut self, wanted: impl Fn(&Packet) -> bool) -> Option<Packet> {
        while let Some(bytes) = self.read() {
            let (header, frame) = bytes.split_at(HEADER);
            let packet = Packet {
                header: std::array::from_fn(|i| header.get(i).copied().unwrap_or(0)),
                frame: frame.to_vec(),
            };
            if wanted(&packet) {
                return Some(packet);
            }
        }
        None
    }

    /// The next frame that is as `wanted` says, waiting for it.
    pub(crate) fn receive(&mut self, wanted: impl Fn(&Packet) -> bool) -> Option<Packet> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.try_receive(&wanted) {
                return Some(packet);
            }
            if !wait_readable(&self.reader, deadline) {
                return None;
            }
        }
    }
}

/// A request about the tap device, with one field set.
fn request(set: impl FnOnce(&mut libc::__c_anonymous_ifr_ifru)) -> libc::ifreq {
    // SAFETY: `ifreq` is numbers and arrays of numbers (and a pointer that is not used), for which
    // zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = *from as libc::c_char;
    }
    set(&mut request.ifr_ifru);
    request
}

fn ioctl(fd: &impl AsRawFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all requests made here take an `ifreq`, which is borrowed for the time of the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number, request) }).map(drop)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
