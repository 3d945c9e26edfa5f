//! A port's own files in the segment's directory: the lock that makes its id unique, and the socket
//! on which it is found.
//!
//! For port `web`: `web.lock`, held by `flock` for as long as the port lives and holding its
//! process id as text; `web.sock`, the socket. What a dead process left behind is taken over; what
//! something else removes is made again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketType;
use virtio_inter_common::PortId;
use virtio_inter_common::liveness::{Listening, listening, lock_holder_stays};

use crate::access_rule::AccessRule;
use crate::bound_socket::{Access, BoundName, file_at, file_of, listen, remove};
use crate::deferred_close::{Closer, DeferredFd, Owner};
use crate::directory::Directory;
use crate::join_error::{JoinError, MAX_SOCKET_PATH};

/// How often the lock file may vanish between being opened and being locked. Each time another port
/// of the same id has left in between.
const LOCK_ATTEMPTS: usize = 8;

/// The files of a port that is on the segment; dropping it removes them.
#[derive(Debug)]
pub(crate) struct Membership {
    // The order matters: the socket goes while the lock is still held.
    name: BoundName,
    // Its queue holds connections that were not accepted yet, with whatever they have sent.
    listener: DeferredFd,
    lock: LockFile,
}

impl Membership {
    pub(crate) fn new(
        directory: &Directory,
        id: &PortId,
        closer: &Closer,
    ) -> Result<Membership, JoinError> {
        let path = directory.socket_path(id);
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(JoinError::PathTooLong { path, length });
        }
        let rule = rule(directory)?;
        let lock = LockFile::take(directory, id, &rule)?;
        let (name, listener) = bind(directory, id, &rule, closer)?;
        Ok(Membership {
            name,
            listener,
            lock,
        })
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Whether the names still lead to our files.
    pub(crate) fn is_in_place(&self) -> bool {
        self.name.is_ours() && self.lock.is_in_place()
    }

    /// Makes what is missing of the files again. Returns the former listener if there is another
    /// one.
    pub(crate) fn restore(
        &mut self,
        directory: &Directory,
        id: &PortId,
        closer: &Closer,
    ) -> Result<Option<DeferredFd>, JoinError> {
        let rule = rule(directory)?;
        if !self.lock.is_in_place() {
            self.lock = LockFile::take(directory, id, &rule)?;
        }
        if self.name.is_ours() {
            return Ok(None);
        }
        let (name, listener) = bind(directory, id, &rule, closer)?;
        self.name = name;
        Ok(Some(std::mem::replace(&mut self.listener, listener)))
    }
}

fn rule(directory: &Directory) -> Result<AccessRule, JoinError> {
    directory.rule().map_err(|source| JoinError::Unreadable {
        path: directory.path().to_owned(),
        source,
    })
}

/// Takes the socket's name, unless somebody listens there.
///
/// The lock of a live port may have been removed. And of one that was killed, the kernel may have
/// closed the lock before the socket.
fn bind(
    directory: &Directory,
    id: &PortId,
    rule: &AccessRule,
    closer: &Closer,
) -> Result<(BoundName, DeferredFd), JoinError> {
    let path = directory.socket_path(id);
    // One to which we cannot connect, we cannot replace either.
    if let Ok(Some(Listening { pid, stays })) = listening(&path, SocketType::SEQPACKET) {
        let id = id.clone();
        return Err(JoinError::IdTaken { id, pid, stays });
    }
    let access = Access::of_members(rule);
    let socket = listen(
        directory,
        id,
        format!("{id}.sock"),
        SocketType::SEQPACKET,
        &access,
    );
    let (name, listener) = socket.map_err(|source| {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match source.kind() {
            PermissionDenied | ReadOnlyFilesystem => JoinError::NotWritable {
                path: directory.path().to_owned(),
                source,
            },
            _ => JoinError::Listen { path, source },
        }
    })?;
    let listener = DeferredFd::new(listener, Owner::default(), closer);
    Ok((name, listener))
}

/// The lock file, locked.
#[derive(Debug)]
struct LockFile {
    file: OwnedFd,
    directory: OwnedFd,
    name: String,
}

impl LockFile {
    fn take(directory: &Directory, id: &PortId, rule: &AccessRule) -> Result<LockFile, JoinError> {
        let name = format!("{id}.lock");
        let path = directory.lock_path(id);
        let fail = |e: Errno| JoinError::Lock {
            path: path.clone(),
            source: e.into(),
        };
        let taken = |pid, stays| JoinError::IdTaken {
            id: id.clone(),
            pid,
            stays,
        };
        for _ in 0..LOCK_ATTEMPTS {
            let Some(file) = open_lock(directory, &name, rule)? else {
                continue;
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let (socket, pid) = (directory.socket_path(id), read_pid(&file));
                    let stays = lock_holder_stays(&socket, SocketType::SEQPACKET, pid);
                    return Err(taken(pid, stays));
                }
                Err(e) => return Err(fail(e)),
            }
            // The holder may have removed the file after we opened it: then we hold a lock on a
            // file that nobody else will find.
            if !is_at(directory.fd(), &name, &file).map_err(fail)? {
                continue;
            }
            let directory =
                directory
                    .fd()
                    .try_clone_to_owned()
                    .map_err(|source| JoinError::Lock {
                        path: path.clone(),
                        source,
                    })?;
            let lock = LockFile {
                file,
                directory,
                name,
            };
            let pid = format!("{}\n", std::process::id());
            rustix::fs::ftruncate(&lock.file, 0).map_err(fail)?;
            rustix::io::write(&lock.file, pid.as_bytes()).map_err(fail)?;
            return Ok(lock);
        }
        Err(taken(None, false))
    }

    fn is_in_place(&self) -> bool {
        is_at(self.directory.as_fd(), &self.name, &self.file).unwrap_or(false)
    }
}

/// Opens the lock file, or makes it; `None` if it came or went meanwhile.
fn open_lock(
    directory: &Directory,
    name: &str,
    rule: &AccessRule,
) -> Result<Option<OwnedFd>, JoinError> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fail = |e: Errno| match e {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => JoinError::NotWritable {
            path: directory.path().to_owned(),
            source: e.into(),
        },
        e => JoinError::Lock {
            path: directory.path().join(name),
            source: e.into(),
        },
    };
    let file = match rustix::fs::openat(directory.fd(), name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            // Exclusive, so that only a file of ours gets another owner and mode.
            let flags = flags | OFlags::CREATE | OFlags::EXCL;
            let mode = Mode::RUSR | Mode::WUSR;
            match rustix::fs::openat(directory.fd(), name, flags, mode) {
                Ok(file) => {
                    Access::of_members(rule)
                        .apply_to_lock(&file)
                        .map_err(fail)?;
                    file
                }
                Err(Errno::EXIST) => return Ok(None),
                Err(e) => return Err(fail(e)),
            }
        }
        Err(e) => return Err(fail(e)),
    };
    let stat = rustix::fs::fstat(&file).map_err(fail)?;
    // The process id gets written to it: not to something that has another name elsewhere.
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink > 1 {
        return Err(fail(Errno::INVAL));
    }
    Ok(Some(file))
}

/// Whether the name in the directory leads to this open file.
fn is_at(directory: BorrowedFd<'_>, name: &str, file: &OwnedFd) -> Result<bool, Errno> {
    let open = file_of(&rustix::fs::fstat(file)?);
    match file_at(directory, name) {
        Ok(named) => Ok(named == open),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn read_pid(file: &OwnedFd) -> Option<u32> {
    let mut text = [0; 16];
    let len = rustix::io::pread(file, &mut text, 0).ok()?;
    std::str::from_utf8(&text[..len])
        .ok()?
        .trim_end()
        .parse()
        .ok()
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Removed while locked: whoever opened it before finds out by looking at the name again.
        if self.is_in_place() {
            remove(self.directory.as_fd(), &self.name);
        }
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
