//! One packet in, one packet out: SOCK_SEQPACKET sockets that never block, with descriptors beside
//! the bytes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use thiserror::Error;

use crate::wire::{MAX_MESSAGE, RING_FDS};

/// Makes a socket of the segment's kind.
pub(crate) fn new() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Connects to a listening socket, or says at once why not: `EAGAIN` when its queue is full,
/// `ECONNREFUSED` when nobody listens any more.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Takes the next connection from the queue of a listening socket.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

/// Sends one packet whole, or fails; `WouldBlock` when the peer does not read.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RING_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    // A packet goes as a whole or not at all.
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(Errno::MSGSIZE)
    }
}

/// A packet, or the lack of one.
#[derive(Debug)]
pub(crate) enum Received {
    /// These bytes of the buffer, with these descriptors.
    Packet(usize, Vec<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// The other side has closed; nothing will come any more. An empty packet counts as that.
    Closed,
}

/// Why a packet is unusable, or could not be had.
#[derive(Debug, Error)]
pub(crate) enum ReceiveError {
    /// Longer than any message.
    #[error("Packet is longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// More descriptors than belong to the message, or no room for them in this process.
    #[error("Packet has descriptors that do not belong to it or do not fit in this process")]
    Descriptors,
    /// The socket failed.
    #[error("Failed to read from the connection")]
    Socket(#[source] io::Error),
}

/// Receives one packet. Descriptors are taken only if `take_fds`; otherwise the kernel drops those
/// that come, before they enter this process, and the packet is an error.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8; MAX_MESSAGE],
    take_fds: bool,
) -> Result<Received, ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RING_FDS))];
    let room = if take_fds {
        space.as_mut_slice()
    } else {
        &mut []
    };
    let mut control = RecvAncillaryBuffer::new(room);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut receive =
        || rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags);
    let result = match receive() {
        // A peer that closed without reading all of ours: told once, ahead of what it had sent. Its
        // last words are worth having.
        Err(Errno::CONNRESET) => receive(),
        result => result,
    };
    let message = match result {
        Ok(message) => message,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
        Err(Errno::CONNRESET) => return Ok(Received::Closed),
        Err(e) => return Err(ReceiveError::Socket(e.into())),
    };
    // Into owned descriptors first: whatever is wrong below, they get closed.
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ReceiveError::Descriptors);
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(ReceiveError::TooLong);
    }
    if message.bytes == 0 {
        return Ok(Received::Closed);
    }
    Ok(Received::Packet(message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::socketpair;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn open_fds() -> usize {
        std::fs::read_dir("/proc/thread-self/fd").unwrap().count()
    }

    #[test]
    fn packets_keep_their_bounds_and_descriptors() {
        let (a, b) = pair();
        let mut buffer = [0; MAX_MESSAGE];
        assert!(matches!(
            receive(b.as_fd(), &mut buffer, true),
            Ok(Received::Nothing)
        ));
        send(a.as_fd(), b"one", &[a.as_fd(), b.as_fd(), a.as_fd()]).unwrap();
        send(a.as_fd(), b"three", &[]).unwrap();
        match receive(b.as_fd(), &mut buffer, true).unwrap() {
            Received::Packet(3, fds) => assert_eq!((&buffer[..3], fds.len()), (&b"one"[..], 3)),
            other => panic!("{other:?}"),
        }
        match receive(b.as_fd(), &mut buffer, false).unwrap() {
            Received::Packet(5, fds) => assert!(fds.is_empty()),
            other => panic!("{other:?}"),
        }
        drop(a);
        assert!(matches!(
            receive(b.as_fd(), &mut buffer, true),
            Ok(Received::Closed)
        ));
    }

    #[test]
    fn odd_packets_are_errors() {
        let (a, b) = pair();
        let mut buffer = [0; MAX_MESSAGE];
        rustix::net::send(&a, &[7; MAX_MESSAGE + 1], SendFlags::empty()).unwrap();
        let result = receive(b.as_fd(), &mut buffer, true);
        assert!(matches!(result, Err(ReceiveError::TooLong)), "{result:?}");
        send(a.as_fd(), b"x", &[a.as_fd()]).unwrap();
        let result = receive(b.as_fd(), &mut buffer, false);
        assert!(
            matches!(result, Err(ReceiveError::Descriptors)),
            "{result:?}"
        );
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_are_heard() {
        let (a, b) = pair();
        let mut buffer = [0; MAX_MESSAGE];
        send(b.as_fd(), b"never read", &[]).unwrap();
        send(a.as_fd(), b"bye", &[]).unwrap();
        drop(a);
        let result = receive(b.as_fd(), &mut buffer, false).unwrap();
        assert!(matches!(result, Received::Packet(3, _)), "{result:?}");
        assert_eq!(&buffer[..3], b"bye");
        assert!(matches!(
            receive(b.as_fd(), &mut buffer, false),
            Ok(Received::Closed)
        ));
    }

    #[test]
    fn refused_descriptors_do_not_stay_open() {
        let (a, b) = pair();
        let mut buffer = [0; MAX_MESSAGE];
        let mut leak = 0;
        for _ in 0..200 {
            let before = open_fds();
            for take in [false, true] {
                send(a.as_fd(), b"x", &[a.as_fd(), a.as_fd(), a.as_fd()]).unwrap();
                drop(receive(b.as_fd(), &mut buffer, take));
            }
            leak += open_fds().saturating_sub(before);
        }
        // Tests in other threads open files too; 200 rounds of ours would leak 600.
        assert!(leak < 300, "{leak}");
    }
}
