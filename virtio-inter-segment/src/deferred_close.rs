//! Closes what may take long to close, on threads of its own.
//!
//! A peer can send any descriptor, and some wait when their last reference goes: a TCP socket with
//! `SO_LINGER`, a file on a file system that the peer itself serves. The same holds for a
//! connection in whose queue such a descriptor lies unread. Whoever closes them waits as long as
//! the peer likes.
//!
//! So each user's descriptors are closed by a thread of its own, one after the other, which exists
//! only while there are any. A peer that blocks its closer thread blocks only its own user's.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::net::Shutdown;
use rustix::process::Resource;
use virtio_inter_common::thread_role::{self, Role};

use crate::socket;

/// Descriptors of one user that may wait to be closed before nothing more is taken from it.
const MAX_PER_USER: usize = 256;
/// Packets that are looked at before a socket is closed. A default send buffer holds fewer.
const MAX_QUEUED: usize = 512;
/// Users at a time whose descriptors are closed: that many threads.
const MAX_USERS: usize = 64;

/// Who has sent a descriptor, as the kernel says; `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) uid: Option<u32>,
    pub(crate) pid: Option<u32>,
}

/// A handle of the queues. They live on until all is closed.
#[derive(Clone, Debug)]
pub(crate) struct Closer {
    queues: Arc<Mutex<Queues>>,
    per_user: usize,
    total: usize,
}

#[derive(Debug, Default)]
struct Queues {
    users: BTreeMap<Option<u32>, User>,
    /// Descriptors of all users, those being closed included.
    total: usize,
    threads: usize,
}

#[derive(Debug, Default)]
struct User {
    waiting: VecDeque<(OwnedFd, Owner)>,
    /// Whether a thread closes them, or is about to.
    has_thread: bool,
    /// Who has sent the one that a thread is closing, if a thread is at it.
    closing: Option<Owner>,
}

impl Queues {
    /// The next descriptor of a user, to be closed.
    fn take(&mut self, uid: Option<u32>) -> Option<(OwnedFd, Owner)> {
        let user = self.users.get_mut(&uid)?;
        let next = user.waiting.pop_front();
        user.closing = next.as_ref().map(|(_, owner)| *owner);
        next
    }
}

impl User {
    fn count(&self) -> usize {
        self.waiting.len() + usize::from(self.closing.is_some())
    }
}

/// Why nothing should be taken from a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overload {
    count: usize,
    owner: Owner,
    /// Who has sent the one that does not close.
    culprit: Option<Owner>,
}

impl fmt::Display for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} descriptors", self.count)?;
        if let Some(uid) = self.owner.uid {
            write!(f, " of user {uid}")?;
        }
        write!(f, " wait to be closed")?;
        match self.culprit.and_then(|culprit| culprit.pid) {
            Some(pid) => write!(f, ", behind one of process {pid}"),
            None => Ok(()),
        }
    }
}

impl Closer {
    /// With bounds that follow from the descriptors that this process may have.
    pub(crate) fn new() -> Closer {
        // Links take up to three quarters of them: half of what is left.
        let nofile = rustix::process::getrlimit(Resource::Nofile).current;
        let total = nofile.map_or(usize::MAX, |limit| {
            usize::try_from(limit / 8).unwrap_or(usize::MAX)
        });
        Closer {
            queues: Arc::default(),
            // Never so much that one user takes what is there for all.
            per_user: MAX_PER_USER.min(total / 2),
            total,
        }
    }

    /// Closes a descriptor some time soon. Does not wait.
    pub(crate) fn close(&self, fd: OwnedFd, owner: Owner) {
        let mut guard = lock(&self.queues);
        let queues = &mut *guard;
        queues.total += 1;
        let user = queues.users.entry(owner.uid).or_default();
        user.waiting.push_back((fd, owner));
        if user.has_thread || queues.threads == MAX_USERS {
            return;
        }
        let shared = Arc::clone(&self.queues);
        let spawned = thread::Builder::new()
            .name("segment-closer".to_owned())
            .spawn(move || {
                thread_role::enter(Role::Helper);
                work(&shared, owner.uid);
            });
        match spawned {
            Ok(_) => {
                user.has_thread = true;
                queues.threads += 1;
            }
            // It stays, and counts; the next one to come tries again.
            Err(e) => log::debug!("Failed to start a thread that closes descriptors: {e}"),
        }
    }

    /// Whether so many of this user wait to be closed that no more should be taken from it.
    pub(crate) fn overload(&self, owner: Owner) -> Option<Overload> {
        let queues = lock(&self.queues);
        let user = queues.users.get(&owner.uid)?;
        (user.count() > self.per_user).then(|| Overload {
            count: user.count(),
            owner,
            culprit: user.closing,
        })
    }

    /// Whether so many of all users wait that no connection can be taken: whose it is shows only
    /// then, and to drop it means to close what lies in its queue.
    pub(crate) fn is_full(&self) -> bool {
        lock(&self.queues).total > self.total
    }
}

fn lock(queues: &Mutex<Queues>) -> MutexGuard<'_, Queues> {
    // The numbers are right between any two statements that could panic.
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes one descriptor after the other of a user, then of others that have no thread, until there
/// is none.
fn work(shared: &Mutex<Queues>, mut uid: Option<u32>) {
    let mut queues = lock(shared);
    loop {
        while let Some((fd, owner)) = queues.take(uid) {
            drop(queues);
            drop((fd, owner));
            queues = lock(shared);
            queues.total -= 1;
        }
        queues.users.remove(&uid);
        let Some((next, user)) = queues.users.iter_mut().find(|(_, user)| !user.has_thread) else {
            break;
        };
        user.has_thread = true;
        uid = *next;
    }
    queues.threads -= 1;
}

/// A descriptor that is closed by a thread, unless it can be seen to be harmless.
#[derive(Debug)]
pub(crate) struct DeferredFd {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    owner: Owner,
    closer: Closer,
}

impl DeferredFd {
    /// Takes charge of a Unix socket with the other end of which this owner has to do.
    pub(crate) fn new(fd: OwnedFd, owner: Owner, closer: &Closer) -> DeferredFd {
        DeferredFd {
            fd: Some(fd),
            owner,
            closer: closer.clone(),
        }
    }
}

impl AsFd for DeferredFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
            .as_ref()
            .expect("the descriptor is there until it is dropped")
            .as_fd()
    }
}

impl DeferredFd {
    /// Closes the socket. Looks at so many packets in its queue at most; a thread closes one with
    /// more. Returns their number.
    pub(crate) fn close(mut self, most: usize) -> usize {
        self.close_now(most)
    }

    fn close_now(&mut self, most: usize) -> usize {
        let Some(fd) = self.fd.take() else {
            return 0;
        };
        // The peer is to learn of it now, whenever it comes to be closed; and from here on its
        // queue cannot fill any more.
        let _ = rustix::net::shutdown(&fd, Shutdown::Both);
        let drained = socket::drain(fd.as_fd(), most);
        if !drained.is_empty {
            self.closer.close(fd, self.owner);
        }
        drained.packets
    }
}

impl Drop for DeferredFd {
    fn drop(&mut self) {
        self.close_now(MAX_QUEUED);
    }
}

#[cfg(test)]
#[path = "deferred_close_tests.rs"]
mod tests;
