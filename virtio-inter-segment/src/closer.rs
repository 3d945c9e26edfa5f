//! Closes what may take long to close, on a thread of its own.
//!
//! A peer can send any descriptor, and some wait when their last reference goes: a TCP socket with
//! `SO_LINGER`, a file on a file system that the peer itself serves. The same holds for a connection
//! in whose queue such a descriptor lies unread. Whoever closes them waits as long as the peer likes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Descriptors that may wait to be closed before nothing new is begun that could add to them.
const MAX_WAITING: usize = 256;

/// A handle of the thread, which ends when the last handle is gone and all is closed.
#[derive(Clone, Debug)]
pub(crate) struct Closer {
    queue: mpsc::Sender<OwnedFd>,
    waiting: Arc<AtomicUsize>,
}

impl Closer {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Closer> {
        let (queue, work) = mpsc::channel::<OwnedFd>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&waiting);
        thread::Builder::new()
            .name("segment-closer".to_owned())
            .spawn(move || {
                for fd in work {
                    drop(fd);
                    // Relaxed: a number to judge by, it guards nothing.
                    done.fetch_sub(1, Ordering::Relaxed);
                }
            })?;
        Ok(Closer { queue, waiting })
    }

    /// Closes a descriptor some time soon. Does not wait.
    pub(crate) fn close(&self, fd: OwnedFd) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // The queue is not bounded, what is begun is: see `is_overloaded`. It fails only if the
        // thread has panicked, and then gives the descriptor back to be closed here.
        let _ = self.queue.send(fd);
    }

    /// Whether so many wait to be closed that no more should be taken from anybody.
    pub(crate) fn is_overloaded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > MAX_WAITING
    }
}

/// A descriptor that is closed by the thread.
#[derive(Debug)]
pub(crate) struct Deferred {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    closer: Closer,
}

impl Deferred {
    pub(crate) fn new(fd: OwnedFd, closer: &Closer) -> Deferred {
        Deferred {
            fd: Some(fd),
            closer: closer.clone(),
        }
    }
}

impl AsFd for Deferred {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
            .as_ref()
            .expect("the descriptor is there until it is dropped")
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn one_that_does_not_close_holds_up_only_others() {
        let closer = Closer::start().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (taker, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 65_536]).is_ok() {}
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::from_secs(60))).unwrap();
        // Lingering is for blocking sockets.
        stream.set_nonblocking(false).unwrap();

        let started = Instant::now();
        closer.close(stream.into());
        for _ in 0..=MAX_WAITING {
            drop(Deferred::new(
                std::fs::File::open("/dev/null").unwrap().into(),
                &closer,
            ));
        }
        assert!(closer.is_overloaded());
        assert!(started.elapsed() < Duration::from_secs(10));
        // The peer resets the connection.
        drop(taker);
        while closer.is_overloaded() {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "nothing gets closed"
            );
            thread::yield_now();
        }
    }
}
