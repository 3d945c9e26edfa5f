//! System calls that an attacker would make, to be tried from inside a sandbox.
#![allow(unsafe_code)] // These calls have no safe wrapper.

use std::process::Command;
use std::{io, ptr};

use libc::c_long;

/// Makes a system call, the arguments of which refer to no memory.
///
/// # Errors
///
/// As the kernel's.
pub fn call(number: c_long, arguments: [c_long; 4]) -> io::Result<c_long> {
    let [a, b, c, d] = arguments;
    // SAFETY: with these arguments, each call that is tried here fails or is forbidden before it
    // reads or writes memory of this process.
    match unsafe { libc::syscall(number, a, b, c, d) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// Maps a page, and makes it executable if it is not mapped so.
fn map(protection: i32) -> io::Result<()> {
    let (kind, exec) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_EXEC);
    // SAFETY: a new page, somewhere.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, kind, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nothing is in that page, and nothing uses it.
    let result = unsafe { libc::mprotect(page, 4096, protection | exec) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Tries one of the [`ATTACKS`].
///
/// # Errors
///
/// The kernel refuses it.
///
/// # Panics
///
/// There is none with that name.
pub fn attempt(name: &str) -> io::Result<()> {
    let of = |number| call(number, [0, 0, 0, 0]).map(drop);
    let first = |number, argument: i32| call(number, [argument.into(), 1, 0, 0]).map(drop);
    match name {
        "socket: inet" => first(libc::SYS_socket, libc::AF_INET),
        "socket: netlink" => first(libc::SYS_socket, libc::AF_NETLINK),
        "socket: packet" => first(libc::SYS_socket, libc::AF_PACKET),
        "execve" => of(libc::SYS_execve),
        "execveat" => of(libc::SYS_execveat),
        "fork" => Command::new("true").status().map(drop),
        "clone: namespace" => {
            let flags = libc::CLONE_THREAD | libc::CLONE_NEWUSER;
            first(libc::SYS_clone, flags)
        }
        "unshare" => first(libc::SYS_unshare, libc::CLONE_NEWUSER),
        "setns" => of(libc::SYS_setns),
        "mount" => of(libc::SYS_mount),
        "chroot" => of(libc::SYS_chroot),
        "setuid" => of(libc::SYS_setuid),
        "ptrace" => first(libc::SYS_ptrace, libc::PTRACE_ATTACH as i32),
        "process_vm_readv" => of(libc::SYS_process_vm_readv),
        "pidfd_getfd" => of(libc::SYS_pidfd_getfd),
        "io_uring_setup" => of(libc::SYS_io_uring_setup),
        "bpf" => of(libc::SYS_bpf),
        "perf_event_open" => of(libc::SYS_perf_event_open),
        "userfaultfd" => of(libc::SYS_userfaultfd),
        "add_key" => of(libc::SYS_add_key),
        "kill" => {
            let itself = std::process::id().cast_signed();
            call(libc::SYS_kill, [itself.into(), libc::SIGCONT.into(), 0, 0]).map(drop)
        }
        "ioctl" => call(libc::SYS_ioctl, [0, libc::TIOCSTI as c_long, 0, 0]).map(drop),
        "prctl" => first(libc::SYS_prctl, libc::PR_SET_DUMPABLE),
        "prlimit64: other" => first(libc::SYS_prlimit64, std::process::id().cast_signed()),
        "mmap: executable" => map(libc::PROT_READ | libc::PROT_EXEC),
        "mprotect: executable" => map(libc::PROT_READ | libc::PROT_WRITE),
        "open_by_handle_at" => of(libc::SYS_open_by_handle_at),
        other => panic!("no case {other}"),
    }
}

/// System calls that no process of this project has a use for, once it runs.
pub const ATTACKS: [&str; 27] = [
    "socket: inet",
    "socket: netlink",
    "socket: packet",
    "execve",
    "execveat",
    "fork",
    "clone: namespace",
    "unshare",
    "setns",
    "mount",
    "chroot",
    "setuid",
    "ptrace",
    "process_vm_readv",
    "pidfd_getfd",
    "io_uring_setup",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "add_key",
    "kill",
    "ioctl",
    "prctl",
    "prlimit64: other",
    "mmap: executable",
    "mprotect: executable",
    "open_by_handle_at",
];
