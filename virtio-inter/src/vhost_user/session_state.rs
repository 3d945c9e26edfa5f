//! The state of a session that the next process needs, in a memfd that outlives this process.
//!
//! The supervisor stores the file with the connection (see [`crate::fd_store`]). The port writes it
//! before it reads a request and before it replies, so the file holds what the frontend knows,
//! however the process ends.
//!
//! The reply is sent out of the file, by sendfile(2). That moves the file's position, which all
//! processes with the file share, in the system call that sends: so the next process knows exactly
//! whether this one was killed before or after it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::io::Errno;

/// Identifies the file and its layout.
const MAGIC: &[u8; 12] = b"vi-session-2";
/// Offset of the byte that is 1 while a request is being handled.
const BUSY: u64 = MAGIC.len() as u64;
/// Size of the state in bytes: magic, busy, protocol features, queues set up, queues enabled, and
/// the length of the reply.
const SIZE: usize = MAGIC.len() + 1 + 8 + 16 + 16 + 8;
/// Offset of the reply, behind the state.
const REPLY: u64 = 128;

/// The features that a frontend has negotiated, and the queues that it has set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionState {
    /// Protocol features.
    pub protocol: u64,
    /// Queues that it has set up and not stopped, a bit each.
    pub set_up: u128,
    /// Queues that it has enabled, a bit each.
    pub enabled: u128,
}

/// The file that holds a [`SessionState`].
#[derive(Debug)]
pub struct StateFile(File);

impl StateFile {
    /// A file with the state of a new session.
    ///
    /// # Errors
    ///
    /// When there is no descriptor or memory for it.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("session", MemfdFlags::CLOEXEC)?);
        let file = Self(file);
        file.write(&SessionState::default())?;
        Ok(file)
    }

    /// The file of a former process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd.into())
    }

    /// Marks the state: a request is about to be read.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory.
    pub fn begin(&self) -> io::Result<()> {
        self.0.write_all_at(&[1], BUSY)
    }

    /// Saves the state. All requests that were read have been answered.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory.
    pub fn write(&self, state: &SessionState) -> io::Result<()> {
        self.write_state(state, 0)
    }

    /// Saves the state after a request, and the reply to it, which [`StateFile::send_reply`] sends.
    ///
    /// The kernel does not copy what it sends, so the frontend must have read the reply before.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory.
    pub fn write_with_reply(&self, state: &SessionState, reply: &[u8]) -> io::Result<()> {
        self.0.write_all_at(reply, REPLY)?;
        (&self.0).seek(SeekFrom::Start(REPLY))?;
        self.write_state(state, reply.len() as u64)
    }

    fn write_state(&self, state: &SessionState, reply: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.extend_from_slice(MAGIC);
        bytes.push(0);
        bytes.extend(state.protocol.to_ne_bytes());
        bytes.extend(state.set_up.to_ne_bytes());
        bytes.extend(state.enabled.to_ne_bytes());
        bytes.extend(reply.to_ne_bytes());
        // One system call: a signal that kills the process does not cut it short within a page.
        self.0.write_all_at(&bytes, 0)
    }

    /// The state that the former process saved last. `None` if it died while it handled a request,
    /// or is of another version.
    pub fn read(&self) -> Option<SessionState> {
        let mut bytes = [0; SIZE];
        self.0.read_exact_at(&mut bytes, 0).ok()?;
        let (magic, rest) = bytes.split_first_chunk::<{ MAGIC.len() }>()?;
        let (busy, rest) = rest.split_first()?;
        let (protocol, rest) = rest.split_first_chunk()?;
        let (set_up, rest) = rest.split_first_chunk()?;
        let (enabled, _) = rest.split_first_chunk()?;
        (magic == MAGIC && *busy == 0).then(|| SessionState {
            protocol: u64::from_ne_bytes(*protocol),
            set_up: u128::from_ne_bytes(*set_up),
            enabled: u128::from_ne_bytes(*enabled),
        })
    }
}

impl StateFile {
    /// How many bytes of the reply were not sent.
    ///
    /// # Errors
    ///
    /// When the file is none of a port.
    pub fn unsent(&self) -> io::Result<usize> {
        let mut length = [0; 8];
        self.0.read_exact_at(&mut length, (SIZE - 8) as u64)?;
        let end = match u64::from_ne_bytes(length) {
            0 => return Ok(0),
            length => REPLY.saturating_add(length),
        };
        let unsent = end.saturating_sub((&self.0).stream_position()?);
        Ok(usize::try_from(unsent).unwrap_or(usize::MAX))
    }

    /// Sends what was not sent of the reply. False: the socket takes no more of it now.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn send_reply(&self, socket: impl AsFd) -> io::Result<bool> {
        loop {
            let unsent = self.unsent()?;
            if unsent == 0 {
                return Ok(true);
            }
            match sendfile(&socket, &self.0, None, unsent) {
                Ok(1..) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for StateFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn session_state_outlives_its_writer_unless_that_was_busy() {
        let file = StateFile::new().unwrap();
        let kept = StateFile::from_fd(file.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(kept.read(), Some(SessionState::default()));
        let state = SessionState {
            protocol: 9,
            set_up: 1 << 127 | 3,
            enabled: 2,
        };
        file.begin().unwrap();
        assert_eq!(kept.read(), None);
        file.write(&state).unwrap();
        drop(file);
        assert_eq!(kept.read(), Some(state));
        kept.0.set_len(5).unwrap();
        assert_eq!(kept.read(), None);
    }

    #[test]
    fn session_state_tells_how_much_of_a_reply_was_sent() {
        let file = StateFile::new().unwrap();
        let kept = StateFile::from_fd(file.as_fd().try_clone_to_owned().unwrap());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut read = || {
            let mut text = String::new();
            let _ = theirs.read_to_string(&mut text);
            text
        };
        assert_eq!(kept.unsent().unwrap(), 0);
        let state = SessionState {
            enabled: 1,
            ..SessionState::default()
        };
        file.begin().unwrap();
        file.write_with_reply(&state, b"reply").unwrap();
        assert_eq!((kept.read(), kept.unsent().unwrap()), (Some(state), 5));
        assert!(kept.send_reply(&ours).unwrap());
        assert_eq!((kept.unsent().unwrap(), read().as_str()), (0, "reply"));
        // Once only, and not what was sent already.
        assert!(file.send_reply(&ours).unwrap());
        file.write_with_reply(&state, b"again").unwrap();
        rustix::fs::sendfile(&ours, &file, None, 2).unwrap();
        assert_eq!(kept.unsent().unwrap(), 3);
        assert!(kept.send_reply(&ours).unwrap());
        assert_eq!(read(), "again");
        // Nor where there is no room.
        file.write_with_reply(&state, b"later").unwrap();
        while rustix::net::send(&ours, &[0; 4096], rustix::net::SendFlags::empty()).is_ok() {}
        assert!(!file.send_reply(&ours).unwrap());
        assert_eq!(kept.unsent().unwrap(), 5);
        file.write(&state).unwrap();
        assert_eq!(kept.unsent().unwrap(), 0);
    }
}
