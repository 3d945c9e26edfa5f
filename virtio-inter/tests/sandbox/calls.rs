//! System calls that end the process, or fail.

use std::fs::File;
use std::{io, thread};

use virtio_inter::sandbox::calls::{CONTROL, WORKER};
use virtio_inter::sandbox::{Mode, Wall};
use virtio_inter_common::thread_role::{self, Role};
use virtio_inter_sandbox::seccomp::{COMMON, HELPER, START};
use virtio_inter_test_support::attacks::{ATTACKS, attempt, call};
use virtio_inter_test_support::inside::{
    assert_dies, assert_passed, case, directory, has_filters, run_again,
};

use crate::inside::enter_mode;

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
        (Some("control"), START),
    ] {
        for call in list {
            let is_made = made
                .iter()
                .any(|(by, name)| *name == call.name && role.is_none_or(|role| role == *by));
            assert!(is_made, "no {role:?} makes {}", call.name);
        }
    }
}
