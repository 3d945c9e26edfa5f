//! The segment's directory: who may join, and which sockets are in it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use virtio_inter_common::PortId;
use virtio_inter_link::Doorbell;

use crate::access_rule::AccessRule;
use crate::join_error::JoinError;

const SOCKET_SUFFIX: &str = ".sock";
const LOCK_SUFFIX: &str = ".lock";
const STATUS_SUFFIX: &str = ".status";
const CAPTURE_SUFFIX: &str = ".capture";

/// Entries that a listing looks at. Who may write to the directory can fill it; that must not keep
/// this process busy without end.
pub(crate) const MAX_ENTRIES: usize = 65_536;

/// Tells one socket file from a later one of the same name. Inode numbers alone are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketId {
    device: u64,
    inode: u64,
    changed: (i64, u64),
}

impl SocketId {
    #[allow(
        clippy::unnecessary_cast,
        reason = "the fields' types differ by architecture"
    )]
    fn new(stat: &Stat) -> SocketId {
        SocketId {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }
}

/// An open segment directory.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    /// Opens a directory that exists. The path is made absolute: sockets are bound and reached by
    /// path, also after the process has changed its working directory.
    pub(crate) fn open(path: &Path) -> Result<Directory, JoinError> {
        let path = std::path::absolute(path).map_err(|source| JoinError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Directory { path, fd }),
            Err(Errno::NOENT) => Err(JoinError::NoDirectory(path)),
            Err(Errno::NOTDIR) => Err(JoinError::NotADirectory(path)),
            Err(e) => Err(JoinError::Unreadable {
                path,
                source: e.into(),
            }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the path still leads to the directory that was opened.
    pub(crate) fn is_in_place(&self) -> bool {
        let file = |stat: Stat| (stat.st_dev, stat.st_ino);
        let there = rustix::fs::stat(&self.path).map(file);
        there.is_ok() && there == rustix::fs::fstat(&self.fd).map(file)
    }

    /// Opens the directory around it, in which it may be renamed.
    pub(crate) fn open_parent(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = self.path.parent().unwrap_or(&self.path);
        Ok(rustix::fs::open(parent, flags, Mode::empty())?)
    }

    pub(crate) fn lock_path(&self, id: &PortId) -> PathBuf {
        self.path.join(format!("{id}{LOCK_SUFFIX}"))
    }

    pub(crate) fn socket_path(&self, id: &PortId) -> PathBuf {
        self.path.join(format!("{id}{SOCKET_SUFFIX}"))
    }

    pub(crate) fn status_path(&self, id: &PortId) -> PathBuf {
        self.path.join(format!("{id}{STATUS_SUFFIX}"))
    }

    pub(crate) fn capture_path(&self, id: &PortId) -> PathBuf {
        self.path.join(format!("{id}{CAPTURE_SUFFIX}"))
    }

    /// The rule as owner and mode are now: a change holds for the next connection.
    pub(crate) fn rule(&self) -> io::Result<AccessRule> {
        let stat = rustix::fs::fstat(&self.fd)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        Ok(AccessRule {
            own_uid: rustix::process::geteuid().as_raw(),
            directory_uid: stat.st_uid,
            directory_gid: stat.st_gid,
            group_writable: mode.contains(Mode::WGRP),
            world_writable: mode.contains(Mode::WOTH),
            own_user_only: !Doorbell::never_blocks(),
        })
    }

    /// The sockets of all ports except `own`, and whether there was too much to look at all of it.
    pub(crate) fn list(&self, own: &PortId) -> io::Result<(Vec<(PortId, SocketId)>, bool)> {
        self.list_at_most(own, MAX_ENTRIES)
    }

    fn list_at_most(
        &self,
        own: &PortId,
        entries: usize,
    ) -> io::Result<(Vec<(PortId, SocketId)>, bool)> {
        let mut found = Vec::new();
        for (seen, entry) in Dir::read_from(&self.fd)?.enumerate() {
            let entry = entry?;
            if seen == entries {
                return Ok((found, true));
            }
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if let Some(id) = port_of(name).filter(|id| id != own)
                && let Some(socket) = self.socket(&id)
            {
                found.push((id, socket));
            }
        }
        Ok((found, false))
    }

    /// The socket of a port, if there is one.
    pub(crate) fn socket(&self, id: &PortId) -> Option<SocketId> {
        let name = format!("{id}{SOCKET_SUFFIX}");
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        socket.then(|| SocketId::new(&stat))
    }
}

/// The port whose socket has this name, if it is such a name.
fn port_of(name: &OsStr) -> Option<PortId> {
    name.to_str()?.strip_suffix(SOCKET_SUFFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn id(text: &str) -> PortId {
        text.parse().unwrap()
    }

    #[test]
    fn listing_has_the_sockets_of_other_ports() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        for name in [
            "a.sock", "c.sock", "d.sock", ".e.sock", "f.other", "é.sock", ".sock",
        ] {
            let _ = UnixListener::bind(temp.path().join(name)).unwrap();
        }
        fs::write(temp.path().join("file.sock"), "").unwrap();
        fs::create_dir(temp.path().join("directory.sock")).unwrap();
        std::os::unix::fs::symlink("c.sock", temp.path().join("link.sock")).unwrap();
        let mut found: Vec<PortId> = directory
            .list(&id("c"))
            .unwrap()
            .0
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        found.sort();
        assert_eq!(found, [id("a"), id("d")]);
    }

    #[test]
    fn listing_reads_a_bounded_number_of_entries() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        for i in 0..10 {
            let _ = UnixListener::bind(temp.path().join(format!("{i}.sock"))).unwrap();
        }
        // Two of them are the directory and the one around it.
        let (found, truncated) = directory.list_at_most(&id("c"), 7).unwrap();
        assert!(truncated && (5..=7).contains(&found.len()));
        let (found, truncated) = directory.list_at_most(&id("c"), 12).unwrap();
        assert!(!truncated && found.len() == 10);
    }

    #[test]
    fn directory_tells_sockets_of_the_same_name_apart() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        let path = temp.path().join("a.sock");
        let _ = UnixListener::bind(&path).unwrap();
        let first = directory.socket(&id("a")).unwrap();
        assert_eq!(directory.socket(&id("a")), Some(first));
        fs::remove_file(&path).unwrap();
        assert_eq!(directory.socket(&id("a")), None);
        let _ = UnixListener::bind(&path).unwrap();
        assert_ne!(directory.socket(&id("a")), Some(first));
    }

    #[test]
    fn directory_mode_is_the_access_rule() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        let modes = [
            (0o755, false, false),
            (0o775, true, false),
            (0o777, true, true),
        ];
        for (mode, group, world) in modes {
            fs::set_permissions(temp.path(), fs::Permissions::from_mode(mode)).unwrap();
            let rule = directory.rule().unwrap();
            assert_eq!((rule.group_writable, rule.world_writable), (group, world));
        }
    }
}
