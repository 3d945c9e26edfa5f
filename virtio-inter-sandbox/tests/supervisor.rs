//! Tries from inside the walls of a supervisor what they are there to prevent, and what programs
//! that it starts need.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

use virtio_inter_sandbox::supervisor::restrict_supervisor;
use virtio_inter_test_support::attacks::{ATTACKS, attempt};
use virtio_inter_test_support::inside::{assert_passed, directory, has_filters, run_again};

/// Attacks that a supervisor, or a program that it starts, makes as ordinary calls: it executes
/// programs, which map their code, and signals and limits them.
const ALLOWED: [&str; 9] = [
    "execve",
    "execveat",
    "fork",
    "setuid",
    "kill",
    "prctl",
    "prlimit64: other",
    "mmap: executable",
    "mprotect: executable",
];

/// Of this thread: capabilities are each thread's own.
fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// Runs the rest of a test in a process inside the walls. Returns false in the one outside.
fn enter() -> bool {
    if directory().is_none() {
        if has_filters() {
            assert_passed(&run_again());
        }
        return false;
    }
    let report = restrict_supervisor();
    assert!(report.missing.is_empty(), "{report:?}");
    true
}

#[test]
fn supervisor_and_its_threads_are_refused_what_nobody_needs() {
    let (go, wait) = channel::<()>();
    let before = thread::spawn(move || {
        let _ = wait.recv();
        refused();
    });
    if !enter() {
        return;
    }
    refused();
    // Also in a thread that there was already.
    drop(go);
    before.join().unwrap();
}

fn refused() {
    if directory().is_none() {
        return;
    }
    for case in ATTACKS {
        if !ALLOWED.contains(&case) {
            let error = attempt(case).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{case}");
        }
    }
}

#[test]
fn supervisor_starts_programs_and_keeps_its_files() {
    if !enter() {
        return;
    }
    let place = directory().unwrap();
    assert!(Command::new("true").status().unwrap().success());
    File::open("/etc/passwd").unwrap();
    fs::write(place.join("file"), "1").unwrap();
    UnixStream::pair().unwrap();
    thread::spawn(|| ()).join().unwrap();
    // Of a program that it starts.
    let shell = "grep -q 'NoNewPrivs:.1' /proc/self/status && exec 3<>/dev/null";
    assert!(
        Command::new("sh")
            .args(["-c", shell])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn supervisor_keeps_the_capabilities_of_ports() {
    if !enter() {
        return;
    }
    assert_eq!(status("NoNewPrivs"), "1");
    // CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETPCAP, NET_ADMIN.
    let kept = 0b1_0001_0010_1011_u64;
    for set in ["CapPrm", "CapEff", "CapInh"] {
        let value = u64::from_str_radix(&status(set), 16).unwrap();
        assert_eq!(value & !kept, 0, "{set}");
    }
    if rustix::process::geteuid().is_root() {
        // Programs that it executes get no more.
        let bound = u64::from_str_radix(&status("CapBnd"), 16).unwrap();
        assert_eq!(bound & !kept, 0);
    }
}
