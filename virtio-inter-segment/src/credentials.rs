//! Who may be a peer: the rule, and the kernel's word on who is at the other end of a socket.

#![allow(
    unsafe_code,
    reason = "getsockopt: no safe wrapper returns the groups of a peer, nor a peer whose process id \
              is 0 because it lives in another process namespace"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use thiserror::Error;

/// Most groups that a process can have (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// The process at the other end of a connection, as it was when it connected or listened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// `None` where the peer's process has no number in our process namespace.
    pub(crate) pid: Option<u32>,
    /// Effective user.
    pub(crate) uid: u32,
    /// Effective group.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
}

impl Credentials {
    /// Asks the kernel (`SO_PEERCRED`, `SO_PEERGROUPS`).
    pub(crate) fn of_peer(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
        let (pid, uid, gid) = peer_ids(socket)?;
        Ok(Credentials {
            pid,
            uid,
            gid,
            groups: peer_groups(socket)?,
        })
    }
}

/// The process at the other end of a Unix socket, as it was when it connected or listened (`SO_PEERCRED`);
/// `None` where it has no number in our process namespace. For logs: numbers are used again.
///
/// # Errors
///
/// When the descriptor is not a connected Unix socket.
pub fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    Ok(peer_ids(socket)?.0)
}

/// The effective user of the process at the other end of a connected Unix socket, as it was when it connected.
///
/// # Errors
///
/// When the descriptor is not a connected Unix socket.
pub fn peer_uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(peer_ids(socket)?.1)
}

/// Process, effective user and effective group of the other end.
fn peer_ids(socket: BorrowedFd<'_>) -> io::Result<(Option<u32>, u32, u32)> {
    let mut cred = [0u32; 3];
    let got = get_socket_option(socket, libc::SO_PEERCRED, &mut cred)?;
    if got != cred.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let [pid, uid, gid] = cred;
    Ok(((pid != 0).then_some(pid), uid, gid))
}

// SO_PEERCRED fills a struct ucred of three 32-bit words: process, user, group.
const _: () = assert!(size_of::<libc::ucred>() == size_of::<[u32; 3]>());

fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    for room in [64, MAX_GROUPS] {
        let mut groups = vec![0u32; room];
        match get_socket_option(socket, libc::SO_PEERGROUPS, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ERANGE))
}

/// Reads a socket option into `words`; tells how many of them the kernel wrote.
fn get_socket_option(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    words: &mut [u32],
) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(size_of_val(words))
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `words`, which is exclusively
    // borrowed for the call and holds a type for which any bytes are valid; `socket` is open, as it
    // is borrowed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            words.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(len as usize / size_of::<u32>())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Who may join: what the owner and the mode of the segment's directory say.
///
/// A peer is let in if one of these is true:
/// 1. its effective user is root, our own, or the owner of the directory;
/// 2. the directory is writable for its group, and that group is the peer's effective group or
///    among its supplementary groups;
/// 3. the directory is writable for the world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) own_uid: u32,
    pub(crate) directory_uid: u32,
    pub(crate) directory_gid: u32,
    pub(crate) group_writable: bool,
    pub(crate) world_writable: bool,
}

/// The peer's user and groups do not give it the right to be on the segment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "User {uid} (group {gid}) may not join: the directory is neither its own nor writable for it"
)]
pub(crate) struct Stranger {
    uid: u32,
    gid: u32,
}

impl Rule {
    pub(crate) fn check(&self, peer: &Credentials) -> Result<(), Stranger> {
        let user = [0, self.own_uid, self.directory_uid].contains(&peer.uid);
        let in_group = peer.gid == self.directory_gid || peer.groups.contains(&self.directory_gid);
        if user || (self.group_writable && in_group) || self.world_writable {
            Ok(())
        } else {
            Err(Stranger {
                uid: peer.uid,
                gid: peer.gid,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials {
            pid: Some(1),
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn private_directory() {
        let rule = Rule {
            own_uid: 10,
            directory_uid: 20,
            directory_gid: 30,
            group_writable: false,
            world_writable: false,
        };
        for uid in [0, 10, 20] {
            assert_eq!(rule.check(&peer(uid, 99, &[])), Ok(()));
        }
        // The directory's group counts for nothing while the group may not write.
        assert!(rule.check(&peer(40, 30, &[30])).is_err());
        let message = rule.check(&peer(40, 41, &[])).unwrap_err().to_string();
        assert!(
            message.starts_with("User 40 (group 41) may not join"),
            "{message}"
        );
    }

    #[test]
    fn shared_directories() {
        let mut rule = Rule {
            own_uid: 10,
            directory_uid: 20,
            directory_gid: 30,
            group_writable: true,
            world_writable: false,
        };
        assert!(rule.check(&peer(40, 30, &[])).is_ok());
        assert!(rule.check(&peer(40, 41, &[7, 30])).is_ok());
        assert!(rule.check(&peer(40, 41, &[7])).is_err());
        rule.group_writable = false;
        rule.world_writable = true;
        assert!(rule.check(&peer(40, 41, &[])).is_ok());
    }

    #[test]
    fn the_kernel_knows_us() {
        let (a, _b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let peer = Credentials::of_peer(a.as_fd()).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer_pid(a.as_fd()).unwrap(), peer.pid);
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        let groups: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        assert_eq!(peer.groups, groups);
    }
}
