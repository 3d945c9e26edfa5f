//! The state of a session that the next process needs, in a memfd that outlives this process.
//!
//! The supervisor stores the file with the connection (see [`crate::fd_store`]). The port writes it
//! before it reads a request and before it replies, so the file holds what the frontend knows,
//! however the process ends. (Only if the process is killed between that write and the system call
//! that sends the reply, the frontend waits for a reply in vain.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

/// Identifies the file and its layout.
const MAGIC: &[u8; 12] = b"vi-session-1";
/// Offset of the byte that is 1 while a request is being handled.
const BUSY: u64 = MAGIC.len() as u64;
/// Size of the file in bytes: magic, busy, protocol features, queues set up, queues enabled.
const SIZE: usize = MAGIC.len() + 1 + 8 + 16 + 16;

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
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.extend_from_slice(MAGIC);
        bytes.push(0);
        bytes.extend(state.protocol.to_ne_bytes());
        bytes.extend(state.set_up.to_ne_bytes());
        bytes.extend(state.enabled.to_ne_bytes());
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

impl AsFd for StateFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
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
}
