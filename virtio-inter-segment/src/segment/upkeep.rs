//! The state of the port's own files: whether they are missing, when to create them again, and how
//! their loss is noticed.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use virtio_inter_common::Backoff;

/// Has the kernel notify of files of a directory that are removed or renamed, until the descriptor
/// that it returns is closed.
pub type WatchDirectory = fn(BorrowedFd<'_>) -> io::Result<OwnedFd>;

/// What is known of the port's own files.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Why they are not there, if they are not.
    pub(super) lost: Option<String>,
    /// When to look after them again.
    pub(super) retry_at: Option<Instant>,
    pub(super) backoff: Backoff,
    /// When to check them, if nothing notifies of changes.
    pub(super) check_at: Option<Instant>,
    /// Makes the kernel notify of changes.
    pub(super) watch: Option<WatchDirectory>,
    /// The watches of the segment's directory and of the one around it, as far as there are some.
    pub(super) watches: Vec<OwnedFd>,
}

impl Upkeep {
    pub(super) fn new(check_at: Instant) -> Upkeep {
        Upkeep {
            lost: None,
            retry_at: None,
            backoff: Backoff::default(),
            check_at: Some(check_at),
            watch: None,
            watches: Vec::new(),
        }
    }
}
