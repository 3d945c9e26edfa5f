//! What the next process has to know of a frontend's session, in a file in memory that outlives
//! this one.
//!
//! Who supervises the port keeps the file with the connection (see [`crate::kept`]). It is written
//! before a request is read and before it is answered: so it tells, however the process ends, what
//! the frontend believes. (Only a process that is killed between that and the system call that
//! sends the answer leaves a frontend behind that waits for it.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

/// Says what the file is, and its layout.
const MAGIC: &[u8; 12] = b"vi-session-1";
/// Where it says whether a request is being served, as one byte after the magic.
const BUSY: u64 = MAGIC.len() as u64;
/// Bytes of the whole: magic, busy, protocol features, queues set up, queues enabled.
const SIZE: usize = MAGIC.len() + 1 + 8 + 16 + 16;

/// What a frontend has negotiated and set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionRecord {
    /// Protocol features.
    pub protocol: u64,
    /// Queues that it has set up and not stopped, a bit each.
    pub set_up: u128,
    /// Queues that it has enabled, a bit each.
    pub enabled: u128,
}

/// The file.
#[derive(Debug)]
pub struct RecordFile(File);

impl RecordFile {
    /// The record of a session that begins.
    ///
    /// # Errors
    ///
    /// When there is no descriptor or memory for it.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("session", MemfdFlags::CLOEXEC)?);
        let record = Self(file);
        record.write(&SessionRecord::default())?;
        Ok(record)
    }

    /// A former process's.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd.into())
    }

    /// Notes that a request is about to be read and not answered yet.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory.
    pub fn begin(&self) -> io::Result<()> {
        self.0.write_all_at(&[1], BUSY)
    }

    /// Notes the session as it is when all requests that were read have been answered.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory.
    pub fn write(&self, record: &SessionRecord) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.extend_from_slice(MAGIC);
        bytes.push(0);
        bytes.extend(record.protocol.to_ne_bytes());
        bytes.extend(record.set_up.to_ne_bytes());
        bytes.extend(record.enabled.to_ne_bytes());
        // One call, which a kill does not cut short within a page.
        self.0.write_all_at(&bytes, 0)
    }

    /// What the former process noted last. None: it died while it served a request, or is of
    /// another version.
    pub fn read(&self) -> Option<SessionRecord> {
        let mut bytes = [0; SIZE];
        self.0.read_exact_at(&mut bytes, 0).ok()?;
        let (magic, rest) = bytes.split_first_chunk::<{ MAGIC.len() }>()?;
        let (busy, rest) = rest.split_first()?;
        let (protocol, rest) = rest.split_first_chunk()?;
        let (set_up, rest) = rest.split_first_chunk()?;
        let (enabled, _) = rest.split_first_chunk()?;
        (magic == MAGIC && *busy == 0).then(|| SessionRecord {
            protocol: u64::from_ne_bytes(*protocol),
            set_up: u128::from_ne_bytes(*set_up),
            enabled: u128::from_ne_bytes(*enabled),
        })
    }
}

impl AsFd for RecordFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_record_outlives_its_writer_unless_that_was_busy() {
        let file = RecordFile::new().unwrap();
        let kept = RecordFile::from_fd(file.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(kept.read(), Some(SessionRecord::default()));
        let record = SessionRecord {
            protocol: 9,
            set_up: 1 << 127 | 3,
            enabled: 2,
        };
        file.begin().unwrap();
        assert_eq!(kept.read(), None);
        file.write(&record).unwrap();
        drop(file);
        assert_eq!(kept.read(), Some(record));
        kept.0.set_len(5).unwrap();
        assert_eq!(kept.read(), None);
    }
}
