//! The system calls of a port's and an uplink's threads, beside those of every program.
//!
//! A call is in a list because the program makes it in its tests, but for those in the lists
//! `UNSEEN_…`: `tests/sandbox/calls.rs` compares.
#![allow(
    clippy::unnecessary_cast,
    reason = "the constants' types differ by C library"
)]

use virtio_inter_sandbox::seccomp::Arguments::{Any, OneOf};
use virtio_inter_sandbox::seccomp::{Call, Calls, UNIX, call};

/// All of them.
pub const PORT: Calls = Calls {
    first: &[WORKER, UNSEEN_WORKER, CONTROL, UNSEEN_CONTROL],
    worker: &[WORKER, UNSEEN_WORKER],
};

/// For the threads of queues. Files are opened before.
pub const WORKER: &[Call] = &[
    // Kicks, doorbells, the tap device.
    call("epoll_ctl", libc::SYS_epoll_ctl, Any),
    #[cfg(target_arch = "x86_64")]
    call("epoll_wait", libc::SYS_epoll_wait, Any),
    // Doorbells.
    call("io_submit", libc::SYS_io_submit, Any),
    // Events that are to be cleared.
    call("read", libc::SYS_read, Any),
    // Interrupts, and reports to the control thread.
    call("write", libc::SYS_write, Any),
    // The tap device.
    call("readv", libc::SYS_readv, Any),
    call("writev", libc::SYS_writev, Any),
    // Interrupts that are no eventfds, as of User Mode Linux, without waiting.
    call("pwritev2", libc::SYS_pwritev2, Any),
    // Offloads of the tap device, when the guest has chosen them.
    call(
        "ioctl",
        libc::SYS_ioctl,
        OneOf(1, &[libc::TUNSETOFFLOAD as u64]),
    ),
];

/// For the control thread, and so for all others before they have a filter of their own.
pub const CONTROL: &[Call] = &[
    // Sockets: frontends, segment, status, the state of the tap device.
    call("socket", libc::SYS_socket, UNIX),
    call("socketpair", libc::SYS_socketpair, UNIX),
    call("bind", libc::SYS_bind, Any),
    call("listen", libc::SYS_listen, Any),
    call("accept4", libc::SYS_accept4, Any),
    call("connect", libc::SYS_connect, Any),
    call("shutdown", libc::SYS_shutdown, Any),
    call("sendmsg", libc::SYS_sendmsg, Any),
    call("recvmsg", libc::SYS_recvmsg, Any),
    // A reply that the former process of the port did not send.
    call("sendfile", libc::SYS_sendfile, Any),
    // The user of a peer.
    call("getsockopt", libc::SYS_getsockopt, Any),
    call("setsockopt", libc::SYS_setsockopt, Any),
    // Non-blocking sockets, what is left in their queues, the tap device.
    call(
        "ioctl",
        libc::SYS_ioctl,
        OneOf(
            1,
            &[
                libc::FIONBIO as u64,
                libc::TIOCOUTQ as u64,
                libc::SIOCGIFFLAGS as u64,
                libc::SIOCGIFMTU as u64,
                libc::TUNGETIFF as u64,
                libc::TUNSETIFF as u64,
                libc::TUNSETOFFLOAD as u64,
                libc::TUNSETVNETHDRSZ as u64,
                libc::TUNSETVNETLE as u64,
            ],
        ),
    ),
    // Files: sockets, locks, /proc.
    call("openat", libc::SYS_openat, Any),
    #[cfg(target_arch = "x86_64")]
    call("open", libc::SYS_open, Any),
    call("fstat", libc::SYS_fstat, Any),
    call("newfstatat", libc::SYS_newfstatat, Any),
    call("statx", libc::SYS_statx, Any),
    call("fstatfs", libc::SYS_fstatfs, Any),
    call("readlinkat", libc::SYS_readlinkat, Any),
    call("getdents64", libc::SYS_getdents64, Any),
    call("lseek", libc::SYS_lseek, Any),
    call("pread64", libc::SYS_pread64, Any),
    call("pwrite64", libc::SYS_pwrite64, Any),
    call("flock", libc::SYS_flock, Any),
    call("ftruncate", libc::SYS_ftruncate, Any),
    call("fallocate", libc::SYS_fallocate, Any),
    call("fchmod", libc::SYS_fchmod, Any),
    call("fchmodat", libc::SYS_fchmodat, Any),
    call("fchownat", libc::SYS_fchownat, Any),
    call("renameat", libc::SYS_renameat, Any),
    call("unlinkat", libc::SYS_unlinkat, Any),
    #[cfg(target_arch = "x86_64")]
    call("unlink", libc::SYS_unlink, Any),
    // Regions, and the states of sessions.
    call("memfd_create", libc::SYS_memfd_create, Any),
    // The loop, its timers, doorbells and signals.
    call("epoll_create1", libc::SYS_epoll_create1, Any),
    call("eventfd2", libc::SYS_eventfd2, Any),
    call("timerfd_create", libc::SYS_timerfd_create, Any),
    call("timerfd_settime", libc::SYS_timerfd_settime, Any),
    call("signalfd4", libc::SYS_signalfd4, Any),
    call("io_setup", libc::SYS_io_setup, Any),
    call("ppoll", libc::SYS_ppoll, Any),
    // A tap device that another process is leaving.
    call("clock_nanosleep", libc::SYS_clock_nanosleep, Any),
    // Whether another process exists; no signals.
    call("kill", libc::SYS_kill, OneOf(1, &[0])),
    call("geteuid", libc::SYS_geteuid, Any),
    call("getrandom", libc::SYS_getrandom, Any),
    // Limits of its own.
    call("prlimit64", libc::SYS_prlimit64, OneOf(0, &[0])),
];

/// For the threads of queues, although tests do not show it.
const UNSEEN_WORKER: &[Call] = &[
    // Kicks that stay readable, without waiting.
    call("preadv2", libc::SYS_preadv2, Any),
    // The account of run queues, before a worker busy-polls.
    call("lseek", libc::SYS_lseek, Any),
    call("pread64", libc::SYS_pread64, Any),
    call("read", libc::SYS_read, Any),
    // Completions of doorbells, once in many.
    call("io_getevents", libc::SYS_io_getevents, Any),
];

/// The same for the control thread: other names of what is above, in other C libraries and for
/// other processors.
const UNSEEN_CONTROL: &[Call] = &[
    call("accept", libc::SYS_accept, Any),
    call("getcwd", libc::SYS_getcwd, Any),
    call("faccessat", libc::SYS_faccessat, Any),
    call("nanosleep", libc::SYS_nanosleep, Any),
    call("renameat2", libc::SYS_renameat2, Any),
    call("statfs", libc::SYS_statfs, Any),
    #[cfg(target_arch = "x86_64")]
    call("access", libc::SYS_access, Any),
    #[cfg(target_arch = "x86_64")]
    call("chmod", libc::SYS_chmod, Any),
    #[cfg(target_arch = "x86_64")]
    call("epoll_create", libc::SYS_epoll_create, Any),
    #[cfg(target_arch = "x86_64")]
    call("lstat", libc::SYS_lstat, Any),
    #[cfg(target_arch = "x86_64")]
    call("poll", libc::SYS_poll, Any),
    #[cfg(target_arch = "x86_64")]
    call("readlink", libc::SYS_readlink, Any),
    #[cfg(target_arch = "x86_64")]
    call("rename", libc::SYS_rename, Any),
    #[cfg(target_arch = "x86_64")]
    call("stat", libc::SYS_stat, Any),
    #[cfg(target_arch = "x86_64")]
    call("time", libc::SYS_time, Any),
    #[cfg(target_arch = "x86_64")]
    call("getrlimit", libc::SYS_getrlimit, Any),
    call("getuid", libc::SYS_getuid, Any),
    call("getegid", libc::SYS_getegid, Any),
    call("getgid", libc::SYS_getgid, Any),
    call("uname", libc::SYS_uname, Any),
    call("sysinfo", libc::SYS_sysinfo, Any),
];
