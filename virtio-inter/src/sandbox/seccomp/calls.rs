//! The system calls that threads may make. What is in no list ends the process.
//!
//! A call is in a list because the program makes it in its tests, but for those in [`UNSEEN`]:
//! `tests/sandbox/calls.rs` compares.
#![allow(
    clippy::unnecessary_cast,
    reason = "the constants' types differ by C library"
)]

use libc::c_long;

/// Flags of clone(2) that make something else than a thread: a process, or a namespace.
const NO_THREAD: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_VFORK
    | libc::CLONE_PTRACE;

/// The arguments with which a call may be made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arguments {
    /// All.
    Any,
    /// The argument with this index has one of these values.
    OneOf(u8, &'static [u64]),
    /// Of these bits of the argument with this index, those are set.
    Masked(u8, u64, u64),
    /// The first one is this process.
    OwnProcess,
}

use Arguments::{Any, Masked, OneOf, OwnProcess};

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    pub(super) number: c_long,
    pub(super) arguments: Arguments,
}

const fn call(name: &'static str, number: c_long, arguments: Arguments) -> Call {
    Call {
        name,
        number,
        arguments,
    }
}

/// Memory that is not executable.
const NO_EXEC: Arguments = Masked(2, libc::PROT_EXEC as u64, 0);
/// Threads.
const THREAD: Arguments = Masked(
    0,
    (NO_THREAD | libc::CLONE_THREAD) as u32 as u64,
    libc::CLONE_THREAD as u64,
);
/// Not in libc for all systems.
const PR_GET_AUXV: u64 = 0x4155_5856;
const UNIX: Arguments = OneOf(0, &[libc::AF_UNIX as u64]);

/// For each thread.
pub const COMMON: &[Call] = &[
    // Memory: heap and stacks.
    call("brk", libc::SYS_brk, Any),
    call("madvise", libc::SYS_madvise, Any),
    call("mmap", libc::SYS_mmap, NO_EXEC),
    call("mprotect", libc::SYS_mprotect, NO_EXEC),
    call("munmap", libc::SYS_munmap, Any),
    // Locks and channels.
    call("futex", libc::SYS_futex, Any),
    // Whatever is dropped.
    call("close", libc::SYS_close, Any),
    // The standard library checks descriptors that it closes, in debug builds. Control: seals,
    // duplicates, notifications about directories.
    call("fcntl", libc::SYS_fcntl, Any),
    // The handler of a signal, which any thread may run, wakes another thread.
    call("sendto", libc::SYS_sendto, Any),
    call("rt_sigreturn", libc::SYS_rt_sigreturn, Any),
    // The end of a thread.
    call("rt_sigprocmask", libc::SYS_rt_sigprocmask, Any),
    call("sigaltstack", libc::SYS_sigaltstack, Any),
    call("exit", libc::SYS_exit, Any),
    // The start of a thread: the bounds of its stack.
    call("gettid", libc::SYS_gettid, Any),
    call("sched_getaffinity", libc::SYS_sched_getaffinity, Any),
];

/// For the threads of queues, beside [`COMMON`]. Files are opened before.
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

/// For the threads of log, signals, notifications and closing, beside [`COMMON`].
pub const HELPER: &[Call] = &[
    // Standard error, and the service manager.
    call("write", libc::SYS_write, Any),
    // Signals, from their handler.
    call("recvfrom", libc::SYS_recvfrom, Any),
    // A signal that came twice kills.
    call("rt_sigaction", libc::SYS_rt_sigaction, Any),
    call("tgkill", libc::SYS_tgkill, OwnProcess),
    call("getpid", libc::SYS_getpid, Any),
];

/// For the control thread, and so for all others before they have a filter of their own; beside the
/// other lists.
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
    // Names and filters of threads; the size of pages.
    call(
        "prctl",
        libc::SYS_prctl,
        OneOf(
            0,
            &[
                libc::PR_SET_NAME as u64,
                libc::PR_SET_NO_NEW_PRIVS as u64,
                PR_GET_AUXV,
            ],
        ),
    ),
    // Threads: workers, closers.
    call("clone", libc::SYS_clone, THREAD),
    call("rseq", libc::SYS_rseq, Any),
    call("set_robust_list", libc::SYS_set_robust_list, Any),
    // More filters, which can only forbid more.
    call(
        "seccomp",
        libc::SYS_seccomp,
        OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER as u64]),
    ),
    call("exit_group", libc::SYS_exit_group, Any),
];

/// For each thread, although tests do not show it: other C libraries and kernels, and errors.
pub(super) const UNSEEN: &[Call] = &[
    // Clocks that need the kernel: time sources of some hypervisors.
    call("clock_gettime", libc::SYS_clock_gettime, Any),
    call("gettimeofday", libc::SYS_gettimeofday, Any),
    call("getcpu", libc::SYS_getcpu, Any),
    // A panic, and its message.
    call("exit_group", libc::SYS_exit_group, Any),
    call("getpid", libc::SYS_getpid, Any),
    call("ppoll", libc::SYS_ppoll, Any),
    call("rt_sigaction", libc::SYS_rt_sigaction, Any),
    call("tgkill", libc::SYS_tgkill, OwnProcess),
    call("write", libc::SYS_write, Any),
    // Kicks that stay readable, without waiting.
    call("preadv2", libc::SYS_preadv2, Any),
    // The account of run queues, before a worker busy-polls.
    call("lseek", libc::SYS_lseek, Any),
    call("pread64", libc::SYS_pread64, Any),
    call("read", libc::SYS_read, Any),
    // Completions of doorbells, once in many.
    call("io_getevents", libc::SYS_io_getevents, Any),
    // Large allocations that grow, keys of hash maps.
    call("mremap", libc::SYS_mremap, Any),
    call("getrandom", libc::SYS_getrandom, Any),
    // A channel or lock that another thread is about to release.
    call("sched_yield", libc::SYS_sched_yield, Any),
    // Sleeps that a stopped process goes on with.
    call("restart_syscall", libc::SYS_restart_syscall, Any),
    // Other names of what is above.
    call("epoll_pwait", libc::SYS_epoll_pwait, Any),
    call("set_robust_list", libc::SYS_set_robust_list, Any),
];

/// The same for the control thread.
pub(super) const UNSEEN_CONTROL: &[Call] = &[
    // Other names of what is above, in other C libraries and for other processors.
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
