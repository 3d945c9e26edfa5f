//! A port's own files in the segment's directory: the lock that makes its id unique, and the socket
//! on which it is found.
//!
//! For port `web`: `web.lock`, held by `flock` for as long as the port lives and holding its
//! process id as text; `.web.new`, the socket until it listens; `web.sock`, the socket from then
//! on. What a dead process left behind is taken over; what something else removes is made again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType};
use virtio_inter_common::PortId;
use virtio_inter_common::liveness::{Listening, listening, lock_holder_stays};

use crate::access_rule::AccessRule;
use crate::deferred_close::{Closer, DeferredFd, Owner};
use crate::directory::Directory;
use crate::join_error::{JoinError, MAX_SOCKET_PATH};
use crate::socket;

/// Connections that wait to be accepted; the kernel may allow fewer.
const BACKLOG: i32 = 1024;

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
    let (name, listener) = listen(directory, id, rule).map_err(|source| {
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

/// Owner and permissions that let those connect whom the rule lets join, and no others.
struct Access {
    own_uid: u32,
    mode: Mode,
    owner: Option<Uid>,
    group: Option<Gid>,
}

impl Access {
    fn new(rule: &AccessRule) -> Access {
        let mut mode = Mode::RUSR | Mode::WUSR;
        if rule.group_writable {
            mode |= Mode::RGRP | Mode::WGRP;
        }
        if rule.world_writable {
            mode |= Mode::ROTH | Mode::WOTH;
        }
        Access {
            own_uid: rule.own_uid,
            mode,
            // Only root can, and needs to: the directory's owner may join a segment that root is
            // on.
            owner: (rule.own_uid == 0).then(|| Uid::from_raw(rule.directory_uid)),
            group: rule
                .group_writable
                .then(|| Gid::from_raw(rule.directory_gid)),
        }
    }

    /// Sets them on a lock file that was just made.
    ///
    /// By its descriptor: the name may lead elsewhere already. Others may write to the directory,
    /// and what root does to a name it could be made to do to any file.
    fn apply_to_lock(&self, file: &OwnedFd) -> Result<(), Errno> {
        self.give(file.as_fd());
        rustix::fs::fchmod(file, self.mode)
    }

    /// Sets them on a socket file that was just bound, opened with `O_PATH`. Its mode is within the
    /// wanted one already, less what the umask took.
    fn apply_to_socket(&self, file: &OwnedFd, stat: &Stat) {
        self.give(file.as_fd());
        if Mode::from_raw_mode(stat.st_mode) != self.mode {
            // There is no other way before Linux 6.6 to change the mode of a file that cannot be
            // opened, by descriptor.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            if let Err(e) = rustix::fs::chmod(path, self.mode) {
                log::warn!(
                    "Failed to set the mode of the port's socket, peers of other users may be \
                     unable to connect: {e}"
                );
            }
        }
    }

    /// Who is not in the directory's group cannot give files to it; the port works all the same.
    fn give(&self, file: BorrowedFd<'_>) {
        if self.owner.is_none() && self.group.is_none() {
            return;
        }
        let given = rustix::fs::chownat(file, "", self.owner, self.group, AtFlags::EMPTY_PATH);
        if let Err(e) = given {
            log::warn!(
                "Failed to give the port's files to the owner and group of the segment directory, \
                 peers of other users may be unable to connect: {e}"
            );
        }
    }
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
                    Access::new(rule).apply_to_lock(&file).map_err(fail)?;
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

/// A name in the directory that leads to our socket.
#[derive(Debug)]
struct BoundName {
    directory: OwnedFd,
    name: String,
    /// Device and inode of the socket file.
    file: (u64, u64),
}

impl BoundName {
    fn is_ours(&self) -> bool {
        file_at(self.directory.as_fd(), &self.name).is_ok_and(|file| file == self.file)
    }
}

impl Drop for BoundName {
    fn drop(&mut self) {
        if self.is_ours() {
            remove(self.directory.as_fd(), &self.name);
        }
    }
}

fn file_at(directory: BorrowedFd<'_>, name: &str) -> Result<(u64, u64), Errno> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| file_of(&stat))
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the fields' types differ by architecture"
)]
fn file_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

fn remove(directory: BorrowedFd<'_>, name: &str) {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => log::warn!("Failed to remove {name} from the segment directory: {e}"),
    }
}

/// Binds under a hidden name, listens, then renames: who sees the socket can connect to it.
fn listen(
    directory: &Directory,
    id: &PortId,
    rule: &AccessRule,
) -> io::Result<(BoundName, OwnedFd)> {
    // As long as the final name, so that whatever fits there fits here.
    let hidden = format!(".{id}.new");
    let name = format!("{id}.sock");
    match rustix::fs::unlinkat(directory.fd(), &hidden, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let access = Access::new(rule);
    let listener = socket::new()?;
    // The file will have the mode of the socket less the umask: never more than is meant.
    rustix::fs::fchmod(&listener, access.mode)?;
    let address = SocketAddrUnix::new(directory.path().join(&hidden))?;
    rustix::net::bind(&listener, &address)?;
    match publish(directory, &listener, &hidden, name, &access) {
        Ok(bound) => Ok((bound, listener)),
        Err(e) => {
            remove(directory.fd(), &hidden);
            Err(e)
        }
    }
}

/// Gives a bound socket its owner, its mode, its ear and its name.
fn publish(
    directory: &Directory,
    listener: &OwnedFd,
    hidden: &str,
    name: String,
    access: &Access,
) -> io::Result<BoundName> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory.fd(), hidden, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    // Not the file that we made, if somebody who may write to the directory has replaced it, with
    // another socket of this user by a hard link perhaps.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket
        || stat.st_uid != access.own_uid
        || stat.st_nlink != 1
    {
        return Err(Errno::STALE.into());
    }
    access.apply_to_socket(&file, &stat);
    rustix::net::listen(listener, BACKLOG)?;
    let bound = BoundName {
        directory: directory.fd().try_clone_to_owned()?,
        name,
        file: file_of(&stat),
    };
    rustix::fs::renameat(directory.fd(), hidden, directory.fd(), &bound.name)?;
    Ok(bound)
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
