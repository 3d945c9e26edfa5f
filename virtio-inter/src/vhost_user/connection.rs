//! Framing: reads whole vhost-user messages with their file descriptors, and sends replies.
//!
//! Nothing here blocks, and no input makes it hold more than one message: it reads the header
//! first, checks the size, then reads exactly that many bytes. So descriptors, which arrive with
//! the bytes that they were sent with, stay with their message.
#![allow(unsafe_code)] // One function asks the kernel how much the frontend has not read.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserHeaderFlag};

use super::error::MessageError;

/// Bytes of a header: request, flags and payload size, a native-endian u32 each.
const HEADER_SIZE: usize = 12;
/// The protocol version in the lowest two bits of the flags.
const VERSION: u32 = 1;

/// One message from the frontend.
#[derive(Debug)]
pub struct Message {
    /// The request's number (vhost-user specification, "Front-end message types").
    pub code: u32,
    /// The frontend asks for an acknowledgement; valid only after REPLY_ACK is negotiated.
    pub need_reply: bool,
    /// The payload, at most `MAX_MSG_SIZE` bytes.
    pub body: Vec<u8>,
    /// The descriptors that came with it, at most `MAX_ATTACHED_FD_ENTRIES`.
    pub fds: Vec<OwnedFd>,
}

/// The result of [`Connection::receive`].
#[derive(Debug)]
pub enum Received {
    /// A complete message.
    Message(Message),
    /// No complete message yet.
    Pending,
    /// The frontend has closed the connection.
    HungUp,
}

/// A frontend's connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    header: [u8; HEADER_SIZE],
    header_len: usize,
    body: Vec<u8>,
    body_len: usize,
    fds: Vec<OwnedFd>,
    outgoing: Vec<u8>,
}

impl Connection {
    /// A connection on an accepted socket.
    ///
    /// # Errors
    ///
    /// When it cannot be made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            header: [0; HEADER_SIZE],
            header_len: 0,
            body: Vec::new(),
            body_len: 0,
            fds: Vec::new(),
            outgoing: Vec::new(),
        })
    }

    /// Continues to read the current message.
    ///
    /// # Errors
    ///
    /// [`MessageError`] when the bytes are not a vhost-user request, or the socket fails. The
    /// connection cannot be used any longer then.
    pub fn receive(&mut self) -> Result<Received, MessageError> {
        while self.header_len < HEADER_SIZE {
            match receive_some(
                &self.socket,
                &mut self.header[self.header_len..],
                &mut self.fds,
            )? {
                Some(0) if self.header_len == 0 => return Ok(Received::HungUp),
                Some(0) => return Err(MessageError::CutOff),
                Some(count) => self.header_len += count,
                None => return Ok(Received::Pending),
            }
            if self.header_len == HEADER_SIZE {
                self.body = vec![0; self.check_header()?];
                self.body_len = 0;
            }
        }
        while self.body_len < self.body.len() {
            match receive_some(&self.socket, &mut self.body[self.body_len..], &mut self.fds)? {
                Some(0) => return Err(MessageError::CutOff),
                Some(count) => self.body_len += count,
                None => return Ok(Received::Pending),
            }
        }
        self.header_len = 0;
        Ok(Received::Message(Message {
            code: self.header_word(0),
            need_reply: self.header_word(1) & VhostUserHeaderFlag::NEED_REPLY.bits() != 0,
            body: std::mem::take(&mut self.body),
            fds: std::mem::take(&mut self.fds),
        }))
    }

    /// The size of the payload that a complete header announces.
    fn check_header(&self) -> Result<usize, MessageError> {
        let flags = self.header_word(1);
        if flags & VhostUserHeaderFlag::VERSION.bits() != VERSION
            || flags & VhostUserHeaderFlag::RESERVED_BITS.bits() != 0
            || flags & VhostUserHeaderFlag::REPLY.bits() != 0
        {
            return Err(MessageError::Flags(flags));
        }
        let size = self.header_word(2);
        usize::try_from(size)
            .ok()
            .filter(|size| *size <= MAX_MSG_SIZE)
            .ok_or(MessageError::TooLong {
                code: self.header_word(0),
                size,
            })
    }

    fn header_word(&self, index: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.header[4 * index..][..4]);
        u32::from_ne_bytes(word)
    }

    /// Queues a reply, as [`encode_reply`] makes it, and sends as much as the socket takes;
    /// [`Connection::flush`] sends the rest.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn reply(&mut self, reply: &[u8]) -> io::Result<()> {
        self.outgoing.extend_from_slice(reply);
        self.flush()
    }

    /// Whether the frontend has not read all replies yet.
    pub fn has_unread_replies(&self) -> bool {
        // SAFETY: SIOCOUTQ, which has the same number, writes one int and nothing else.
        let unread = unsafe {
            let request = Getter::<{ libc::TIOCOUTQ as Opcode }, libc::c_int>::new();
            ioctl(&self.socket, request)
        };
        self.is_sending() || !matches!(unread, Ok(0))
    }

    /// Sends the rest of the queued replies.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match send(
                &self.socket,
                &self.outgoing,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the frontend has closed the connection, even if unread messages are left.
    pub fn is_hung_up(&self) -> bool {
        self.polls(PollFlags::empty())
    }

    /// Whether there are unread bytes or an unread end of file.
    pub fn is_readable(&self) -> bool {
        self.polls(PollFlags::IN)
    }

    /// Whether one of these events is pending, or the hang-up.
    fn polls(&self, events: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.socket, events)];
        // An error of poll(2) is not one of the connection; that shows with the next message.
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// Whether no message was read in part.
    pub fn is_between_messages(&self) -> bool {
        self.header_len == 0
    }

    /// Shuts the connection down, even if another process holds a duplicate of the descriptor.
    pub fn shut_down(&self) {
        // Fails if the connection has ended already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Whether a reply waits until the frontend reads. No request is read meanwhile, so there is at
    /// most one.
    pub fn is_sending(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The message that is the reply to request `code`.
pub fn encode_reply(code: u32, payload: &[u8]) -> Vec<u8> {
    let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
    // The longest one is to GET_CONFIG, a few hundred bytes.
    let words = [code, flags, payload.len() as u32];
    let header = words.into_iter().flat_map(u32::to_ne_bytes);
    header.chain(payload.iter().copied()).collect()
}

/// One `recvmsg`: the number of bytes (0: end of file), or `None` when there are none now.
fn receive_some(
    socket: &UnixStream,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, MessageError> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            // A frontend that dies with unread replies resets the connection: an end like any
            // other.
            Err(rustix::io::Errno::CONNRESET) => return Ok(Some(0)),
            Err(error) => return Err(MessageError::Io(error.into())),
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_ATTACHED_FD_ENTRIES {
        return Err(MessageError::TooManyFds);
    }
    Ok(Some(received.bytes))
}
