//! Closes descriptors that a port has sent, in a thread of their own.
//!
//! close(2) of some descriptors blocks for as long as their sender likes: a TCP socket with
//! `SO_LINGER`, a file on a file system that the sender itself serves. So does a socket with such a
//! descriptor in its queue, unread. The launcher has one thread for all its ports, which no port
//! may block.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Maximum number of waiting descriptors of one port before the launcher stops reading from it.
const MAX_WAITING: usize = 64;

/// Closes one port's descriptors in their order. Its thread exists only while there are some.
#[derive(Clone, Debug, Default)]
pub struct Closer(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<OwnedFd>,
    has_thread: bool,
}

impl Closer {
    /// Whether so many descriptors wait that no more should be received.
    pub fn is_full(&self) -> bool {
        self.lock().waiting.len() > MAX_WAITING
    }

    /// Has a descriptor closed. Non-blocking.
    pub fn close(&self, fd: OwnedFd) {
        let mut queue = self.lock();
        queue.waiting.push_back(fd);
        if queue.has_thread {
            return;
        }
        let closer = self.clone();
        let spawned = thread::Builder::new()
            .name("closer".to_owned())
            .spawn(move || closer.work());
        match spawned {
            Ok(_) => queue.has_thread = true,
            // The descriptor waits until the next call starts a thread.
            Err(error) => log::debug!("Cannot start a thread that closes descriptors: {error}"),
        }
    }

    fn work(&self) {
        loop {
            let mut queue = self.lock();
            let Some(fd) = queue.waiting.pop_front() else {
                queue.has_thread = false;
                return;
            };
            drop(queue);
            drop(fd);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is consistent between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A descriptor that a [`Closer`] closes when it is dropped.
#[derive(Debug)]
pub struct DeferredFd {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    closer: Closer,
}

impl DeferredFd {
    /// Takes ownership of a descriptor.
    pub fn new(fd: impl Into<OwnedFd>, closer: &Closer) -> Self {
        Self {
            fd: Some(fd.into()),
            closer: closer.clone(),
        }
    }
}

impl AsFd for DeferredFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let fd = self.fd.as_ref();
        fd.expect("the descriptor is there until it is dropped")
            .as_fd()
    }
}

impl Drop for DeferredFd {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.closer.close(fd);
        }
    }
}
