//! The socket on which a frontend is awaited, and the lock that tells a live port's from a dead one's.
//!
//! `PATH.lock` is locked (flock(2)) as long as the port lives: the kernel releases it however the process
//! ends, so a socket whose lock is free belongs to nobody and is replaced. A socket of another program has no
//! lock; if somebody accepts connections there, it is left alone too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::{debug, info, warn};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};
use thiserror::Error;

/// How often a lock file may vanish between opening and locking it. Each time, another port has just left.
const LOCK_ATTEMPTS: usize = 8;

/// Why a port cannot have its socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another port lives there.
    #[error("Socket {} is in use{}", path.display(), owner(.pid))]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process that has it, if it says so.
        pid: Option<u32>,
    },
    /// Another program accepts connections there.
    #[error("Socket {} is in use by another program", .0.display())]
    Foreign(PathBuf),
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

fn owner(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
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
        for _ in 0..LOCK_ATTEMPTS {
            // Neither truncated nor followed: the content is another's until the lock is ours.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)
                .map_err(failed("open lock file", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut text = String::new();
                    // Without a readable pid the answer is the same, only shorter.
                    let _ = (&file).take(16).read_to_string(&mut text);
                    let pid = text.trim().parse().ok();
                    return Err(SocketError::InUse {
                        path: socket.to_owned(),
                        pid,
                    });
                }
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
            // A port that just left unlinked the file that we had already opened: that lock is worth nothing.
            if !is_at(&path, &file).map_err(failed("examine", &path))? {
                continue;
            }
            // From here on it goes when something fails.
            let lock = Self {
                socket: socket.to_owned(),
                path,
                file,
            };
            lock.file
                .set_len(0)
                .and_then(|()| writeln!(&lock.file, "{}", std::process::id()))
                .map_err(failed("write", &lock.path))?;
            lock.remove_stale_socket()?;
            return Ok(lock);
        }
        Err(SocketError::Unstable(path))
    }

    /// Listens on the path.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made there.
    pub fn listen(self) -> Result<Listener, SocketError> {
        let path = &self.socket;
        let listener = UnixListener::bind(path).map_err(failed("listen on socket", path))?;
        listener
            .set_nonblocking(true)
            .map_err(failed("listen on socket", path))?;
        let listener = move_up(listener);
        let bound = fs::symlink_metadata(path).map_err(failed("examine", path))?;
        Ok(Listener {
            listener,
            inode: (bound.dev(), bound.ino()),
            lock: self,
        })
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
        match connects(path) {
            Ok(true) => Err(SocketError::Foreign(path.clone())),
            Ok(false) => {
                info!(
                    "Taking over socket {} of a process that is gone",
                    path.display()
                );
                fs::remove_file(path).map_err(failed("remove", path))
            }
            Err(error) => Err(failed("probe socket", path)(error)),
        }
    }
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // Unlinked while still locked, so that no port's newer file is hit; see the check in `take`. Somebody
        // else may have removed ours and another port made its own, which is not ours to remove.
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

/// Whether somebody listens on a socket. Does not wait: a full backlog means somebody, too.
fn connects(path: &Path) -> io::Result<bool> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::PROTOTYPE) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The listener under a number above those of connections (decision 0012). Linux closes a killed
/// process's descriptors from the highest down: so nobody listens any more when a frontend sees its connection end, and its next attempt fails at once. Were
/// it taken into the dying listener's queue it would be reset instead, which Cloud Hypervisor 53 never recovers from.
fn move_up(listener: UnixListener) -> UnixListener {
    // Few enough for a small table of descriptors, and more than a port has connections and memory regions.
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

/// A listening socket. It and its lock file are removed with it.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    /// Device and inode of the socket file as we made it.
    inode: (u64, u64),
    lock: SocketLock,
}

impl Listener {
    /// The next connection, None when none waits.
    ///
    /// # Errors
    ///
    /// When it cannot be had, as without free descriptors.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
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

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let path = &self.lock.socket;
        // Somebody may have removed ours and put another there.
        let ours = fs::symlink_metadata(path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(path) {
            warn!("Cannot remove {}: {error}", path.display());
        }
    }
}
