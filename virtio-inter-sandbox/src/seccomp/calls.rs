//! The system calls that threads of every program may make. What is in no list ends the process.
//!
//! A call is in a list because a program makes it in its tests, but for those in [`UNSEEN`]:
//! `virtio-inter/tests/sandbox/calls.rs` compares.
#![allow(
    clippy::unnecessary_cast,
    reason = "the constants' types differ by C library"
)]

use libc::c_long;

use Arguments::{Any, Masked, OneOf, OwnProcess};

/// Flags of clone(2) that make a namespace.
pub(super) const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Flags of clone(2) that make something else than a thread: a process, or a namespace.
const NO_THREAD: i32 = {
    let mut flags = libc::CLONE_VFORK | libc::CLONE_PTRACE;
    let mut index = 0;
    while index < NAMESPACES.len() {
        flags |= NAMESPACES[index];
        index += 1;
    }
    flags
};

/// The arguments with which a call may be made.
#[derive(Clone, Copy, Debug)]
pub enum Arguments {
    /// All.
    Any,
    /// The argument with this index has one of these values.
    OneOf(u8, &'static [u64]),
    /// Of these bits of the argument with this index, those are set.
    Masked(u8, u64, u64),
    /// The first one is this process.
    OwnProcess,
}

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    pub(super) number: c_long,
    pub(super) arguments: Arguments,
}

/// A system call, by its name and number.
pub const fn call(name: &'static str, number: c_long, arguments: Arguments) -> Call {
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
/// Unix sockets.
pub const UNIX: Arguments = OneOf(0, &[libc::AF_UNIX as u64]);

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

/// For the first thread, beside [`COMMON`]: it starts the others.
pub const START: &[Call] = &[
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
    // Threads.
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
