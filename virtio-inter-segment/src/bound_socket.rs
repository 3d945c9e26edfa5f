//! A listening socket in the segment's directory: the users that may connect, and its name.
//!
//! A socket is bound under a hidden name, `.web.new` for port `web`, listens, and gets its name
//! then: a process that sees the name can connect.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use virtio_inter_common::PortId;

use crate::access_rule::AccessRule;
use crate::directory::Directory;

/// Connections that wait to be accepted; the kernel may allow fewer. To accept and refuse so many
/// takes about a millisecond, which frames may have to wait for.
pub(crate) const BACKLOG: u32 = 128;

/// Owner and permissions of a port's files.
pub(crate) struct Access {
    own_uid: u32,
    mode: Mode,
    owner: Option<Uid>,
    group: Option<Gid>,
}

impl Access {
    /// Those that let the users connect whom the rule lets join, and no others.
    pub(crate) fn of_members(rule: &AccessRule) -> Access {
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

    /// Those of the members that the directory's group consists of; not of every user, whatever the
    /// directory allows.
    pub(crate) fn of_group(rule: &AccessRule) -> Access {
        let mut access = Access::of_members(rule);
        access.mode -= Mode::ROTH | Mode::WOTH;
        access
    }

    /// Those of the port's own user and root alone.
    pub(crate) fn of_owner(rule: &AccessRule) -> Access {
        Access {
            own_uid: rule.own_uid,
            mode: Mode::RUSR | Mode::WUSR,
            owner: None,
            group: None,
        }
    }

    /// Sets them on a lock file that was just made.
    ///
    /// By its descriptor: the name may lead elsewhere already. Others may write to the directory,
    /// and what root does to a name it could be made to do to any file.
    pub(crate) fn apply_to_lock(&self, file: &OwnedFd) -> Result<(), Errno> {
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

/// A name in the directory that leads to our socket; dropping it removes the name.
#[derive(Debug)]
pub(crate) struct BoundName {
    directory: OwnedFd,
    name: String,
    /// Device and inode of the socket file.
    file: (u64, u64),
}

impl BoundName {
    pub(crate) fn is_ours(&self) -> bool {
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

pub(crate) fn file_at(directory: BorrowedFd<'_>, name: &str) -> Result<(u64, u64), Errno> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| file_of(&stat))
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the fields' types differ by architecture"
)]
pub(crate) fn file_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

pub(crate) fn remove(directory: BorrowedFd<'_>, name: &str) {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => log::warn!("Failed to remove {name} from the segment directory: {e}"),
    }
}

/// Binds under a hidden name, listens, then renames: who sees the socket can connect to it.
///
/// # Errors
///
/// When the socket cannot be made.
pub(crate) fn listen(
    directory: &Directory,
    id: &PortId,
    name: String,
    kind: SocketType,
    access: &Access,
) -> io::Result<(BoundName, OwnedFd)> {
    // As long as the name of the port's socket, so that whatever fits there fits here.
    let hidden = format!(".{id}.new");
    match rustix::fs::unlinkat(directory.fd(), &hidden, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    // The file will have the mode of the socket less the umask: never more than is meant.
    rustix::fs::fchmod(&listener, access.mode)?;
    let address = SocketAddrUnix::new(directory.path().join(&hidden))?;
    rustix::net::bind(&listener, &address)?;
    match publish(directory, &listener, &hidden, name, access) {
        Ok(bound) => Ok((bound, listener)),
        Err(e) => {
            remove(directory.fd(), &hidden);
            Err(e)
        }
    }
}

/// Gives a bound socket its owner and its mode, makes it listen, and names it.
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
    rustix::net::listen(listener, BACKLOG as i32)?;
    let bound = BoundName {
        directory: directory.fd().try_clone_to_owned()?,
        name,
        file: file_of(&stat),
    };
    rustix::fs::renameat(directory.fd(), hidden, directory.fd(), &bound.name)?;
    Ok(bound)
}
