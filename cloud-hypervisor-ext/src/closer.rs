//! Closes descriptors that a port has sent, on a thread of their own.
//!
//! Some descriptors wait when they are closed, for as long as their sender likes: a TCP socket with
//! `SO_LINGER`, a file on a file system that the sender itself serves. The same holds for a socket
//! in whose queue such a descriptor lies unread. The launcher has one thread for all its ports, which
//! must not wait for one of them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Descriptors of one port that may wait before nothing more is taken from it.
const MAX_WAITING: usize = 64;

/// Closes one port's descriptors, in the order in which they come. Its thread is there only while
/// there are any.
#[derive(Clone, Debug, Default)]
pub struct Closer(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<OwnedFd>,
    has_thread: bool,
}

impl Closer {
    /// Whether so many wait that no more should be taken.
    pub fn is_full(&self) -> bool {
        self.lock().waiting.len() > MAX_WAITING
    }

    /// Closes a descriptor some time soon. Does not wait.
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
            // It stays, and counts; the next one to come tries again.
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
        // Whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A descriptor that a [`Closer`] closes.
#[derive(Debug)]
pub struct Deferred {
    /// None only while it is dropped.
    fd: Option<OwnedFd>,
    closer: Closer,
}

impl Deferred {
    /// Takes charge of a descriptor.
    pub fn new(fd: impl Into<OwnedFd>, closer: &Closer) -> Self {
        Self {
            fd: Some(fd.into()),
            closer: closer.clone(),
        }
    }
}

impl AsFd for Deferred {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let fd = self.fd.as_ref();
        fd.expect("the descriptor is there until it is dropped")
            .as_fd()
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.closer.close(fd);
        }
    }
}
