//! The users that may connect to a port's socket for frontends: `--socket-group`, `--socket-mode`.
//!
//! A frontend hands its guest's memory to the port and gets nothing in return, but it keeps other
//! frontends away. So every user can never be allowed.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use virtio_inter_args::{Group, User};

/// Group and mode of a socket file; none: as the kernel makes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// The file's group.
    pub group: Option<Group>,
    /// The file's mode.
    pub mode: Option<SocketMode>,
    /// The file's owner and, without a group of its own, its group.
    pub owner: Option<Owner>,
}

/// A user and a group to which files are given.
pub type Owner = (Uid, Gid);

/// Owner and group of the files that are made for a user.
pub(crate) fn owner(user: Option<&User>) -> Option<Owner> {
    user.map(|user| (Uid::from_raw(user.uid()), Gid::from_raw(user.gid())))
}

/// Permissions of the owner and the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(Mode);

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = u32::from_str_radix(text, 8)
            .ok()
            .filter(|bits| *bits <= 0o777)
            .ok_or("an octal mode such as 0660 is needed")?;
        let mode = Mode::from_raw_mode(bits);
        if !mode.contains(Mode::RUSR | Mode::WUSR) {
            return Err("the port's own user needs to read and write: 06x0".to_owned());
        }
        if mode.intersects(Mode::RWXO) {
            return Err("not for every user: 06x0; name a group with --socket-group".to_owned());
        }
        Ok(Self(mode))
    }
}

impl SocketAccess {
    /// Whether the mode that the umask leaves is not what was asked for.
    fn has_mode(self) -> bool {
        self.group.is_some() || self.mode.is_some()
    }

    /// The mode that the socket needs before it is bound: no user may connect who may not later.
    pub(crate) fn mode_to_bind(self) -> Option<Mode> {
        self.has_mode().then_some(Mode::RUSR | Mode::WUSR)
    }

    /// Gives a socket that was just bound at `path` to its owner and group.
    ///
    /// # Errors
    ///
    /// When this user may not, or the path leads to another file by now.
    pub(crate) fn apply(self, path: &Path) -> io::Result<()> {
        if self == Self::default() {
            return Ok(());
        }
        // By its descriptor: the path may lead elsewhere already.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_nlink != 1 {
            return Err(Errno::STALE.into());
        }
        let group = self.group.map(|group| Gid::from_raw(group.id()));
        let group = group.or(self.owner.map(|(_, group)| group));
        let owner = self.owner.map(|(owner, _)| owner);
        if owner.is_some() || group.is_some() {
            rustix::fs::chownat(&file, "", owner, group, AtFlags::EMPTY_PATH)?;
        }
        if !self.has_mode() {
            return Ok(());
        }
        let mode = match self.mode {
            Some(SocketMode(mode)) => mode,
            None => Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP,
        };
        // There is no other way before Linux 6.6 to change the mode of a file that cannot be
        // opened, by descriptor.
        let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::chmod(descriptor, mode)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_mode_is_never_for_everybody() {
        let parse = str::parse::<SocketMode>;
        for right in ["660", "0600", "0770"] {
            parse(right).unwrap();
        }
        for wrong in ["", "666", "0060", "0400", "1777", "u=rw", "8"] {
            parse(wrong).unwrap_err();
        }
    }
}
