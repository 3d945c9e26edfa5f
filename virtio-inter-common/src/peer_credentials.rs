//! The process at the other end of a Unix socket, by the kernel (`SO_PEERCRED`, `SO_PEERGROUPS`).

#![allow(
    unsafe_code,
    reason = "getsockopt: no safe wrapper returns the groups of a peer, nor a peer whose process \
              id is 0 because it lives in another process namespace"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Most groups that a process can have (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// The process at the other end of a connection, as it was when it connected or listened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// `None` where the peer's process has no id in this process's namespace.
    pub pid: Option<u32>,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl PeerCredentials {
    /// Asks the kernel (`SO_PEERCRED`, `SO_PEERGROUPS`).
    ///
    /// # Errors
    ///
    /// When the descriptor is not a connected Unix socket.
    pub fn of_peer(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
        let (pid, uid, gid) = peer_ids(socket)?;
        Ok(PeerCredentials {
            pid,
            uid,
            gid,
            groups: peer_groups(socket)?,
        })
    }
}

/// The process at the other end of a Unix socket, as it was when it connected or listened
/// (`SO_PEERCRED`); `None` where it has no id in this process's namespace. For logs and what is
/// shown: ids are reused.
///
/// # Errors
///
/// When the descriptor is not a connected Unix socket.
pub fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    Ok(peer_ids(socket)?.0)
}

/// The effective user of the process at the other end of a connected Unix socket, as it was when it
/// connected.
///
/// # Errors
///
/// When the descriptor is not a connected Unix socket.
pub fn peer_uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(peer_ids(socket)?.1)
}

/// Process and effective user at the other end of a connected Unix socket, as [`peer_pid`] and
/// [`peer_uid`] return them.
///
/// # Errors
///
/// When the descriptor is not a connected Unix socket.
pub fn peer_pid_and_uid(socket: BorrowedFd<'_>) -> io::Result<(Option<u32>, u32)> {
    let (pid, uid, _) = peer_ids(socket)?;
    Ok((pid, uid))
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

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn peer_credentials_are_those_of_the_other_end() {
        let (a, _b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let peer = PeerCredentials::of_peer(a.as_fd()).unwrap();
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
