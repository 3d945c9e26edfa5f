//! System calls that end the process, or fail.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::{io, ptr, thread};

use libc::c_long;
use virtio_inter::sandbox::seccomp::{COMMON, CONTROL, HELPER, WORKER};
use virtio_inter::sandbox::{Mode, Wall};
use virtio_inter_common::thread_role::{self, Role};
use virtio_inter_test_support::skip;

use crate::inside::{assert_passed, case, directory, enter_mode, run_again, run_case};

/// Makes a system call, the arguments of which refer to no memory.
fn call(number: c_long, arguments: [c_long; 4]) -> io::Result<c_long> {
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

/// Tries one of the calls that [`calls_that_attack_end_the_process`] names.
fn attempt(name: &str) -> io::Result<()> {
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

const ATTACKS: [&str; 27] = [
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

/// What a role's thread may do less than the control thread, or does without.
fn in_thread(role: Role, attempt: fn() -> io::Result<()>) -> io::Result<()> {
    let thread = thread::spawn(move || {
        thread_role::enter(role);
        attempt()
    });
    thread.join().unwrap()
}

/// Enters the sandbox in a process of a test. Returns false if the kernel has no filters.
fn enter_on() -> bool {
    let report = enter_mode(Mode::On, &directory().unwrap());
    report.walls.contains(&Wall::SystemCalls)
}

#[track_caller]
fn assert_dies(case: &str) {
    let output = run_case(case);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{case}: {text}");
}

/// Whether filters can be tested; if not, the test was skipped.
fn has_filters() -> bool {
    let has = std::fs::exists("/proc/sys/kernel/seccomp/actions_avail").unwrap();
    if !has {
        skip("this kernel has no filters of system calls");
    }
    has
}

#[test]
fn calls_that_attack_end_the_process() {
    if directory().is_some() {
        assert!(enter_on());
        let result = attempt(&case());
        panic!("{} is not forbidden: {result:?}", case());
    }
    if has_filters() {
        for case in ATTACKS {
            assert_dies(case);
        }
    }
}

#[test]
fn calls_of_the_control_thread_end_the_process_in_others() {
    let attempt = || match case().as_str() {
        "socket" => call(libc::SYS_socket, [libc::AF_UNIX.into(), 1, 0, 0]).map(drop),
        "memfd_create" => call(libc::SYS_memfd_create, [0; 4]).map(drop),
        "unlinkat" => call(libc::SYS_unlinkat, [0; 4]).map(drop),
        "prctl" => call(libc::SYS_prctl, [libc::PR_SET_NAME.into(), 0, 0, 0]).map(drop),
        _ => panic!("no such case"),
    };
    if directory().is_some() {
        assert!(enter_on());
        // All are allowed here, whatever the result.
        let _ = attempt();
        for role in [Role::Worker, Role::Helper] {
            if role == Role::Worker || case() != "socket" {
                let result = in_thread(role, attempt);
                panic!("{} is not forbidden to {role:?}: {result:?}", case());
            }
        }
        let _ = in_thread(Role::Helper, attempt);
        panic!("a helper may");
    }
    if has_filters() {
        for case in ["socket", "memfd_create", "unlinkat", "prctl"] {
            assert_dies(case);
        }
    }
}

/// A panic that prints a backtrace opens files; the first log line may start a thread.
#[test]
fn workers_cannot_open_files_and_start_threads_but_live_on() {
    if directory().is_none() {
        if has_filters() {
            assert_passed(&run_again());
        }
        return;
    }
    assert!(enter_on());
    File::open("/proc/self/status").unwrap();
    for role in [Role::Worker, Role::Helper] {
        in_thread(role, || {
            let error = File::open("/proc/self/status").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
            let error = thread::Builder::new().spawn(|| ()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
            Ok(())
        })
        .unwrap();
    }
}

/// What a test of the program would not show: threads start and end, memory is used, and a thread
/// panics.
#[test]
fn ordinary_programs_run_inside() {
    if directory().is_none() {
        if has_filters() {
            assert_passed(&run_again());
        }
        return;
    }
    assert!(enter_on());
    for _ in 0..3 {
        let threads: Vec<_> = (0..4)
            .map(|size| thread::spawn(move || vec![1u8; 1 << (20 + size)].len()))
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
    let panicked = thread::spawn(|| {
        thread_role::enter(Role::Worker);
        panic!("on purpose")
    });
    assert!(panicked.join().is_err());
}

/// Only logged: the test's own process would be ended.
#[test]
fn log_mode_goes_on_after_a_forbidden_call() {
    if directory().is_none() {
        if has_filters() {
            assert_passed(&run_again());
        }
        return;
    }
    let report = enter_mode(Mode::Log, &directory().unwrap());
    let missing = report.missing.iter();
    let calls = missing.filter(|missing| missing.wall == Wall::SystemCalls);
    assert_eq!(calls.count(), 1, "{report:?}");
    let error = call(libc::SYS_setns, [-1, 0, 0, 0]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
}

/// The record is made by `record.sh`, on x86_64 with glibc.
#[test]
fn calls_that_are_allowed_are_made() {
    let made: Vec<(&str, &str)> = include_str!("calls.txt")
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    for (role, list) in [
        (None, COMMON),
        (Some("worker"), WORKER),
        (Some("helper"), HELPER),
        (Some("control"), CONTROL),
    ] {
        for call in list {
            let is_made = made
                .iter()
                .any(|(by, name)| *name == call.name && role.is_none_or(|role| role == *by));
            assert!(is_made, "no {role:?} makes {}", call.name);
        }
    }
}
