//! Listening sockets with lock files, which tell the socket of a running port from that of a dead
//! one.
//!
//! A port holds a lock (flock(2)) on `PATH.lock` as long as it lives: the kernel releases the lock
//! however the process ends. So a port takes over a socket whose lock is free. A socket of another
//! program has no lock; if that program accepts connections, the port leaves the socket alone, too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::{Level, debug, info, warn};
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, fchown, flock};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{Resource, getrlimit};
use thiserror::Error;
use virtio_inter_common::liveness::{Listening, listening, lock_holder_stays};
use virtio_inter_common::{LogLimit, log_limited};

use crate::socket_access::{Owner, SocketAccess};

/// How often a lock file may disappear between opening and locking it: each time another port has
/// just exited.
const LOCK_ATTEMPTS: usize = 8;

/// Maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Limits the log lines about restored files, which another program can remove again and again.
static RESTORED: LogLimit = LogLimit::new(std::time::Duration::from_secs(10), 5);

/// Why a port cannot use its socket's path.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another port uses it.
    #[error("Socket {} is in use{}{}", path.display(), by(.pid), transition(.stays))]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process that uses it, if its lock file says so.
        pid: Option<u32>,
        /// Whether that process keeps running: false if it was killed, is exiting, or does not
        /// listen yet.
        stays: bool,
    },
    /// Another process accepts connections there.
    #[error(
        "Socket {} is in use by another program{}, or its lock file was removed",
        path.display(),
        process(.pid)
    )]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// That process, if known.
        pid: Option<u32>,
        /// Whether it keeps running.
        stays: bool,
    },
    /// The lock file was replaced again and again.
    #[error("Lock file {} does not stay in place", .0.display())]
    Unstable(PathBuf),
    /// The lock file has another name, or is not a regular file.
    #[error(
        "Lock file {} is not a file of its own: it has another name (a hard link), or is not a \
         regular file; remove it",
        .0.display()
    )]
    NotALockFile(PathBuf),
    /// The path names something else.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// An operation on a file or socket failed.
    #[error("Cannot {action} {}", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn by(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

fn transition(stays: &bool) -> &'static str {
    if *stays { "" } else { ", which ends or begins" }
}

fn process(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// Action of an error: a socket cannot be watched.
pub(crate) const WATCH: &str = "watch socket";

/// Makes the error of an action on a path.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io {
        action,
        path,
        source,
    }
}

/// The lock of a socket's path. Dropping it removes the lock file.
#[derive(Debug)]
pub struct SocketLock {
    socket: PathBuf,
    path: PathBuf,
    /// The locked file.
    file: File,
}

impl SocketLock {
    /// Takes the lock of a socket's path, and removes the socket of a dead port.
    ///
    /// # Errors
    /// [`SocketError::InUse`] when a running port has it, others when the path cannot be used.
    pub fn take(socket: &Path) -> Result<Self, SocketError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let file = lock(&path, socket)?;
        let lock = Self {
            socket: socket.to_owned(),
            path,
            file,
        };
        lock.remove_stale_socket()?;
        Ok(lock)
    }

    /// Listens on the path for frontends.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made there, or not for these users.
    pub fn listen(self, access: SocketAccess) -> Result<Listener, SocketError> {
        Listener::new(self, Access::Frontends(access))
    }

    /// Makes the socket, which does not listen yet: connections are refused.
    ///
    /// # Errors
    ///
    /// As [`Self::listen`].
    pub fn bind(self, access: SocketAccess) -> Result<BoundSocket, SocketError> {
        Listener::bind(self, Access::Frontends(access)).map(BoundSocket)
    }

    /// Listens on the path for this user, or another owner of the socket, and root only.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made there.
    pub fn listen_private(self, owner: Option<Owner>) -> Result<Listener, SocketError> {
        Listener::new(self, Access::Private(owner))
    }

    /// Gives the lock file to another user, who can then remove it.
    ///
    /// # Errors
    ///
    /// When this user may not.
    pub fn give_to(&self, (user, group): Owner) -> Result<(), SocketError> {
        fchown(&self.file, Some(user), Some(group))
            .map_err(|error| failed("give away", &self.path)(error.into()))
    }

    /// Whether the path still names the locked file.
    fn is_in_place(&self) -> bool {
        is_at(&self.path, &self.file).unwrap_or(false)
    }

    fn remove_stale_socket(&self) -> Result<(), SocketError> {
        let path = &self.socket;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("examine", path)(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.clone()));
            }
            Ok(_) => {}
        }
        match listening(path, SocketType::STREAM).map_err(failed("probe socket", path))? {
            Some(Listening { pid, stays }) => {
                let path = path.clone();
                Err(SocketError::Foreign { path, pid, stays })
            }
            None => {
                info!(
                    "Taking over socket {} of a process that is gone",
                    path.display()
                );
                fs::remove_file(path).map_err(failed("remove", path))
            }
        }
    }
}

/// Creates or opens a lock file, and locks it.
fn lock(path: &Path, socket: &Path) -> Result<File, SocketError> {
    for _ in 0..LOCK_ATTEMPTS {
        // Not truncated: the content belongs to another process until this one has the lock. Links
        // are not followed.
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        // Made only if it is not there: with fs.protected_regular not even root may open a file of
        // another user with O_CREAT in a sticky directory, such as one that was left behind.
        let opened = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                options.create_new(true).open(path)
            }
            opened => opened,
        };
        let mut file = match opened {
            // Another process made it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened.map_err(failed("open lock file", path))?,
        };
        // What is written to it must not end up in somebody's file of another name.
        let metadata = file.metadata().map_err(failed("examine", path))?;
        if !metadata.is_file() || metadata.nlink() > 1 {
            return Err(SocketError::NotALockFile(path.to_owned()));
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Without a readable pid the error just does not name the process.
                let _ = (&file).take(16).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                let stays = lock_holder_stays(socket, SocketType::STREAM, pid);
                let path = socket.to_owned();
                return Err(SocketError::InUse { path, pid, stays });
            }
            Err(error) => return Err(failed("lock", path)(error.into())),
        }
        // If a port that just exited has unlinked the file after it was opened here, the lock is
        // worthless.
        if !is_at(path, &file).map_err(failed("examine", path))? {
            continue;
        }
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            // The file is of no use, so it is removed.
            let _ = fs::remove_file(path);
            return Err(failed("write", path)(error));
        }
        return Ok(file);
    }
    Err(SocketError::Unstable(path.to_owned()))
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // Unlinked while it is locked, so that no newer file is removed; see the check in `take`.
        // If this file was removed, another port may have made its own at the path, which must
        // stay.
        let removed = is_at(&self.path, &self.file).and_then(|ours| {
            if ours {
                fs::remove_file(&self.path)?;
            }
            Ok(())
        });
        match removed {
            Ok(()) => debug!("Released {}", self.path.display()),
            Err(error) => warn!("Cannot remove {}: {error}", self.path.display()),
        }
        // Closing the file would release the lock, too; this is only explicit.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Whether `path` names the file that is open as `file`.
fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves the listener to a number above those of connections (decision 0012). Linux closes the
/// descriptors of a killed process from the highest number down. So the listener is closed before a
/// frontend sees its connection end, and the frontend's next attempt to connect fails at once. If
/// the dying listener's queue took that connection, it would be reset, from which Cloud Hypervisor
/// 53 never recovers.
pub(crate) fn move_up(listener: UnixListener) -> UnixListener {
    // Small enough for the table of descriptors, and higher than the number of connections and
    // memory regions.
    const HIGH: u64 = 4096;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(HIGH);
    let number = i32::try_from(limit.min(HIGH).saturating_sub(1)).unwrap_or_default();
    match fcntl_dupfd_cloexec(&listener, number) {
        Ok(moved) => moved.into(),
        Err(error) => {
            debug!("The listener stays at a low number: {error}");
            listener
        }
    }
}

/// The users that may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Those that the command line or the umask allows.
    Frontends(SocketAccess),
    /// The socket's owner and root: this user, or another owner.
    Private(Option<Owner>),
}

/// A socket at its path that does not listen yet. Dropping it removes the socket and its lock file.
#[derive(Debug)]
pub struct BoundSocket(Listener);

impl BoundSocket {
    /// Listens. A peer sees the credentials of the process at this time.
    ///
    /// # Errors
    ///
    /// Those of listen(2).
    pub fn listen(self) -> Result<Listener, SocketError> {
        self.0.socket.listen()?;
        Ok(self.0)
    }
}

/// A listening socket. Dropping it removes the socket and its lock file.
#[derive(Debug)]
pub struct Listener {
    // In this order: the socket is removed while the lock is held.
    socket: Socket,
    lock: SocketLock,
    access: Access,
}

/// A bound socket, removed when dropped.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file.
    inode: (u64, u64),
}

impl Listener {
    fn new(lock: SocketLock, access: Access) -> Result<Self, SocketError> {
        let bound = Self::bind(lock, access)?;
        bound.socket.listen()?;
        Ok(bound)
    }

    /// One that does not listen yet.
    fn bind(lock: SocketLock, access: Access) -> Result<Self, SocketError> {
        Ok(Self {
            socket: Socket::bind(&lock.socket, access)?,
            lock,
            access,
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.socket.path
    }

    /// Whether the socket and the lock file are at their paths.
    pub fn is_in_place(&self) -> bool {
        self.socket.is_in_place() && self.lock.is_in_place()
    }

    /// Restores files that something else removed. The descriptor changes then; connections that
    /// were not accepted yet are lost.
    ///
    /// # Errors
    /// When another port uses the path, or it cannot be bound.
    pub fn restore(&mut self) -> Result<(), SocketError> {
        if !self.lock.is_in_place() {
            self.lock.file = lock(&self.lock.path, &self.lock.socket)?;
        }
        if !self.socket.is_in_place() {
            self.lock.remove_stale_socket()?;
            let socket = Socket::bind(&self.lock.socket, self.access)?;
            socket.listen()?;
            self.socket = socket;
        }
        log_limited!(
            RESTORED,
            Level::Warn,
            "Something removed {} or its lock file; made again",
            self.path().display()
        );
        Ok(())
    }

    /// Stops listening. No other port can listen on the path while the lock is held.
    pub fn stop(self) -> SocketLock {
        self.lock
    }

    /// The next connection; `None` when none waits.
    ///
    /// # Errors
    /// When it cannot be accepted, for example without free descriptors.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        accept(&self.socket.listener)
    }
}

/// The next connection of a non-blocking socket; `None` when none waits.
///
/// # Errors
/// When it cannot be accepted, for example without free descriptors.
pub(crate) fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted => Ok(None),
            _ => Err(error),
        },
    }
}

impl Socket {
    fn bind(path: &Path, access: Access) -> Result<Self, SocketError> {
        let bind = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let (mode, access) = match access {
                Access::Private(owner) => {
                    let access = SocketAccess {
                        owner,
                        ..SocketAccess::default()
                    };
                    (Some(Mode::RUSR | Mode::WUSR), access)
                }
                Access::Frontends(access) => (access.mode_to_bind(), access),
            };
            if let Some(mode) = mode {
                // bind(2) gives the file the socket's own mode: at no time may others connect.
                fchmod(&socket, mode)?;
            }
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            if let Err(error) = access.apply(path) {
                // Best effort: its user hears of the first error.
                let _ = fs::remove_file(path);
                return Err(error);
            }
            Ok::<_, io::Error>(UnixListener::from(socket))
        };
        let listener = bind().map_err(failed("listen on socket", path))?;
        let bound = fs::symlink_metadata(path).map_err(failed("examine", path))?;
        Ok(Self {
            listener: match access {
                Access::Frontends(_) => move_up(listener),
                Access::Private(_) => listener,
            },
            path: path.to_owned(),
            inode: (bound.dev(), bound.ino()),
        })
    }

    fn listen(&self) -> Result<(), SocketError> {
        rustix::net::listen(&self.listener, BACKLOG)
            .map_err(|error| failed("listen on socket", &self.path)(error.into()))
    }

    fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another program may have replaced the file.
        if self.is_in_place()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("Cannot remove {}: {error}", self.path.display());
        }
    }
}
