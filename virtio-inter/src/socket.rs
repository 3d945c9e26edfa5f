//! The socket on which a frontend is awaited, and the lock that tells a live port's from a dead
//! one's.
//!
//! `PATH.lock` is locked (flock(2)) as long as the port lives: the kernel releases it however the
//! process ends, so a socket whose lock is free belongs to nobody and is replaced. A socket of
//! another program has no lock; if somebody accepts connections there, it is left alone too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::{Level, debug, info, warn};
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{Resource, getrlimit};
use thiserror::Error;
use virtio_inter_common::liveness::{Listening, listening, lock_holder_stays};
use virtio_inter_common::{LogLimit, log_limited};

/// How often a lock file may vanish between opening and locking it. Each time, another port has
/// just left.
const LOCK_ATTEMPTS: usize = 8;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Files that were made again, which whoever removes them can repeat.
static RESTORED: LogLimit = LogLimit::new(std::time::Duration::from_secs(10), 5);

/// Why a port cannot have its socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another port has it.
    #[error("Socket {} is in use{}{}", path.display(), by(.pid), moment(.stays))]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process that has it, if it says so.
        pid: Option<u32>,
        /// Whether that process is there to stay: false if it was killed or leaves, or does not
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
        /// That process, if it can be told.
        pid: Option<u32>,
        /// Whether it is there to stay.
        stays: bool,
    },
    /// The lock file is replaced time and again.
    #[error("Lock file {} does not stay in place", .0.display())]
    Unstable(PathBuf),
    /// Something else has the name.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The file system or the socket layer refused.
    #[error("Cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn by(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

fn moment(stays: &bool) -> &'static str {
    if *stays { "" } else { ", which ends or begins" }
}

fn process(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io {
        action,
        path,
        source,
    }
}

/// The right to a socket path. The lock file goes with it.
#[derive(Debug)]
pub struct SocketLock {
    socket: PathBuf,
    path: PathBuf,
    /// Locked.
    file: File,
}

impl SocketLock {
    /// Takes the lock of a socket path, and removes a dead port's socket from there.
    ///
    /// # Errors
    ///
    /// [`SocketError::InUse`] when a live port has it, others when something else is in the way.
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

    /// Listens on the path, for frontends.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made there.
    pub fn listen(self) -> Result<Listener, SocketError> {
        Listener::new(self, Use::Frontends)
    }

    /// Listens on the path, for this user and root only.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made there.
    pub fn listen_private(self) -> Result<Listener, SocketError> {
        Listener::new(self, Use::Private)
    }

    /// Whether the lock file is still there for others to see.
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

/// Makes or opens a lock file, and locks it.
fn lock(path: &Path, socket: &Path) -> Result<File, SocketError> {
    for _ in 0..LOCK_ATTEMPTS {
        // Neither truncated nor followed: the content is another's until the lock is ours.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(failed("open lock file", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Without a readable pid the answer is the same, only shorter.
                let _ = (&file).take(16).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                let stays = lock_holder_stays(socket, SocketType::STREAM, pid);
                let path = socket.to_owned();
                return Err(SocketError::InUse { path, pid, stays });
            }
            Err(error) => return Err(failed("lock", path)(error.into())),
        }
        // A port that just left unlinked the file that we had already opened: that lock is worth
        // nothing.
        if !is_at(path, &file).map_err(failed("examine", path))? {
            continue;
        }
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            // Nothing stays behind: the file is this process's, and of no use.
            let _ = fs::remove_file(path);
            return Err(failed("write", path)(error));
        }
        return Ok(file);
    }
    Err(SocketError::Unstable(path.to_owned()))
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // Unlinked while still locked, so that no port's newer file is hit; see the check in
        // `take`. Somebody else may have removed ours and another port made its own, which is not
        // ours to remove.
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
        // Closing would do; said here because the file exists for nothing else.
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

/// The listener under a number above those of connections (decision 0012). Linux closes a killed
/// process's descriptors from the highest down: so nobody listens any more when a frontend sees its
/// connection end, and its next attempt fails at once. Were it taken into the dying listener's
/// queue it would be reset instead, which Cloud Hypervisor 53 never recovers from.
fn move_up(listener: UnixListener) -> UnixListener {
    // Few enough for a small table of descriptors, and more than a port has connections and memory
    // regions.
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

/// Who may connect, and how the socket is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Whoever the umask lets.
    Frontends,
    /// This user and root.
    Private,
}

/// A listening socket. It and its lock file are removed with it.
#[derive(Debug)]
pub struct Listener {
    // The order matters: the socket goes while the lock is still held.
    socket: Socket,
    lock: SocketLock,
    purpose: Use,
}

/// A bound socket, removed when dropped.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file as we made it.
    inode: (u64, u64),
}

impl Listener {
    fn new(lock: SocketLock, purpose: Use) -> Result<Self, SocketError> {
        Ok(Self {
            socket: Socket::bind(&lock.socket, purpose)?,
            lock,
            purpose,
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.socket.path
    }

    /// The lock file's path.
    pub fn lock_path(&self) -> &Path {
        &self.lock.path
    }

    /// Whether socket and lock file are where others look for them.
    pub fn is_in_place(&self) -> bool {
        self.socket.is_in_place() && self.lock.is_in_place()
    }

    /// Makes again what something else has removed. The descriptor is another one then; connections
    /// that were not accepted yet are lost.
    ///
    /// # Errors
    ///
    /// When another port has taken the path, or it cannot be bound.
    pub fn restore(&mut self) -> Result<(), SocketError> {
        if !self.lock.is_in_place() {
            self.lock.file = lock(&self.lock.path, &self.lock.socket)?;
        }
        if !self.socket.is_in_place() {
            self.lock.remove_stale_socket()?;
            self.socket = Socket::bind(&self.lock.socket, self.purpose)?;
        }
        log_limited!(
            RESTORED,
            Level::Warn,
            "Something removed {} or its lock file; made again",
            self.path().display()
        );
        Ok(())
    }

    /// Listens no more. While the lock is held, nobody else does on this path.
    pub fn stop(self) -> SocketLock {
        self.lock
    }

    /// The next connection, None when none waits.
    ///
    /// # Errors
    ///
    /// When it cannot be had, as without free descriptors.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl Socket {
    fn bind(path: &Path, purpose: Use) -> Result<Self, SocketError> {
        let bind = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            if purpose == Use::Private {
                // The kernel takes a socket's own mode over to the file that bind(2) makes: at no
                // time may others connect.
                fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            }
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok::<_, io::Error>(UnixListener::from(socket))
        };
        let listener = bind().map_err(failed("listen on socket", path))?;
        let bound = fs::symlink_metadata(path).map_err(failed("examine", path))?;
        Ok(Self {
            listener: match purpose {
                Use::Frontends => move_up(listener),
                Use::Private => listener,
            },
            path: path.to_owned(),
            inode: (bound.dev(), bound.ino()),
        })
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
        // Somebody may have removed ours and put another there.
        if self.is_in_place()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("Cannot remove {}: {error}", self.path.display());
        }
    }
}
