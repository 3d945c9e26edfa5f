//! The sandbox of the exporter, whose clients may be anywhere in the network: what it needs once it
//! listens. See decision 0110.
#![allow(
    clippy::unnecessary_cast,
    reason = "the constants' types differ by C library"
)]

use std::fs::canonicalize;
use std::path::{Path, PathBuf};

use virtio_inter_args::SEGMENTS;
use virtio_inter_sandbox::seccomp::Arguments::{Any, OneOf};
use virtio_inter_sandbox::seccomp::{Call, Calls, UNIX, call};
use virtio_inter_sandbox::{Access, directory_of};

use crate::args::ExporterArgs;
use crate::listen_addr::ListenAddr;
use crate::place::Place;

/// The files that it needs: the sockets of ports, and its own.
pub(crate) fn access_of(arguments: &ExporterArgs, places: &[Place]) -> Access {
    let mut access = Access {
        lists: lists(
            Path::new(SEGMENTS),
            arguments.places.places.is_empty(),
            places,
        ),
        ..Access::default()
    };
    if let Some(ListenAddr::Unix(socket)) = &arguments.listen {
        access.removes.push(directory_of(socket).to_owned());
    }
    access.writes.extend(arguments.textfile.clone());
    access
}

/// The directories to list: all segments, those that are made later too, by the directory in which
/// they are, and others by their own.
fn lists(root: &Path, is_all: bool, places: &[Place]) -> Vec<PathBuf> {
    let is_below = |segment: &Path| segment.parent() == Some(root);
    let mut lists = Vec::new();
    if is_all || places.iter().any(|place| is_below(&place.segment)) {
        lists.push(root.to_owned());
    }
    for Place { segment, .. } in places {
        // The walls know no links.
        let is_link = || {
            canonicalize(segment).ok()
                != canonicalize(root)
                    .ok()
                    .and_then(|root| Some(root.join(segment.file_name()?)))
        };
        if (!is_below(segment) || is_link()) && !lists.contains(segment) {
            lists.push(segment.clone());
        }
    }
    lists
}

/// The system calls of its threads: one that serves clients, and some that ask ports.
pub const CALLS: Calls = Calls {
    first: &[EXPORTER, UNSEEN],
    worker: &[],
};

/// Those that it makes in its tests.
pub const EXPORTER: &[Call] = &[
    // Clients.
    call("accept4", libc::SYS_accept4, Any),
    call("writev", libc::SYS_writev, Any),
    call("shutdown", libc::SYS_shutdown, Any),
    call("getsockname", libc::SYS_getsockname, Any),
    // Ports, and the pair by which signals arrive.
    call("socket", libc::SYS_socket, UNIX),
    call("socketpair", libc::SYS_socketpair, UNIX),
    call("connect", libc::SYS_connect, Any),
    call("getsockopt", libc::SYS_getsockopt, Any),
    call("read", libc::SYS_read, Any),
    call("ppoll", libc::SYS_ppoll, Any),
    call("ioctl", libc::SYS_ioctl, OneOf(1, &[libc::FIONBIO as u64])),
    // The runtime.
    call("epoll_create1", libc::SYS_epoll_create1, Any),
    call("epoll_ctl", libc::SYS_epoll_ctl, Any),
    #[cfg(target_arch = "x86_64")]
    call("epoll_wait", libc::SYS_epoll_wait, Any),
    call("eventfd2", libc::SYS_eventfd2, Any),
    // Segments, and the file for the textfile collector.
    call("openat", libc::SYS_openat, Any),
    call("newfstatat", libc::SYS_newfstatat, Any),
    call("statx", libc::SYS_statx, Any),
    call("getdents64", libc::SYS_getdents64, Any),
    #[cfg(target_arch = "x86_64")]
    call("rename", libc::SYS_rename, Any),
    #[cfg(target_arch = "x86_64")]
    call("unlink", libc::SYS_unlink, Any),
    // Keys of hash maps.
    call("getrandom", libc::SYS_getrandom, Any),
];

/// Those that its tests do not show: other C libraries, other processors, and errors.
const UNSEEN: &[Call] = &[
    call("accept", libc::SYS_accept, Any),
    call("recvfrom", libc::SYS_recvfrom, Any),
    call("sendmsg", libc::SYS_sendmsg, Any),
    call("recvmsg", libc::SYS_recvmsg, Any),
    call("getpeername", libc::SYS_getpeername, Any),
    call("faccessat", libc::SYS_faccessat, Any),
    call("fstat", libc::SYS_fstat, Any),
    call("lseek", libc::SYS_lseek, Any),
    call("getcwd", libc::SYS_getcwd, Any),
    call("readlinkat", libc::SYS_readlinkat, Any),
    call("renameat", libc::SYS_renameat, Any),
    call("renameat2", libc::SYS_renameat2, Any),
    call("unlinkat", libc::SYS_unlinkat, Any),
    call("clock_nanosleep", libc::SYS_clock_nanosleep, Any),
    call("nanosleep", libc::SYS_nanosleep, Any),
    #[cfg(target_arch = "x86_64")]
    call("open", libc::SYS_open, Any),
    #[cfg(target_arch = "x86_64")]
    call("poll", libc::SYS_poll, Any),
    #[cfg(target_arch = "x86_64")]
    call("lstat", libc::SYS_lstat, Any),
    #[cfg(target_arch = "x86_64")]
    call("stat", libc::SYS_stat, Any),
    #[cfg(target_arch = "x86_64")]
    call("readlink", libc::SYS_readlink, Any),
    // Limits of its own.
    call("prlimit64", libc::SYS_prlimit64, OneOf(0, &[0])),
];

#[cfg(test)]
mod tests {
    use std::fs::create_dir;
    use std::os::unix::fs::symlink;

    use super::*;

    fn places(segments: &[&Path]) -> Vec<Place> {
        let place = |segment: &&Path| Place {
            segment: segment.to_path_buf(),
            port: None,
            ports: [].into(),
            unreadable: None,
        };
        segments.iter().map(place).collect()
    }

    #[test]
    fn sandbox_of_an_exporter_has_segments_by_their_root_and_others_alone() {
        let temp = tempfile::tempdir().unwrap();
        let (root, aside) = (temp.path().join("root"), temp.path().join("aside"));
        for directory in [&root, &aside, &root.join("web"), &root.join("db")] {
            create_dir(directory).unwrap();
        }
        symlink(&aside, root.join("link")).unwrap();
        let (web, db, link) = (&*root.join("web"), &*root.join("db"), &*root.join("link"));
        assert_eq!(lists(&root, true, &[]), [&*root]);
        assert_eq!(lists(&root, true, &places(&[web, db])), [&*root]);
        assert_eq!(lists(&root, false, &places(&[web])), [&*root]);
        assert_eq!(lists(&root, false, &places(&[&aside])), [&*aside]);
        let both = places(&[&aside, &aside, web]);
        assert_eq!(lists(&root, false, &both), [&*root, &*aside]);
        assert_eq!(lists(&root, true, &places(&[web, link])), [&*root, link]);
    }
}
