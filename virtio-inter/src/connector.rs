//! Connects to a VMM that listens (`--client`): again and again until it does, and again after it
//! has ended. See decision 0097.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::Level;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket, socket_with,
};
use virtio_inter_common::{LogLimit, log_limited};

use crate::timer::Timer;

/// Pause before the second attempt, and after a connection has ended; it doubles with each attempt
/// that fails.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// Longest pause between two attempts: a VMM whose start waits for the port waits as long.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// Limits the log lines about attempts: a path may be there and not there by turns.
static ATTEMPTS: LogLimit = LogLimit::new(Duration::from_secs(60), 10);

/// The socket of a VMM, and the next attempt to connect to it.
#[derive(Debug)]
pub struct Connector {
    path: PathBuf,
    timer: Timer,
    /// Before the attempt that follows the next one.
    delay: Duration,
    /// Why the last attempt failed. `None`: it succeeded, or there was none yet.
    error: Option<io::Error>,
}

impl Connector {
    /// The first attempt is due at once.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub fn new(path: &Path) -> io::Result<Self> {
        let mut timer = Timer::new()?;
        // Zero would disarm it.
        timer.set(Duration::from_nanos(1))?;
        Ok(Self {
            path: path.to_owned(),
            timer,
            delay: MIN_DELAY,
            error: None,
        })
    }

    /// The VMM's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why the last attempt failed, if it did.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    /// Tries to connect, without waiting. If that fails, sets the timer for the next attempt.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn connect(&mut self) -> io::Result<Option<UnixStream>> {
        self.timer.clear();
        match connect(&self.path) {
            Ok(stream) => {
                self.error = None;
                Ok(Some(stream))
            }
            Err(error) => {
                // One line for each cause: a VMM that is not started may be away for days.
                if self.error.as_ref().map(io::Error::kind) != Some(error.kind()) {
                    log_limited!(
                        ATTEMPTS,
                        Level::Info,
                        "No VMM listens on {} yet, and the port tries again each {} s: {error}",
                        self.path.display(),
                        MAX_DELAY.as_secs()
                    );
                }
                self.error = Some(error);
                self.retry()?;
                Ok(None)
            }
        }
    }

    /// Sets the timer for the next attempt, after a connection has ended. If the VMM made use of
    /// the connection, it is expected back soon.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn reconnect(&mut self, was_used: bool) -> io::Result<()> {
        if was_used {
            self.delay = MIN_DELAY;
        }
        self.retry()
    }

    fn retry(&mut self) -> io::Result<()> {
        self.timer.clear();
        self.timer.set(self.delay)?;
        self.delay = (self.delay * 2).min(MAX_DELAY);
        Ok(())
    }
}

impl AsFd for Connector {
    /// Readable when an attempt is due.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Connects to a socket. One whose queue of connections is full is an error (`EAGAIN`).
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_socket(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn connector_pauses_longer_up_to_a_limit_and_shortly_after_a_used_connection() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("s");
        let mut connector = Connector::new(&path).unwrap();
        for delay in [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
            assert_eq!(connector.delay, delay);
            assert!(connector.connect().unwrap().is_none());
            assert!(connector.timer.is_set());
        }
        let kind = |connector: &Connector| connector.error().map(io::Error::kind);
        assert_eq!(kind(&connector), Some(io::ErrorKind::NotFound));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(connector.connect().unwrap().is_some());
        assert!(connector.error().is_none() && !connector.timer.is_set());
        // A VMM that only accepts and hangs up is not asked more often than one that is away.
        connector.reconnect(false).unwrap();
        assert_eq!(connector.delay, MAX_DELAY);
        connector.reconnect(true).unwrap();
        assert_eq!(connector.delay, 2 * MIN_DELAY);
        drop(listener);
        assert!(connector.connect().unwrap().is_none());
        assert_eq!(kind(&connector), Some(io::ErrorKind::ConnectionRefused));
    }
}
