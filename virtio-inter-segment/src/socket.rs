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

use crate::wire::{LINK_FDS, MAX_MESSAGE};

/// Most descriptors beside one packet; the kernel's bound.
const SCM_MAX_FD: usize = 253;

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
    send_pieces(socket, [bytes, &[]], fds)
}

/// The same for a packet in two pieces.
pub(crate) fn send_pieces(
    socket: BorrowedFd<'_>,
    pieces: [&[u8]; 2],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LINK_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::net::sendmsg(socket, &pieces.map(IoSlice::new), &mut control, flags)?;
    // A packet goes as a whole or not at all.
    if sent == pieces[0].len() + pieces[1].len() {
        Ok(())
    } else {
        Err(Errno::MSGSIZE)
    }
}

/// What was found in the queue of a socket that was shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Nothing is left: the socket can be closed without waiting for anybody, as nothing can get
    /// into the queue any more.
    pub(crate) is_empty: bool,
    /// Packets that were thrown away.
    pub(crate) packets: usize,
}

/// Throws away what is in the queue of a socket that was shut down, up to the first packet with
/// descriptors, since those may take long to close, and so many packets at most.
pub(crate) fn drain(socket: BorrowedFd<'_>, most: usize) -> Drained {
    let mut packets = 0;
    let is_empty = loop {
        match look(socket, RecvFlags::PEEK) {
            Ok((_, true)) | Err(Errno::AGAIN) => break false,
            Ok((0, false)) if is_at_end(socket) => break true,
            Ok(_) if packets == most => break false,
            Ok(_) => {
                // The one that was just looked at: nobody else reads.
                if look(socket, RecvFlags::empty()).is_err() {
                    break false;
                }
                packets += 1;
            }
            // Told once, ahead of what the peer had sent.
            Err(Errno::CONNRESET | Errno::INTR) => {}
            Err(_) => break false,
        }
    };
    Drained { is_empty, packets }
}

/// The first byte's presence, and whether something came beside the bytes. There is no room for
/// descriptors: of those that are only looked at, none is closed.
fn look(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<(usize, bool), Errno> {
    let mut byte = [0];
    let mut none = RecvAncillaryBuffer::default();
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut none,
        flags | RecvFlags::DONTWAIT,
    )?;
    let beside = message.flags.contains(ReturnFlags::CTRUNC);
    Ok((message.bytes, beside))
}

/// Tells the end of a queue from an empty packet: only a packet has a sender's credentials beside
/// it, once they are asked for.
fn is_at_end(socket: BorrowedFd<'_>) -> bool {
    let ask = |ask| rustix::net::sockopt::set_socket_passcred(socket, ask).is_ok();
    let end = ask(true) && matches!(look(socket, RecvFlags::PEEK), Ok((0, false)));
    ask(false) && end
}

/// A packet, or the lack of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes of the buffer. Descriptors were lost if there was no room for them in this
    /// process.
    Packet { len: usize, lost_fds: bool },
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
    /// The socket failed.
    #[error("Failed to read from the connection")]
    Socket(#[source] io::Error),
}

/// Receives one packet; its descriptors, however many, are added to `fds`, whether it is an error
/// or not. There is room for all that a packet can have: those for which there is none would be
/// closed by the kernel on this thread, and that can take long.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8; MAX_MESSAGE],
    fds: &mut Vec<OwnedFd>,
) -> Result<Received, ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
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
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.extend(rights.flatten());
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(ReceiveError::TooLong);
    }
    if message.bytes == 0 {
        return Ok(Received::Closed);
    }
    Ok(Received::Packet {
        len: message.bytes,
        lost_fds: message.flags.contains(ReturnFlags::CTRUNC),
    })
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

    /// A packet, and the number of its descriptors.
    fn take(socket: &OwnedFd) -> (Result<Vec<u8>, String>, usize) {
        let (mut buffer, mut fds) = ([0; MAX_MESSAGE], Vec::new());
        let received = match receive(socket.as_fd(), &mut buffer, &mut fds) {
            Ok(Received::Packet {
                len,
                lost_fds: false,
            }) => Ok(buffer[..len].to_vec()),
            other => Err(format!("{other:?}")),
        };
        (received, fds.len())
    }

    #[test]
    fn packets_keep_their_bounds_and_descriptors() {
        let (a, b) = pair();
        assert_eq!(take(&b), (Err("Ok(Nothing)".to_owned()), 0));
        send(a.as_fd(), b"one", &[a.as_fd(), b.as_fd(), a.as_fd()]).unwrap();
        send(a.as_fd(), b"three", &[]).unwrap();
        assert_eq!(take(&b), (Ok(b"one".to_vec()), 3));
        assert_eq!(take(&b), (Ok(b"three".to_vec()), 0));
        drop(a);
        assert_eq!(take(&b), (Err("Ok(Closed)".to_owned()), 0));
    }

    #[test]
    fn packets_that_are_odd_are_errors_and_their_descriptors_are_known() {
        let (a, b) = pair();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let many = [a.as_fd(); SCM_MAX_FD];
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let long = [7; MAX_MESSAGE + 1];
        let iov = [IoSlice::new(&long)];
        rustix::net::sendmsg(&a, &iov, &mut control, SendFlags::empty()).unwrap();
        assert_eq!(take(&b), (Err("Err(TooLong)".to_owned()), SCM_MAX_FD));
        // An empty packet looks like the end, and can have descriptors all the same.
        send(a.as_fd(), b"", &[a.as_fd()]).unwrap();
        assert_eq!(take(&b), (Err("Ok(Closed)".to_owned()), 1));
    }

    #[test]
    fn last_words_of_a_peer_that_did_not_listen_are_received() {
        let (a, b) = pair();
        send(b.as_fd(), b"never read", &[]).unwrap();
        send(a.as_fd(), b"bye", &[]).unwrap();
        drop(a);
        assert_eq!(take(&b), (Ok(b"bye".to_vec()), 0));
        assert_eq!(take(&b), (Err("Ok(Closed)".to_owned()), 0));
    }
}
